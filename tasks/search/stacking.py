"""Stacking: near misses whose patches merge are tested together, as one trial.

A gain below the noise cannot be shown by one run, but the sum of several can: group testing, where
a positive group is kept whole and a negative one is halved. Which near misses, how many, and
whether that is worth a run follows from what each is expected to gain (expectation.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from statistics import NormalDist

from configs import Rule
from tasks.proposers import proposal
from tasks.records import Candidate, Estimate, Idea, NightSoFar, Proposal
from tasks.search import expectation, trial_sources
from tasks.search.expectation import Measured
from tasks.statuses import Search
from tasks.text import numbered, one_line, shortened
from tasks.trial.verdict import RULE, thresholds

RANKED = 20  # near misses that a stack is chosen from; each costs a few merges
MOST = 5  # changes in a stack: of more, nobody could say which one breaks it
LEAST_VALUE = 0.1  # sd of one run that a stack is expected to bring the champion, at least
RECENT = 20  # trials by which it is told what a run brings otherwise
REFUSALS = 5  # stacks that are made for one trial until one can be run
LONGEST_NAME = 60  # characters of a near miss in the words for a stack


@dataclasses.dataclass(frozen=True)
class Stacking:
    """A strategy: None as long as no stack is worth more than what the night tries anyway."""

    rule: Rule = RULE

    @property
    def name(self) -> Search:
        return "stack"

    def propose(self, night: NightSoFar) -> Proposal | None:
        if night.sd is None or (night.in_flight and night.in_flight.idea.search == self.name):
            return None  # what trains now would be halved or repeated before it is known
        found = _posterior(night, night.sd)
        expected = {number: found[number] for number in _near_misses(night) if number in found}
        least = _usual(night, found, self.rule)
        failed = [
            frozenset(trial.idea.built_on)
            for trial in night.trials
            if trial.idea.search == self.name and trial.verdict != "keep"
        ]

        def conflicts(numbers: tuple[int, ...]) -> bool:
            return trial_sources.merged(night, numbers) is None

        for _ in range(REFUSALS):
            chosen = choose(expected, conflicts, failed, night.sd, least, self.rule)
            source = trial_sources.merged(night, chosen) if chosen else None
            if chosen is None or source is None:
                return None
            candidate = Candidate.parse(source)
            gain = total([expected[number] for number in chosen])
            added = candidate.statements - night.champion.statements
            if proposal.check(candidate, night.seen) is None and (
                value(gain, night.sd, added, self.rule) > least
            ):
                return Proposal(candidate, _idea(night, chosen, gain))
            failed.append(frozenset(chosen))
        return None


def choose(
    expected: Mapping[int, Estimate],
    conflicts: Callable[[tuple[int, ...]], bool],
    failed: Collection[frozenset[int]],
    sd: float,
    least: float = 0.0,
    rule: Rule = RULE,
) -> tuple[int, ...] | None:
    """The near misses to test together, ascending; None if no stack is worth a run.

    `expected` is the gain of each by its trial, bits per byte; `conflicts` whether these changes
    cannot be made together; `failed` the stacks that were not kept: of each, at most half (rounded
    up) is tried together again. `sd` is that of one run, `least` what a run must be expected to
    bring, bits per byte (see `value`). Greedy: the most promising change that still fits comes in
    next.
    """
    ranked = sorted((n for n in expected if expected[n].gain > 0), key=lambda n: -expected[n].gain)
    chosen: tuple[int, ...] = ()
    for number in ranked[:RANKED]:
        wider = tuple(sorted((*chosen, number)))
        if _is_left(frozenset(wider), failed) and not conflicts(wider):
            chosen = wider
        if len(chosen) == MOST:
            break
    if len(chosen) < 2:
        return None
    worth = value(total([expected[number] for number in chosen]), sd, rule=rule)
    return chosen if worth > max(least, LEAST_VALUE * sd) else None


def _is_left(group: frozenset[int], failed: Collection[frozenset[int]]) -> bool:
    """Whether no more than half of a stack that failed is in it."""
    return all(2 * len(group & other) <= len(other) + 1 for other in failed)


def total(parts: Collection[Estimate]) -> Estimate:
    """What independent changes gain together."""
    return Estimate(
        math.fsum(part.gain for part in parts),
        math.sqrt(math.fsum(part.sd**2 for part in parts)),
    )


def value(gain: Estimate, sd: float, statements_added: int = 0, rule: Rule = RULE) -> float:
    """By how much a trial of such a gain is expected to move the champion, bits per byte.

    The mean of the gain times the chance that the search rule keeps it, which is taken for that of
    its last threshold after all its runs.
    """
    error = expectation.error(len(rule.keep), sd)
    _, keep = thresholds(len(rule.keep), statements_added, rule)
    spread = math.hypot(error, gain.sd)
    z = (gain.gain - keep * error) / spread
    return gain.gain * NormalDist().cdf(z) + gain.sd**2 / spread * NormalDist().pdf(z)


def usual(brought: Iterable[tuple[float, int]], rule: Rule = RULE) -> float:
    """What other trials bring for the runs that a stack may take, bits per byte.

    `brought` has the gain and the runs of each: no gain unless it was kept.
    """
    trials = list(brought)
    runs = sum(count for _, count in trials)
    return len(rule.keep) * math.fsum(gain for gain, _ in trials) / max(runs, 1)


def _posterior(night: NightSoFar, sd: float) -> dict[int, Estimate]:
    """What the night's comparable scores say of each change; {} while its record is short."""
    measured = []
    for trial in night.trials:
        if trial.val_bpb is not None and trial.number >= night.first_comparable:
            gain = night.to_beat[trial.number] - trial.val_bpb
            changes = trial.idea.built_on if trial.idea.search == "stack" else (trial.number,)
            measured.append(Measured(changes, gain, expectation.error(len(trial.scores), sd)))
    before = expectation.prior(measured, sd)
    return expectation.posterior(measured, before) if before else {}


def _near_misses(night: NightSoFar) -> list[int]:
    """Trials that were better than their champion and not kept, nor as a part of a stack."""
    kept = trial_sources.stacked(night)
    return [
        trial.number
        for trial in night.trials
        if trial.verdict == "discard"
        and trial.idea.search != "stack"
        and trial.val_bpb is not None
        and (trial.z or 0.0) > 0
        and trial.number not in kept
    ]


def _usual(night: NightSoFar, found: Mapping[int, Estimate], rule: Rule) -> float:
    """What the latest trials that are no stacks have brought; of a keep, what is expected of it."""
    others = [trial for trial in night.trials if trial.idea.search != "stack"][-RECENT:]
    kept = {trial.number for trial in others if trial.verdict == "keep"} & found.keys()
    gains = {number: max(found[number].gain, 0.0) for number in kept}
    runs = {trial.number: len(trial.seeds) + len(trial.champion_seeds) for trial in others}
    return usual(((gains.get(number, 0.0), count) for number, count in runs.items()), rule)


def _idea(night: NightSoFar, chosen: tuple[int, ...], gain: Estimate) -> Idea:
    ideas = {trial.number: trial.idea.summary for trial in night.trials}
    names = (f"{n} ({shortened(one_line(ideas[n]), LONGEST_NAME)})" for n in chosen)
    return Idea(
        summary=f"stack of {numbered(chosen)}",
        proposer="stack",
        kind="combination",
        hypothesis="each was better than its champion, by less than the noise: " + "; ".join(names),
        expected=f"{gain.gain:.4f} bits per byte together, give or take {gain.sd:.4f}",
        search="stack",
        estimate=gain,
        built_on=chosen,
    )
