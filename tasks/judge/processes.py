"""Which child processes a killed process of ours left behind: each long-lived child has a file that names it and its owner.

A file is empty; its name is all: host, boot, and pid and start time of owner and child, so that neither a restart nor a pid
that was given to somebody else leads to the wrong process. It is written right after the child's start and removed when
the child is gone; what is found later, of an owner that is dead, is an orphan. Containers have labels instead.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tasks.judge import watchdog

ROUNDS, ROUND_SECONDS = 200, 0.01  # of killing, until nothing is left


class _Record(NamedTuple):
    path: Path
    host: str
    boot: str
    owner: tuple[int, int]  # pid and start time
    child: tuple[int, int]


def record(home: Path, child: int) -> None:
    """Puts a child of this process on record: it leads a process group of its own and has not been waited for."""
    folder = home / "processes"
    pids = (part for pid in (os.getpid(), child) for part in (pid, watchdog.started_at(pid)))
    name = "-".join([platform.node(), _boot(), *map(str, pids)])
    while not (folder / name).exists():
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(
            FileNotFoundError
        ):  # another process has just removed the empty folder
            (folder / name).touch()


def forget(home: Path, child: int) -> None:
    """Takes back the record of a child that has ended; of one that outlived SIGKILL it stays."""
    for found in _records(home):
        if (
            found.owner[0] == os.getpid()
            and found.child[0] == child
            and not watchdog.is_alive(*found.child)
        ):
            found.path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty, or not there
        (home / "processes").rmdir()


def end_orphans(home: Path) -> list[int]:
    """Ends the children, with all below them, whose owner on this machine is dead, and returns their pids."""
    ended = []
    for found in _records(home):
        since_restart = found.boot == _boot()
        if found.host != platform.node() or (since_restart and watchdog.is_alive(*found.owner)):
            continue
        if since_restart and watchdog.is_alive(*found.child):
            end(found.child[0])
            ended.append(found.child[0])
        found.path.unlink(missing_ok=True)
    return ended


def end(leader: int) -> list[int]:
    """SIGKILL for the leader of a process group, its group and all below it; returns what outlives that by 2 s.

    The leader is stopped first and killed last: stopped it starts nothing new, and for as long as it is there, one that
    adopts orphans (PR_SET_CHILD_SUBREAPER) keeps below it what has left it.
    """
    tree: dict[int, int] = {}
    _signal(os.killpg, leader, signal.SIGSTOP)
    for _ in range(ROUNDS):
        tree |= watchdog.process_tree(leader)
        alive = [pid for pid, born in tree.items() if watchdog.is_alive(pid, born)]
        below = [pid for pid in alive if pid != leader]
        for pid in below:
            _signal(os.kill, pid, signal.SIGKILL)
        if not below:
            _signal(os.killpg, leader, signal.SIGKILL)
        if not alive:
            return []
        time.sleep(ROUND_SECONDS)
    _signal(os.killpg, leader, signal.SIGKILL)
    return alive


def _signal(send: Callable[[int, int], None], target: int, number: int) -> None:
    with contextlib.suppress(
        ProcessLookupError, PermissionError
    ):  # it is gone, or another user's by now
        send(target, number)


def _records(home: Path) -> Iterator[_Record]:
    for path in sorted((home / "processes").glob("*-*-*-*-*-*")):
        host, boot, *numbers = path.name.rsplit("-", 5)
        owner, owner_born, child, child_born = map(int, numbers)
        yield _Record(path, host, boot, (owner, owner_born), (child, child_born))


def _boot() -> str:
    return watchdog.boot_id()[:8]
