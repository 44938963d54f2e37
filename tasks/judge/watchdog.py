"""Measures a box from outside and ends it at its limits: CPU-seconds, memory, number of tasks.

All figures come from /proc on the host, so nothing inside a box can falsify them. Memory is the sum
of resident pages; above the limit it is measured again as proportional set size, which counts a
page that forks share only once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tasks.judge.processes import ProcessId, Stat, process_tree

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
INTERVAL_SECONDS = 0.25
HIDDEN_EVERY = 4  # polls between looks at hidden memory, which means reading long files
FREE_SOCKETS = 64  # not suspected of holding memory


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def _kilobytes(path: Path, name: str) -> int:
    """The bytes of the line `NAME: N kB` in a file of /proc; 0 if there is no such line."""
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def _proportional(pid: int) -> int:
    """Resident bytes, each shared page divided among its sharers; 0 if the process is gone.

    Plain resident bytes where we may not look.
    """
    with contextlib.suppress(OSError):
        try:
            return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")
        except PermissionError:
            return _resident(pid)
    return 0


def _hidden(pids: Iterable[int]) -> int:
    """At most how many bytes the processes hold that are in no resident set.

    Shared anonymous memory keeps its pages when it is unmapped (counted: its size, less the
    resident part), and sockets keep what nobody has read (counted: all that the buffers of more
    than a few sockets can hold).
    """
    shared: dict[str, int] = {}
    resident = sockets = 0
    for pid in pids:
        folder = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            maps = (folder / "maps").read_text(errors="replace")
            if "/dev/zero" in maps:
                for line in maps.splitlines():
                    span, mode, _, device, inode, *name = line.split(maxsplit=5)
                    if mode[3] == "s" and name and name[0].startswith("/dev/zero"):
                        first, last = (int(address, 16) for address in span.split("-"))
                        shared[device + inode] = max(shared.get(device + inode, 0), last - first)
                resident += _kilobytes(folder / "status", "RssShmem:")
            if os.readlink(folder / "ns/net") != os.readlink("/proc/self/ns/net"):
                sockets = int((folder / "net/sockstat").read_text().split()[2])  # the whole box's
    buffers = 2 * int(Path("/proc/sys/net/core/wmem_max").read_text())
    return max(sum(shared.values()) - resident, 0) + max(sockets - FREE_SOCKETS, 0) * buffers


class _CpuLimit(NamedTuple):
    before: float  # CPU-seconds that do not count
    seconds: float  # the most that may be used after them
    status: str  # of a box that uses more
    doing: str


class Watchdog:
    """Polls a process tree in a thread and kills it at the first limit that is exceeded.

    `verdict` is then the status and the reason. `end` replaces the kill where the processes may be
    another user's, as a container's are.
    """

    def __init__(
        self, root: int, *, memory_bytes: int, tasks: int, end: Callable[[], None] | None = None
    ) -> None:
        self.root = root
        self.memory_bytes = memory_bytes
        self.tasks = tasks
        self.verdict: tuple[str, str] | None = None
        self.peak_memory_bytes = 0
        self._end = end or self._kill_group
        self._polls = 0
        self._hidden = 0  # bytes, when last looked at
        # CPU time of every process ever seen: a parent need not wait for its children.
        self._ticks: dict[ProcessId, int] = {}
        self._cpu_limit: _CpuLimit | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="box-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def cpu_seconds(self) -> float:
        """User and system time of the tree so far, ended children included."""
        waited_for = 0
        for process in process_tree(self.root):
            with contextlib.suppress(OSError):
                waited_for += self._note(Stat.read(process.pid))
        return max(waited_for, sum(self._ticks.values())) / TICK

    def _note(self, stat: Stat) -> int:
        """Keeps a process's own CPU time; returns it plus that of the children it waited for."""
        self._ticks[stat.process] = stat.own_ticks
        return stat.own_ticks + stat.waited_ticks

    def limit_cpu(
        self,
        seconds: float,
        *,
        used: float = 0.0,
        status: str = "train_timeout",
        doing: str = "training",
    ) -> None:
        """Allows the box `seconds` CPU-seconds for what it is `doing`, of which `used` are gone.

        A box that uses more ends with `status`. Each call replaces the limit before.
        """
        self._cpu_limit = _CpuLimit(self.cpu_seconds() - used, seconds, status, doing)

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            try:
                problem = self._problem()
            except Exception as error:  # a box must not run unwatched; the fault is ours
                problem = "sandbox_error", f"the watchdog failed: {type(error).__name__}: {error}"
            if problem:
                self.verdict = problem
                self._end()
                return

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.root, signal.SIGKILL)

    def _problem(self) -> tuple[str, str] | None:
        memory = tasks = waited_for = 0
        pids = [process.pid for process in process_tree(self.root)]
        for pid in pids:
            with contextlib.suppress(OSError):
                stat = Stat.read(pid)
                waited_for += self._note(stat)
                tasks += stat.threads
                memory += _resident(pid)
        # First, as a fork bomb uses much memory too, and measuring many processes takes long.
        if tasks > self.tasks:
            return (
                "too_many_tasks",
                f"the box ran {tasks} processes and threads, the limit is {self.tasks}",
            )
        return self._memory_problem(pids, memory) or self._cpu_problem(waited_for)

    def _memory_problem(self, pids: list[int], memory: int) -> tuple[str, str] | None:
        if memory > self.memory_bytes and len(pids) > 1:
            memory = sum(map(_proportional, pids))
        if self._polls % HIDDEN_EVERY == 0:
            self._hidden = _hidden(pids)
        self._polls += 1
        memory += self._hidden
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory)
        if memory <= self.memory_bytes:
            return None
        used, limit = memory / 2**30, self.memory_bytes / 2**30
        return (
            "out_of_memory",
            f"the box used {used:.2f} GiB of memory, the limit is {limit:.2f} GiB",
        )

    def _cpu_problem(self, waited_for: int) -> tuple[str, str] | None:
        limit, used = self._cpu_limit, max(waited_for, sum(self._ticks.values())) / TICK
        if limit is None or used - limit.before <= limit.seconds:
            return None
        return limit.status, (
            f"used {used - limit.before:.2f} CPU-seconds while {limit.doing}, the limit is "
            f"{limit.seconds:.2f}, from what the baseline used"
        )
