"""Which seeds the runs of a night have, each kind a range of its own. Pure, no I/O.

The same file with the same seed has the same score, or one that shares a part of its luck: it says
nothing new. So what is compared with a champion's scores has seeds that no other run of it has.

    candidates, and the champion beside them   the night's seed and those after it
    placebos, trial k                          the night's seed + APART * k and those after it
    fresh runs of certification and end        the night's seed + FRESH and those after it
"""

from __future__ import annotations

from tasks.records import NightState

APART = 1000  # more than the runs of a trial, and than a champion's in a few trials
FRESH = 10_000 * APART  # beyond the placebos of any night


def of_placebo(seed: int, number: int) -> int:
    """The first one of a placebo, trial `number` of a night with this seed."""
    return seed + APART * number


def fresh(state: NightState) -> int:
    """One that no run of this night has; the same again until its run is on record.

    Runs from before a re-measurement have theirs for good.
    """
    first = state.header.seed + FRESH
    return max([first - 1, *(run.seed for run in state.all_fresh_runs)]) + 1
