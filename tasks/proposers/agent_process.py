"""One run of an external agent: a command that is given a prompt and ended with all that it has started.

A small process of ours is its parent, starts it once it is on record itself, and adopts what the agent leaves running
(PR_SET_CHILD_SUBREAPER), daemons too: so the whole tree can be found after the agent's own end, and by the next start when
this process is killed meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from tasks.judge import processes

END_BYTES = 64 * 1024  # of a stream's start, and of its end
CHUNK_BYTES = 2**20  # as much as a pipe can hold
LOOK_SECONDS = 0.1  # between looks at whether it is cancelled

KEEPER = """
import ctypes, os, signal, subprocess, sys
tell, go = int(sys.argv[1]), int(sys.argv[2])
prctl = ctypes.CDLL(None).prctl
prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
if not os.read(go, 1):  # killed before it could put this on record
    sys.exit()
os.close(go)
try:
    # it dies with this process; one that nothing refers to is waited for by its deletion
    agent = subprocess.Popen(sys.argv[3:], start_new_session=True, preexec_fn=lambda: prctl(1, signal.SIGKILL, 0, 0, 0))
    while (ended := os.wait())[0] != agent.pid:
        pass
    told = str(os.waitstatus_to_exitcode(ended[1]))
except OSError as error:
    told = str(error)
os.write(tell, told.encode())
signal.pause()
"""


@dataclasses.dataclass(frozen=True)
class Visit:
    """What came of it. Text has no control characters but newline and tab, and the middle of a long one is left out."""

    end: Literal["exited", "late", "cancelled", "not started"]
    status: int | None  # negative for a signal; None unless it exited
    why: str  # it was not started; empty if it was
    stdout: str
    log: str  # stdout and stderr, as they came
    survivors: tuple[int, ...]  # processes that outlived SIGKILL


def run(
    argv: Sequence[str],
    *,
    prompt: Path,
    folder: Path,
    environment: Mapping[str, str],
    seconds: float,
    cancelled: threading.Event,
    home: Path,
) -> Visit:
    """Runs a command in `folder` with the file `prompt` as its input. On record in `home` for as long as it runs.

    Raises OSError when no process can be started or put on record.
    """
    (told, tell), (wait, go) = os.pipe(), os.pipe()
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, told)
        starter = undo.enter_context(os.fdopen(go, "wb", buffering=0))
        with os.fdopen(tell, "wb"), os.fdopen(wait, "rb"), prompt.open("rb") as stdin:
            keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", KEEPER, str(tell), str(wait), *argv],
                cwd=folder,
                env=environment,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                pass_fds=[tell, wait],
            )
        undo.callback(processes.forget, home, keeper.pid)
        undo.enter_context(keeper)  # waits for it
        undo.callback(processes.end, keeper.pid)
        processes.record(home, keeper.pid)
        with contextlib.suppress(
            BrokenPipeError
        ):  # somebody has killed it: the pipe `told` says so
            starter.write(b"!")
        assert keeper.stdout is not None
        assert keeper.stderr is not None
        stdout, log, answer = _Capped(), _Capped(), _Capped()
        streams = {
            told: (answer,),
            keeper.stdout.fileno(): (stdout, log),
            keeper.stderr.fileno(): (log,),
        }
        late = _follow(streams, told, time.monotonic() + seconds, cancelled)
        survivors = tuple(processes.end(keeper.pid))
        texts = stdout.text(), log.text(), survivors
        said = answer.text()
        if said.removeprefix("-").isdecimal():
            return Visit("exited", int(said), "", *texts)
        if late or cancelled.is_set():
            return Visit("late" if late else "cancelled", None, "", *texts)
        return Visit("not started", None, said or "the process that starts it was killed", *texts)


class _Capped:
    """The first and the last 64 KiB of a stream, so that 300 MB of output cost nothing."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0

    def add(self, chunk: bytes) -> None:
        room = END_BYTES - len(self._head)
        self._head += chunk[:room]
        self._tail += chunk[room:]
        if (excess := len(self._tail) - END_BYTES) > 0:
            self._dropped += excess
            del self._tail[:excess]

    def text(self) -> str:
        gap = f"\n[... {self._dropped} bytes left out ...]\n".encode() if self._dropped else b""
        text = bytes(self._head + gap + self._tail).decode("utf-8", "replace")
        return "".join(c for c in text if c in "\n\t" or c.isprintable())


def _follow(
    streams: dict[int, tuple[_Capped, ...]], told: int, deadline: float, cancelled: threading.Event
) -> bool:
    """Reads the streams until something is told or the run is cancelled; True when the time is over before.

    What the agent said before its end is in the pipes by the time that the end is told, so one more read has all of it.
    """
    with selectors.DefaultSelector() as selector:
        for descriptor in streams:
            selector.register(descriptor, selectors.EVENT_READ)
        while not cancelled.is_set():
            if time.monotonic() >= deadline:
                return True
            ready = [key.fd for key, _ in selector.select(LOOK_SECONDS)]
            for descriptor in ready:
                chunk = os.read(descriptor, CHUNK_BYTES)
                for stream in streams[descriptor]:
                    stream.add(chunk)
                if not chunk:
                    selector.unregister(descriptor)
            if told in ready:
                break
    return False
