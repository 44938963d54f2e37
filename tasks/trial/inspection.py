"""What a researcher asks about a candidate, answered by a box: a study, or a smoke step alone.

No score, no claim and no audit: what comes back is the candidate's own word, checked for its form
and its size only. A candidate that fails is a value.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from tasks.data import tokenization
from tasks.judge import priority, protocol, scoring, study_box
from tasks.judge.box import Box, open_box
from tasks.judge.bwrap import BoxUnavailable
from tasks.judge.flop_count import number
from tasks.judge.protocol import is_whole
from tasks.judge.workplace import add_study_files, read_whole, workplace
from tasks.records import Bench, Candidate, LossBin, StepPart, Study
from tasks.statuses import Status
from tasks.trial.early_run import PATIENCE
from tasks.trial.experiment import budget_of, native_kernels, train_box

SECONDS = 60.0  # of a study box and of its CPU time, besides a start-up
LOSS_TOKENS, LOSS_TOKENS_ON_GPU = 1 << 15, 1 << 20
SAMPLE_TOKENS = 48
TEMPERATURES = (0.0, 0.8)
LONGEST_PROMPT = 2000  # characters
LONGEST_SAMPLE, LONGEST_NAME, LONGEST_PROBLEM = 1000, 60, 400  # characters that are taken
MOST = 20  # of each list

OpenBox = Callable[[Box], None]  # told of a box, which may then be ended from any thread


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A trained model of a candidate, and how many tokens its training has read, in its word."""

    path: Path
    tokens: int


@dataclasses.dataclass(frozen=True)
class TriedOut:
    """What came of a smoke step."""

    status: Status
    reason: str
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int | None
    log: str


def ignore(box: Box) -> None:
    """For callers that never end a box."""


def study(
    candidate: Candidate,
    bench: Bench,
    checkpoint: Checkpoint | None,
    *,
    profile: bool = True,
    prompt: str | None = None,
    beside: bool = False,
    opened: OpenBox = ignore,
) -> Study:
    """Where its step goes, if `profile`; with a checkpoint the loss, or what follows a `prompt`.

    A box that is `beside` a run has a low priority. That no box could be made, as on a full disk,
    is a problem of the study and no error. Raises DataError for changed native code.
    """
    questions: dict[str, Any] = {"budget": bench.profile.budget.model_dump(), "profile": profile}
    on_cpu = bench.profile.device == "cpu"
    if checkpoint and prompt is None:
        tokens = LOSS_TOKENS if on_cpu else LOSS_TOKENS_ON_GPU
        questions["loss"] = {"tokens_read": checkpoint.tokens, "tokens": tokens}
    if prompt is not None:
        short = prompt[-LONGEST_PROMPT:].encode("utf-8", "replace").decode()
        sample = {"prompt": short, "tokens": SAMPLE_TOKENS, "temperatures": TEMPERATURES}
        questions["sample"] = sample
    account, message = _Account(), dict[str, Any]()
    limits = _Limits.of(bench, SECONDS, beside=beside)
    try:
        with workplace(bench.home) as folder:
            spec = train_box(candidate, bench, 1, folder, native_kernels(bench.dataset))
            add_study_files(spec.code)
            studied = checkpoint.path if checkpoint else None
            if studied:  # its other readers have seen what is scored: see there
                read_whole(studied)
            spec = dataclasses.replace(spec, role="study", studied=studied)
            with open_box(spec, study_box.ENTRY) as box, account.of(box):
                opened(box)
                message = study_box.ask(
                    box, spec.gate, questions, seconds=limits.seconds, when_up=limits.when_up
                )
    except protocol.Stopped as end:
        message = {"problems": {"the box": f"{end.status}: {end.reason}"}}
    except BoxUnavailable as error:
        message = {"problems": {"the box": str(error)}}
    except OSError as error:
        message = {"problems": {"the box": f"there was none: {error.strerror}"}}
    return _study(message, account)


def try_out(
    candidate: Candidate, bench: Bench, *, beside: bool = False, opened: OpenBox = ignore
) -> TriedOut:
    """Start-up, two steps, the checkpoint and one evaluation, as before every trial's first run.

    It has the time that a trial gives it: what needs more is no candidate, and no run for free.
    Raises DataError for changed native code.
    """
    status, reason = "ok", "it starts, makes two steps, and its checkpoint can be scored"
    knobs, account = candidate.knobs, _Account()
    problem = tokenization.pack_if_missing(
        Path(bench.dataset.train), knobs.get("VOCAB_SIZE"), knobs.get("MAX_SEQ_LEN")
    )
    if problem:
        return TriedOut("rejected_patch", problem, 0.0, 0.0, None, "")
    limits = _Limits.of(bench, 0.0, beside=beside)
    try:
        with workplace(bench.home) as folder:
            spec = train_box(candidate, bench, 1, folder, native_kernels(bench.dataset))
            spec = dataclasses.replace(spec, role="smoke")
            with open_box(spec) as box, account.of(box):
                opened(box)
                found = protocol.smoke(
                    box,
                    spec.gate,
                    budget_of(bench),
                    startup_seconds=limits.seconds,
                    max_bytes=bench.profile.limits.checkpoint_mib * 2**20,
                    when_up=limits.when_up,
                )
        if found is not None:  # the vocabulary must be one that is scored
            text = scoring.Validation(Path(bench.dataset.public), Path(bench.dataset.validation))
            text.rows(scoring.shape_of(found[0], "bad_claims"))
    except protocol.Stopped as end:
        status, reason = end.status, end.reason
    except BoxUnavailable as error:
        status, reason = "sandbox_error", str(error)
    figures = account.seconds, account.cpu_seconds, account.peak_memory_bytes
    return TriedOut(cast(Status, status), reason, *figures, account.log)


@dataclasses.dataclass(frozen=True)
class _Limits:
    """Of a box: a start-up's, and so many seconds more for what is studied."""

    seconds: float
    cpu_seconds: float
    beside: bool  # another run is training

    @classmethod
    def of(cls, bench: Bench, more: float, *, beside: bool) -> _Limits:
        caps = bench.caps
        usual = caps.startup_seconds * bench.profile.threads
        # Alone a trial's start-up has no other limit.
        if (beside or more) and caps.startup_cpu_seconds is not None:
            usual = caps.startup_cpu_seconds
        seconds = (caps.startup_seconds + more) * (PATIENCE if beside else 1.0)
        return cls(seconds, usual + more, beside)

    def when_up(self, box: Box) -> None:
        if self.beside:
            priority.lower(box.watchdog.root)
        most, status = self.cpu_seconds, "startup_timeout"
        box.watchdog.limit_cpu(most, status=status, doing="being studied")


class _Account:
    """What a box has cost, and its log."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self.peak_memory_bytes: int | None = None
        self.log = ""

    @contextlib.contextmanager
    def of(self, box: Box) -> Iterator[None]:
        try:
            yield
        finally:
            self.cpu_seconds = box.watchdog.cpu_seconds()
            box.kill()
            self.seconds = time.monotonic() - box.started
            self.peak_memory_bytes = box.watchdog.peak_memory_bytes or None
            self.log = box.log.text()


def _study(message: Mapping[str, Any], account: _Account) -> Study:
    """The record of what a box said: whatever has not the form is left out."""
    loss, profile = _table(message.get("loss")), _table(message.get("profile"))
    operations = ((_name(row[0]), number(row[1])) for row in _rows(profile, "operations", list))
    state = ((_name(row[0]), _whole(row[1])) for row in _rows(profile, "state", list))
    named = _table(message.get("problems")).items()
    said = message.get("sample")
    samples = said if isinstance(said, list) else []
    return Study(
        seconds=account.seconds,
        cpu_seconds=account.cpu_seconds,
        peak_memory_bytes=account.peak_memory_bytes,
        problems=tuple(f"{_name(part)}: {why}"[:LONGEST_PROBLEM] for part, why in named)[:MOST],
        milliseconds=number(profile.get("milliseconds")),
        parts=tuple(
            StepPart(
                _name(part.get("name")),
                number(part.get("milliseconds")) if profile.get("parts") else None,
                number(part.get("flops")) or 0.0,
                int(number(part.get("kept_bytes")) or 0),
            )
            for part in _rows(profile, "parts", dict) or _rows(loss, "parts", dict)
        ),
        operations=tuple((name, spent) for name, spent in operations if spent is not None),
        peak_gpu_bytes=_whole(profile.get("peak_gpu_bytes")),
        state=tuple((name, size) for name, size in state if size is not None),
        rows=_whole(loss.get("rows")),
        unread_rows=_whole(loss.get("unread_rows")),
        bits_per_byte=number(loss.get("bits_per_byte")),
        by_frequency=_bins(loss, "by_frequency"),
        by_position=_bins(loss, "by_position"),
        samples=tuple(str(text)[:LONGEST_SAMPLE] for text in samples[: len(TEMPERATURES)]),
    )


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _rows(table: Mapping[str, Any], name: str, kind: type[Any]) -> list[Any]:
    """The first MOST of a list, those that are of a kind; a list has two items."""
    rows = table.get(name)
    found = [row for row in rows if isinstance(row, kind)] if isinstance(rows, list) else []
    return [row for row in found if kind is dict or len(row) == 2][:MOST]


def _bins(table: Mapping[str, Any], name: str) -> tuple[LossBin, ...]:
    """Raises nothing: a bin without its whole numbers is left out."""
    found = []
    for row in _rows(table, name, dict):
        numbers = [_whole(row.get(field)) for field in ("first", "stop", "targets")]
        first, stop, targets = numbers
        if first is not None and stop is not None and targets is not None:
            found.append(LossBin(first, stop, targets, number(row.get("nats"))))
    return tuple(found)


def _name(value: Any) -> str:
    """Of a part or an operation: letters of code and nothing else."""
    return re.sub(r"[^\w.*:<>, ()-]", "?", str(value)[:LONGEST_NAME], flags=re.ASCII)


def _whole(value: Any) -> int | None:
    return value if is_whole(value, 0, 2**53 - 1) else None
