"""How long a box's threads waited for a CPU, and how much CPU time others used meanwhile.

All of it from the kernel. A box can make its own threads wait: it starts more of them than there
are CPUs. It cannot make processes outside of it work, or the hypervisor take CPU time away. What
runs for the night itself, as the start-up of the next trial's box, does not count as others'.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

from tasks.judge.processes import Stat, descent
from tasks.judge.watchdog import TICK, Watchdog

STAT = Path("/proc/stat")
INTERVAL_SECONDS = 0.5  # what a thread waits after its last look is not counted


@dataclasses.dataclass(frozen=True)
class Contention:
    """Of the span of a watch. In CPU-seconds; None where the system does not say."""

    seconds: float  # by the clock
    waited: float | None  # the box's threads were ready, and had no CPU
    others: float | None  # used by processes that are neither the box's nor the night's
    stolen: float | None  # given to other machines by the hypervisor


class _Machine(NamedTuple):
    """CPU-seconds since boot."""

    busy: float  # of all processes
    stolen: float


class _Reading(NamedTuple):
    time: float
    machine: _Machine | None
    ours: float  # CPU-seconds of the box, and of this process with all below it


class ContentionWatch:
    """Looks at the threads of a box now and then, in a thread of its own, from now to `stop`."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._waited: dict[tuple[int, int], float] = {}  # by process and thread, since the start
        self._first, self._before = self._read(), self._delays()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="contention", daemon=True)
        self._thread.start()

    def stop(self) -> Contention:
        """What was seen."""
        self._stop.set()
        self._thread.join()
        self._look()
        last, first = self._read(), self._first
        others = stolen = None
        if first.machine and last.machine:
            busy = last.machine.busy - first.machine.busy
            others = max(busy - (last.ours - first.ours), 0.0)
            stolen = max(last.machine.stolen - first.machine.stolen, 0.0)
        waited = sum(self._waited.values()) if self._waited else None
        return Contention(last.time - first.time, waited, others, stolen)

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self._look()

    def _look(self) -> None:
        for thread, waited in self._delays().items():
            self._waited[thread] = waited - self._before.get(thread, 0.0)

    def _delays(self) -> dict[tuple[int, int], float]:
        """How long each thread of the box has waited so far: proc_pid_schedstat(5)."""
        found = {}
        for pid in self._watchdog.pids():
            for tid in _threads(pid):
                with contextlib.suppress(OSError, ValueError, IndexError):
                    text = Path(f"/proc/{pid}/task/{tid}/schedstat").read_text()
                    found[pid, tid] = int(text.split()[1]) / 1e9
        return found

    def _read(self) -> _Reading:
        box, ours = set(descent(self._watchdog.root)), 0
        for process in descent(os.getpid()):
            if process not in box:
                with contextlib.suppress(OSError):
                    stat = Stat.read(process.pid)
                    ours += stat.own_ticks + stat.waited_ticks
        used = ours / TICK + self._watchdog.cpu_seconds()
        return _Reading(time.monotonic(), _machine(), used)


def _threads(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    return []


def _machine() -> _Machine | None:
    """From proc_stat(5); None on a system without it.

    Without interrupts: a box can cause any number of them by its timers.
    """
    try:
        fields = STAT.read_text().partition("\n")[0].split()
        user, nice, system, _idle, _iowait, _irq, _softirq, stolen = map(int, fields[1:9])
    except (OSError, ValueError):
        return None
    return _Machine((user + nice + system) / TICK, stolen / TICK)
