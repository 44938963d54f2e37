"""A tournament: several proposers share a night, and the one that brings most is asked most often.

All start from the shared champion and are shown the whole record. Which of them proposes follows
from the night's record alone, of which the last trial's result is left out: so the choice is the
same whether it is made while that trial trains or after it, before a kill or after the resumption.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from tasks.proposers.proposal import Proposer, Researcher
from tasks.records import NightSoFar, Proposal, RunResult, Trial
from tasks.search import bandit


@dataclasses.dataclass(frozen=True)
class Tournament:
    """Its proposals say whose they are. Has no state."""

    contenders: Mapping[str, Proposer]  # by name
    machine_price: float | None = None  # dollars an hour, see bandit.record_of
    name: str = "tournament"

    def propose(self, night: NightSoFar) -> Proposal | None:
        return next(iter(self.ideas(night)), None)

    def ideas(self, night: NightSoFar) -> tuple[Proposal, ...]:
        """Those of the contender whose turn it is; another's if it has nothing left."""
        for name in self._order(night):
            if ideas := _ideas(self.contenders[name], _as_seen_by(name, night)):
                return tuple(_marked(idea, name) for idea in ideas)
        return ()

    def thinks(self, night: NightSoFar) -> bool:
        name = self._order(night)[0]
        contender = self.contenders[name]
        return isinstance(contender, Researcher) and contender.thinks(_as_seen_by(name, night))

    def fix(self, night: NightSoFar, proposal: Proposal, run: RunResult) -> Proposal | None:
        name = str(proposal.idea.contender)
        contender = self.contenders.get(name)
        if not isinstance(contender, Researcher):
            return None
        fixed = contender.fix(_as_seen_by(name, night), proposal, run)
        return fixed and _marked(fixed, name)

    def cancel(self) -> None:
        for contender in self.contenders.values():
            if isinstance(contender, Researcher):
                contender.cancel()

    def _order(self, night: NightSoFar) -> tuple[str, ...]:
        trials = _before(night)
        turns = _turns(night)
        had = {name: turns[name] for name in self.contenders}
        known = trials if night.in_flight else trials[:-1]
        record = bandit.record_of(self.contenders, known, night.to_beat, self.machine_price)
        return bandit.order(record, had, f"tournament/{night.seed}/{night.turn}")


def _ideas(contender: Proposer, night: NightSoFar) -> tuple[Proposal, ...]:
    if isinstance(contender, Researcher):
        return contender.ideas(night)
    proposed = contender.propose(night)
    return (proposed,) if proposed else ()


def _before(night: NightSoFar) -> tuple[Trial, ...]:
    """The finished trials, without proposals for the next one that were refused."""
    return tuple(trial for trial in night.trials if trial.number < night.next_trial)


def _turns(night: NightSoFar) -> Counter[str | None]:
    """How many trials each contender has had, the one in flight included."""
    ideas = [trial.idea for trial in _before(night)]
    ideas += [night.in_flight.idea] if night.in_flight else []
    return Counter(idea.contender for idea in ideas)


def _as_seen_by(name: str, night: NightSoFar) -> NightSoFar:
    """The night for one contender: the turns are its own, and so is the notebook."""
    others = night.turn - 1 - _turns(night)[name]
    trials = tuple(
        trial
        if trial.idea.contender == name
        else dataclasses.replace(trial, idea=dataclasses.replace(trial.idea, notes=None))
        for trial in night.trials
    )
    in_flight = night.in_flight
    if in_flight and in_flight.idea.contender != name:
        in_flight = dataclasses.replace(
            in_flight, idea=dataclasses.replace(in_flight.idea, notes=None)
        )
    return dataclasses.replace(
        night, trials=trials, in_flight=in_flight, placebos=night.placebos + others
    )


def _marked(proposal: Proposal, name: str) -> Proposal:
    return dataclasses.replace(proposal, idea=dataclasses.replace(proposal.idea, contender=name))
