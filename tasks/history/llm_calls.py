"""Requests to language models: each is one line of nights/<tag>/llm_calls.jsonl, and what a night has spent is their sum.

A line is appended and fsynced when the answer is there, before anything is run. A request that was given up has no usage, and
counts as nothing, though an endpoint may have charged for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Container, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.files import sync_folder
from tasks.usage import Call, Usage, total, usage_of

if TYPE_CHECKING:
    pass

NO_ANSWER = ("no_completion", "error_body")  # with status 200
FAILURES = (
    *NO_ANSWER,
    "context_overflow",
    "bad_request",
    "unauthorized",
    "rate_limited",
    "server_error",
    "unreachable",
    "timeout",
)
LONGEST_PAUSE = 600.0  # seconds
LONGEST_RETRY_AFTER = 12 * 3600.0  # seconds, a night: an endpoint that wants more may be wrong
MOST_DRY = 3  # trials in a row without a patch
CLOCK_STEP = (
    60.0  # seconds: a call that ends further in the future was made before the clock was set back
)


class CallLog:
    """A night's llm_calls.jsonl, held by one process, to which any of its threads may append.

    In memory are only the sums and what pauses depend on, as the log itself grows to tens of megabytes. All of that comes
    from the lines: a night that goes on in another process has spent as much, and leaves the model alone as long.
    """

    def __init__(self, path: Path) -> None:
        """Reads what is there, and cuts off the torn line that a killed writer may have left."""
        self.path = path
        self._lock = threading.Lock()
        self._usages: dict[int, Usage] = {}  # by trial
        self._failures = 0  # of the endpoint, in a row
        self._failure: Call | None = None  # the last of them, without what was said
        self._patched: dict[
            int, bool
        ] = {}  # trials that got an answer, in their order: did one have a patch?
        self._answered: datetime | None = None  # when the last answer came
        written = path.read_bytes() if path.exists() else b""
        if (whole := written.rfind(b"\n") + 1) < len(written):
            os.truncate(path, whole)
        for call in _calls(path):
            self._count(call)

    def append(self, call: Call) -> None:
        """Adds a call and returns when it is on disk. Raises NightlyError when the disk does not take it: nothing is added."""
        line = (
            json.dumps(dataclasses.asdict(call)).encode() + b"\n"
        )  # ASCII: also for text that is no valid Unicode
        with self._lock:
            try:
                _append(self.path, line)
            except OSError as error:
                from tasks.errors import (
                    NightlyError,  # here, because that module has the records of this one
                )

                raise NightlyError(
                    f"request {call.id} could not be written to {self.path}: {error.strerror}. "
                    f"Make room or mend the disk, then `./run resume {self.path.parent.name}`"
                ) from error
            self._count(call)

    def next_id(self, trial: int) -> str:
        return f"{trial}.{self.usage(trial).calls + 1}"

    def usage(self, trial: int | None = None) -> Usage:
        """What was spent on a trial, or on the whole night."""
        with self._lock:
            if trial is not None:
                return self._usages.get(trial, Usage())
            return total(self._usages.values())

    def closed_for(self, now: datetime, pause: float = 30.0, trial: int | None = None) -> float:
        """Seconds for which the model is to be left alone; 0 when it may be asked.

        After a failure of the endpoint: `pause`, doubled with each in a row up to LONGEST_PAUSE, or for as long as the
        endpoint wants. After MOST_DRY trials in a row that got answers and no patch: LONGEST_PAUSE, and again after each
        further one. A `trial` that is not over yet does not count.
        """
        with self._lock:
            pauses = []
            if self._failure:
                doubled = min(pause * 2 ** min(self._failures - 1, 10), LONGEST_PAUSE)
                wanted = min(self._failure.retry_after or 0.0, LONGEST_RETRY_AFTER)
                pauses.append((_ended(self._failure), max(doubled, wanted)))
            if self._answered and self._dry(trial) >= MOST_DRY:
                pauses.append((self._answered, LONGEST_PAUSE))
        spans = [((now - since).total_seconds(), seconds) for since, seconds in pauses]
        return max(
            (
                seconds - max(passed, 0.0)
                for passed, seconds in spans
                if -CLOCK_STEP < passed < seconds
            ),
            default=0.0,
        )

    def last_failure(self, trial: int | None = None) -> str:
        """What `closed_for` waits after, in words."""
        with self._lock:
            if self._failure:
                return f"{self._failure.outcome}: {self._failure.error}"
            return f"{self._dry(trial)} trials in a row without a patch that can be run"

    def _dry(self, but: int | None = None) -> int:
        """How many trials in a row, the last ones, got answers and no patch."""
        patched = [patched for trial, patched in self._patched.items() if patched or trial != but]
        return next((n for n, found in enumerate(reversed(patched)) if found), len(patched))

    def _count(self, call: Call) -> None:
        self._usages[call.trial] = total((self._usages.get(call.trial, Usage()), usage_of(call)))
        if call.outcome in FAILURES:
            self._failures += 1
            self._failure = dataclasses.replace(call, messages=(), answer=None)
        elif call.outcome != "cancelled":
            self._failures, self._failure = 0, None
            if call.purpose != "ping":
                self._patched[call.trial] = (
                    self._patched.get(call.trial, False) or call.outcome == "ok"
                )
                self._answered = _ended(call)


def read(path: Path, trials: Container[int] | None = None) -> tuple[Call, ...]:
    """All whole calls, or those of some trials, also while a night is writing; none without a file.

    Raises NightlyError for a damaged line.
    """
    return tuple(call for call in _calls(path) if trials is None or call.trial in trials)


def _calls(path: Path) -> Iterator[Call]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                fields = json.loads(line)
                call = Call(**{**fields, "messages": tuple(fields["messages"])})
                _ended(call)
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                from tasks.errors import NightlyError

                raise NightlyError(
                    f"{path}, line {number} is damaged: {line[:80]!r}. Restore the file from a backup, or remove the line: "
                    "the night then forgets what that request cost"
                ) from error
            yield call


def _append(path: Path, line: bytes) -> None:
    """All of the line on disk, or nothing of it and an OSError."""
    with path.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            written = 0
            while written < len(line):
                written += file.write(line[written:])
            os.fsync(file.fileno())
            if not before:
                sync_folder(path.parent)
        except BaseException:  # of a Ctrl-C too: half a line would spoil the next one
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def _ended(call: Call) -> datetime:
    return datetime.fromisoformat(call.time).astimezone(UTC) + timedelta(seconds=call.seconds)
