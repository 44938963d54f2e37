"""A night's heartbeat: a small file beside its ledger that says which process works, and on what.

The process is named by its `ProcessId`, so a dead night is recognised at once. A night of another
machine, on a shared disk, counts as dead when its lease has run out. The file is overwritten in
place and never grows, so a full disk does not stop it. Nothing durable depends on it: that is the
ledger's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tasks.judge.processes import ProcessId

BEAT_SECONDS = 5.0
LEASE_SECONDS = 120.0  # without a beat, for a night on another machine
OVER = "over"  # the last phase
SIZE = 4096  # bytes: one block, which each beat rewrites
LONGEST = 1500  # bytes of a text in it


@dataclasses.dataclass(frozen=True)
class Heartbeat:
    """What a night was doing at its last beat."""

    host: str
    process: ProcessId
    time: float  # of the beat, seconds since the epoch
    used_seconds: float  # that the night has been alive
    phase: str  # "training trial 3, seed 1"
    phase_seconds: float  # since the phase began
    error: str | None  # a problem of this process that did not end it and is not solved

    @classmethod
    def from_json(cls, text: bytes) -> Heartbeat:
        """Raises ValueError, TypeError or KeyError for anything that `to_json` did not write."""
        fields = json.loads(text)
        return cls(**{**fields, "process": ProcessId.parse(fields["process"])})

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "process": str(self.process)})

    @property
    def is_alive(self) -> bool:
        """Whether the night is not over and its process lives, or on another machine its lease."""
        if self.phase == OVER:  # the process may take a minute to end, or have begun another night
            return False
        if self.host != platform.node():
            return abs(time.time() - self.time) < LEASE_SECONDS
        return self.process.is_alive


class Pulse:
    """Writes the heartbeat. The flow sets phase and error; a thread beats every BEAT_SECONDS."""

    def __init__(self, file: int, used_seconds: Callable[[], float]) -> None:
        self._file = file
        self._used_seconds = used_seconds
        self._phase, self._since = "opening", time.monotonic()
        self._error: str | None = None
        self._lock = threading.Lock()

    def enter(self, phase: str) -> None:
        """Sets what the night does from now on."""
        self._phase, self._since = _short(phase), time.monotonic()
        self.beat()

    def note(self, error: str | None) -> None:
        """Sets the last problem that did not end the night; None once it is solved."""
        self._error = error and _short(error)
        self.beat()

    def beat(self) -> None:
        found = Heartbeat(
            host=platform.node(),
            process=ProcessId.current(),
            time=time.time(),
            used_seconds=round(self._used_seconds(), 1),
            phase=self._phase,
            phase_seconds=round(time.monotonic() - self._since, 1),
            error=self._error,
        )
        content = found.to_json().encode().ljust(SIZE)
        with self._lock, contextlib.suppress(OSError):  # the ledger reports a failing disk
            os.pwrite(self._file, content, 0)


@contextlib.contextmanager
def beating(path: Path, used_seconds: Callable[[], float]) -> Iterator[Pulse]:
    """Beats in a thread until the block ends."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    over, pulse = threading.Event(), Pulse(file, used_seconds)

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            pulse.beat()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    pulse.beat()
    thread.start()
    try:
        yield pulse
    finally:
        over.set()
        thread.join()
        pulse.enter(OVER)
        os.close(file)


def last(path: Path) -> Heartbeat | None:
    """The last beat; None if there was none, or if a power failure left only part of it."""
    for _ in range(3):  # a reader may meet a writer
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            return Heartbeat.from_json(path.read_bytes())
        time.sleep(0.01)
    return None


def _short(text: str) -> str:
    """As much of the text as fits, written as JSON, where a character may take twelve bytes."""
    text = text[:LONGEST]
    while len(json.dumps(text)) > LONGEST:
        text = text[: len(text) * 3 // 4]
    return text
