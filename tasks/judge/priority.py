"""The CPU priority of a box that starts up beside another one, and its rest while it waits.

Priority is lowered in three ways, each where it works: by the weight of the box's own cgroup, by
the nice value of its session (autogroup), and by that of its threads. Only the last needs a
privilege: an ordinary user may raise a nice value but never lower it again, so threads are left
alone unless we may.

A candidate can undo some of this, as it may lower the nice value of its own session again. What it
can cost another run is bounded by a limit on its CPU time, and by `rest`, which nothing in a box
undoes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tasks.judge import kernel_limits
from tasks.judge.processes import ProcessId, process_tree

LOWEST_NICE = 19
LOWEST_WEIGHT, USUAL_WEIGHT = 1, 100  # cpu.weight, see the kernel's cgroup-v2.rst
PASSES = 20  # over a process tree that may grow meanwhile
RETRY_SECONDS = 0.05  # the kernel takes ten changes of sessions a second from ordinary users
TRIES = 40


def lower(root: int) -> str | None:
    """Gives a box, by its first process, as little CPU time as others leave; None if that worked.

    Otherwise why it did not. Call it once the box runs Python: its session is new until then.
    """
    ways = [_weigh(root, LOWEST_WEIGHT), _nice_sessions(root, LOWEST_NICE)]
    if _may_raise():
        ways.append(_nice_threads(root, lambda nice: LOWEST_NICE))
    if any(ways):
        return None
    return (
        "this machine gives no box a cgroup with a weight, its kernel has no autogroups, and "
        "only root could raise a lowered nice value again"
    )


def restore(root: int) -> None:
    """Takes back what `lower` did."""
    usual = os.getpriority(os.PRIO_PROCESS, os.getpid())
    _weigh(root, USUAL_WEIGHT)
    _nice_sessions(root, 0)
    if _may_raise():
        _nice_threads(root, lambda nice: usual if nice == LOWEST_NICE else nice)


def rest(root: int) -> None:
    """Stops every process of a box, where we may: it then uses neither CPU nor GPU."""
    _signal_all(root, signal.SIGSTOP)


def wake(root: int) -> None:
    """Lets a box go on after `rest`."""
    _signal_all(root, signal.SIGCONT)


def _signal_all(root: int, number: int) -> None:
    """To each process of the tree once, and to those that it forked meanwhile."""
    signalled: set[ProcessId] = set()
    for _ in range(PASSES):
        new = process_tree(root) - signalled
        if not new:
            return
        for process in new:
            # It has ended, or it is a container's, whose user may be another one.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, number)
        signalled |= new


def _weigh(root: int, weight: int) -> bool:
    """Whether the box has a cgroup of its own that takes this weight."""
    folder = kernel_limits.own_cgroup(root)
    try:
        if folder is not None:
            (folder / "cpu.weight").write_text(str(weight))
            return True
    except OSError:  # no controller there, or not for us
        pass
    return False


def _nice_sessions(root: int, nice: int) -> bool:
    """Whether the kernel took this nice value for a session of the box."""
    taken: set[str] = set()
    for process in process_tree(root):
        path = Path(f"/proc/{process.pid}/autogroup")
        with contextlib.suppress(OSError):  # no autogroups, another user's process, or it has ended
            session = path.read_text().split()[0]
            if session not in taken and _write(path, str(nice)):
                taken.add(session)
    return bool(taken)


def _write(path: Path, text: str) -> bool:
    """Writes to the kernel, which may ask to try again. Raises OSError."""
    for _ in range(TRIES):
        try:
            path.write_text(text)
            return True
        except BlockingIOError:
            time.sleep(RETRY_SECONDS)
    return False


def _nice_threads(root: int, wanted: Callable[[int], int]) -> bool:
    """Gives every thread of the box the nice value that is wanted for its present one.

    A thread has the value of the one that started it: again until none is found that differs.
    """
    for _ in range(PASSES):
        changed = False
        for thread in _threads(root):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                nice = os.getpriority(os.PRIO_PROCESS, thread)
                if wanted(nice) != nice:
                    os.setpriority(os.PRIO_PROCESS, thread, wanted(nice))
                    changed = True
        if not changed:
            return True
    return True


def _threads(root: int) -> Iterator[int]:
    for process in process_tree(root):
        with contextlib.suppress(OSError):  # it has ended
            yield from map(int, os.listdir(f"/proc/{process.pid}/task"))


@functools.cache
def _may_raise() -> bool:
    """Whether we may raise a nice value that we have lowered: tried on a thread of our own."""
    may: list[bool] = []

    def attempt() -> None:
        thread = threading.get_native_id()
        before = os.getpriority(os.PRIO_PROCESS, thread)
        try:
            os.setpriority(os.PRIO_PROCESS, thread, min(before + 1, LOWEST_NICE))
            os.setpriority(os.PRIO_PROCESS, thread, before)
            may.append(before < LOWEST_NICE)
        except PermissionError:
            may.append(False)

    trying = threading.Thread(target=attempt, name="priority")
    trying.start()
    trying.join()
    return may[0]
