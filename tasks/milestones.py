"""The places between two steps of a night where a machine may die. Reaching one does nothing; tests end the process there."""

from __future__ import annotations


def reached(name: str) -> None:
    """Called by the flow between two steps that change something durable: `decided`, `committed`, `applied`, ..."""
