"""Two proposers that share every result: a researcher that reads code on some trials, the tpe proposer on the others.

A language model on 30 % of the trials beside a classical optimizer that sees them all did better than either alone
(Centaur, there with CMA-ES: Ferreira et al., arXiv 2603.24647, 3 seeds). Which one proposes a trial depends on its number
alone, so a resumed night proposes as the old one would have.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

from tasks.proposers.proposal import Proposer, Researcher
from tasks.records import NightSoFar, Proposal, RunResult


@dataclasses.dataclass(frozen=True)
class MixedProposer:
    """The proposals keep the names of those that made them."""

    researcher: Researcher
    tpe: Proposer
    share: float  # of the trials that are the researcher's, 0 < share <= 1, evenly spread: 0.3 is trials 4, 7, 10, 14, ...
    name: str = "mixed"

    def propose(self, night: NightSoFar) -> Proposal | None:
        return (self.researcher if self._is_researchers(night.next_trial) else self.tpe).propose(
            night
        )

    def thinks(self, night: NightSoFar) -> bool:
        return self._is_researchers(night.next_trial) and self.researcher.thinks(night)

    def fix(self, night: NightSoFar, proposal: Proposal, run: RunResult) -> Proposal | None:
        return self.researcher.fix(night, proposal, run)  # which knows its own

    def cancel(self) -> None:
        self.researcher.cancel()

    def _is_researchers(self, trial: int) -> bool:
        share = Fraction(self.share).limit_denominator(
            1000
        )  # as floats, 0.29 * 100 is less than 29
        return math.floor(trial * share) > math.floor((trial - 1) * share)
