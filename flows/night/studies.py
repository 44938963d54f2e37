"""A night's studies: figures of its champions, and the checkpoint that questions are put to.

nights/<tag>/studies/   <k>.json, the study of trial k's file (0: the baseline), and one checkpoint,
                        the champion's. The folder is there if the night's researcher may ask.

A view, not the truth: what is missing is made again where it can be, and else not answered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

from flows.night.night import Night
from tasks.files import FileRef
from tasks.history import champion, trial_folder
from tasks.records import Bench, Candidate, NightState, Study
from tasks.trial import device_lock, inspection
from tasks.trial.experiment import checkpoint_of
from tasks.trial.inspection import Checkpoint

FOLDER = "studies"


def allow(folder: Path) -> None:
    """From now on the runs of the night in `folder` leave their checkpoints."""
    (folder / FOLDER).mkdir(exist_ok=True)


def keeping(night: Night) -> Bench:
    """The night's bench for the runs of candidates."""
    place = night.folder / FOLDER
    return dataclasses.replace(night.bench, checkpoints=place if place.is_dir() else None)


def checkpoint(folder: Path, number: int, candidate: Candidate) -> Checkpoint | None:
    """The one of trial `number`, whose file is `candidate`; None if it is not kept."""
    path = checkpoint_of(folder / FOLDER, candidate)
    if not path.is_file():
        return None
    runs = trial_folder.read_runs(folder / "trials" / str(number))
    tokens = next((run.tokens for run in reversed(runs) if run.status == "ok"), None)
    return None if tokens is None else Checkpoint(path, tokens)


def read(folder: Path, number: int) -> Study | None:
    """The study of a trial's file; None if there is none, or it is damaged."""
    try:
        text = (folder / FOLDER / f"{number}.json").read_text(encoding="utf-8")
        return Study.from_json(json.loads(text))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write(folder: Path, number: int, study: Study) -> None:
    """On a full disk it is not kept, and made again when somebody asks."""
    with contextlib.suppress(OSError):
        saved = json.dumps(dataclasses.asdict(study)).encode()
        FileRef.write(folder / FOLDER / f"{number}.json", saved)


def after_trial(night: Night, state: NightState) -> None:
    """Removes checkpoints but the champion's; where a box would later disturb, studies it now."""
    place = night.folder / FOLDER
    if not place.is_dir() or state.champion is None:
        return
    best = Candidate.parse(champion.source_at(night.root, state.champion))
    kept = checkpoint_of(place, best)
    for path in place.glob("*.pt"):
        if path != kept:
            path.unlink(missing_ok=True)
    number = state.keeps[-1].number if state.keeps else 0
    is_due = device_lock.device_of(night.bench.profile) is not None and number
    if is_due and read(night.folder, number) is None:
        trained = checkpoint(night.folder, number, best)
        if trained is not None:  # its loss alone: to compile a step takes a minute
            found = inspection.study(best, night.bench, trained, profile=False)
            write(night.folder, number, found)


def end(folder: Path) -> None:
    """The night is over: nobody asks any more, and checkpoints may be large."""
    for path in (folder / FOLDER).glob("*.pt"):
        path.unlink(missing_ok=True)
