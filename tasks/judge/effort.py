"""How many questions an audit asks, and how often about which target.

Few large lies among many targets would hardly be met by chance. So a target is asked about the more
often, the more nats a lie could hide there: how far its claim is below what is expected from the
baseline, or, in part, how far below the highest loss that is plausible. And where the claims
scatter much around what is expected, more questions are asked.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from tasks.judge.scoring import Nats

DEBT = 0.001  # nats a target, which no cheat should hide
# A loss is plausible to so many standard deviations above what is expected. They grow with it, to
# this power: in runs of the baseline, with another depth, row length or budget, 0.4 to 0.7.
PLAUSIBLE, GROWTH = 3.5, 0.6
# The share of the way down from the highest plausible loss that odds count at least, for a model
# that is unlike the baseline: one that would have mean odds of more than UNLIKE nats by it. With
# another seed the baseline has 1.1, with half the row length 1.5, with three times the budget 2.4.
FROM_ABOVE, UNLIKE = 0.7, 1.4
MOST_TIMES = 4  # so many times the positions of the profile are asked about at most
# No answer stands for more than this many times as many targets as it would at equal odds.
HEAVIEST = 2.0

Mask = npt.NDArray[np.bool_]
Weights = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Effort:
    """How many questions an audit may take, and what they should meet."""

    positions: int  # for a model like the baseline
    hits: float  # of Tolerance

    @property
    def enough(self) -> float:
        """The mean odds, nats, for which `positions` questions meet `hits` lies of a DEBT."""
        return self.positions * DEBT / self.hits

    def questions(self, odds: Nats) -> int:
        """How many questions meet `hits` lies of a DEBT where odds are as large as the lies."""
        mean = odds[odds > 0].mean(dtype=np.float64) if odds.any() else 0.0
        most = MOST_TIMES * self.positions
        return round(min(max(mean * self.hits / DEBT, self.positions), most))

    def odds(self, scored: Mask, claims: Nats, expected: Nats | None) -> Nats:
        """The odds that a target is asked about, nats float32 [R, T]; 0 where nothing is scored.

        They are at least how far its claim is below what is `expected`, nats of the scored targets
        in order. So a debt in large lies is met by the same share of the questions however few lies
        it is made of: by debt / mean odds. What is expected is first fitted to the claims, as a
        better model's are lower everywhere.

        A cheat that knows what is expected lies where its own model is worse, down to what is
        expected and no further. So odds are also at least a share of how far the claim is below the
        highest loss that is plausible: as large a share as `positions` questions suffice for, and
        for a model that is unlike the baseline FROM_ABOVE. They are never less than a HEAVIEST-th
        of their mean. Without `expected` they are equal.
        """
        found = np.zeros(scored.shape, np.float32)
        if expected is None:
            found[scored] = self.enough
        elif scored.any():
            below, down = _room(expected, claims[scored].astype(np.float64))
            room = _odds(below, down, FROM_ABOVE)
            if room.mean() <= max(UNLIKE, self.enough):
                room = _odds(below, down, _largest_share(below, down, self.enough))
            highest = np.sort(room)[::-1].cumsum()
            # The largest of these is a HEAVIEST-th of the mean once it is the least.
            least = highest / ((HEAVIEST - 1) * len(room) + np.arange(1, len(room) + 1))
            # Claims that are exactly as expected leave no room: all odds are equal then.
            limits = np.finfo(np.float32)
            found[scored] = np.clip(np.maximum(room, least.max()), limits.tiny, limits.max)
        return found


def _room(expected: Nats, claimed: Weights) -> tuple[Weights, Weights]:
    """How far claims are below what is expected, and below the highest plausible loss; nats."""
    below = _fitted(expected, claimed) - claimed
    spread = np.maximum(expected, 0).astype(np.float64) ** GROWTH
    scale = np.sqrt((below @ below) / np.maximum(spread @ spread, np.finfo(float).tiny))
    return below, below + PLAUSIBLE * scale * spread


def _odds(below: Weights, down: Weights, share: float) -> Weights:
    odds: Weights = np.maximum(np.maximum(below, share * down), 0)
    return odds


def _largest_share(below: Weights, down: Weights, enough: float) -> float:
    """The largest share of `down`, from 0 to 1, with which the mean odds are `enough`, to 1 %.

    By Newton's method from above, as the mean is convex in the share.
    """
    share = 1.0
    while share > 0:
        excess = _odds(below, down, share).mean() - enough
        steepness = down[share * down > np.maximum(below, 0)].sum() / len(down)
        if excess <= 0.01 * enough or steepness == 0:
            return share
        share -= float(excess / steepness)
    return 0.0


def _fitted(expected: Nats, claimed: Weights) -> Weights:
    """`expected` moved and stretched to be nearest to the claims, by least squares; float64."""
    x, y = expected - expected.mean(dtype=np.float64), claimed.mean()
    fitted: Weights = y + x * (x @ (claimed - y)) / max(x @ x, np.finfo(float).tiny)
    return fitted
