"""The planner: which way of searching has the next trial, and which of the ideas that wait.

It stands before the night's researcher and is one itself. What it does follows from the night's
record and from the queue's file alone, so a resumed night proposes the same.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Protocol, runtime_checkable

import configs
from tasks.proposers import proposal
from tasks.proposers.proposal import Researcher
from tasks.proposers.three_way_merge import three_way_of_files
from tasks.records import (
    Alternative,
    Candidate,
    Idea,
    NightSoFar,
    Parent,
    Proposal,
    RunResult,
)
from tasks.search import features
from tasks.search.idea_queue import IdeaQueue, Ideas, Queued
from tasks.search.surrogate import Expectation, Features, Surrogate
from tasks.statuses import Search

CALLS = 10  # the latest: what a call usually brings
MOST_ALTERNATIVES = 12  # on record, with each choice
LEAST_NOISE = 1e-3  # of a score, while nothing is known of it


class Strategy(Protocol):
    """A way of searching that asks no model. It has no state, so a resumed night does the same."""

    @property
    def name(self) -> Search: ...

    def propose(self, night: NightSoFar) -> Proposal | None:
        """Its candidate for the next trial, or None if nothing is worth a run now."""


@runtime_checkable
class Recovers(Protocol):
    """A researcher that keeps a record of its answers."""

    def recovered(self, night: NightSoFar) -> tuple[Proposal, ...]:
        """The ideas of an answer for this trial that a kill has kept from the queue."""


class Parents(Protocol):
    """A small archive of files other than the champion that a researcher may build on."""

    def parent(self, night: NightSoFar) -> Parent | None:
        """The one to build on now; None if none is worth it."""


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """An idea that can be run now: against the file that is shown, with what is expected of it."""

    proposal: Proposal
    expectation: Expectation

    @property
    def alternative(self) -> Alternative:
        idea, expected = self.proposal.idea, self.expectation
        return Alternative(
            str(idea.queued), idea.summary, expected.gain, expected.sd, expected.score
        )


@dataclasses.dataclass(frozen=True)
class _Table:
    """What there is to choose from, best first, and why other ideas of the queue are no longer."""

    waiting: tuple[_Waiting, ...]
    gone: Mapping[str, str]
    is_call_due: bool

    @property
    def proposals(self) -> tuple[Proposal, ...]:
        return tuple(each.proposal for each in self.waiting)


@dataclasses.dataclass(frozen=True)
class Planner:
    """A researcher whose ideas wait in a queue, and strategies that have some of its turns."""

    researcher: Researcher
    settings: configs.Search
    strategies: tuple[Strategy, ...] = ()
    parents: Parents | None = None
    share: float = 1.0  # of the night's turns that come here, as MixedProposer spreads them
    contender: str | None = None  # of a tournament: its ideas wait apart from the others'

    @property
    def name(self) -> str:
        return self.researcher.name

    def propose(self, night: NightSoFar) -> Proposal | None:
        due = self._due(night)
        if due and (proposed := self._by_strategy(due, night)):
            return proposed
        night = self._on_parent(due, night)
        if self.settings.ideas == 1 or night.folder is None:
            return _marked(self.researcher.propose(night), self.name, night)
        return self._chosen(night, IdeaQueue.of(night.folder))

    def ideas(self, night: NightSoFar) -> tuple[Proposal, ...]:
        return tuple(filter(None, [self.propose(night)]))

    def thinks(self, night: NightSoFar) -> bool:
        """False if the next proposal needs no call: then it can wait for the present result."""
        due = self._due(night)
        if not self.researcher.thinks(night) or (due and self._by_strategy(due, night)):
            return False
        if self.settings.ideas == 1:
            return True
        night = self._on_parent(due, night)
        return night.folder is None or self._table(night, IdeaQueue.of(night.folder)).is_call_due

    def fix(self, night: NightSoFar, proposal: Proposal, run: RunResult) -> Proposal | None:
        """By the researcher. It stays the same idea of the queue."""
        fixed = self.researcher.fix(night, proposal, run)
        if fixed is None:
            return None
        before = proposal.idea
        idea = dataclasses.replace(
            fixed.idea,
            queued=before.queued,
            choice=before.choice,
            search=before.search,
            built_on=before.built_on,
            estimate=before.estimate,
        )
        return dataclasses.replace(fixed, idea=idea)

    def cancel(self) -> None:
        self.researcher.cancel()

    def _due(self, night: NightSoFar) -> Search | None:
        """The way of searching whose turn it is; None: the researcher's own."""
        shares: dict[Search, float] = {
            each.name: self._share(each.name) for each in self.strategies
        }
        if self.parents:
            shares["archive"] = self.settings.archive_share
        # Of the turns that come here. A strategy's share is that of all.
        turn = math.floor(night.turn * Fraction(self.share).limit_denominator(1000))
        return turn_of(turn, {way: min(one / self.share, 1.0) for way, one in shares.items()})

    def _share(self, name: Search) -> float:
        return float(getattr(self.settings, f"{name}_share", 0.0))

    def _by_strategy(self, due: Search, night: NightSoFar) -> Proposal | None:
        """What the strategy proposes, if that can be run."""
        for strategy in self.strategies:
            if strategy.name == due and (proposed := strategy.propose(night)):
                refused = proposal.check(proposed.candidate, night.seen)
                return None if proposed.problem or refused else proposed
        return None

    def _on_parent(self, due: Search | None, night: NightSoFar) -> NightSoFar:
        parent = self.parents.parent(night) if due == "archive" and self.parents else None
        return dataclasses.replace(night, parent=parent) if parent else night

    def _recovered(self, night: NightSoFar, queue: IdeaQueue) -> tuple[Proposal, ...]:
        is_asked = any(idea.trial == night.next_trial for idea in queue.read().every)
        if is_asked or not isinstance(self.researcher, Recovers):
            return ()
        return self.researcher.recovered(night)

    def _chosen(self, night: NightSoFar, queue: IdeaQueue) -> Proposal | None:
        """The best of what waits, after a call if one is due.

        What the fallback proposes while the model cannot be asked, or an answer without a patch, is
        only taken if nothing waits.
        """
        table = self._table(night, queue)
        if table.is_call_due:
            queue.drop(table.gone)
            asking = dataclasses.replace(night, waiting=table.proposals)
            made = self._recovered(night, queue) or self.researcher.ideas(asking)
            if any(each.idea.outcome == "cancelled" for each in made):
                return made[0]
            own = [each for each in made if each.idea.proposer == self.name and not each.problem]
            queue.add(night.next_trial, night.shown, [self._as_own(each, night) for each in own])
            table = self._table(night, queue)
            if not table.waiting and night.parent:  # what is for the champion may have its turn
                queue.drop(table.gone)
                table = self._table(dataclasses.replace(night, parent=None), queue)
            if not table.waiting:
                queue.drop(table.gone)
                return made[0] if made else None
        kept = table.waiting[: 1 + self.settings.queue]  # one is run
        too_many = {
            str(each.proposal.idea.queued): f"more than {self.settings.queue} ideas waited, and it "
            f"promised least: {each.expectation.score:.2g} bits per byte"
            for each in table.waiting[len(kept) :]
        }
        queue.drop({**table.gone, **too_many})
        choice = tuple(each.alternative for each in kept[:MOST_ALTERNATIVES])
        best = kept[0].proposal
        return dataclasses.replace(best, idea=dataclasses.replace(best.idea, choice=choice))

    def _as_own(self, proposed: Proposal, night: NightSoFar) -> Proposal:
        idea = dataclasses.replace(proposed.idea, contender=self.contender)
        return _as(dataclasses.replace(proposed, idea=idea), night)

    def _table(self, night: NightSoFar, queue: IdeaQueue) -> _Table:
        """The own ideas that were made against the file that is shown, or an older champion."""
        ideas = queue.read()
        parent = night.parent.trial if night.parent else None
        own = (one for one in ideas.every if one.said.contender == self.contender)
        return _table(night, ideas, [one for one in own if _parent_of(one.said) == parent])


def _marked(proposed: Proposal | None, researcher: str, night: NightSoFar) -> Proposal | None:
    is_its = proposed is not None and proposed.idea.proposer == researcher
    return _as(proposed, night) if proposed and is_its and not proposed.problem else proposed


def _as(proposed: Proposal, night: NightSoFar) -> Proposal:
    """The same, with what it was built on, if that is another file than the champion."""
    if night.parent is None:
        return proposed
    idea = dataclasses.replace(proposed.idea, search="archive", built_on=(night.parent.trial,))
    return dataclasses.replace(proposed, idea=idea)


def _table(night: NightSoFar, ideas: Ideas, mine: Sequence[Queued]) -> _Table:
    gone: dict[str, str] = {}
    usable: dict[str, Proposal] = {}
    by_digest: dict[str | None, str] = {}
    free = {one.id for one in ideas.waiting(night)}
    waiting = {one.id: one for one in mine if one.id in free}
    for one in waiting.values():
        carried = _carried(one, night)
        if isinstance(carried, str):
            gone[one.id] = carried
        elif (first := by_digest.setdefault(carried.candidate.digest, one.id)) != one.id:
            gone[one.id] = f"the same as idea {first}"
        else:
            usable[one.id] = carried
    surrogate = Surrogate(features.tried(night), night.sd or LEAST_NOISE)
    found = surrogate.expect([_features(waiting[key], night) for key in usable])
    ranked = sorted(map(_Waiting, usable.values(), found), key=lambda each: -each.expectation.score)
    return _Table(tuple(ranked), gone, _is_call_due(night, mine, ranked, surrogate))


def _is_call_due(
    night: NightSoFar, mine: Sequence[Queued], ranked: Sequence[_Waiting], surrogate: Surrogate
) -> bool:
    if any(one.trial == night.next_trial for one in mine):
        return not ranked  # one was made for this trial already, maybe before a kill
    calls: dict[int, list[float]] = {}
    latest = sorted({one.trial for one in mine})[-CALLS:]
    several = [one for one in mine if one.trial in latest]
    expected = surrogate.expect([_features(one, night, as_new=True) for one in several])
    for one, each in zip(several, expected, strict=True):
        calls.setdefault(one.trial, []).append(each.score)
    return is_call_due([each.expectation.score for each in ranked], list(calls.values()))


def is_call_due(waiting: Sequence[float], calls: Sequence[Sequence[float]]) -> bool:
    """Whether a new call promises more than what waits; by scores of the same surrogate.

    `calls` are those of all ideas of the latest calls, whatever became of them: a new one brings as
    much as the best of each, on average. A call takes no time of the machine that trains.
    """
    if not (waiting and calls):
        return True
    return max(waiting) < statistics.fmean(map(max, calls))


def turn_of(turn: int, shares: Mapping[Search, float]) -> Search | None:
    """Whose turn it is, 1, 2, ...; None: the researcher's.

    Each has its share of the turns, evenly spread. Of several that are due, the one that is most
    behind has the turn, and the others have the next.
    """
    exact = {
        name: Fraction(share).limit_denominator(1000) for name, share in shares.items() if share
    }
    if not exact:
        return None
    behind, due = dict.fromkeys(exact, Fraction(0)), None
    for _ in range(turn):
        behind = {name: behind[name] + exact[name] for name in exact}
        due = next((name for name in _most_first(behind) if behind[name] >= 1), None)
        if due:
            behind[due] -= 1
    return due


def _most_first(amounts: Mapping[Search, Fraction]) -> list[Search]:
    return sorted(amounts, key=lambda name: -amounts[name])


def _parent_of(idea: Idea) -> int | None:
    return idea.built_on[0] if idea.search == "archive" and idea.built_on else None


def _features(one: Queued, night: NightSoFar, *, as_new: bool = False) -> Features:
    is_stale = not as_new and one.base != night.shown.source
    return features.of_idea(one.base, one.source, one.said, is_stale=is_stale)


def _carried(one: Queued, night: NightSoFar) -> Proposal | str:
    """The idea against the file that is shown; in one line why that cannot be run."""
    source, idea = one.source, one.said
    if one.base != night.shown.source:
        merged = three_way_of_files(one.base, night.shown.source, source)
        if merged is None:
            return f"made for trial {one.trial}, it conflicts with the present champion"
        source = merged
        idea = idea.with_note(f"made for trial {one.trial}, merged onto the present champion")
    candidate = _parsed(source)
    if (tried := night.seen.get(str(candidate.digest))) is not None:
        return f"the same as trial {tried}" if tried else "the same as the baseline"
    return proposal.check(candidate, {}) or Proposal(candidate, idea)


@functools.lru_cache(maxsize=64)
def _parsed(source: str) -> Candidate:
    return Candidate.parse(source)
