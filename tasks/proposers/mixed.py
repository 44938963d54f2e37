"""Two proposers that share every result: a researcher on some trials, tpe on the others.

A language model on 30 % of the trials beside a classical optimizer that sees them all did better
than either alone (Centaur, there with CMA-ES: Ferreira et al., arXiv 2603.24647, 3 seeds). Which of
the two proposes depends on the candidate's number alone, so a resumed night proposes the same.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

from tasks.proposers.proposal import Proposer, Researcher
from tasks.records import NightSoFar, Proposal, RunResult


@dataclasses.dataclass(frozen=True)
class MixedProposer:
    """Its proposals keep the names of those that made them."""

    researcher: Researcher
    tpe: Proposer
    # The researcher's share of the trials, in (0, 1], evenly spread: 0.3 is 4, 7, 10, 14, ...
    share: float
    name: str = "mixed"

    def propose(self, night: NightSoFar) -> Proposal | None:
        """The proposal of the one whose trial it is; the researcher's if tpe has none left."""
        if self._is_researchers(night.turn):
            return self.researcher.propose(night)
        return self.tpe.propose(night) or self.researcher.propose(night)

    def ideas(self, night: NightSoFar) -> tuple[Proposal, ...]:
        """The researcher's if it is its trial, otherwise the one proposal of tpe."""
        proposed = None if self._is_researchers(night.turn) else self.tpe.propose(night)
        return (proposed,) if proposed else self.researcher.ideas(night)

    def thinks(self, night: NightSoFar) -> bool:
        return self._is_researchers(night.turn) and self.researcher.thinks(night)

    def fix(self, night: NightSoFar, proposal: Proposal, run: RunResult) -> Proposal | None:
        return self.researcher.fix(night, proposal, run)  # it recognises its own

    def cancel(self) -> None:
        self.researcher.cancel()

    def _is_researchers(self, turn: int) -> bool:
        share = Fraction(self.share).limit_denominator(1000)  # as a float, 0.29 * 100 is below 29
        return math.floor(turn * share) > math.floor((turn - 1) * share)
