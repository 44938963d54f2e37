"""Keeps that are better than the spread of the night's other results makes plausible.

An honest idea may be such a leap, and it is kept. But so would be a new way around the judge, so a
person should read that patch first.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from tasks.records import Trial

# Student's t that one value in 1000 exceeds, with 1, 2, ... degrees of freedom; for more than
# these, the last is a little too wide.
ONE_IN_1000 = (318.3, 22.33, 10.21, 7.173, 5.893, 5.208, 4.785, 4.501, 4.297, 4.144)
# Median absolute deviation -> standard deviation of a normal variable
NORMAL = 1.4826


def plausible(others: Sequence[float]) -> float:
    """The z that one more trial like `others`, of these z, exceeds once in 1000 times.

    Student's prediction interval, with median and median absolute deviation in the place of mean
    and standard deviation: bad ideas scatter far, and a leap among them must not hide another. The
    scatter is never below 1, which is that of a z by noise alone. Infinite below two trials.
    """
    if len(others) < 2:
        return math.inf
    centre = statistics.median(others)
    scatter = max(NORMAL * statistics.median(abs(z - centre) for z in others), 1.0)
    degrees = min(len(others) - 1, len(ONE_IN_1000))
    return centre + ONE_IN_1000[degrees - 1] * scatter * math.sqrt(1 + 1 / len(others))


def leaps(trials: Sequence[Trial]) -> dict[int, float]:
    """Each kept trial whose z is not plausible beside the others': its number and what would be."""
    scored = {trial.number: trial.z for trial in trials if trial.z is not None}
    found = {}
    for trial in trials:
        if trial.verdict == "keep" and trial.z is not None:
            most = plausible([z for number, z in scored.items() if number != trial.number])
            if trial.z > most:
                found[trial.number] = most
    return found
