"""Which contender of a tournament has the next trial, and how sure it is that one is better. Pure.

A contender is worth the gain of its kept trials for the cost of all of its trials. Little is known
of that after a night: most trials bring nothing, and a single large gain decides a sum. So its
chance of a keep and the size of its gains are drawn from what their record leaves open (a beta
distribution, and an inverse gamma over exponential gains), with a prior that all contenders share:
their record together. The next trial goes to the best of one draw (Thompson, 1933); how often a
contender is the best of many is the probability that it is better. tests/search/test_bandit.py
shows on simulated nights that what is said with probability P is true in a share P of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import NormalDist

import numpy as np

from tasks.records import Trial

DECIDED = 0.95  # a smaller probability is called undecided
FIRST_ROUNDS = 2  # trials that each contender has before any is preferred
FLOOR = 0.5  # of an equal share of the trials: nobody gets less
# The prior, as if so much had been seen of a contender that is like all of them together. With less
# of it the simulated nights are too sure of themselves.
PRIOR_TRIALS, PRIOR_KEEPS, PRIOR_COSTS = 8.0, 3.0, 4.0
DRAWS = 20_000


@dataclasses.dataclass(frozen=True)
class Pull:
    """What one trial brought and cost."""

    gain: float  # bits per byte, at least 0
    cost: float  # hours


Record = Mapping[str, Sequence[Pull]]  # by contender


def order(record: Record, turns: Mapping[str, int], key: str) -> tuple[str, ...]:
    """The contenders, the one that is to propose first; the others, should it have nothing left.

    `turns` are the trials that each has had, also those of which the record has no result. The same
    for the same arguments: `key` names the choice, and seeds it.
    """
    chance = _generator(key)
    names = sorted(turns)
    lot = dict(zip(names, chance.permutation(len(names)), strict=True))
    fewest, all_turns = min(turns.values()), sum(turns.values())
    if fewest < max(FIRST_ROUNDS, FLOOR * all_turns / len(turns)):
        return tuple(sorted(names, key=lambda name: (turns[name], lot[name])))
    drawn = dict(zip(names, _worths({n: record[n] for n in names}, 1, chance)[:, 0], strict=True))
    return tuple(sorted(names, key=lambda name: (-drawn[name], turns[name], lot[name])))


def chances(record: Record) -> dict[str, float]:
    """The probability of each contender that it is worth most per cost; they add up to 1."""
    best = _worths(record, DRAWS, _generator("chances")).argmax(axis=0)
    return {name: float((best == i).mean()) for i, name in enumerate(record)}


def more_trials(chance: float, trials: int) -> int | None:
    """How many trials more would decide, if what `trials` have shown stays as it is.

    An error of a mean shrinks with the root of their number. None if it is more than ten times as
    many, which says no more than that nothing is known.
    """
    z = NormalDist().inv_cdf(min(max(chance, 0.5), 1 - 1 / DRAWS))
    needed = NormalDist().inv_cdf(DECIDED)
    if z >= needed:
        return 0
    if z * math.sqrt(11.0) < needed:
        return None
    return math.ceil(trials * ((needed / z) ** 2 - 1))


def record_of(
    names: Collection[str],
    trials: Iterable[Trial],
    to_beat: Mapping[int, float],
    machine_price: float | None = None,
    shown: Mapping[int, float] | None = None,
) -> dict[str, list[Pull]]:
    """The record of the contenders with these names.

    A trial in which another stood in for the model says nothing about its contender. One whose
    patch could not be run has taken time that nobody measured: it counts as the shortest that ran.
    Dollars count as the hours of this machine that they would pay for, at `machine_price` an hour;
    without a price they do not count. `to_beat` and `shown`: as of `gain`.
    """
    own = [trial for trial in trials if trial.idea.contender in names and not trial.idea.stands_in]
    least = min((trial.wall_seconds for trial in own if trial.wall_seconds), default=0.0)
    record: dict[str, list[Pull]] = {name: [] for name in names}
    for trial in own:
        hours = (trial.wall_seconds or least) / 3600
        if machine_price and trial.usage.dollars:
            hours += trial.usage.dollars / machine_price
        record[str(trial.idea.contender)].append(Pull(gain(trial, to_beat, shown), hours))
    return record


def gain(
    trial: Trial, to_beat: Mapping[int, float], shown: Mapping[int, float] | None = None
) -> float:
    """What a trial is taken to have brought, bits per byte: 0 unless it was kept.

    What the certification says of it, if that is in `shown`. Otherwise the search's gain over the
    score `to_beat`, less what its choice by this score is expected to flatter it: of a gain of z
    standard errors, 1 / z^2 is error in the mean (the positive-part rule of James and Stein, 1961).
    """
    if trial.verdict != "keep":
        return 0.0
    if shown is not None and trial.number in shown:
        return max(shown[trial.number], 0.0)
    before, z = to_beat.get(trial.number), trial.z
    if before is None or trial.val_bpb is None or z is None or z <= 1:
        return 0.0
    return max(before - trial.val_bpb, 0.0) * (1 - 1 / z**2)


def _worths(record: Record, count: int, chance: np.random.Generator) -> np.ndarray:
    """Gain per cost of each contender, as its record leaves it open: (contenders, draws).

    In units that contenders share: where nothing was kept, a gain counts as 1.
    """
    pulls = [pull for own in record.values() for pull in own]
    gains = [pull.gain for pull in pulls if pull.gain > 0]
    # As if half a keep had been seen in three trials before: no rate is 0 or 1.
    rate = (len(gains) + 0.5) / (len(pulls) + 3)
    size = math.fsum(gains) / len(gains) if gains else 1.0
    cost = math.fsum(pull.cost for pull in pulls) / len(pulls) if pulls else 1.0
    worths = []
    for own in record.values():
        kept = [pull.gain for pull in own if pull.gain > 0]
        keeps = chance.beta(
            PRIOR_TRIALS * rate + len(kept), PRIOR_TRIALS * (1 - rate) + len(own) - len(kept), count
        )
        known = _effective(kept)
        mean = math.fsum(kept) / len(kept) if kept else 0.0
        spread = chance.gamma(PRIOR_KEEPS + known, size=count)
        costs = math.fsum(pull.cost for pull in own) + PRIOR_COSTS * cost
        per_trial = costs / (len(own) + PRIOR_COSTS) or 1.0
        worths.append(keeps * (PRIOR_KEEPS * size + known * mean) / spread / per_trial)
    return np.array(worths)


def _effective(gains: Sequence[float]) -> float:
    """How many gains of like size tell as much of their mean (Kish, 1965).

    Exponential gains count in full: half of their number is what the formula gives for those.
    """
    if len(gains) < 2:
        return len(gains)
    squares = math.fsum(one**2 for one in gains)
    return min(len(gains), 2 * math.fsum(gains) ** 2 / squares)


def _generator(key: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]))
