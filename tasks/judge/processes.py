"""Processes of this machine: which one is meant, what runs below it, and how to end it.

The kernel gives a pid to another process once its owner is gone, so a process that must be found
again is kept as a `ProcessId`. Each long-lived child of ours is also on record in the state folder:
the next start ends what a killed command left behind. Containers carry a label instead.

A record is an empty file whose name says everything: host, owner and child. It is written right
after the child has started and removed once the child has ended. Everything is read from /proc.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROUNDS = 200  # of killing, until nothing is left
ROUND_SECONDS = 0.01
LONGEST_ROUND_SECONDS = 0.25
READS = 3  # of a process whose parent is not there, before the parent counts as gone


@dataclasses.dataclass(frozen=True)
class ProcessId:
    """One process for all time. Its text, `PID.START.BOOT`, fits into a file name."""

    pid: int
    started: int  # clock ticks since boot
    boot: str  # boot id of the machine: the other two mean nothing after a restart

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has this pid now. Raises OSError if there is none."""
        return Stat.read(pid).process

    @classmethod
    def current(cls) -> ProcessId:
        return cls.of(os.getpid())

    @classmethod
    def parse(cls, text: str) -> ProcessId:
        """The reverse of `str`. Raises ValueError."""
        pid, started, boot = text.split(".")
        return cls(int(pid), int(started), boot)

    def __str__(self) -> str:
        return f"{self.pid}.{self.started}.{self.boot}"

    @property
    def is_alive(self) -> bool:
        """Whether this very process runs, be it without its first thread; a zombie is gone."""
        with contextlib.suppress(OSError):
            stat = Stat.read(self.pid)
            return stat.process == self and (stat.state not in "ZX" or stat.threads > 1)
        return False

    def kill(self) -> None:
        """Sends SIGKILL; does nothing if the process is gone or another user's."""
        _signal(os.kill, self.pid, signal.SIGKILL)


class Stat(NamedTuple):
    """One look at a process: some fields of /proc/PID/stat, see proc_pid_stat(5)."""

    process: ProcessId
    state: str
    parent: int
    own_ticks: int  # CPU time, user and system
    waited_ticks: int  # CPU time of the children it has waited for
    threads: int

    @classmethod
    def read(cls, pid: int) -> Stat:
        """Raises OSError if no process has this pid."""
        # A command name may hold any bytes, parentheses included: the fields begin after the last.
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2]
        state, parent, *fields = text.split()
        user, system, waited_user, waited_system = map(int, fields[9:13])
        return cls(
            ProcessId(pid, int(fields[17]), boot_id()),
            state,
            int(parent),
            user + system,
            waited_user + waited_system,
            int(fields[15]),
        )


class _Record(NamedTuple):
    path: Path
    host: str
    owner: ProcessId
    child: ProcessId


@functools.cache
def boot_id() -> str:
    """Changes with every restart of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def process_tree(root: int) -> set[ProcessId]:
    """`root` and the processes below it."""
    return set(descent(root))


def is_ours(pid: int) -> bool:
    """Whether this is a process below this one, or this one itself."""
    with contextlib.suppress(OSError):
        while pid > 1 and pid != os.getpid():
            pid = Stat.read(pid).parent
        return pid == os.getpid()
    return False


def descent(root: int) -> list[ProcessId]:
    """`root` and the processes below it, each after its parent.

    A process whose parent ended between two reads has a new parent, the first process of its box:
    it is read again.
    """
    stats: dict[int, Stat] = {}
    unread = all_pids()
    for _ in range(READS):
        for pid in unread:
            stats.pop(pid, None)
            with contextlib.suppress(OSError):
                stats[pid] = Stat.read(pid)
        unread = [pid for pid, stat in stats.items() if stat.parent and stat.parent not in stats]
    children: dict[int, list[ProcessId]] = {}
    for stat in stats.values():
        children.setdefault(stat.parent, []).append(stat.process)
    # A dictionary is an ordered set.
    tree: dict[ProcessId, None] = {}
    found = [stats[root].process] if root in stats else []
    while found:
        tree |= dict.fromkeys(found)
        below = [child for parent in found for child in children.get(parent.pid, ())]
        found = [process for process in below if process not in tree]
    return list(tree)


def record(home: Path, child: int) -> None:
    """Puts a child of this process on record: the leader of a process group, not yet waited for."""
    folder = home / "processes"
    path = folder / f"{platform.node()}~{ProcessId.current()}~{ProcessId.of(child)}"
    while not path.exists():
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another process removed the empty folder
            path.touch()


def forget(home: Path, child: int) -> None:
    """Removes the record of a child that has ended; that of one which survived SIGKILL stays."""
    for found in _records(home):
        ours = found.owner.pid == os.getpid() and found.child.pid == child
        if ours and not found.child.is_alive:
            found.path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty, or not there
        (home / "processes").rmdir()


def end_orphans(home: Path) -> list[int]:
    """Ends recorded children whose owner on this machine is dead, and all below; their pids."""
    ended = []
    for found in _records(home):
        if found.host != platform.node() or found.owner.is_alive:
            continue
        if found.child.is_alive:
            end(found.child.pid)
            ended.append(found.child.pid)
        found.path.unlink(missing_ok=True)
    return ended


def end(leader: int) -> list[int]:
    """Kills a process group's leader, its group and all below it; pids that survive this for 2 s.

    The leader is stopped first, so that it starts nothing new, and killed last: as long as it is
    there, one that adopts orphans (PR_SET_CHILD_SUBREAPER) still has below it what left its group.
    """
    tree: set[ProcessId] = set()
    _signal(os.killpg, leader, signal.SIGSTOP)
    for _ in range(ROUNDS):
        tree |= process_tree(leader)
        alive = [process for process in tree if process.is_alive]
        below = [process for process in alive if process.pid != leader]
        for process in below:
            process.kill()
        if not below:
            _signal(os.killpg, leader, signal.SIGKILL)
        if not alive:
            return []
        time.sleep(ROUND_SECONDS)
    _signal(os.killpg, leader, signal.SIGKILL)
    return [process.pid for process in alive]


def kill_all(tree: set[ProcessId], seconds: float = 2.0) -> list[int]:
    """Kills these processes and waits until they are gone; pids that survive this for `seconds`."""
    deadline, pause = time.monotonic() + seconds, ROUND_SECONDS
    while alive := [process for process in tree if process.is_alive]:
        if time.monotonic() > deadline:
            break
        for process in alive:
            process.kill()
        time.sleep(pause)
        # To look at many processes all the time would keep them from ending.
        pause = min(1.5 * pause, LONGEST_ROUND_SECONDS)
    return [process.pid for process in alive]


def _signal(send: Callable[[int, int], None], target: int, number: int) -> None:
    # It is gone, or its pid is another user's by now.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(target, number)


def _records(home: Path) -> Iterator[_Record]:
    for path in sorted((home / "processes").glob("*~*~*")):
        host, owner, child = path.name.rsplit("~", 2)
        yield _Record(path, host, ProcessId.parse(owner), ProcessId.parse(child))
