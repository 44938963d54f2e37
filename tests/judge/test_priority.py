"""A box's priority is lowered and raised again; a box that rests uses no CPU time."""

import contextlib
import os
from pathlib import Path

import pytest

from tasks.judge import priority
from tasks.judge.box import open_box
from tasks.judge.processes import Stat, process_tree
from tests.boxes import SAY, answer, make_spec
from tests.waiting import wait_for

BUSY = SAY + (
    "import threading\n"
    "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    "say('up')\n"
    "while True: pass\n"
)


def priorities(root):
    """Of the box: the nice values of its threads, and of its sessions where there are any."""
    threads, sessions = set(), set()
    for process in process_tree(root):
        for thread in os.listdir(f"/proc/{process.pid}/task"):
            threads.add(os.getpriority(os.PRIO_PROCESS, int(thread)))
        with contextlib.suppress(OSError):
            sessions.add(int(Path(f"/proc/{process.pid}/autogroup").read_text().split()[-1]))
    return threads, sessions


def test_a_box_is_lowered_and_raised_again_with_all_its_threads(folder):
    with open_box(make_spec(folder), ["-u", "-c", BUSY]) as box:
        assert answer(box) == "up"
        root = box.watchdog.root
        usual = priorities(root)
        if why := priority.lower(root):
            pytest.skip(why)
        threads, sessions = priorities(root)
        assert 19 in threads | sessions
        assert threads == ({19} if priority._may_raise() else usual[0])
        assert sessions <= {19}
        priority.restore(root)
        assert priorities(root) == usual


def test_a_box_at_rest_stands_still_until_it_is_woken(folder):
    with open_box(make_spec(folder), ["-u", "-c", BUSY]) as box:
        assert answer(box) == "up"
        root = box.watchdog.root
        priority.rest(root)
        wait_for(lambda: all(Stat.read(p.pid).state == "T" for p in process_tree(root)), "rest")
        used = box.watchdog.cpu_seconds()
        priority.wake(root)
        wait_for(lambda: box.watchdog.cpu_seconds() > used, "more CPU time")


def test_a_made_up_machine_without_any_way_says_so(monkeypatch):
    monkeypatch.setattr(priority, "_may_raise", lambda: False)
    monkeypatch.setattr(priority, "_weigh", lambda root, weight: False)
    monkeypatch.setattr(priority, "_nice_sessions", lambda root, nice: False)
    assert "only root could raise" in str(priority.lower(os.getpid()))


def test_a_cgroup_of_a_boxs_own_takes_a_weight_made_up_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.judge.kernel_limits.own_cgroup", lambda pid: tmp_path)
    assert priority._weigh(1, priority.LOWEST_WEIGHT)
    assert (tmp_path / "cpu.weight").read_text() == "1"
    monkeypatch.setattr("tasks.judge.kernel_limits.own_cgroup", lambda pid: tmp_path / "gone")
    assert not priority._weigh(1, priority.LOWEST_WEIGHT)
