"""What changes are expected to gain, given their scores: empirical Bayes. Pure, no I/O.

A change that looked better in its one run was partly lucky. How much is told by all changes that
the night has measured: their gains are taken for draws from one normal distribution, fitted to the
record, and each score only corrects what that says. A score of several changes together corrects
them all: the gains add up, so a stack that failed says that its members do less than they seemed
to.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tasks.records import Estimate

LEAST_RECORD = 4  # measured changes before a record says anything
# Median absolute deviation -> standard deviation of a normal variable
NORMAL = 1.4826
# The scatter of true gains is never taken for less, in sd of one run: a record of a few changes may
# scatter no more than noise does, and then nothing would ever be expected of anything.
LEAST_SCATTER = 0.25


class Measured(NamedTuple):
    """What one trial has measured: the gain of one change, or of several together."""

    changes: tuple[int, ...]  # by the trial that proposed them
    gain: float  # bits per byte
    sd: float  # of that measurement, above 0


def error(runs: int, sd: float) -> float:
    """The sd of a gain that was measured with so many runs, sd of one of them.

    The champion has one run more than the candidate, see `verdict.champion_is_due`.
    """
    return sd * math.sqrt(1 / runs + 1 / (runs + 1))


def prior(measured: Sequence[Measured], sd: float) -> Estimate | None:
    """What a change of this night gains before it is measured; None if the record is too short.

    By the median and the median absolute deviation of the gains of single changes, without the part
    that is noise: bad ideas scatter far, and must not make small gains look likely. Never above 0:
    of a change that has not been measured, nothing is expected.
    """
    single = [each for each in measured if len(each.changes) == 1]
    if len(single) < LEAST_RECORD:
        return None
    centre = statistics.median(each.gain for each in single)
    scatter = NORMAL * statistics.median(abs(each.gain - centre) for each in single)
    noise = statistics.fmean(each.sd**2 for each in single)
    return Estimate(min(centre, 0.0), math.sqrt(max(scatter**2 - noise, (LEAST_SCATTER * sd) ** 2)))


def posterior(measured: Sequence[Measured], before: Estimate) -> dict[int, Estimate]:
    """The expected gain of each change that was measured, alone or with others.

    Normal gains, independent of each other before, seen as sums with normal noise: the usual linear
    update.
    """
    changes = sorted({change for each in measured for change in each.changes})
    if not changes:
        return {}
    seen = np.array([[change in each.changes for change in changes] for each in measured], float)
    gains = np.array([each.gain for each in measured])
    noise = np.diag([each.sd**2 for each in measured])
    # Kalman's gain of a prior whose covariance is a multiple of the identity.
    weight = before.sd**2 * np.linalg.solve(before.sd**2 * seen @ seen.T + noise, seen).T
    mean = before.gain + weight @ (gains - before.gain * seen.sum(axis=1))
    variance = before.sd**2 * (1 - np.einsum("ij,ji->i", weight, seen))
    return {
        change: Estimate(float(m), math.sqrt(max(float(v), 0.0)))
        for change, m, v in zip(changes, mean, variance, strict=True)
    }
