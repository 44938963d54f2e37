"""One trial's story, as one object from the ledger and the trial's files: for `./run show`, and for programs.

The ledger has the verdict; files have the curves, the patch and what crashed before it. A file that is gone is named and
ends nothing. Nearly every word in it is a candidate's or a model's, as it was written: `narration` makes it fit to be shown.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.errors import NightlyError, UsageError
from tasks.history import git_plumbing, ledger, llm_calls, night_folder, trial_folder
from tasks.history.night_state import fold
from tasks.records import TRAIN, NightState, RunResult, Trial
from tasks.usage import Call
from tasks.views import costs

POINTS = 10  # of a training curve
LOG_TAIL = 3000  # characters
IDEA = ("summary", "proposer", "kind", "hypothesis", "expected", "stands_in", "note", "outcome")
JUDGED = (
    "status",
    "verdict",
    "reason",
    "z",
    "val_bpb",
    "unusual",
    "isolation",
    "audit_gap",
    "wall_seconds",
    "fixes",
)
MEASURED = (
    "seed",
    "status",
    "reason",
    "val_bpb",
    "seconds",
    "startup_seconds",
    "tokens",
    "peak_memory_bytes",
)
ASKED = (
    "id",
    "purpose",
    "model",
    "outcome",
    "prompt_tokens",
    "completion_tokens",
    "dollars",
    "seconds",
    "error",
)


def describe(folder: Path, root: Path, number: int) -> dict[str, Any]:
    """Trial `number` of the night in `folder`, whose commits are in the checkout `root`; 0 is the baseline.

    `state` is decided, pending (git has not got it yet), in flight or not measured. What is not known is None, and what was
    lost is named in `missing`. Raises UsageError for a trial that the night does not have.
    """
    events = ledger.read(folder / night_folder.LEDGER)
    state = fold(events)
    base = state.baseline.val_bpb if state.baseline else None
    story = {
        "tag": state.header.tag,
        "k": number,
        "baseline": base,
        "champion": state.champion_bpb,
    }
    if number == 0:
        return {**story, **_baseline(state)}
    place = folder / "trials" / str(number)
    missing: list[str] = []
    parent: str | None
    trial = next(
        (done for done in (*state.trials, state.pending) if done and done.number == number), None
    )
    if trial:
        word = "decided" if trial.commit else "pending"
        parent = trial.parent
        told = {
            **{name: getattr(trial.idea, name) for name in IDEA},
            **{name: getattr(trial, name) for name in JUDGED},
        }
    elif number == state.in_flight:
        word, (parent, told) = "in flight", _in_flight(events, place, missing)
    else:
        last = max(
            len(state.trials), state.pending.number if state.pending else 0, state.in_flight or 0
        )
        raise UsageError(
            f"night {story['tag']} has no trial {number}; there are: 0 (the baseline){f' to {last}' if last else ''}"
        )
    calls = _calls(folder, number, trial.usage.calls if trial else 0, missing)
    stopped = trial is not None and trial.status not in ("ok", "rejected_patch")
    return {
        **story,
        **dict.fromkeys(JUDGED),
        **told,
        "state": word,
        "parent": parent,
        "commit": trial.commit if trial else None,
        "runs": _runs(place, trial, missing) if trial else [],
        "diff": _diff(place, root, trial, missing),
        "log": _tail(place / "run.log") if stopped else None,
        "attempts": _attempts(place / "attempts"),
        "calls": [{name: getattr(call, name) for name in ASKED} for call in calls],
        "usage": dataclasses.asdict(
            costs.known(state.header, trial.usage if trial else costs.of_calls(calls))
        ),
        "missing": missing,
        "folder": str(place),
    }


def _baseline(state: NightState) -> dict[str, Any]:
    """What the ledger holds of it; its runs' curves are in MLflow."""
    baseline = state.baseline
    fields = ("val_bpb", "sd", "seconds", "peak_memory_bytes", "hardware", "dataset")
    runs = zip(baseline.seeds, baseline.scores, strict=True) if baseline else ()
    return {
        **{name: getattr(baseline, name, None) for name in fields},
        "state": "decided" if baseline else "not measured",
        "summary": "the unpatched train.py, with the profile's knobs",
        "commit": state.start_commit,
        "runs": [{"seed": seed, "val_bpb": score} for seed, score in runs],
    }


def _in_flight(
    events: Sequence[dict[str, Any]], place: Path, missing: list[str]
) -> tuple[str | None, dict[str, Any]]:
    """The parent and the idea of the trial that was begun last; of a lost proposal, what the ledger has."""
    started = next(event for event in reversed(events) if event["event"] == "started")
    waiting = None
    try:
        waiting = trial_folder.read_proposal(place)
    except NightlyError as error:
        missing.append(str(error))
    idea = {
        name: getattr(waiting.proposal.idea, name) if waiting else started.get(name)
        for name in IDEA
    }
    return started.get("parent"), idea


def _calls(folder: Path, number: int, expected: int, missing: list[str]) -> list[Call]:
    """The requests for this trial, of which the ledger has `expected`."""
    path, calls = folder / night_folder.CALLS, []
    try:
        calls = [call for call in llm_calls.read(path) if call.trial == number]
    except NightlyError as error:
        missing.append(str(error))
    if len(calls) < expected:
        missing.append(
            f"{expected - len(calls)} of the {expected} requests are not in {night_folder.CALLS}"
        )
    return calls


def _runs(place: Path, trial: Trial, missing: list[str]) -> list[dict[str, Any]]:
    """Each seed's run, with its curve at POINTS equal parts of the training; of a lost file, the ledger's scores."""
    try:
        if runs := trial_folder.read_runs(place):
            return [_run(run) for run in runs]
        lost = "result.json is gone"
    except NightlyError as error:
        lost = str(error)
    if trial.seeds:
        missing.append(f"{lost}; the runs' curves and figures were in it")
    return [
        {
            **dict.fromkeys((*MEASURED, "tokens_per_second")),
            "seed": seed,
            "val_bpb": score,
            "curve": [],
        }
        for seed, score in itertools.zip_longest(trial.seeds, trial.scores)
    ]


def _run(run: RunResult) -> dict[str, Any]:
    last = len(run.curve) - 1
    points = range(POINTS) if last >= POINTS else range(last + 1)
    return {
        **{name: getattr(run, name) for name in MEASURED},
        "tokens_per_second": run.tokens / run.seconds if run.tokens and run.seconds else None,
        "curve": [run.curve[round(i * last / max(len(points) - 1, 1))] for i in points],
    }


def _diff(place: Path, root: Path, trial: Trial | None, missing: list[str]) -> str | None:
    """The patch: the trial's file, or what git has."""
    if (patch := _read(place / "patch.diff")) is not None:
        return patch
    try:
        if trial and trial.commit:
            options = ("-p", "--text", "--no-ext-diff", "--no-textconv", "--no-color")
            found = git_plumbing.run_bytes(
                root, "diff-tree", *options, trial.parent, trial.commit, "--", TRAIN
            )
            return found.decode("utf-8", "replace")
        missing.append("patch.diff is gone")
    except NightlyError as error:
        missing.append(f"patch.diff is gone, and git has it no more: {error}")
    return None


def _attempts(folder: Path) -> list[dict[str, Any]]:
    """The tries that crashed before the one that was judged."""
    found = sorted(
        (path for path in folder.glob("*") if path.name.isdecimal()),
        key=lambda path: int(path.name),
    )
    return [
        {
            "n": int(path.name),
            "diff": _read(path / "patch.diff"),
            "log": _tail(path / "run.log"),
            "folder": str(path),
        }
        for path in found
    ]


def _tail(path: Path) -> str | None:
    """The last lines of a log, at most LOG_TAIL characters."""
    log = _read(path)
    if log is None or len(log) <= LOG_TAIL:
        return log
    return log[-LOG_TAIL:].partition("\n")[2] or log[-LOG_TAIL:]


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return None
