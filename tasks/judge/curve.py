"""A training's curve as it arrives, and when it is hopeless.

A training whose loss is no longer finite, has exploded, or lags far behind the champion's is
stopped: its time goes to the next candidate. The curve is the box's own word, so it can only hurt
the box that gives it. A made-up curve avoids the stop and leaves a candidate what it has without
these rules, the rest of its budget; no score follows from it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

MOST_POINTS = 2000
# Points, of which the harness sends at most 1000 in a budget: so many in a row are no spike. The
# beginning has as many.
IN_A_ROW = 20
# Times the largest loss of the beginning, which is about that of a model that knows nothing.
EXPLODED = 1.5
# Of a budget of seconds, in tenths: behind the champion is what has this share of its tokens and
# this many times its loss. Not in the first tenths, where a model that learns more slowly may be
# behind and win, and only in so many in a row.
TENTHS, FIRST_TENTHS, TENTHS_IN_A_ROW = 10, 3, 2
FEWER_TOKENS, HIGHER_LOSS = 0.5, 1.05

Point = tuple[int, int, float]  # step, tokens, loss in nats per token
Tenth = tuple[int, float]  # tokens up to its end, mean loss in it
Problem = tuple[str, str]  # status, reason


class Curve:
    """The points of a training so far.

    `seconds` is its budget, None if that is of another kind; `champion` has the tenths of the run
    that it is compared with, none if they say nothing about it.
    """

    def __init__(self, seconds: float | None = None, champion: Sequence[Tenth] = ()) -> None:
        self.points: list[Point] = []
        self._seconds, self._champion = seconds, champion
        self._without_number = 0  # points in a row
        self._beginning: list[float] = []
        self._recent: deque[float] = deque(maxlen=IN_A_ROW)
        self._by_tenth: list[list[Point]] = [[] for _ in range(TENTHS)]

    def add(self, message: dict[str, Any], seconds: float) -> Problem | None:
        """Adds a message `log` that came so long after go; returns why to stop, if that is so."""
        point = _point(message)
        if point is None:
            return self._no_number(message)
        self._without_number = 0
        if len(self.points) < MOST_POINTS:
            self.points.append(point)
        return self._exploded(point) or self._behind(point, seconds)

    @property
    def tenths(self) -> tuple[Tenth, ...]:
        """Those of a budget of seconds that have begun, up to the first without a point."""
        begun = itertools.takewhile(bool, self._by_tenth)
        return tuple(
            (points[-1][1], statistics.fmean(loss for *_, loss in points)) for points in begun
        )

    def _no_number(self, message: dict[str, Any]) -> Problem | None:
        loss = message.get("loss")
        if loss is None or (isinstance(loss, float) and not math.isfinite(loss)):
            self._without_number += 1
        if self._without_number < IN_A_ROW:
            return None
        return "train_crashed", (
            f"its loss was not finite at {IN_A_ROW} points in a row"
            f"{self._last_good()}: it has diverged"
        )

    def _last_good(self) -> str:
        if not self.points:
            return ", from the first on"
        step, _, loss = self.points[-1]
        return f" since step {step}, where it was {loss:.4g}"

    def _exploded(self, point: Point) -> Problem | None:
        step, _, loss = point
        if len(self._beginning) < IN_A_ROW:
            self._beginning.append(loss)
            return None
        self._recent.append(loss)
        lowest, usual = min(self._recent), max(self._beginning)
        if len(self._recent) < IN_A_ROW or usual <= 0 or lowest <= EXPLODED * usual:
            return None
        return "train_crashed", (
            f"its loss was {lowest:.4g} or more at {IN_A_ROW} points in a row up to step {step}, "
            f"more than {EXPLODED:g} times the largest of its first {IN_A_ROW} points, "
            f"{usual:.4g}: it has diverged"
        )

    def _behind(self, point: Point, seconds: float) -> Problem | None:
        if self._seconds is None or (tenth := int(TENTHS * seconds / self._seconds)) >= TENTHS:
            return None
        is_first = not self._by_tenth[tenth]
        self._by_tenth[tenth].append(point)
        if not is_first or tenth < FIRST_TENTHS + TENTHS_IN_A_ROW:
            return None
        both = list(zip(self.tenths[:tenth], self._champion, strict=False))
        both = both[tenth - TENTHS_IN_A_ROW :]
        is_behind = [
            tokens < FEWER_TOKENS * its_tokens and loss > HIGHER_LOSS * its_loss > 0
            for (tokens, loss), (its_tokens, its_loss) in both
        ]
        if len(both) < TENTHS_IN_A_ROW or not all(is_behind):
            return None
        (tokens, loss), (its_tokens, its_loss) = both[-1]
        return "train_timeout", (
            f"had trained on {tokens:,} tokens after {tenth} tenths of its time, the champion on "
            f"{its_tokens:,} by then, and its loss was {loss:.4g}, the champion's {its_loss:.4g}: "
            "too slow to catch up"
        )


def slowest(runs: Iterable[Sequence[Tenth]]) -> tuple[Tenth, ...]:
    """The fewest tokens and the highest loss of several runs of one file, tenth by tenth."""
    return tuple(
        (min(tokens for tokens, _ in tenth), max(loss for _, loss in tenth))
        for tenth in zip(*runs, strict=False)
    )


def _point(message: dict[str, Any]) -> Point | None:
    step, tokens, loss = message.get("step"), message.get("tokens"), message.get("loss")
    if not (isinstance(step, int) and isinstance(tokens, int) and isinstance(loss, (int, float))):
        return None
    if not (0 <= step < 2**53 and 0 <= tokens < 2**53 and abs(loss) < 1e18 and math.isfinite(loss)):
        return None
    return step, tokens, float(loss)
