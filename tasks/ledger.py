"""The ledger: one JSON object a line, appended and fsynced, the record of what a night decided.

With git it is the truth; Prefect and MLflow can be built again from it. A line counts once its newline is on disk, so a
writer that is killed leaves at most one torn line at the end, which readers pass over and the next writer cuts off.
Not covered: two machines that write one ledger over a network file system.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.records import NightlyError, NightState, Trial, UsageError

FORMAT = 1
EVENTS = ("night", "baseline", "started", "decided", "applied", "finished")


class Ledger:
    """An open ledger, held by one writer at a time. Get one from `create` or `open`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    @contextlib.contextmanager
    def create(cls, path: Path) -> Iterator[Ledger]:
        """Starts the ledger of a night, named by its folder. Raises UsageError if the night exists or is running."""
        made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if path.exists() and _split(path.read_bytes())[0]:
                tag = path.parent.name
                raise UsageError(f"night {tag} exists: `./run resume {tag}` goes on with it, or choose another --tag")
            with _descriptor(path, os.O_CREAT | os.O_TRUNC) as descriptor:
                for folder in {path.parent, *(folder.parent for folder in made)}:  # or a power cut forgets the names
                    _sync_folder(folder)
                yield cls(path, descriptor)

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[Ledger]:
        """Opens an existing ledger to go on with it, without the torn line that a killed writer may have left.

        Raises UsageError if there is none or another process writes it, NightlyError if it is damaged.
        """
        if not path.is_file() or not _split(path.read_bytes())[0]:
            raise UsageError(f"no night {path.parent.name!r} in {path.parent.parent}")
        with _locked(path), _descriptor(path) as descriptor:
            whole, torn = _split(path.read_bytes())
            _parse(path, whole)
            if torn:
                os.ftruncate(descriptor, len(whole))
                os.fsync(descriptor)
            yield cls(path, descriptor)

    def append(self, event: str, **fields: Any) -> None:
        """Adds one event, with its time in UTC, and returns when it is on disk.

        Raises NightlyError when the disk does not take it; the ledger is then as it was before.
        """
        if event not in EVENTS:
            raise ValueError(f"unknown event {event!r}: one of {', '.join(EVENTS)}")
        version = {"v": FORMAT} if event == "night" else {}
        entry = {"event": event, "time": datetime.now(UTC).isoformat(), **version, **fields}
        line = json.dumps(entry, default=str).encode() + b"\n"  # ASCII: also for text that is no valid Unicode
        before = os.fstat(self._descriptor).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):  # cut or not, it is no line before its newline
                os.ftruncate(self._descriptor, before)
            raise NightlyError(
                f"event {event!r} could not be written to {self.path}: {error.strerror}. "
                f"Make room or mend the disk, then `./run resume {self.path.parent.name}`"
            ) from error

    def events(self) -> list[dict[str, Any]]:
        return read(self.path)


def read(path: Path) -> list[dict[str, Any]]:
    """All whole events, also while a night is writing. Raises NightlyError with the number of a damaged line."""
    return _parse(path, _split(path.read_bytes())[0])


def fold(events: Iterable[dict[str, Any]]) -> NightState:
    """Where the night is. Raises NightlyError for another format and for events that cannot follow one another."""
    header: dict[str, Any] = {}
    baseline: dict[str, Any] | None = None
    start_commit: str | None = None
    trials: list[Trial] = []
    pending: Trial | None = None
    in_flight: int | None = None
    finished: str | None = None
    updated = ""
    for event in events:
        name, updated = event["event"], event["time"]
        if name == "night":
            header = event
            if event["v"] != FORMAT:
                raise NightlyError(
                    f"the ledger has format {event['v']}, this version reads {FORMAT}: use the version that wrote it"
                )
        elif name == "baseline":
            baseline = event
        elif name == "started":
            in_flight = event["trial"]
        elif name == "decided":
            pending, in_flight = _trial(event["trial"]), None
        elif name == "applied":
            if pending is None or pending.number != event["trial"]:
                raise NightlyError(f"the ledger applies trial {event['trial']}, which was not decided just before")
            trials.append(dataclasses.replace(pending, commit=event["commit"]))
            pending = None
        elif name == "finished":
            finished = event["reason"]
        start_commit = event.get("start_commit", start_commit)
    if not header:
        raise NightlyError("the ledger has no event 'night': its first line is missing")
    kept = [trial for trial in trials if trial.verdict == "keep"]
    base_scores = tuple(baseline["scores"]) if baseline else ()
    return NightState(
        header=header,
        baseline=baseline,
        start_commit=start_commit,
        trials=tuple(trials),
        pending=pending,
        in_flight=in_flight,
        champion=kept[-1].commit if kept else start_commit,
        champion_scores=kept[-1].scores if kept else base_scores,
        groups=tuple(group for group in (base_scores, *(trial.scores for trial in trials)) if len(group) > 1),
        finished=finished,
        updated=updated,
    )


def _trial(saved: dict[str, Any]) -> Trial:
    """A Trial from its JSON, in which tuples have become lists."""
    knobs = {name: tuple(value) if isinstance(value, list) else value for name, value in saved["knobs"].items()}
    tuples = {"scores": tuple(saved["scores"]), "seeds": tuple(saved["seeds"]), "knobs": knobs}
    return Trial(**{**saved, **tuples, "commit": None})


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
    """Holds the night. The lock ends with the process, however it ends; its file only says whose it is."""
    with (path.parent / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read() or "unknown"
            raise UsageError(
                f"night {path.parent.name} is running (pid {holder}): wait for it, or `./run stop {path.parent.name}`"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextlib.contextmanager
def _descriptor(path: Path, flags: int = 0) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
