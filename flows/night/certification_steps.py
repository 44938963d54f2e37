"""The steps of a certification: fresh runs without each kept change, the branch, the night's end.

Each run is one event `fresh` in the ledger. What comes next follows from ledger and git alone, so a
killed certification continues where it was, and repeats at most the run in flight, with its seed.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from prefect import get_run_logger

from configs import Rule
from flows.night import fresh_run, interruption, remeasurement
from flows.night.night import Night
from flows.night.session import Session
from tasks.history import (
    certified_branch,
    champion,
    ledger,
    night_budget,
    night_folder,
)
from tasks.noise import Noise, noise_of
from tasks.proposers import ablation
from tasks.proposers.ablation import Changes, Group
from tasks.records import Certification, Claim, FreshRun, NightState
from tasks.statuses import Purpose
from tasks.text import counted
from tasks.trial import certification
from tasks.trial.certification import Evidence, Searched

# Runs without a score in a row, beyond one for each change, which may not run without another:
# more mean that something else is broken.
MORE_FAILURES = 3


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far a certification may go."""

    runs: int  # to certify this champion, with those made before
    until: float | None  # by when the last one must end, in seconds of the night's age


def at_end(night: Night, held: Session) -> bool:
    """Certifies a night whose trials are over, and makes the runs of its end, if it can afford to.

    If the machine has changed since the last trial, the champion is measured again before that, as
    before a trial. False: somebody asked to stop first. Raises UsageError if the branch has been
    moved since.
    """
    state = held.state
    if not state.keeps:
        return True
    changed = remeasurement.due(night, state)
    if _is_certified(state):
        _move_branch(night, held)
        if changed:
            get_run_logger().info(f"no further runs of the night's end: {changed}")
            return True
    else:
        used = held.book.used_seconds()
        if changed:
            # What has begun elsewhere counts nowhere.
            used += remeasurement.RUNS * night_budget.longest_run(state)
            state = dataclasses.replace(state, fresh_runs=())
        if not night_budget.can_certify(state, used):
            get_run_logger().info(str(night_budget.uncertified(state)))
            return True
        if changed:
            return measure_again(night, held) and at_end(night, held)
        limits = Limits(night_budget.certification_runs(state), _until(state, spare_end=True))
        if not certify(night, held, limits):
            return False
    return _end_runs(night, held)


def measure_again(night: Night, held: Session) -> bool:
    """Makes every run of a measurement that is due. False: somebody asked to stop first.

    Fresh runs from before that, and what they certified, are compared with nothing any more.
    """
    with _in_fresh_runs(held):
        while remeasurement.due(night, held.state):
            if interruption.requested_by(held.folder):
                return False
            remeasurement.step(night, held)
    return True


def _is_certified(state: NightState) -> bool:
    return state.certification is not None and state.certification.champion == state.champion


def _until(state: NightState, *, spare_end: bool) -> float | None:
    hours = state.header.hours
    spared = night_budget.end_seconds(state) if spare_end else 0.0
    return None if hours is None else hours * 3600 - spared


def certify(night: Night, held: Session, limits: Limits) -> bool:
    """Runs what the open claims need, within the limits, then records them and moves the branch.

    False: somebody asked to stop first; every run is on record. Raises UsageError if the branch has
    been moved since.
    """
    work = _Certifying(night, held, changes_of(night, held.state))
    with _in_fresh_runs(held):
        found = work.gather(limits) and work.conclude(limits)
    if not found:
        return False
    if found != held.state.certification:
        held.book.append("certified", certification=dataclasses.asdict(found))
    interruption.reached("certified")
    _move_branch(night, held)
    certified, every = len(found.certified), len(held.state.keeps)
    get_run_logger().info(
        f"certified: {certified} of {counted(every, 'kept change')}, with "
        f"{counted(made(held.state), 'fresh run')}"
    )
    return True


def changes_of(night: Night, state: NightState) -> Changes:
    """The changes of the champion, from git."""
    keeps = {
        trial.number: champion.source_at(night.root, str(trial.commit)) for trial in state.keeps
    }
    return Changes(champion.source_at(night.root, str(state.start_commit)), keeps)


def _move_branch(night: Night, held: Session) -> None:
    """Puts the branch where the last certification says, from where an earlier one has put it."""
    found = held.state.certification
    assert found is not None
    certified_branch.move(night.root, night.tag, found.tip, tips(held.folder))
    interruption.reached("pointed")


def tips(folder: Path) -> tuple[str, ...]:
    """Where this night's certifications have put their branch, the last one last."""
    events = ledger.read(folder / night_folder.LEDGER)
    certified = [event["certification"]["tip"] for event in events if event["event"] == "certified"]
    return tuple(filter(None, certified))


@dataclasses.dataclass(frozen=True)
class _Certifying:
    """The certification of one champion."""

    night: Night
    held: Session
    changes: Changes
    # By what could not be taken out: merging takes a moment.
    groups: dict[frozenset[Group], tuple[Group, ...]] = dataclasses.field(default_factory=dict)

    @property
    def crashed(self) -> frozenset[Group]:
        """What could not be taken out: the rest has never had a score."""
        runs = _runs(self.held.state, "certification")
        scored = {run.left_out for run in runs if run.val_bpb is not None}
        return frozenset(run.left_out for run in runs) - scored - {()}

    @property
    def evidence(self) -> Evidence:
        scores, crashed = _scores(self.held.state), self.crashed
        if crashed not in self.groups:
            self.groups[crashed] = ablation.groups(self.changes, crashed)
        without = {group: tuple(scores[group]) for group in self.groups[crashed]}
        return Evidence(tuple(scores[()]), without, self.searched(without))

    def searched(self, groups: Iterable[Group]) -> dict[Group, Searched]:
        """What the trials say of their changes, as far as they may be compared with these runs."""
        state = self.held.state
        keeps = {t.number: t for t in state.keeps if t.number >= state.first_comparable}
        comparable = [group for group in groups if keeps.keys() >= set(group)]
        found = {group: Searched.by(keeps[n] for n in group) for group in comparable}
        return {group: known for group, known in found.items() if known}

    @property
    def noise(self) -> Noise:
        return noise_of(self.held.state)

    @property
    def nulls(self) -> float:
        return certification.null_candidates(self.held.state.trials)

    @property
    def rule(self) -> Rule:
        return self.night.bench.profile.verdict

    def gather(self, limits: Limits) -> bool:
        """Runs until nothing is open, or a limit is reached. False: somebody asked to stop."""
        failures, most = 0, len(self.changes.keeps) + MORE_FAILURES
        while made(self.held.state) < limits.runs:
            if not fresh_run.has_time(self.held, limits.until):
                break
            left_out = certification.next_run(self.evidence, self.noise, self.nulls, self.rule)
            if left_out is None:
                break
            if interruption.requested_by(self.held.folder):
                return False
            fresh = self.run_without(left_out, limits)
            failures = failures + 1 if fresh.val_bpb is None else 0
            if failures > most:
                get_run_logger().warning(f"{failures} fresh runs in a row have no score: giving up")
                break
        return True

    def conclude(self, limits: Limits) -> Certification | None:
        """What the runs show. None: somebody asked to stop first.

        What is certified must also run without all the rest: one run shows that.
        """
        every = tuple(self.changes.keeps)
        while True:
            evidence = self.evidence
            claims = certification.claims(evidence, self.noise, self.nulls, self.rule)
            left_out, claims = self._without_uncertified(claims)
            found = Certification(str(self.held.state.champion), claims, len(evidence.whole), None)
            if left_out == every:
                return found
            if not left_out or _scores(self.held.state)[left_out]:
                files = self.changes.replayed(left_out)
                tip = certified_branch.commit(self.night.root, self.held.state, files, found)
                return dataclasses.replace(found, tip=tip)
            if interruption.requested_by(self.held.folder):
                return None
            self.run_without(left_out, limits)

    def run_without(self, left_out: Group, limits: Limits) -> FreshRun:
        return fresh_run.make(
            self.night, self.held, self.changes, "certification", left_out, limits.until
        )

    def _without_uncertified(self, claims: tuple[Claim, ...]) -> tuple[Group, tuple[Claim, ...]]:
        """What the certified champion lacks. A claim that needs some of that is not certified."""
        crashed = self.crashed
        while True:
            lacking = [
                n for claim in claims if claim.certificate != "certified" for n in claim.trials
            ]
            left_out = ablation.removable(self.changes, lacking, crashed) if lacking else ()
            held_back = [
                claim
                for claim in claims
                if claim.certificate == "certified" and set(claim.trials) & set(left_out)
            ]
            if not held_back:
                return left_out, claims
            claims = tuple(_held_back(c) if c in held_back else c for c in claims)


def _held_back(claim: Claim) -> Claim:
    reason = f"{claim.reason}; but it does not run without changes that are not certified"
    return dataclasses.replace(claim, certificate="not_shown", reason=reason)


def _end_runs(night: Night, held: Session) -> bool:
    """Baseline, champion and certified champion in turn, each file once in a round.

    False: somebody asked to stop.
    """
    found, changes = held.state.certification, changes_of(night, held.state)
    assert found is not None
    every = tuple(changes.keeps)
    lacking = tuple(number for number in every if number not in found.certified)
    until = _until(held.state, spare_end=False)
    rounds = range(held.state.header.settings.night.end_runs)
    with _in_fresh_runs(held):
        for done, left_out in itertools.product(rounds, dict.fromkeys([every, (), lacking])):
            if sum(run.left_out == left_out for run in _runs(held.state, "end")) > done:
                continue
            if not fresh_run.has_time(held, until):
                get_run_logger().info("no time is left for further runs of the night's end")
                return True
            if interruption.requested_by(held.folder):
                return False
            fresh_run.make(night, held, changes, "end", left_out, until)
    return True


def _runs(state: NightState, purpose: Purpose) -> tuple[FreshRun, ...]:
    """The fresh runs of the present champion and of parts of it, in order.

    Those of a night's end decide nothing, so no certification counts them.
    """
    return tuple(
        run for run in state.fresh_runs if run.champion == state.champion and run.purpose == purpose
    )


def made(state: NightState) -> int:
    """How many runs have been made to certify the present champion, with a score or without."""
    return len(_runs(state, "certification"))


def _scores(state: NightState) -> collections.defaultdict[Group, list[float]]:
    """Of the present champion's certification, by what is left out."""
    scores: collections.defaultdict[Group, list[float]] = collections.defaultdict(list)
    for run in _runs(state, "certification"):
        if run.val_bpb is not None:
            scores[run.left_out].append(run.val_bpb)
    return scores


@contextlib.contextmanager
def _in_fresh_runs(held: Session) -> Iterator[None]:
    """Ctrl-C ends the night after the present run, as it does in a trial."""
    held.in_fresh_runs.set()
    try:
        yield
    finally:
        held.in_fresh_runs.clear()
