"""The ledger: one JSON object a line, appended and fsynced, the record of what a night decided.

With git it is the truth; Prefect and MLflow can be rebuilt from it. A line counts once its newline
is on disk, so a killed writer leaves at most one torn line at the end, which readers skip and the
next writer removes. Not covered: two machines that write one ledger over a network file system.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.errors import NightlyError, UsageError
from tasks.files import sign, sync_folder
from tasks.history.night_state import EVENTS, FORMAT, after, fold
from tasks.records import NightState


class Ledger:
    """An open ledger, held by one writer at a time. Get one from `create` or `open`."""

    def __init__(self, path: Path, descriptor: int, state: NightState | None = None) -> None:
        self.path = path
        self._descriptor = descriptor
        self._state = state
        self._used = state.used_seconds if state else 0.0  # before this process
        self._opened = time.monotonic()

    @property
    def has_night(self) -> bool:
        """Whether there is an event."""
        return self._state is not None

    @property
    def state(self) -> NightState:
        """Where the night is. Raises NightlyError before its first event."""
        return self._state or fold(())

    def used_seconds(self) -> float:
        """How long the night has been alive, in all its processes, by a monotonic clock."""
        return self._used + time.monotonic() - self._opened

    def count_used(self, seconds: float) -> None:
        """Counts at least `seconds` for earlier processes: they lived on after their last event."""
        self._used = max(self._used, seconds)

    @classmethod
    @contextlib.contextmanager
    def create(cls, path: Path) -> Iterator[Ledger]:
        """Starts the ledger of a night, named by its folder.

        Raises UsageError if the night exists or is running.
        """
        made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if exists(path):
                tag = path.parent.name
                raise UsageError(
                    f"night {tag} exists: `./run resume {tag}` resumes it, or choose another --tag"
                )
            with _descriptor(path, os.O_CREAT | os.O_TRUNC) as descriptor:
                # A power cut would forget the names of new files and folders.
                for folder in {path.parent, *(folder.parent for folder in made)}:
                    sync_folder(folder)
                yield cls(path, descriptor)

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[Ledger]:
        """Opens an existing ledger, without the torn line that a killed writer may have left.

        Raises UsageError if there is none or another process writes it, NightlyError if it is
        damaged.
        """
        if not exists(path):
            raise UsageError(f"no night {path.parent.name!r} in {path.parent.parent}")
        with _locked(path), _descriptor(path) as descriptor:
            whole, torn = _split(path.read_bytes())
            state = fold(_parse(path, whole))
            if torn:
                os.ftruncate(descriptor, len(whole))
                os.fsync(descriptor)
            yield cls(path, descriptor, state)

    def append(self, event: str, **fields: Any) -> None:
        """Adds one event, with its time in UTC and the night's age, and returns when it is on disk.

        Raises NightlyError if the disk does not take it or it cannot follow the last event; the
        ledger is then unchanged.
        """
        if event not in EVENTS:
            raise ValueError(f"unknown event {event!r}: one of {', '.join(EVENTS)}")
        version = {"v": FORMAT} if event == "night" else {}
        used = round(self.used_seconds(), 3)
        entry = {
            "event": event,
            "time": datetime.now(UTC).isoformat(),
            "used": used,
            **version,
            **fields,
        }
        # ASCII, also for text that is no valid Unicode.
        line = json.dumps(entry, default=str).encode() + b"\n"
        state = after(self._state, json.loads(line))  # as the next process will read it
        before, earlier = os.fstat(self._descriptor).st_size, self._state
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
            self._state = state  # the line is there, though a Ctrl-C may come out of the next call
            os.fsync(self._descriptor)
        except OSError as error:
            self._state = earlier
            with contextlib.suppress(OSError):  # cut or not, it is no line before its newline
                os.ftruncate(self._descriptor, before)
            raise NightlyError(
                f"event {event!r} could not be written to {self.path}: {error.strerror}. "
                f"Make room or repair the disk, then `./run resume {self.path.parent.name}`"
            ) from error

    def clear(self) -> None:
        """Forgets a night that has measured nothing: it starts over, maybe with new settings."""
        os.ftruncate(self._descriptor, 0)
        os.fsync(self._descriptor)
        self._state, self._used, self._opened = None, 0.0, time.monotonic()


def exists(path: Path) -> bool:
    """Whether there is a night: a ledger with a whole line."""
    return path.is_file() and bool(_split(path.read_bytes())[0])


def read(path: Path) -> list[dict[str, Any]]:
    """All complete events, even while a night is writing.

    Raises NightlyError with the number of a damaged line.
    """
    return _parse(path, _split(path.read_bytes())[0])


def _split(content: bytes) -> tuple[bytes, bytes]:
    """The whole lines, and what a killed writer left after the last newline."""
    end = content.rfind(b"\n") + 1
    return content[:end], content[end:]


def _parse(path: Path, whole: bytes) -> list[dict[str, Any]]:
    events = []
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            event = json.loads(line)
            if not {"event", "time"} <= event.keys():
                raise ValueError("no event")
        except (ValueError, AttributeError) as error:
            raise NightlyError(
                f"{path}, line {number} is damaged: {line[:80]!r}. Restore the file from a backup, "
                f"or start a new night from its branch with another --tag"
            ) from error
        events.append(event)
    return events


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the night. The lock ends with the process; its file only says who has it."""
    with (path.parent / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read() or "unknown"
            raise UsageError(
                f"night {path.parent.name} is running (pid {holder}): wait for it, or "
                f"`./run stop {path.parent.name}`"
            ) from None
        sign(lock, str(os.getpid()))
        yield


@contextlib.contextmanager
def _descriptor(path: Path, flags: int = 0) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
