"""Whether a champion's earlier scores still hold. Pure, no I/O.

A new driver, a lower clock or another tenant may change a machine for good. Every later candidate
would then be compared with scores that can no longer be reached. The champion's fresh runs show it.
"""

from __future__ import annotations

import itertools

from tasks.noise import Noise
from tasks.records import NightState
from tasks.trial.verdict import z_score

FRESH = 2  # the latest fresh runs of the champion, which are compared with those before
# Standard errors. Chance gets so far once in two thousand comparisons.
SHIFT = 3.5


def of_champion(state: NightState) -> str | None:
    """Why its scores may not hold any more, by what the last trial has seen; None if they do."""
    if not state.trials or state.trials[-1].number < state.first_comparable:
        return None
    last = state.trials[-1]
    return last.machine_change or (_shift(state) if last.champion_scores else None)


def _shift(state: NightState) -> str | None:
    """Runs by which the champion was chosen are left out: luck has made them better."""
    trials = reversed(state.trials[state.first_comparable - 1 :])
    since = itertools.takewhile(lambda trial: trial.verdict != "keep", trials)
    made = sum(len(trial.champion_scores) for trial in since)
    earlier, fresh = state.champion_repeats[:-FRESH], state.champion_repeats[-FRESH:]
    if made < FRESH or not earlier:
        return None
    # A shift inside a group would look like noise.
    z = z_score(earlier, fresh, Noise.pooled([*state.groups, earlier, fresh]))
    if abs(z) <= SHIFT:
        return None
    way = "better" if z > 0 else "worse"
    return (
        f"the champion's last {FRESH} fresh runs are {way} than its earlier ones by {abs(z):.1f} "
        "standard errors"
    )
