"""Stacking: near misses whose patches merge are tested together, as one trial.

A gain below the noise cannot be shown by one run, but the sum of several can: group testing, where
a positive group is kept whole and a negative one is halved. Which near misses, how many, and
whether that is worth a run follows from what each is expected to gain (expectation.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from statistics import NormalDist

from configs import Rule
from tasks.records import Estimate
from tasks.search import expectation
from tasks.trial.verdict import RULE, thresholds

MOST = 5  # changes in a stack: of more, nobody could say which one breaks it
LEAST_VALUE = 0.1  # sd of one run that a stack is expected to bring the champion, at least


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
    cannot be made together; `failed` the stacks that were not kept: of each, at most half is tried
    together again. `sd` is that of one run, `least` what a run must be expected to bring, bits per
    byte (see `value`). Greedy: the most promising change that still fits comes in next.
    """
    ranked = sorted((n for n in expected if expected[n].gain > 0), key=lambda n: -expected[n].gain)
    chosen: tuple[int, ...] = ()
    for number in ranked:
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
    return all(2 * len(group & other) <= len(other) for other in failed)


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
