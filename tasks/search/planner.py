"""The planner: which of a night's ways of searching has the next trial, and with which idea."""

from __future__ import annotations

from typing import Protocol

from tasks.records import NightSoFar, Parent, Proposal
from tasks.statuses import Search


class Strategy(Protocol):
    """A way of searching that asks no model. It has no state, so a resumed night does the same."""

    @property
    def name(self) -> Search: ...

    def propose(self, night: NightSoFar) -> Proposal | None:
        """Its candidate for the next trial, or None if nothing is worth a run now."""


class Parents(Protocol):
    """A small archive of files other than the champion that a researcher may build on."""

    def parent(self, night: NightSoFar) -> Parent | None:
        """The one to build on now; None if none is worth it."""
