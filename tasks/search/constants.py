"""Constants: tpe turns the knobs of a champion whose code a researcher writes.

A researcher's patch comes with constants that it has guessed. Those are turned first.
"""

from __future__ import annotations

import dataclasses

from tasks.proposers import proposal
from tasks.proposers.proposal import Proposer
from tasks.records import NightSoFar, Proposal
from tasks.statuses import Search


@dataclasses.dataclass(frozen=True)
class Constants:
    """A strategy: None if there is no knob left to turn."""

    tpe: Proposer  # a TpeProposer(new_first=True)

    @property
    def name(self) -> Search:
        return "constants"

    def propose(self, night: NightSoFar) -> Proposal | None:
        proposed = proposal.ask(self.tpe, night)
        if proposed is None or proposed.problem:
            return None
        idea = dataclasses.replace(proposed.idea, search=self.name)
        return dataclasses.replace(proposed, idea=idea)
