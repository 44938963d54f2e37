"""A researcher's notebook: the notes that it leaves with its ideas and is given again.

The ledger has them with each trial's idea, so they survive whatever the night survives. They are
untrusted words, as all of an answer is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from tasks.errors import UsageError
from tasks.history import night_folder
from tasks.records import Idea, NightState, Trial


@dataclasses.dataclass(frozen=True)
class Notes:
    text: str
    trial: int  # that the answer was for in which they stood


def latest(ideas: Iterable[tuple[int, Idea]]) -> Notes | None:
    """The notes of the latest answer, from ideas with the trials that they became or wait for.

    An answer may hold ideas that wait, so that an earlier trial's answer can be the later one.
    """
    made = {_asked_for(number, idea): idea.notes for number, idea in ideas if idea.notes}
    last = max(made, default=None)
    return Notes(made[last], last[0]) if last else None


def of_trials(trials: Iterable[Trial]) -> Notes | None:
    return latest((trial.number, trial.idea) for trial in trials)


def of_night(home: Path, tag: str) -> str:
    """The last notes of a night. Raises UsageError if there is no such night, or it has none."""
    folder = night_folder.find(home, tag)
    state: NightState = night_folder.read_state(folder)
    notes = of_trials(state.candidates)
    if notes is None:
        raise UsageError(
            f"--notes {tag}: the researcher of night {tag} left no notes; name another night, or "
            "leave the option out"
        )
    return notes.text


def _asked_for(number: int, idea: Idea) -> tuple[int, int]:
    """The trial that an idea was made for, and which one it was: "7.2" is the second of trial 7.

    A trial may be asked for twice, where the first answer conflicts with a new champion.
    """
    asked = (idea.queued or "").split(".")
    if len(asked) == 2 and all(part.isascii() and part.isdecimal() for part in asked):
        return int(asked[0]), int(asked[1])
    return number, 0
