"""A night's heartbeat: a small file beside its ledger that says which process is at work, since when, and on what.

With the process id goes its start time and the machine's boot, so that a dead night is told from a live one at once; a night
of another machine, on a shared disk, counts as dead when its lease is over. The file is written in place and never grows:
a full disk does not stop it. It decides nothing that is durable: that is the ledger's.
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
LEASE_SECONDS = (
    120.0  # without a beat; of a night on another machine, whose processes cannot be looked at
)
OVER = "over"  # the last phase
SIZE = 4096  # bytes: one block, all of it rewritten at each beat
LONGEST = 1500  # bytes of a text in it


@dataclasses.dataclass(frozen=True)
class Heartbeat:
    """What a night was doing at its last beat."""

    host: str
    process: ProcessId
    time: float  # of the beat, seconds since the epoch
    used_seconds: float  # for which the night has been alive
    phase: str  # "training trial 3, seed 1"
    phase_seconds: float  # for which it has been at that
    error: str | None  # what has gone wrong in this process, did not end it and is not over

    @classmethod
    def from_json(cls, text: bytes) -> Heartbeat:
        """Raises ValueError, TypeError or KeyError for what `to_json` did not write."""
        fields = json.loads(text)
        return cls(**{**fields, "process": ProcessId.parse(fields["process"])})

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "process": str(self.process)})

    @property
    def is_alive(self) -> bool:
        """Whether the night is at work: its process lives, or on another machine its lease still runs, and it is not over."""
        if self.phase == OVER:  # its process may take a minute to end, or have begun another night
            return False
        if self.host != platform.node():
            return abs(time.time() - self.time) < LEASE_SECONDS
        return self.process.is_alive


class Pulse:
    """The beating end of it. `phase` and `error` are set by the flow; a thread writes them down every BEAT_SECONDS."""

    def __init__(self, file: int, used_seconds: Callable[[], float]) -> None:
        self._file = file
        self._used_seconds = used_seconds
        self._phase, self._since = "opening", time.monotonic()
        self._error: str | None = None
        self._lock = threading.Lock()

    def enter(self, phase: str) -> None:
        """Says what the night is doing from now on."""
        self._phase, self._since = _short(phase), time.monotonic()
        self.beat()

    def note(self, error: str | None) -> None:
        """Keeps the last thing that went wrong and did not end the night; None once all is well again."""
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
        with (
            self._lock,
            contextlib.suppress(OSError),
        ):  # a disk that fails is the ledger's to report
            os.pwrite(self._file, content, 0)


@contextlib.contextmanager
def beating(path: Path, used_seconds: Callable[[], float]) -> Iterator[Pulse]:
    """Beats from now to the end of the block, in a thread of its own."""
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
    """The last beat; None where there was none, or where a power cut has torn it."""
    for _ in range(3):  # a reader may meet a writer
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            return Heartbeat.from_json(path.read_bytes())
        time.sleep(0.01)
    return None


def _short(text: str) -> str:
    """As much of the text as fits, in the spelling of JSON, where a character may take twelve bytes."""
    text = text[:LONGEST]
    while len(json.dumps(text)) > LONGEST:
        text = text[: len(text) * 3 // 4]
    return text
