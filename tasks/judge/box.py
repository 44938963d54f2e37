"""The box: one untrusted process tree with no network, no secret, no writable host path and a clean environment.

Bubblewrap makes it. What leaves a box is bytes on one socket and a capped log. A box lives inside one `with open_box(...)`
block of one thread: bubblewrap's parent-death signal follows the thread that spawned it, so when that thread or the whole
process is killed the kernel ends the box with it.

Not covered: the shared kernel, the GPU driver's ioctl surface, and timing between boxes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tasks.judge import watchdog
from tasks.judge.bwrap import BoxSpec, BoxUnavailable, box_name, command

LOG_END_BYTES = 32 * 1024


@dataclasses.dataclass
class Box:
    """A running box: our end of its socket, its log so far, and the watchdog that measures and limits it."""

    process: subprocess.Popen[bytes]
    wire: socket.socket
    log: CappedLog
    watchdog: watchdog.Watchdog
    started: float  # time.monotonic() just before the spawn

    def kill(self) -> None:
        """Ends the whole process tree and waits until it is gone. Raises BoxUnavailable if something survives."""
        tree = watchdog.process_tree(self.process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.wire.close()
        for _ in range(200):
            survivors = [pid for pid, born in tree.items() if watchdog.is_alive(pid, born)]
            if not survivors:
                return
            for pid in survivors:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        raise BoxUnavailable(f"processes {survivors} of a box outlived SIGKILL by 2 s: a hung device driver? Look at dmesg")


class CappedLog:
    """Drains a pipe for as long as it is open and keeps its first and last 32 KiB, so that 300 MB of output cost nothing."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0
        self._pipe = pipe
        self._thread = threading.Thread(target=self._drain, name="box-log", daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        with self._pipe as pipe:
            while chunk := os.read(pipe.fileno(), 65536):
                room = LOG_END_BYTES - len(self._head)
                self._head += chunk[: max(room, 0)]
                self._tail += chunk[max(room, 0) :]
                if (excess := len(self._tail) - LOG_END_BYTES) > 0:
                    self._dropped += excess
                    del self._tail[:excess]

    def text(self) -> str:
        """The log as plain text: no control characters but newline and tab. Call it after the box is killed."""
        self._thread.join(timeout=2.0)
        gap = f"\n[... {self._dropped} bytes left out ...]\n".encode() if self._dropped else b""
        text = bytes(self._head + gap + self._tail).decode("utf-8", "replace")
        return "".join(c for c in text if c in "\n\t" or (c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF))


@contextlib.contextmanager
def open_box(spec: BoxSpec, python: list[str] | None = None) -> Iterator[Box]:
    """Starts a box and ends it, with everything in it, when the block ends. Call and leave it in one thread.

    `python` is what the interpreter in the box is given; by default the fixed harness, which loads the candidate.
    Raises BoxUnavailable when no box can be made here.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    entry = python or ["-u", "-c", "from trainer import harness; harness.enter()"]
    with contextlib.ExitStack() as undo:
        undo.callback(ours.close)
        with theirs:
            argv, environment = command(spec, theirs.fileno(), entry)
            started = time.monotonic()
            process = subprocess.Popen(
                argv,
                env=environment,
                cwd="/" if spec.isolation == "bwrap" else spec.code,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )
        assert process.stdout is not None
        log = CappedLog(process.stdout)
        guard = watchdog.Watchdog(process.pid, memory_bytes=spec.memory_bytes, tasks=spec.tasks)
        box = Box(process, ours, log, guard, started)
        undo.callback(box.kill)
        undo.callback(guard.stop)
        guard.start()
        yield box


def sweep(home: Path) -> list[int]:
    """Ends boxes of this state folder whose parent is gone: a kill in the first 20 ms comes before bwrap asks to die with us.

    Only a process that runs bwrap, whose command line names our own box name and whose parent is init, is ended.
    """
    name, ended = box_name(home).encode(), []
    for pid in watchdog.all_pids():
        with contextlib.suppress(OSError):
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if name in argv and argv[0].endswith(b"bwrap") and watchdog.parent_of(pid) == 1:
                os.kill(pid, signal.SIGKILL)
                ended.append(pid)
    return ended
