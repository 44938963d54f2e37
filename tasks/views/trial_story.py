"""One trial's story, from the ledger and the trial's files: for `./run show`, and for programs.

The ledger has the verdict; files have the curves, the patch and earlier attempts that crashed. A
file that is gone is named in `missing`. Nearly all text in a story was written by a candidate or a
model: `trial_text` makes it safe for a terminal.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from tasks.errors import NightlyError, UsageError
from tasks.history import git_plumbing, ledger, llm_calls, night_folder, trial_folder
from tasks.history.night_state import fold
from tasks.noise import noise_of
from tasks.records import TRAIN, Alternative, Estimate, Idea, NightState, RunResult, Trial
from tasks.statuses import Decision, Outcome, Search, Status
from tasks.usage import Call, Usage
from tasks.views import costs, margin

LOG_TAIL = 3000  # characters
SUMMARY = "the unpatched train.py, with the profile's knobs"  # of the baseline

# The fields of these records are the keys of `--json`; what is unknown is None.


@dataclasses.dataclass(frozen=True)
class SeedScore:
    seed: int
    val_bpb: float


@dataclasses.dataclass(frozen=True)
class BaselineStory:
    """The baseline, of which the ledger has the scores; its runs' curves are in MLflow."""

    tag: str
    k: int  # 0
    baseline: float | None  # bits per byte
    champion: float | None  # bits per byte
    val_bpb: float | None
    sd: float | None  # of one run
    seconds: float | None  # mean training seconds
    peak_memory_bytes: int | None
    parameters: int | None  # self-reported
    checkpoint_bytes: int | None
    peak_gpu_bytes: int | None
    hardware: str | None
    dataset: str | None
    state: str  # decided or not measured
    summary: str
    commit: str | None
    runs: tuple[SeedScore, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """One seed's run. Where its file is gone, the ledger's seed and score."""

    seed: int
    status: Status | None = None
    reason: str | None = None
    val_bpb: float | None = None
    seconds: float | None = None
    startup_seconds: float | None = None
    tokens: int | None = None
    peak_memory_bytes: int | None = None
    parameters: int | None = None  # self-reported
    checkpoint_bytes: int | None = None
    peak_gpu_bytes: int | None = None  # by NVIDIA's driver
    tokens_per_second: float | None = None
    # In ten points: RunResult.curve_in_tenths. The loss is in nats.
    curve: tuple[tuple[int, int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A version that crashed and was fixed by its proposer."""

    n: int
    diff: str | None
    log: str | None  # its end
    folder: str


@dataclasses.dataclass(frozen=True)
class Request:
    """A request to a language model, without its text: llm_calls.jsonl has that."""

    id: str
    purpose: str
    model: str
    outcome: Outcome
    prompt_tokens: int | None
    completion_tokens: int | None
    dollars: float | None
    seconds: float
    error: str | None
    remark: str | None = None


@dataclasses.dataclass(frozen=True)
class TrialStory:
    """A trial, with the fields of its Idea and, once it is decided, of its Trial."""

    tag: str
    k: int
    baseline: float | None  # bits per byte
    champion: float | None  # bits per byte
    to_beat: float | None  # the champion's score while it ran
    status: Status | None
    verdict: Decision | None
    placebo: Decision | None  # of the champion unchanged: what the rule said of it
    reason: str | None
    z: float | None
    val_bpb: float | None
    unusual: str | None
    grown: str | None  # what is much larger than its champion's
    isolation: str | None
    audit_gap: float | None
    wall_seconds: float | None
    fixes: int | None
    summary: str | None
    proposer: str | None
    kind: str | None
    hypothesis: str | None
    expected: str | None
    stands_in: str | None
    note: str | None
    notes: str | None  # the researcher's notebook, as it left it with this idea
    outcome: Outcome | None
    search: Search  # how the candidate came about; these five as in Idea
    built_on: tuple[int, ...]
    estimate: Estimate | None
    queued: str | None
    choice: tuple[Alternative, ...]
    state: str  # decided, pending (decided and not in git yet) or in flight
    parent: str
    commit: str | None
    runs: tuple[Run, ...]
    champion_runs: tuple[SeedScore, ...]  # of the champion, again, to compare this trial with
    diff: str | None
    log: str | None  # its end, of a trial that was stopped
    attempts: tuple[Attempt, ...]
    calls: tuple[Request, ...]
    usage: Usage
    missing: tuple[str, ...]
    folder: str


# Fields of an Idea, a Trial and a RunResult that are taken over as they are.
SAID = (
    *("summary", "proposer", "kind", "hypothesis", "expected", "stands_in", "note", "notes"),
    *("outcome", "search", "built_on", "estimate", "queued", "choice"),
)
JUDGED = (
    *("status", "verdict", "placebo", "reason", "z", "val_bpb", "unusual", "grown", "isolation"),
    *("audit_gap", "wall_seconds", "fixes"),
)
MEASURED = (
    *("seed", "status", "reason", "val_bpb", "seconds", "startup_seconds", "tokens"),
    *("peak_memory_bytes", "parameters", "checkpoint_bytes", "peak_gpu_bytes"),
)


def describe(folder: Path, root: Path, number: int) -> BaselineStory | TrialStory:
    """Trial `number` of the night in `folder`, whose checkout is `root`; 0 is the baseline.

    Raises UsageError if the night has no such trial.
    """
    events = ledger.read(folder / night_folder.LEDGER)
    state = fold(events)
    if number == 0:
        return _baseline(state)
    files = _Files(folder, root, number)
    trials = {trial.number: trial for trial in (*state.trials, state.pending) if trial}
    if trial := trials.get(number):
        return _trial(state, files, trial.idea, trial.parent, trial)
    if number == state.in_flight:
        started = next(event for event in reversed(events) if event["event"] == "started")
        idea = files.idea() or Idea(started["summary"], started["proposer"])
        return _trial(state, files, idea, started["parent"], None)
    last = max([*trials, state.in_flight or 0], default=0)
    others = f" to {last}" if last else ""
    raise UsageError(
        f"night {state.header.tag} has no trial {number}; its trials are 0 (the baseline){others}"
    )


def _baseline(state: NightState) -> BaselineStory:
    baseline = state.baseline
    names = (
        *("val_bpb", "seconds", "peak_memory_bytes", "hardware", "dataset"),
        *("parameters", "checkpoint_bytes", "peak_gpu_bytes"),
    )
    fields: dict[str, Any] = {name: getattr(baseline, name, None) for name in names}
    runs = zip(baseline.seeds, baseline.scores, strict=True) if baseline else ()
    return BaselineStory(
        **_night(state, len(state.trials) + 1),
        k=0,
        **fields,
        sd=noise_of(state).sd if baseline else None,
        state="decided" if baseline else "not measured",
        summary=SUMMARY,
        commit=state.start_commit,
        runs=tuple(SeedScore(seed, score) for seed, score in runs),
    )


def _trial(
    state: NightState, files: _Files, idea: Idea, parent: str, trial: Trial | None
) -> TrialStory:
    """A trial's story; `trial` is None while it is in flight."""
    is_stopped = trial is not None and trial.status not in ("ok", "rejected_patch")
    calls = files.calls(trial.usage.calls if trial else 0)
    runs = files.runs(trial) if trial else ()
    diff = files.diff(trial)
    usage = trial.usage if trial else costs.of_calls(calls)
    judged: dict[str, Any] = {name: getattr(trial, name, None) for name in JUDGED}
    said: dict[str, Any] = {name: getattr(idea, name) for name in SAID}
    return TrialStory(
        **_night(state, files.number),
        k=files.number,
        to_beat=margin.to_beat(state).get(files.number, state.champion_bpb),
        **judged,
        **said,
        state=("decided" if trial.commit else "pending") if trial else "in flight",
        parent=parent,
        commit=trial.commit if trial else None,
        runs=runs,
        champion_runs=tuple(
            SeedScore(*pair)
            for pair in zip(trial.champion_seeds, trial.champion_scores, strict=True)
        )
        if trial
        else (),
        diff=diff,
        log=_tail(files.place / "run.log") if is_stopped else None,
        attempts=files.attempts(),
        calls=tuple(map(_request, calls)),
        usage=costs.known(state.header, usage),
        missing=tuple(files.missing),
        folder=str(files.place),
    )


def _night(state: NightState, number: int) -> dict[str, Any]:
    base = margin.baseline_of(state, number)
    return {"tag": state.header.tag, "baseline": base, "champion": state.champion_bpb}


class _Files:
    """What one trial has left in the night's folder; `missing` names what was lost."""

    def __init__(self, folder: Path, root: Path, number: int) -> None:
        self.number = number
        self.place = folder / "trials" / str(number)
        self.missing: list[str] = []
        self._folder = folder
        self._root = root

    def idea(self) -> Idea | None:
        """Of the proposal that is waiting for a verdict; None if that was lost."""
        try:
            waiting = trial_folder.read_proposal(self.place)
        except NightlyError as error:
            self.missing.append(str(error))
            return None
        return waiting.proposal.idea if waiting else None

    def calls(self, expected: int) -> list[Call]:
        """The requests for this trial, of which the ledger counts `expected`."""
        calls: list[Call] = []
        try:
            calls += llm_calls.read(self._folder / night_folder.CALLS, {self.number})
        except NightlyError as error:
            self.missing.append(str(error))
        if lost := max(expected - len(calls), 0):
            self.missing.append(
                f"{lost} of the {expected} requests are not in {night_folder.CALLS}"
            )
        return calls

    def runs(self, trial: Trial) -> tuple[Run, ...]:
        """Each seed's run; where result.json was lost, the ledger's scores."""
        try:
            if runs := trial_folder.read_runs(self.place):
                return tuple(map(_run, runs))
            lost = "result.json is gone"
        except NightlyError as error:
            lost = str(error)
        if trial.seeds:
            self.missing.append(f"{lost}; it had the runs' curves and figures")
        scored = itertools.zip_longest(trial.seeds, trial.scores)
        return tuple(Run(seed, val_bpb=score) for seed, score in scored)

    def diff(self, trial: Trial | None) -> str | None:
        """The patch, from the trial's file or from git."""
        if (patch := _read(self.place / "patch.diff")) is not None:
            return patch
        if not (trial and trial.commit):
            self.missing.append("patch.diff is gone")
            return None
        options = ("-p", "--text", "--no-ext-diff", "--no-textconv", "--no-color")
        commits = (trial.parent, trial.commit)
        try:
            found = git_plumbing.run_bytes(self._root, "diff-tree", *options, *commits, "--", TRAIN)
        except NightlyError as error:
            self.missing.append(f"patch.diff is gone, and git does not have it either: {error}")
            return None
        return found.decode("utf-8", "replace")

    def attempts(self) -> tuple[Attempt, ...]:
        """The versions that crashed before the one that was judged, in their order."""
        found = [path for path in (self.place / "attempts").glob("*") if path.name.isdecimal()]
        return tuple(
            Attempt(
                n=int(path.name),
                diff=_read(path / "patch.diff"),
                log=_tail(path / "run.log"),
                folder=str(path),
            )
            for path in sorted(found, key=lambda path: int(path.name))
        )


def _run(run: RunResult) -> Run:
    return Run(
        **{name: getattr(run, name) for name in MEASURED},
        tokens_per_second=run.tokens / run.seconds if run.tokens and run.seconds else None,
        curve=run.curve_in_tenths,
    )


def _request(call: Call) -> Request:
    return Request(
        **{field.name: getattr(call, field.name) for field in dataclasses.fields(Request)}
    )


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
