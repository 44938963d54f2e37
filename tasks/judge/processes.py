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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tasks.judge import watchdog


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
        with contextlib.suppress(FileNotFoundError):  # another process has just removed the empty folder
            (folder / name).touch()


def forget(home: Path, child: int) -> None:
    """Takes back the record of a child that has ended; of one that outlived SIGKILL it stays."""
    for found in _records(home):
        if found.owner[0] == os.getpid() and found.child[0] == child and not watchdog.is_alive(*found.child):
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
            _end(found.child[0])
            ended.append(found.child[0])
        found.path.unlink(missing_ok=True)
    return ended


def _end(leader: int) -> None:
    """SIGKILL for the leader's group, and for what below it has left the group."""
    tree = watchdog.process_tree(leader)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    for pid, born in tree.items():
        if watchdog.is_alive(pid, born):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _records(home: Path) -> Iterator[_Record]:
    for path in sorted((home / "processes").glob("*-*-*-*-*-*")):
        host, boot, *numbers = path.name.rsplit("-", 5)
        owner, owner_born, child, child_born = map(int, numbers)
        yield _Record(path, host, boot, (owner, owner_born), (child, child_born))


def _boot() -> str:
    return watchdog.boot_id()[:8]
