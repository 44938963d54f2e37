"""Children of a killed process are found by recorded pid and start time and ended; nobody else's ever is."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.judge import processes, watchdog
from tasks.judge.box import open_box
from tests.boxes import make_spec

ROOT = Path(__file__).resolve().parents[2]
SLEEPER = ["-c", "import time; time.sleep(600)"]
PATIENCE = 60.0

# An owner that puts a child on record, tells of it, and waits to be killed.
OWNER = """
import subprocess, sys, time
from pathlib import Path
from tasks.judge import processes
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
processes.record(Path({home!r}), child.pid)
print(child.pid, flush=True)
time.sleep(600)
"""
ALONE = "import time; print(flush=True); time.sleep(600)"
WITH_CHILDREN = """
import subprocess, sys, time
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
subprocess.Popen(sleeper)
subprocess.Popen(sleeper, start_new_session=True)
print(flush=True)
time.sleep(600)
"""
# Leaders of a group that do not make it easy: each says when it is ready.
RESPAWNING = """
import subprocess, sys
while True:
    with subprocess.Popen(["sleep", "600"], start_new_session=True):
        print(flush=True)
"""
ADOPTING = """
import ctypes, subprocess, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
subprocess.run(["sh", "-c", "setsid sh -c 'setsid sleep 600 & setsid sleep 600 &'"])
print(flush=True)
time.sleep(600)
"""
ENDED = """
import subprocess
subprocess.Popen(["sleep", "600"])
print(flush=True)
"""
# A judge of a box without isolation, which has no parent-death signal.
JUDGE = """
import sys, time
from pathlib import Path
from tasks.judge.box import open_box
from tests.boxes import make_spec
with open_box(make_spec(Path({home!r}), isolation="none"), ["-c", "import time; time.sleep(600)"]) as box:
    print(box.process.pid, flush=True)
    time.sleep(600)
"""
# A command with a server of its own, where no parent-death signal can be had.
SERVER = """
import shutil, sys, time
shutil.which = lambda name: None
from flows.command_line import server
print(server.spawn([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def start(
    tmp_path: Path,
) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], dict[int, int]]]]:
    """Runs an owner's script; returns its process and its child's tree. All are dead after the test."""
    owners, trees = [], []

    def start(script: str, **texts: str) -> tuple[subprocess.Popen[str], dict[int, int]]:
        code = script.format(home=str(tmp_path), **texts)
        environment = {**os.environ, "NIGHTLY_HOME": str(tmp_path)}
        owner = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        owners.append(owner)
        assert owner.stdout is not None
        tree = watchdog.process_tree(int(owner.stdout.readline()))
        trees.append(tree)
        return owner, tree

    yield start
    for owner in owners:
        owner.kill()
        owner.wait()
        assert owner.stdout is not None
        owner.stdout.close()
    for tree in trees:
        for pid in alive(tree):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def alive(tree: dict[int, int]) -> list[int]:
    return [pid for pid, born in tree.items() if watchdog.is_alive(pid, born)]


def die(owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.wait()


def gone(tree: dict[int, int]) -> bool:
    """SIGKILL is not instant."""
    deadline = time.monotonic() + PATIENCE
    while alive(tree) and time.monotonic() < deadline:
        time.sleep(0.005)
    return not alive(tree)


def records(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "processes").glob("*"))


def renamed(home: Path, place: int, value: str) -> None:
    """Changes one part of the only record's name: 0 host, 1 boot, 2 and 3 owner, 4 and 5 child."""
    (path,) = (home / "processes").iterdir()
    parts = path.name.rsplit("-", 5)
    parts[place] = value
    path.rename(path.with_name("-".join(parts)))


def test_the_child_of_a_killed_owner_is_ended(start, tmp_path):
    owner, tree = start(OWNER, child=ALONE)
    die(owner)
    assert processes.end_orphans(tmp_path) == list(tree)
    assert gone(tree)
    assert records(tmp_path) == []


def test_all_that_is_below_the_child_is_ended_too(start, tmp_path):
    owner, tree = start(OWNER, child=WITH_CHILDREN)
    assert len(tree) == 3
    die(owner)
    processes.end_orphans(tmp_path)
    assert gone(tree)


def test_the_child_of_a_live_owner_is_left_alone(start, tmp_path):
    _, tree = start(OWNER, child=ALONE)
    assert processes.end_orphans(tmp_path) == []
    assert alive(tree) == list(tree)
    assert len(records(tmp_path)) == 1


def test_a_process_that_was_given_the_same_pid_later_is_left_alone(start, tmp_path):
    owner, tree = start(OWNER, child=ALONE)
    die(owner)
    renamed(tmp_path, 5, "1")
    assert processes.end_orphans(tmp_path) == []
    assert alive(tree) == list(tree)
    assert records(tmp_path) == []


def test_an_owner_whose_pid_was_given_away_counts_as_dead(start, tmp_path):
    _, tree = start(OWNER, child=ALONE)
    renamed(tmp_path, 3, "1")
    assert processes.end_orphans(tmp_path) == list(tree)


def test_a_record_from_before_a_restart_names_nobody(start, tmp_path):
    _, tree = start(OWNER, child=ALONE)
    renamed(tmp_path, 1, "00000000")
    assert processes.end_orphans(tmp_path) == []
    assert alive(tree) == list(tree)
    assert records(tmp_path) == []


def test_another_machines_record_is_left_alone(start, tmp_path):
    owner, tree = start(OWNER, child=ALONE)
    die(owner)
    renamed(tmp_path, 0, "other-machine")
    assert processes.end_orphans(tmp_path) == []
    assert alive(tree) == list(tree)
    assert len(records(tmp_path)) == 1


def test_without_a_record_nothing_is_ended(tmp_path):
    assert processes.end_orphans(tmp_path) == []


def test_a_child_that_lives_is_not_forgotten(start, tmp_path):
    child = subprocess.Popen([sys.executable, *SLEEPER], start_new_session=True)
    try:
        processes.record(tmp_path, child.pid)
        processes.forget(tmp_path, child.pid)
        assert len(records(tmp_path)) == 1
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    "script", [RESPAWNING, ADOPTING, ENDED], ids=["respawning", "adopting", "ended"]
)
def test_the_end_of_a_leader_is_that_of_all_it_has_started(script):
    leader = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True
    )
    assert leader.stdout is not None
    with leader.stdout as ready:
        ready.readline()
        tree = watchdog.process_tree(leader.pid)
        while script == ENDED and alive(
            {leader.pid: tree[leader.pid]}
        ):  # not waited for, its number stays its own
            time.sleep(0.005)
        assert processes.end(leader.pid) == []
        assert (
            ready.read() == b""
        )  # all that it has started held this open, and nothing was started since
    leader.wait()
    assert gone(tree)


@pytest.mark.parametrize("isolation", ["none", "bwrap"])
def test_a_box_is_on_record_for_as_long_as_it_lives(tmp_path, isolation):
    tmp_path.chmod(0o755)
    with open_box(make_spec(tmp_path, isolation=isolation), SLEEPER) as box:
        (name,) = records(tmp_path)
        pid = box.process.pid
        assert name.endswith(
            f"-{os.getpid()}-{watchdog.started_at(os.getpid())}-{pid}-{watchdog.started_at(pid)}"
        )
    assert records(tmp_path) == []


def test_a_box_that_cannot_be_put_on_record_is_ended(tmp_path, monkeypatch):
    started = []

    def full(home: Path, child: int) -> None:
        started.append(child)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(processes, "record", full)
    with (
        pytest.raises(OSError, match="No space left"),
        open_box(make_spec(tmp_path, isolation="none"), SLEEPER),
    ):
        pass
    assert watchdog.process_tree(started[0]) == {}


def test_an_unsandboxed_box_whose_judge_was_killed_is_ended(start, tmp_path):
    judge, tree = start(JUDGE)
    die(judge)
    assert alive(tree) == list(tree)  # nothing else ends it
    assert processes.end_orphans(tmp_path) == list(tree)
    assert gone(tree)


def test_a_server_whose_command_was_killed_is_ended(start, tmp_path):
    command, tree = start(SERVER)
    die(command)
    assert alive(tree) == list(tree)
    assert processes.end_orphans(tmp_path) == list(tree)
    assert gone(tree)
