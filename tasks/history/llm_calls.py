"""Requests to language models: one line each in nights/<tag>/llm_calls.jsonl.

What a night has spent is the sum of its lines. A line is appended and fsynced when the answer has
arrived, before anything is run. A request that was given up has no usage and counts as nothing,
although an endpoint may have charged for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
from collections import defaultdict
from collections.abc import Container, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tasks.errors import NightlyError
from tasks.files import sync_folder
from tasks.usage import Call, Usage, total, usage_of

FAILURES = (  # of the endpoint; the first two came with status 200
    "no_completion",
    "error_body",
    "context_overflow",
    "bad_request",
    "unauthorized",
    "rate_limited",
    "server_error",
    "unreachable",
    "timeout",
)
LONGEST_PAUSE = 600.0  # seconds
LONGEST_RETRY_AFTER = 12 * 3600.0  # seconds, a night: an endpoint that asks for more may be wrong
MOST_DRY = 3  # trials in a row without a patch
# Seconds. A call that ended further in the future was made before the clock was set back.
CLOCK_STEP = 60.0


class CallLog:
    """A night's llm_calls.jsonl, held by one process; any of its threads may append.

    Only the sums and what pauses depend on are kept in memory, as the log itself grows to tens of
    megabytes. All of it is derived from the lines, so a resumed night has spent as much and pauses
    as long.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file, and cuts off the torn line that a killed writer may have left."""
        self.path = path
        self._lock = threading.Lock()
        self._usages: dict[int, Usage] = {}  # by trial
        self._last = ""  # model that was asked
        self._models = defaultdict[str, _Model](_Model)  # by name
        written = path.read_bytes() if path.exists() else b""
        if (whole := written.rfind(b"\n") + 1) < len(written):
            os.truncate(path, whole)
        for call in _calls(path):
            self._count(call)

    def append(self, call: Call) -> None:
        """Adds a call and returns once it is on disk.

        Raises NightlyError if it cannot be written; then nothing is added.
        """
        # ASCII, so that text which is not valid Unicode can be written too.
        line = json.dumps(dataclasses.asdict(call)).encode() + b"\n"
        with self._lock:
            try:
                _append(self.path, line)
            except OSError as error:
                raise NightlyError(
                    f"request {call.id} could not be written to {self.path}: {error.strerror}. "
                    "Make room or repair the disk, then "
                    f"`./run resume {self.path.parent.name}`"
                ) from error
            self._count(call)

    def next_id(self, trial: int) -> str:
        return f"{trial}.{self.usage(trial).calls + 1}"

    def last(self, trial: int) -> Call | None:
        """The last call for a trial."""
        asked = self.usage(trial).calls  # the file is long, and mostly there is nothing to look for
        return read(self.path, (trial,))[-1] if asked else None

    def usage(self, trial: int | None = None) -> Usage:
        """What was spent on a trial, or on the whole night."""
        with self._lock:
            if trial is not None:
                return self._usages.get(trial, Usage())
            return total(self._usages.values())

    def closed_for(
        self, now: datetime, pause: float = 30.0, trial: int | None = None, model: str | None = None
    ) -> float:
        """Seconds before the model may be asked again; 0 if it may be asked now.

        After a failure of the endpoint: `pause`, doubled with each further one in a row up to
        LONGEST_PAUSE, or as long as the endpoint asks for. After MOST_DRY trials in a row with
        answers but no patch: LONGEST_PAUSE, and again after each further one; `trial` is not over
        yet and does not count. None: of the model that was asked last.
        """
        with self._lock:
            pauses = self._of(model).pauses(pause, trial)
        left = [0.0]
        for since, seconds in pauses:
            passed = (now - since).total_seconds()
            if -CLOCK_STEP < passed < seconds:
                left.append(seconds - max(passed, 0.0))
        return max(left)

    def last_failure(self, trial: int | None = None, model: str | None = None) -> str:
        """What the pause of `closed_for` follows, in words."""
        with self._lock:
            found = self._of(model)
            if found.failure:
                return f"{found.failure.outcome}: {found.failure.error}"
            return f"{found.dry(trial)} trials in a row without a patch that can be run"

    def _of(self, model: str | None) -> _Model:
        return self._models[self._last if model is None else model]

    def _count(self, call: Call) -> None:
        self._usages[call.trial] = total((self._usages.get(call.trial, Usage()), usage_of(call)))
        self._last = call.model
        self._models[call.model].count(call)


@dataclasses.dataclass
class _Model:
    """What the pauses of one model depend on."""

    failures: int = 0  # of its endpoint, in a row
    failure: Call | None = None  # the last of them, without its texts
    # Trials that got an answer, in their order: whether any answer had a patch.
    patched: dict[int, bool] = dataclasses.field(default_factory=dict)
    answered: datetime | None = None  # when the last answer arrived

    def count(self, call: Call) -> None:
        if call.outcome in FAILURES:
            self.failures += 1
            self.failure = dataclasses.replace(call, messages=(), answer=None)
        elif call.outcome != "cancelled":
            self.failures, self.failure = 0, None
            if call.purpose != "ping":
                patched = self.patched.get(call.trial, False)
                has_patch = call.outcome == "ok" and call.purpose != "ask"
                self.patched[call.trial] = patched or has_patch
                self.answered = _ended(call)

    def pauses(self, pause: float, trial: int | None) -> list[tuple[datetime, float]]:
        """Since when and for how many seconds it is not to be asked."""
        found = []
        if self.failure:
            doubled = min(pause * 2 ** min(self.failures - 1, 10), LONGEST_PAUSE)
            wanted = min(self.failure.retry_after or 0.0, LONGEST_RETRY_AFTER)
            found.append((_ended(self.failure), max(doubled, wanted)))
        if self.answered and self.dry(trial) >= MOST_DRY:
            found.append((self.answered, LONGEST_PAUSE))
        return found

    def dry(self, but: int | None = None) -> int:
        """How many trials in a row, up to the last one, got answers but no patch."""
        patched = [patched for trial, patched in self.patched.items() if patched or trial != but]
        return next((n for n, found in enumerate(reversed(patched)) if found), len(patched))


def read(path: Path, trials: Container[int] | None = None) -> tuple[Call, ...]:
    """All complete calls, or those of some trials; none without a file.

    A night may be writing meanwhile. Raises NightlyError for a damaged line.
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
                raise NightlyError(
                    f"{path}, line {number} is damaged: {line[:80]!r}. Restore the file from a "
                    "backup, or remove the line: the cost of that request is then not counted"
                ) from error
            yield call


def _append(path: Path, line: bytes) -> None:
    """Writes all of the line to disk, or nothing of it and raises OSError."""
    with path.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            written = 0
            while written < len(line):
                written += file.write(line[written:])
            os.fsync(file.fileno())
            if not before:
                sync_folder(path.parent)
        except BaseException:  # a Ctrl-C too: half a line would spoil the next one
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def _ended(call: Call) -> datetime:
    return datetime.fromisoformat(call.time).astimezone(UTC) + timedelta(seconds=call.seconds)
