"""Whether a score is reproduced: a test that two means are equal, made for few runs. Pure, no I/O.

Two-sided, at LEVEL: of scores that are as recorded, one in a hundred is said not to be. The noise
of the recording is an sd with its degrees of freedom; the replay has its own spread, too. The two
are pooled, unless the replay scatters so much more that chance does not explain it: on a busy
machine, or with a file that is not what was recorded. Then each mean has its own noise (Welch's
test). In 4000 simulated replays of each kind, with 1 to 5 runs and an sd of 2 to 20 degrees of
freedom, 0.6 to 1.4 % of equal means were called different, and `visible` was seen in 83 to 90 %.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from tasks.noise import Noise, chance_of_ratio, students_t
from tasks.trial.verdict import as_normal

LEVEL = 0.01
CRITICAL = statistics.NormalDist().inv_cdf(1 - LEVEL / 2)
POWER = 0.9
LAST_DIGIT = 2e-6  # scores are recorded with six decimals; an audit may add a millionth


@dataclasses.dataclass(frozen=True)
class Equality:
    """What a replay says of a recorded score. Bits per byte, and standard errors."""

    holds: bool
    difference: float  # replayed minus recorded: positive if the replay is worse
    z: float | None  # the same as a normal deviate; None: the scores had to be the same
    visible: float  # a difference that would have been seen with probability POWER
    noise: Noise | None  # of the replay's own scores; None: one run has none


def identical(recorded: float, scores: Sequence[float]) -> Equality:
    """For runs that are bound to give the same scores again: the same seeds on the same CPU."""
    difference = statistics.fmean(scores) - recorded
    return Equality(abs(difference) < LAST_DIGIT, difference, None, LAST_DIGIT, own_noise(scores))


def compare(recorded: float, runs: int, noise: Noise, scores: Sequence[float]) -> Equality:
    """For other seeds: `recorded` is the mean of so many runs, and `noise` that of one of them.

    It is used for the recorded seeds on a GPU too, where it errs on the side of equality: a seed
    repeats a part of its luck.
    """
    own = own_noise(scores)
    error, freedom = _error(runs, noise, len(scores), own)
    difference = statistics.fmean(scores) - recorded
    t, critical = difference / error, _critical(freedom)
    visible = (critical + statistics.NormalDist().inv_cdf(POWER)) * error
    return Equality(abs(t) <= critical, difference, as_normal(t, freedom), visible, own)


def own_noise(scores: Sequence[float]) -> Noise | None:
    """How much these scores scatter; None for one."""
    return Noise.pooled([scores]) if len(scores) > 1 else None


def _error(runs: int, noise: Noise, replays: int, own: Noise | None) -> tuple[float, float]:
    """The standard error of the difference, and its degrees of freedom; 0: the noise is given."""
    if own is not None and noise.degrees_of_freedom and chance_of_ratio(own, noise) < LEVEL:
        parts = (noise.sd**2 / runs, own.sd**2 / replays)
        squares = parts[0] ** 2 / noise.degrees_of_freedom + parts[1] ** 2 / own.degrees_of_freedom
        return math.sqrt(sum(parts)), sum(parts) ** 2 / squares
    estimates = [each for each in (noise, own) if each and each.degrees_of_freedom] or [noise]
    freedom = sum(each.degrees_of_freedom for each in estimates)
    weights = [each.degrees_of_freedom if freedom else 1 for each in estimates]
    squares = sum(w * each.sd**2 for w, each in zip(weights, estimates, strict=True))
    return math.sqrt(squares / sum(weights) * (1 / runs + 1 / replays)), freedom


def _critical(freedom: float) -> float:
    """Of the difference in standard errors; with 0 degrees of freedom it is normal."""
    return students_t(LEVEL / 2, freedom) if freedom else CRITICAL
