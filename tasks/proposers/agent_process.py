"""One run of an external agent: a command that gets a prompt, and is ended with all its processes.

Its parent is a small process of ours, the keeper, which starts the agent only once it is on record
itself, and adopts what the agent leaves running (PR_SET_CHILD_SUBREAPER), daemons included. So the
whole tree can be found after the agent has ended, and by the next start if this process is killed.
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

END_BYTES = 64 * 1024  # kept of a stream's beginning, and of its end
CHUNK_BYTES = 2**20  # as much as a pipe can hold
POLL_SECONDS = 0.1  # between checks for a cancel

KEEPER = """
import ctypes, os, signal, subprocess, sys
result, go = int(sys.argv[1]), int(sys.argv[2])
prctl = ctypes.CDLL(None).prctl
prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
if not os.read(go, 1):  # our parent was killed before it could put us on record
    sys.exit()
os.close(go)
die_with_us = lambda: prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
try:
    # Kept in a variable: deleting a Popen waits for its process.
    agent = subprocess.Popen(sys.argv[3:], start_new_session=True, preexec_fn=die_with_us)
    while (ended := os.wait())[0] != agent.pid:
        pass
    status = str(os.waitstatus_to_exitcode(ended[1]))
except OSError as error:
    status = str(error)
os.write(result, status.encode())
signal.pause()
"""


@dataclasses.dataclass(frozen=True)
class Visit:
    """The result of a run. Texts have no control characters but newline and tab.

    The middle of a long text is left out.
    """

    end: Literal["exited", "late", "cancelled", "not started"]
    status: int | None  # negative for a signal; None unless it exited
    why: str  # why it was not started; empty if it was
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
    """Runs a command in `folder` with the file `prompt` as its input.

    It is on record in `home` for as long as it runs. Raises OSError if no process can be started or
    put on record.
    """
    result, write_result = os.pipe()
    read_go, go = os.pipe()
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, result)
        starter = undo.enter_context(os.fdopen(go, "wb", buffering=0))
        with os.fdopen(write_result, "wb"), os.fdopen(read_go, "rb"), prompt.open("rb") as stdin:
            ends = [write_result, read_go]
            keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", KEEPER, *map(str, ends), *argv],
                cwd=folder,
                env=environment,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                pass_fds=ends,
            )
        undo.callback(processes.forget, home, keeper.pid)
        undo.enter_context(keeper)  # waits for it
        undo.callback(processes.end, keeper.pid)
        processes.record(home, keeper.pid)
        with contextlib.suppress(BrokenPipeError):  # it was killed, which the result shows
            starter.write(b"!")
        assert keeper.stdout is not None
        assert keeper.stderr is not None
        stdout, log, status = _Capped(), _Capped(), _Capped()
        streams = {
            result: (status,),
            keeper.stdout.fileno(): (stdout, log),
            keeper.stderr.fileno(): (log,),
        }
        late = _follow(streams, result, time.monotonic() + seconds, cancelled)
        survivors = tuple(processes.end(keeper.pid))
        texts = stdout.text(), log.text(), survivors
        said = status.text()
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
    streams: dict[int, tuple[_Capped, ...]],
    result: int,
    deadline: float,
    cancelled: threading.Event,
) -> bool:
    """Reads the streams until there is a result or the run is cancelled; True if time ran out.

    By the time of the result, all output of the agent is in the pipes, so one more read gets it.
    """
    with selectors.DefaultSelector() as selector:
        for descriptor in streams:
            selector.register(descriptor, selectors.EVENT_READ)
        while not cancelled.is_set():
            if time.monotonic() >= deadline:
                return True
            ready = [key.fd for key, _ in selector.select(POLL_SECONDS)]
            for descriptor in ready:
                chunk = os.read(descriptor, CHUNK_BYTES)
                for stream in streams[descriptor]:
                    stream.add(chunk)
                if not chunk:
                    selector.unregister(descriptor)
            if result in ready:
                break
    return False
