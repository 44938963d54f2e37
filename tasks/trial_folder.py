"""A trial's folder, nights/<tag>/trials/<k>: what was proposed, what its runs gave, and what they printed.

train.py  patch.diff           written before the trial starts: git takes the candidate from here
run.log  judge.log  result.json    written before it is decided; curves and figures are here and nowhere else
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from pathlib import Path

from tasks.files import FileRef
from tasks.records import TRAIN, NightlyError, Proposal, RunResult, Trial


def write_proposal(folder: Path, current: str, proposed: Proposal) -> None:
    """The candidate, and its patch against the champion's source `current`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "train.py", proposed.source)
    _write(folder / "patch.diff", _diff(current, proposed.source))


def write_result(folder: Path, runs: tuple[RunResult, ...], trial: Trial) -> None:
    """The runs' figures and logs. A scoring box's log is kept apart: no proposer sees it."""
    logs = [f"--- seed {run.seed}: {run.status}: {run.reason}\n{run.log}" for run in runs]
    FileRef.write(folder / "run.log", "\n".join(logs).encode("utf-8", "replace"))
    withheld = [f"--- seed {run.seed}: what the scoring boxes printed; no proposer sees it\n{run.judge_log}" for run in runs]
    FileRef.write(folder / "judge.log", "\n".join(withheld).encode("utf-8", "replace"))
    logs_apart = ("log", "judge_log")
    shown = [{name: value for name, value in dataclasses.asdict(run).items() if name not in logs_apart} for run in runs]
    FileRef.write(folder / "result.json", json.dumps({"trial": dataclasses.asdict(trial), "runs": shown}, indent=1).encode())


def restore(folder: Path, source: str, parent: str) -> None:
    """Candidate and patch once more, from git, where the folder was lost."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("train.py", source), ("patch.diff", _diff(parent, source))):
        if not (folder / name).is_file():
            _write(folder / name, content)


def read_source(folder: Path) -> str:
    """The candidate, byte for byte. Raises NightlyError when it is gone."""
    try:
        return (folder / "train.py").read_bytes().decode("utf-8", "surrogatepass")
    except OSError as error:
        raise NightlyError(
            f"{folder / 'train.py'}: {error.strerror}, and the trial is not in git yet. Restore the file from a backup"
        ) from error


def read_runs(folder: Path) -> tuple[RunResult, ...]:
    """The runs of result.json; none where that was lost: the trial's own figures are in the ledger."""
    try:
        saved = json.loads((folder / "result.json").read_text(encoding="utf-8"))["runs"]
    except FileNotFoundError:
        return ()
    return tuple(map(RunResult.from_json, saved))


def _diff(old: str, new: str) -> str:
    before, after = (text.splitlines(keepends=True) for text in (old, new))
    return "".join(difflib.unified_diff(before, after, f"a/{TRAIN}", f"b/{TRAIN}"))


def _write(path: Path, text: str) -> None:
    FileRef.write(path, text.encode("utf-8", "surrogatepass"))
