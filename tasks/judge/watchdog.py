"""Measures a box from outside and ends it at its limits: CPU-seconds, memory, number of tasks.

All figures come from the kernel, so nothing inside a box can falsify them. Memory is the sum of
what each process holds; above the limit it is measured again as proportional set size, which counts
a page that forks share only once.

CPU time is what the kernel has added up by the time of a look: a process that ended between two
looks is in the account of the process that waited for it. The seccomp filter sees to it that nobody
ends without being waited for, by a parent or by the first process of the box. Where the box has a
cgroup, the kernel counts there as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import NamedTuple

from tasks.judge import memory
from tasks.judge.kernel_limits import cgroup_cpu_seconds
from tasks.judge.processes import ProcessId, Stat, descent

TICK = os.sysconf("SC_CLK_TCK")
INTERVAL_SECONDS = 0.25
HIDDEN_EVERY = 4  # polls between looks at hidden memory, which means reading long files


class _CpuLimit(NamedTuple):
    before: float  # CPU-seconds that do not count
    seconds: float  # the most that may be used after them
    status: str  # of a box that uses more
    doing: str


class Watchdog:
    """Polls a process tree in a thread and kills it at the first limit that is exceeded.

    `verdict` is then the status and the reason. `end` replaces the kill where the processes may be
    another user's, as a container's are. `reserves`: CUDA's driver maps shared memory in the box
    that it may never use, which does not count.
    """

    def __init__(
        self,
        root: int,
        *,
        memory_bytes: int,
        tasks: int,
        reserves: bool = False,
        end: Callable[[], None] | None = None,
    ) -> None:
        self.root = root
        self.memory_bytes = memory_bytes
        self.tasks = tasks
        self.verdict: tuple[str, str] | None = None
        self.peak_memory_bytes = 0
        self._end = end or self._kill_group
        self._polls = 0
        self._hidden = 0  # bytes, when last looked at
        # Bytes of the machine's shared memory before the box had any.
        self._shared_before = memory.machine_shared() if reserves else None
        # CPU time of every process ever seen: it is all there is for a box without a filter.
        self._ticks: dict[ProcessId, int] = {}
        self._cpu_seconds = 0.0
        self._look_lock = threading.Lock()
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
        self._look()
        return self._cpu_seconds

    def seen(self) -> set[ProcessId]:
        """Every process that was ever in the tree when it was looked at."""
        with self._look_lock:
            return set(self._ticks)

    def pids(self) -> set[int]:
        """Those of `seen`."""
        return {process.pid for process in self.seen()}

    def _look(self) -> list[Stat]:
        """Every process of the tree, and an update of its CPU time.

        Each is read after its parent, so that one which ends meanwhile is counted at the next look
        and never twice.
        """
        with self._look_lock:
            stats = []
            for process in descent(self.root):
                with contextlib.suppress(OSError):
                    stat = Stat.read(process.pid)
                    if stat.process == process:
                        stats.append(stat)
            self._ticks |= {stat.process: stat.own_ticks for stat in stats}
            waited_for = sum(stat.own_ticks + stat.waited_ticks for stat in stats)
            used = max(waited_for, sum(self._ticks.values())) / TICK
            self._cpu_seconds = max(self._cpu_seconds, used, cgroup_cpu_seconds(self.root))
            return stats

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
        stats = self._look()
        tasks = sum(stat.threads for stat in stats)
        # First, as a fork bomb uses much memory too, and measuring many processes takes long.
        if tasks > self.tasks:
            return (
                "too_many_tasks",
                f"the box ran {tasks} processes and threads, the limit is {self.tasks}",
            )
        return self._memory_problem([stat.process.pid for stat in stats]) or self._cpu_problem()

    def _memory_problem(self, pids: list[int]) -> tuple[str, str] | None:
        used = 0
        for pid in pids:
            with contextlib.suppress(OSError):
                used += memory.resident(pid)
        if used > self.memory_bytes and len(pids) > 1:
            used = sum(map(memory.proportional, pids))
        if self._polls % HIDDEN_EVERY == 0:
            self._hidden = memory.hidden(pids, self._most_shared())
        self._polls += 1
        used += self._hidden
        self.peak_memory_bytes = max(self.peak_memory_bytes, used)
        if used <= self.memory_bytes:
            return None
        return (
            "out_of_memory",
            f"the box used {used / 2**30:.2f} GiB of memory, the limit is "
            f"{self.memory_bytes / 2**30:.2f} GiB",
        )

    def _most_shared(self) -> int | None:
        """By how many bytes the machine's shared memory has grown; None if mappings count whole."""
        before = self._shared_before
        return None if before is None else max(memory.machine_shared() - before, 0)

    def cpu_problem(self) -> tuple[str, str] | None:
        """The verdict on its CPU time as of now, for what no later poll would see."""
        self._look()
        return self._cpu_problem()

    def _cpu_problem(self) -> tuple[str, str] | None:
        limit, used = self._cpu_limit, self._cpu_seconds
        if limit is None or used - limit.before <= limit.seconds:
            return None
        return limit.status, (
            f"used {used - limit.before:.2f} CPU-seconds while {limit.doing}, the limit is "
            f"{limit.seconds:.2f}, from what the baseline used"
        )
