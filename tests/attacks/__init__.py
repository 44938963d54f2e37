"""Cheating candidates, unusual honest ones, and what the judge must say of each."""
