"""The box: an untrusted process tree without network, secrets, our environment or a writable path.

Bubblewrap makes it, or docker where bubblewrap cannot. What leaves a box is bytes on one socket and
a capped log. A box lives inside one `with open_box(...)` block of one thread: bubblewrap's
parent-death signal follows the thread that spawned it, so if that thread or the whole process is
killed, the kernel ends the box. A container has no such signal: see tasks/judge/container.py.

Not covered: the shared kernel, the ioctls of a GPU's driver, and what a box learns from timing or
its own page faults, such as which pages of a library an earlier box has read, or which names in
the system's folders it has looked up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tasks.judge import container, kernel_limits, processes, seccomp, watchdog
from tasks.judge.bwrap import BoxSpec, BoxUnavailable, box_name, command
from tasks.judge.door import open_door

LOG_END_BYTES = 32 * 1024
# A box may take so long to end after SIGKILL. Many processes with shared memory need seconds on a
# busy machine. That costs the night the wait and no candidate its result: it is known by then.
DEATH_SECONDS = 300.0


@dataclasses.dataclass
class Box:
    """A running box: our end of its socket, its log so far, and its watchdog."""

    process: subprocess.Popen[bytes]  # our child
    wire: socket.socket
    log: CappedLog
    watchdog: watchdog.Watchdog
    started: float  # time.monotonic() just before the spawn
    container: container.Container | None = None  # with one, `process` is only docker's client

    def kill(self) -> None:
        """Ends the process tree and waits until it is gone, so that no later box shares with it.

        Raises BoxUnavailable if it survives SIGKILL for minutes, which no candidate brings about.
        """
        if self.wire.fileno() < 0:
            return  # ended before: the pid may be another process's by now
        tree = self.watchdog.seen()  # bubblewrap may be gone while what was below it still dies
        if self.container is None or self.container.process.is_alive:  # the pid is still its own
            tree = tree | processes.process_tree(self.watchdog.root)
        _end(self.process, self.container.name if self.container else None)
        self.wire.close()
        if survivors := processes.kill_all(tree, DEATH_SECONDS):
            raise BoxUnavailable(
                f"processes {survivors} of a box survived SIGKILL for {DEATH_SECONDS:.0f} s: a "
                "hung device driver or file system? Look at dmesg, and restart the machine"
            )

    def interrupt(self) -> None:
        """Sends SIGKILL, from any thread: the one that holds the box finds that it has ended."""
        if self.container is not None:
            container.kill(self.container.name)
        elif self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


class CappedLog:
    """Drains a pipe and keeps the first and last 32 KiB: 300 MB of output cost no memory."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0
        self._pipe = process.stdout
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
        """The log, without control characters but newline and tab. For a box that was killed."""
        self._thread.join(timeout=2.0)
        gap = f"\n[... {self._dropped} bytes left out ...]\n".encode() if self._dropped else b""
        text = bytes(self._head + gap + self._tail).decode("utf-8", "replace")
        return "".join(
            c for c in text if c in "\n\t" or (c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF)
        )


@contextlib.contextmanager
def open_box(spec: BoxSpec, python: list[str] | None = None) -> Iterator[Box]:
    """Starts a box, and ends it with the block. Enter and leave the block in one thread.

    `python` is the interpreter's arguments, by default for the fixed harness, which loads the
    candidate. Raises BoxUnavailable if no box can be made here.
    """
    entry = python or ["-u", "-c", "from trainer import harness; harness.enter()"]
    with contextlib.ExitStack() as undo:
        box = (_contain if spec.isolation == "docker" else _spawn)(spec, entry, undo)
        undo.callback(box.kill)
        undo.callback(box.watchdog.stop)
        box.watchdog.start()
        yield box


def _spawn(spec: BoxSpec, python: list[str], undo: contextlib.ExitStack) -> Box:
    """A box that is our child, with bubblewrap or without any wall. It inherits its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    undo.callback(ours.close)
    filtered = (
        seccomp.descriptor(spec.device, kernel_limits.cgroup_works())
        if spec.isolation == "bwrap"
        else contextlib.nullcontext()
    )
    with theirs, filtered as filter_fd:
        argv, environment = command(spec, theirs.fileno(), python, filter_fd)
        inherited = [theirs.fileno(), *([] if filter_fd is None else [filter_fd])]
        started = time.monotonic()
        process = _popen(
            argv, environment, "/" if spec.isolation == "bwrap" else str(spec.code), inherited
        )
    log = CappedLog(process)
    undo.callback(processes.forget, spec.home, process.pid)
    try:
        processes.record(spec.home, process.pid)
    except OSError:  # a full disk
        _end(process, None)
        raise
    guard = watchdog.Watchdog(process.pid, memory_bytes=spec.memory_bytes, tasks=spec.tasks)
    return Box(process, ours, log, guard, started)


def _contain(spec: BoxSpec, python: list[str], undo: contextlib.ExitStack) -> Box:
    """A box of docker's: our child is only the client, which passes on log and exit code."""
    door = undo.enter_context(open_door(spec.gate.folder.parent, spec.device))
    name, started = container.new_name(spec.home), time.monotonic()
    client = _popen(container.command(spec, name, door, python), dict(os.environ), "/", [])
    undo.callback(_end, client, name)
    log = CappedLog(client)
    deadline = started + container.START_SECONDS
    found = container.find(name, client, deadline)
    wire = door.admit(client, deadline) if found else None
    if found is None or wire is None:
        _end(client, name)
        raise BoxUnavailable(
            f"the container did not start: {log.text().strip()[-300:] or 'it never connected'}"
        )
    undo.callback(wire.close)
    limits = {"memory_bytes": spec.memory_bytes, "tasks": spec.tasks}
    guard = watchdog.Watchdog(
        found.process.pid, **limits, end=functools.partial(container.kill, name)
    )
    return Box(client, wire, log, guard, started, found)


def _popen(
    argv: list[str], environment: dict[str, str], folder: str, inherited: list[int]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=inherited,
        umask=0o022,
    )


def _end(process: subprocess.Popen[bytes], name: str | None) -> None:
    """Kills our child and the container of this name, which does not end with its client."""
    try:
        if name is not None:
            container.end(name)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def sweep(home: Path) -> list[int]:
    """Ends boxes of this state folder whose parent is gone; their pids.

    They exist only if the parent was killed in the first 20 ms, before bwrap had asked to die with
    it. Ends nothing but a bwrap with our own box name in its command line and an adoptive parent.
    """
    name, ended = box_name(home).encode(), []
    for pid in processes.all_pids():
        with contextlib.suppress(OSError):
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if name in argv and argv[0].endswith(b"bwrap") and _is_orphan(pid):
                os.kill(pid, signal.SIGKILL)
                ended.append(pid)
    return ended


def _is_orphan(pid: int) -> bool:
    """Whether the parent is init or a session's systemd, and not us: we may be pid 1 ourselves."""
    parent = processes.Stat.read(pid).parent
    comm = Path(f"/proc/{parent}/comm")
    return parent != os.getpid() and (parent == 1 or comm.read_bytes() == b"systemd\n")
