"""Measures a box from outside and ends it at its limits: CPU-seconds, resident memory, number of tasks.

Figures come from /proc on the host, so nothing inside a box can bend them. Memory is the sum of resident pages; where that
is over the limit it is taken again as proportional set size, which counts pages shared between forks once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
INTERVAL_SECONDS = 0.25
HIDDEN_EVERY = 4  # polls between looks at memory that no resident set shows: those read long files
FREE_SOCKETS = 64  # that are not suspected of holding memory
READS = 3  # of a process without a parent, before it counts as gone


def boot_id() -> str:
    """The machine's running since its last start: process ids and start times mean nothing in another one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command name, so that [0] is the state. Raises OSError if it is gone."""
    return (
        Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    )  # a name may be no text


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
        return next(
            (
                int(line.split()[1]) * 1024
                for line in rollup.splitlines()
                if line.startswith("Pss:")
            ),
            0,
        )
    return 0


def _hidden(tree: Iterable[int]) -> int:
    """At most how many bytes the processes hold that no resident set shows.

    Shared anonymous memory keeps its pages when they are unmapped (counted: its size, less what is resident), and sockets
    keep what nobody has read (counted: what the buffers of more than a few can take).
    """
    shared: dict[str, int] = {}
    resident = sockets = 0
    for pid in tree:
        with contextlib.suppress(OSError):
            found = Path(f"/proc/{pid}/maps").read_text(errors="replace")
            if "/dev/zero" in found:
                for line in found.splitlines():
                    span, mode, _, device, inode, *name = line.split(maxsplit=5)
                    if mode[3] == "s" and name and name[0].startswith("/dev/zero"):
                        first, last = (int(address, 16) for address in span.split("-"))
                        shared[device + inode] = max(shared.get(device + inode, 0), last - first)
                status = Path(f"/proc/{pid}/status").read_text(errors="replace")
                resident += next(
                    (
                        int(row.split()[1]) * 1024
                        for row in status.splitlines()
                        if row.startswith("RssShmem:")
                    ),
                    0,
                )
            if os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net"):
                sockets = int(
                    Path(f"/proc/{pid}/net/sockstat").read_text().split()[2]
                )  # of the box's network
    buffers = 2 * int(Path("/proc/sys/net/core/wmem_max").read_text())
    return max(sum(shared.values()) - resident, 0) + max(sockets - FREE_SOCKETS, 0) * buffers


class Watchdog:
    """Polls a process tree in its own thread. `verdict` is set, and the tree killed, at the first limit that is passed."""

    def __init__(
        self, root: int, *, memory_bytes: int, tasks: int, end: Callable[[], None] | None = None
    ) -> None:
        self.root = root
        self._end = (
            end or self._kill_group
        )  # a container's processes may be another user's, out of our reach
        self.memory_bytes = memory_bytes
        self.tasks = tasks
        self.verdict: tuple[str, str] | None = None  # (status, reason)
        self.peak_memory_bytes = 0
        self._polls = 0
        self._hidden = 0  # bytes, at the last look
        self._ticks: dict[
            tuple[int, int], int
        ] = {}  # CPU time of every process ever seen: nobody may have waited for it
        self._cpu_limit: tuple[float, float] | None = (
            None  # CPU-seconds of the tree: when the limit was set, and at most
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="box-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def cpu_seconds(self) -> float:
        """User and system time of the tree so far, ended children included, whether they were waited for or not."""
        waited_for = 0
        for pid in process_tree(self.root):
            with contextlib.suppress(OSError):
                waited_for += self._note(pid, _stat(pid))
        return max(waited_for, sum(self._ticks.values())) / TICK

    def _note(self, pid: int, stat: list[str]) -> int:
        """Keeps a process's own CPU time and returns it with that of the children it has waited for, in clock ticks."""
        own = int(stat[11]) + int(stat[12])
        self._ticks[pid, int(stat[19])] = own
        return own + int(stat[13]) + int(stat[14])

    def limit_cpu(self, seconds: float) -> None:
        """Allows `seconds` more CPU-seconds from now on."""
        used = self.cpu_seconds()
        self._cpu_limit = (used, used + seconds)

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            try:
                problem = self._problem()
            except Exception as error:  # unwatched it must not run on: ended, and the fault is ours
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
        tree = process_tree(self.root)
        for pid in tree:
            with contextlib.suppress(OSError):
                stat = _stat(pid)
                waited_for += self._note(pid, stat)
                tasks += int(stat[17])
                memory += _resident(pid)
        if (
            tasks > self.tasks
        ):  # first: a fork bomb uses much memory too, and looking at that takes long in many processes
            return (
                "too_many_tasks",
                f"the box ran {tasks} processes and threads, the limit is {self.tasks}",
            )
        if memory > self.memory_bytes and len(tree) > 1:
            memory = sum(_proportional(pid) for pid in tree)
        if self._polls % HIDDEN_EVERY == 0:
            self._hidden = _hidden(tree)
        self._polls += 1
        memory += self._hidden
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory)
        if memory > self.memory_bytes:
            used, limit = memory / 2**30, self.memory_bytes / 2**30
            return (
                "out_of_memory",
                f"the box used {used:.2f} GiB of memory, the limit is {limit:.2f} GiB",
            )
        ticks = max(waited_for, sum(self._ticks.values()))
        if self._cpu_limit is not None and ticks / TICK > self._cpu_limit[1]:
            started, limit = self._cpu_limit
            return "train_timeout", (
                f"the run used {ticks / TICK - started:.1f} CPU-seconds, the limit is {limit - started:.1f}, "
                "1.5 times the baseline's"
            )
        return None
