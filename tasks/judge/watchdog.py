"""Measures a box from outside and ends it at its limits: CPU-seconds, resident memory, number of tasks.

Figures come from /proc on the host, so nothing inside a box can bend them. Memory is the sum of resident pages; where that
is over the limit it is taken again as proportional set size, which counts pages shared between forks once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
INTERVAL_SECONDS = 0.25
READS = 3  # of a process without a parent, before it counts as gone


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command name, so that [0] is the state. Raises OSError if it is gone."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def parent_of(pid: int) -> int:
    return int(_stat(pid)[1])


def started_at(pid: int) -> int:
    """When a process started, in clock ticks since boot: with its pid it names this very process."""
    return int(_stat(pid)[19])


def is_alive(pid: int, born: int) -> bool:
    """Whether this very process (same start time) still runs; a zombie that waits for its reaper counts as gone."""
    with contextlib.suppress(OSError):
        stat = _stat(pid)
        return stat[0] not in "ZX" and int(stat[19]) == born
    return False


def process_tree(root: int) -> dict[int, int]:
    """The live processes below and including `root`, as pid -> start time in clock ticks since boot.

    A process whose parent ended between two reads has a new one by now, the first process of its box: it is read again.
    """
    parents: dict[int, int] = {}
    born: dict[int, int] = {}
    unread = all_pids()
    for _ in range(READS):
        for pid in unread:
            parents.pop(pid, None)
            with contextlib.suppress(OSError):
                stat = _stat(pid)
                parents[pid], born[pid] = int(stat[1]), int(stat[19])
        unread = [pid for pid, parent in parents.items() if parent and parent not in parents]
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    tree, grown = {root: born[root]} if root in parents else {}, [root]
    while grown:
        more = [child for pid in grown for child in children.get(pid, ()) if child not in tree]
        tree |= {pid: born[pid] for pid in more}
        grown = more
    return tree


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def _proportional(pid: int) -> int:
    """Resident memory with each shared page split among its sharers; all of it where we may not see, 0 if it is gone."""
    with contextlib.suppress(OSError):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except PermissionError:
            return _resident(pid)
        return next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return 0


class Watchdog:
    """Polls a process tree in its own thread. `verdict` is set, and the tree killed, at the first limit that is passed."""

    def __init__(self, root: int, *, memory_bytes: int, tasks: int, end: Callable[[], None] | None = None) -> None:
        self.root = root
        self._end = end or self._kill_group  # a container's processes may be another user's, out of our reach
        self.memory_bytes = memory_bytes
        self.tasks = tasks
        self.verdict: tuple[str, str] | None = None  # (status, reason)
        self.peak_memory_bytes = 0
        self._cpu_limit: tuple[float, float] | None = None  # CPU-seconds of the tree: when the limit was set, and at most
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="box-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def cpu_seconds(self) -> float:
        """User and system time of the tree so far, ended and reaped children included."""
        ticks = 0
        for pid in process_tree(self.root):
            with contextlib.suppress(OSError):
                ticks += sum(map(int, _stat(pid)[11:15]))
        return ticks / TICK

    def limit_cpu(self, seconds: float) -> None:
        """Allows `seconds` more CPU-seconds from now on."""
        used = self.cpu_seconds()
        self._cpu_limit = (used, used + seconds)

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            problem = self._problem()
            if problem:
                self.verdict = problem
                self._end()
                return

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.root, signal.SIGKILL)

    def _problem(self) -> tuple[str, str] | None:
        memory = tasks = ticks = 0
        tree = process_tree(self.root)
        for pid in tree:
            with contextlib.suppress(OSError):
                stat = _stat(pid)
                ticks += sum(map(int, stat[11:15]))
                tasks += int(stat[17])
                memory += _resident(pid)
        if tasks > self.tasks:  # first: a fork bomb uses much memory too, and looking at that takes long in many processes
            return "too_many_tasks", f"the box ran {tasks} processes and threads, the limit is {self.tasks}"
        if memory > self.memory_bytes and len(tree) > 1:
            memory = sum(_proportional(pid) for pid in tree)
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory)
        if memory > self.memory_bytes:
            used, limit = memory / 2**30, self.memory_bytes / 2**30
            return "out_of_memory", f"the box used {used:.2f} GiB of memory, the limit is {limit:.2f} GiB"
        if self._cpu_limit is not None and ticks / TICK > self._cpu_limit[1]:
            started, limit = self._cpu_limit
            return "train_timeout", (
                f"the run used {ticks / TICK - started:.1f} CPU-seconds, the limit is {limit - started:.1f}, "
                "1.5 times the baseline's"
            )
        return None
