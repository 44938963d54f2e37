"""What the changes of a night touch: those that were kept, that train now, and that wait.

Read from the trials' folders: a file that is gone costs only what it would have told.
"""

from __future__ import annotations

import dataclasses

from tasks.errors import NightlyError
from tasks.history import night_folder, trial_folder
from tasks.proposers.touched import Lines, surviving, touched
from tasks.records import NightSoFar


@dataclasses.dataclass(frozen=True)
class Kept:
    """A kept trial's change."""

    trial: int
    names: tuple[str, ...] | None  # None: its files are gone
    lines: tuple[Lines, ...]  # of today's champion: those that came with it and are still there


def kept(night: NightSoFar) -> list[Kept]:
    """Every kept change, the newest first."""
    numbers = [trial.number for trial in night.trials if trial.verdict == "keep"]
    # The champion after each keep is that trial's file, and before the first one the baseline's.
    states = [baseline(night), *(candidate(night, number) for number in numbers)]
    gaps = [place for place, state in enumerate(states) if state is None]
    first = gaps[-1] + 1 if gaps else 0  # from here on all are known
    chain = [*(state for state in states[first:] if state is not None), night.champion.source]
    lines = surviving(chain)
    found = []
    for place, number in enumerate(numbers, start=1):
        before, after = states[place - 1], states[place]
        names = touched(before, after).names if before is not None and after is not None else None
        found.append(Kept(number, names, lines[place - first - 1] if place > first else ()))
    return found[::-1]


def candidate(night: NightSoFar, number: int) -> str | None:
    """The file of a trial; None if it is gone."""
    if night.folder is None:
        return None
    try:
        return trial_folder.read_source(night.folder / "trials" / str(number))
    except (NightlyError, UnicodeDecodeError):
        return None


def baseline(night: NightSoFar) -> str | None:
    """The file that the night began with; None if it is gone."""
    if night.folder is None:
        return None
    try:
        return (night.folder / night_folder.BASE).read_bytes().decode("utf-8", "surrogatepass")
    except (OSError, UnicodeDecodeError):
        return None
