"""A trial's folder, nights/<tag>/trials/<k>: the proposal, its runs' figures and their logs.

train.py  patch.diff  proposal.json   written once it is proposed: git takes the candidate from here
run.log  judge.log  result.json       written before the verdict; the only place with the curves
attempts/<n>/                         versions that crashed and were fixed: train.py, patch.diff,
                                      run.log
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

from tasks.errors import NightlyError
from tasks.files import FileRef
from tasks.records import TRAIN, Candidate, Idea, Proposal, RunResult, Trial


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A proposal whose trial is not decided yet."""

    proposal: Proposal
    parent: str  # commit of the champion that it was made against


def write_proposal(folder: Path, current: str, proposed: Proposal, parent: str) -> None:
    """The candidate, and its patch against the champion's source `current`, commit `parent`."""
    source = proposed.candidate.source
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "train.py", source)
    _write(folder / "patch.diff", _diff(current, source))
    saved = {
        "parent": parent,
        "sha256": _sha256(source),
        "idea": dataclasses.asdict(proposed.idea),
        "problem": proposed.problem,
    }
    _write(folder / "proposal.json", json.dumps(saved, indent=1))


def read_proposal(folder: Path) -> Waiting | None:
    """What `write_proposal` wrote; None if there is nothing, or a kill left files of two proposals.

    Raises NightlyError if it is damaged.
    """
    path = folder / "proposal.json"
    try:
        saved, source = json.loads(path.read_text(encoding="utf-8")), read_source(folder)
        if saved["sha256"] != _sha256(source):
            return None
        idea = Idea.from_json(saved["idea"])
        proposal = Proposal(Candidate.parse(source), idea, saved["problem"])
        return Waiting(proposal, saved["parent"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise NightlyError(
            f"{path} is damaged ({error}): remove it, and the trial is proposed again"
        ) from error


def attempts(folder: Path) -> list[str]:
    """The sources of the versions of this trial that crashed and were fixed, in order."""
    folders = sorted((folder / "attempts").glob("[0-9]*"), key=lambda place: int(place.name))
    return [read_source(place) for place in folders]


def write_fixed(
    folder: Path, current: str, fixed: Proposal, parent: str, runs: tuple[RunResult, ...]
) -> None:
    """`write_proposal` for the fixed version of a crash; the one that crashed goes to attempts/."""
    made = folder / "attempts" / "made"
    shutil.rmtree(made, ignore_errors=True)  # left by a killed process
    made.mkdir(parents=True)
    for name in ("train.py", "patch.diff"):
        FileRef.write(made / name, (folder / name).read_bytes())
    FileRef.write(made / "run.log", _logs(runs))
    write_proposal(folder, current, fixed, parent)
    made.rename(made.with_name(str(len(attempts(folder)) + 1)))


def write_result(
    folder: Path,
    runs: tuple[RunResult, ...],
    trial: Trial,
    champion_runs: tuple[RunResult, ...] = (),
    quarantined: tuple[RunResult, ...] = (),
) -> None:
    """The runs' figures and logs, and the figures of the champion's fresh runs.

    And of those in quarantine, in the order of `Trial.quarantined`. The scoring boxes' log is
    separate: no proposer sees it.
    """
    known: dict[str, Any] = {"trial": dataclasses.asdict(trial)}
    if champion_runs:
        known["champion_runs"] = _figures(champion_runs)
    if quarantined:
        known["quarantined_runs"] = _figures(quarantined)
    _write_runs(folder, runs, known)


def write_baseline_run(folder: Path, source: str, run: RunResult) -> None:
    """The files of a baseline's run, which has no folder of its own, as a trial has them."""
    _write(folder / "train.py", source)
    _write_runs(folder, (run,), {})


def _write_runs(folder: Path, runs: tuple[RunResult, ...], known: dict[str, Any]) -> None:
    FileRef.write(folder / "run.log", _logs(runs))
    withheld = [
        f"--- seed {run.seed}: what the scoring boxes printed; no proposer sees it\n{run.judge_log}"
        for run in runs
    ]
    FileRef.write(folder / "judge.log", "\n".join(withheld).encode("utf-8", "replace"))
    shown = {**known, "runs": _figures(runs)}
    FileRef.write(folder / "result.json", json.dumps(shown, indent=1).encode())


def _figures(runs: tuple[RunResult, ...]) -> list[dict[str, Any]]:
    """All of the runs but their logs."""
    logs = ("log", "judge_log")
    return [
        {name: value for name, value in dataclasses.asdict(run).items() if name not in logs}
        for run in runs
    ]


def restore(folder: Path, source: str, parent: str) -> None:
    """Writes candidate and patch again, from git, if the folder was lost."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("train.py", source), ("patch.diff", _diff(parent, source))):
        if not (folder / name).is_file():
            _write(folder / name, content)


def read_source(folder: Path) -> str:
    """The candidate, byte for byte. Raises NightlyError if it is gone."""
    try:
        return (folder / "train.py").read_bytes().decode("utf-8", "surrogatepass")
    except OSError as error:
        raise NightlyError(
            f"{folder / 'train.py'}: {error.strerror}, and the trial is not in git yet. "
            "Restore the file from a backup"
        ) from error


def read_runs(folder: Path) -> tuple[RunResult, ...]:
    """The runs of result.json; none if that was lost: the trial's figures are in the ledger.

    Raises NightlyError if it is damaged.
    """
    path = folder / "result.json"
    try:
        return tuple(map(RunResult.from_json, json.loads(path.read_text(encoding="utf-8"))["runs"]))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NightlyError(
            f"{path} is damaged ({error!r}): restore it from a backup, or remove it"
        ) from error


def _logs(runs: tuple[RunResult, ...]) -> bytes:
    return "\n".join(
        f"--- seed {run.seed}: {run.status}: {run.reason}\n{run.log}" for run in runs
    ).encode("utf-8", "replace")


def _sha256(source: str) -> str:
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def _diff(old: str, new: str) -> str:
    """A unified diff for `git apply`: lines end at "\\n" only, and a missing last one is marked."""
    before, after = (list(io.StringIO(text, newline="\n")) for text in (old, new))
    lines = difflib.unified_diff(before, after, f"a/{TRAIN}", f"b/{TRAIN}")
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def _write(path: Path, text: str) -> None:
    FileRef.write(path, text.encode("utf-8", "surrogatepass"))
