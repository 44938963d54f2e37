"""Measures a box from outside and ends it at its limits: CPU-seconds, resident memory, number of tasks.

Figures come from /proc on the host, so nothing inside a box can bend them. Memory is the sum of resident pages; where that
is over the limit it is taken again as proportional set size, which counts pages shared between forks once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
INTERVAL_SECONDS = 0.25


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
    """The live processes below and including `root`, as pid -> start time in clock ticks since boot."""
    parents, born = {}, {}
    for pid in all_pids():
        with contextlib.suppress(OSError):
            stat = _stat(pid)
            parents[pid], born[pid] = int(stat[1]), int(stat[19])
    tree, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        tree |= more
        grown = bool(more)
    return {pid: born[pid] for pid in tree if pid in born}


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def _proportional(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


class Watchdog:
    """Polls a process tree in its own thread. `verdict` is set, and the tree killed, at the first limit that is passed."""

    def __init__(self, root: int, *, memory_bytes: int, tasks: int) -> None:
        self.root = root
        self.memory_bytes = memory_bytes
        self.tasks = tasks
        self.verdict: tuple[str, str] | None = None  # (status, reason)
        self.peak_memory_bytes = 0
        self._cpu_limit: float | None = None
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
        self._cpu_limit = self.cpu_seconds() + seconds

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            problem = self._problem()
            if problem:
                self.verdict = problem
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.root, signal.SIGKILL)
                return

    def _problem(self) -> tuple[str, str] | None:
        memory = tasks = ticks = 0
        tree = process_tree(self.root)
        for pid in tree:
            with contextlib.suppress(OSError):
                stat = _stat(pid)
                ticks += sum(map(int, stat[11:15]))
                tasks += int(stat[17])
                memory += _resident(pid)
        if memory > self.memory_bytes and len(tree) > 1:
            with contextlib.suppress(OSError):
                memory = sum(_proportional(pid) for pid in tree)
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory)
        if memory > self.memory_bytes:
            used, limit = memory / 2**30, self.memory_bytes / 2**30
            return "out_of_memory", f"the box used {used:.2f} GiB of memory, the limit is {limit:.2f} GiB"
        if tasks > self.tasks:
            return "too_many_tasks", f"the box ran {tasks} processes and threads, the limit is {self.tasks}"
        if self._cpu_limit is not None and ticks / TICK > self._cpu_limit:
            return "train_timeout", "the run used more than 1.5 times the baseline's CPU-seconds"
        return None
