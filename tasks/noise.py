"""Noise: how far one file's scores scatter from seed to seed, by which every gain is judged.

One night has few repeats, so those of earlier nights that measured the same are pooled with its
own. A new night finds them once and records them with its baseline: its ledger alone gives the
noise at any time.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

from tasks.records import NightState
from tasks.text import counted

# Bits per byte. Three runs may agree by chance, and no hardware repeats itself better than this.
SD_FLOOR = 5e-4
BEYOND_CHANCE = 0.01  # two estimates that are further apart are not pooled


@dataclasses.dataclass(frozen=True)
class Noise:
    """How far one file's scores scatter from seed to seed."""

    sd: float  # of one run, bits per byte
    degrees_of_freedom: int

    @classmethod
    def pooled(cls, groups: Iterable[Sequence[float]], floor: float = SD_FLOOR) -> Noise:
        """The pooled variance of groups of repeats.

        Each group is one file with several seeds; a group of one run says nothing. The sd is the
        floor if there is nothing to pool, or if the floor is larger.
        """
        repeats = [group for group in groups if len(group) > 1]
        degrees_of_freedom = sum(len(group) - 1 for group in repeats)
        if not degrees_of_freedom:
            return cls(floor, 0)
        squares = [(score - statistics.fmean(group)) ** 2 for group in repeats for score in group]
        return cls(
            max(math.sqrt(math.fsum(squares) / degrees_of_freedom), floor), degrees_of_freedom
        )

    def __str__(self) -> str:
        """As in "sd 0.0046 of one run, 14 degrees of freedom"."""
        if not self.degrees_of_freedom:
            return f"sd {self.sd:.2g} of one run, assumed because nothing was run twice"
        degrees = "degree" if self.degrees_of_freedom == 1 else "degrees"
        return f"sd {self.sd:.2g} of one run, {self.degrees_of_freedom} {degrees} of freedom"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The noise by a night's own repeats, and by those of earlier nights.

    A run that two nights share, as the cached baseline, is counted once.
    """

    own: Noise
    earlier: Noise  # 0 degrees of freedom: there is none
    nights: int  # that it is from
    both: Noise

    @property
    def agrees(self) -> bool:
        """Whether the two may be estimates of the same sd, by a two-sided F test at 1 %."""
        own, earlier = self.own, self.earlier
        if not (own.degrees_of_freedom and earlier.degrees_of_freedom):
            return True
        large, small = sorted((own, earlier), key=lambda noise: noise.sd, reverse=True)
        return chance_of_ratio(large, small) > BEYOND_CHANCE / 2

    @property
    def noise(self) -> Noise:
        """What verdicts use: both, or this night's own where earlier ones disagree with it."""
        return self.both if self.agrees else self.own

    def __str__(self) -> str:
        nights = counted(self.nights, "earlier night")
        if not self.nights:
            return str(self.noise)
        if self.agrees:
            return f"{self.noise}, {self.earlier.degrees_of_freedom} of them from {nights}"
        return (
            f"{self.noise}, from this night alone: that of {nights} is {self.earlier.sd:.2g} "
            f"({self.earlier.degrees_of_freedom} degrees of freedom), a difference that chance "
            "does not explain"
        )


def noise_of(state: NightState) -> Noise:
    """The noise of a night's runs, for its verdicts and for all that is shown of them."""
    return estimate(state).noise


def estimate(state: NightState) -> Estimate:
    """Where the noise of a night comes from."""
    seen: set[float] = set()
    own = unseen(state.repeats, seen)
    recorded = state.baseline.earlier_repeats.values() if state.baseline else ()
    nights = [unseen(groups, seen) for groups in recorded]
    earlier = [group for groups in nights for group in groups]
    return Estimate(
        own=Noise.pooled(own),
        earlier=Noise.pooled(earlier),
        nights=sum(any(len(group) > 1 for group in groups) for groups in nights),
        both=Noise.pooled([*own, *earlier]),
    )


def unseen(groups: Iterable[Sequence[float]], seen: set[float]) -> list[list[float]]:
    """The groups without scores that are `seen` or in an earlier group; adds theirs to `seen`.

    A score that is the same to the last digit is of the same code and seed.
    """
    found = []
    for group in groups:
        found.append([score for score in group if score not in seen])
        seen.update(group)
    return found


# scipy is not imported at import: it takes a moment, and most of what a person looks at needs none.


def chance_of_ratio(large: Noise, small: Noise) -> float:
    """The chance that, of two estimates of one sd, one is so many times as large as the other.

    The upper tail of F. Both need a degree of freedom.
    """
    from scipy.special import fdtrc  # type: ignore[import-untyped]

    ratio = (large.sd / small.sd) ** 2
    return float(fdtrc(large.degrees_of_freedom, small.degrees_of_freedom, ratio))


def students_t(chance: float, degrees_of_freedom: float) -> float:
    """The value that Student's t exceeds with this chance."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, 1 - chance))
