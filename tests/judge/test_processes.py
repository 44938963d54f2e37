"""A killed command's children are found by their records and ended, and nobody else's ever are."""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.judge import processes
from tasks.judge.box import open_box
from tasks.judge.processes import ProcessId, process_tree
from tests.boxes import alive, make_spec

ROOT = Path(__file__).resolve().parents[2]
SLEEPER = ["-c", "import time; time.sleep(600)"]
PATIENCE = 60.0

# An owner that puts a child on record, prints the child's pid, and waits to be killed.
OWNER = """
import subprocess, sys, time
from pathlib import Path
from tasks.judge import processes
child = subprocess.Popen(
    [sys.executable, "-c", {child!r}], stdout=subprocess.PIPE, start_new_session=True
)
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
# Group leaders that are hard to end; each prints a line when it is ready.
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
# The judge of a box without isolation, which has no parent-death signal.
JUDGE = """
import sys, time
from pathlib import Path
from tasks.judge.box import open_box
from tests.boxes import make_spec
sleeper = ["-c", "import time; time.sleep(600)"]
with open_box(make_spec(Path({home!r}), isolation="none"), sleeper) as box:
    print(box.process.pid, flush=True)
    time.sleep(600)
"""
# A command with a server of its own on a machine without parent-death signals.
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
) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], set[ProcessId]]]]:
    """Runs an owner's script: its process, and its child's tree. All are dead after the test."""
    owners: list[subprocess.Popen[str]] = []
    trees: list[set[ProcessId]] = []

    def start(script: str, **texts: str) -> tuple[subprocess.Popen[str], set[ProcessId]]:
        code = script.format(home=str(tmp_path), **texts)
        owner = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "NIGHTLY_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        owners.append(owner)
        assert owner.stdout is not None
        trees.append(process_tree(int(owner.stdout.readline())))
        return owner, trees[-1]

    yield start
    for owner in owners:
        die(owner)
        assert owner.stdout is not None
        owner.stdout.close()
    for tree in trees:
        processes.kill_all(tree)


def die(owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.wait()


def gone(tree: set[ProcessId]) -> bool:
    """SIGKILL takes a moment."""
    deadline = time.monotonic() + PATIENCE
    while alive(tree) and time.monotonic() < deadline:
        time.sleep(0.005)
    return not alive(tree)


def pids(tree: set[ProcessId]) -> list[int]:
    return [process.pid for process in tree]


def records(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "processes").glob("*"))


def change_record(home: Path, *, host: str | None = None, **changes: dict[str, object]) -> None:
    """Renames the only record: another host, or `owner` or `child` with other fields."""
    (path,) = (home / "processes").iterdir()
    old_host, *ids = path.name.rsplit("~", 2)
    named = dict(zip(("owner", "child"), map(ProcessId.parse, ids), strict=True))
    for who, fields in changes.items():
        named[who] = dataclasses.replace(named[who], **fields)  # type: ignore[arg-type]
    path.rename(path.with_name(f"{host or old_host}~{named['owner']}~{named['child']}"))


def test_the_text_of_a_process_id_names_the_same_process():
    mine = ProcessId.current()
    assert ProcessId.parse(str(mine)) == mine
    assert mine == ProcessId.of(os.getpid())
    assert mine.is_alive


@pytest.mark.parametrize("text", ["", "1", "1.2", "x.2.boot", "1.2.3.4"])
def test_other_text_is_no_process_id(text):
    with pytest.raises(ValueError, match=r"."):
        ProcessId.parse(text)


@pytest.mark.parametrize("change", [{"started": 1}, {"boot": "another"}, {"pid": 2**22 + 1}])
def test_a_process_of_another_start_or_boot_or_pid_is_not_alive(change):
    assert not dataclasses.replace(ProcessId.current(), **change).is_alive


def test_a_pid_without_a_process_is_an_error():
    with pytest.raises(OSError, match="No such file"):
        ProcessId.of(2**22 + 1)


def test_a_process_is_alive_without_its_first_thread_until_the_others_have_ended():
    code = (
        "import ctypes, sys, threading\n"
        "threading.Thread(target=sys.stdin.readline).start()\nprint(flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        process = ProcessId.of(running.pid)
        while processes.Stat.read(running.pid).state != "Z":
            time.sleep(0.005)
        assert process.is_alive
        running.stdin.close()
        while processes.Stat.read(running.pid).threads > 1:
            time.sleep(0.005)
        assert not process.is_alive


def test_a_process_comes_after_its_parent():
    """Processes are numbered in any order once the numbers start again."""
    leader = subprocess.Popen(
        [sys.executable, "-c", WITH_CHILDREN], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert leader.stdout is not None
        leader.stdout.readline()
        found = [process.pid for process in processes.descent(os.getpid())]
        parents = [processes.Stat.read(pid).parent for pid in found[1:]]
        assert found[0] == os.getpid()
        assert all(found.index(parent) <= i for i, parent in enumerate(parents))
    finally:
        processes.end(leader.pid)
        leader.wait()
        assert leader.stdout is not None
        leader.stdout.close()


def test_the_child_of_a_killed_owner_is_ended(start, tmp_path):
    owner, tree = start(OWNER, child=ALONE)
    die(owner)
    assert processes.end_orphans(tmp_path) == pids(tree)
    assert gone(tree)
    assert records(tmp_path) == []


def test_everything_below_the_child_is_ended_too(start, tmp_path):
    owner, tree = start(OWNER, child=WITH_CHILDREN)
    assert len(tree) == 3
    die(owner)
    processes.end_orphans(tmp_path)
    assert gone(tree)


def test_the_child_of_a_live_owner_is_left_alone(start, tmp_path):
    _, tree = start(OWNER, child=ALONE)
    assert processes.end_orphans(tmp_path) == []
    assert alive(tree) == pids(tree)
    assert len(records(tmp_path)) == 1


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"child": {"started": 1}}, 0),
        ({"owner": {"boot": "0"}, "child": {"boot": "0"}}, 0),
        ({"host": "other-machine"}, 1),
    ],
    ids=["a later process with the child's pid", "before a restart", "another machine"],
)
def test_a_process_that_the_record_does_not_name_is_left_alone(start, tmp_path, change, kept):
    owner, tree = start(OWNER, child=ALONE)
    die(owner)
    change_record(tmp_path, **change)
    assert processes.end_orphans(tmp_path) == []
    assert alive(tree) == pids(tree)
    assert len(records(tmp_path)) == kept


def test_an_owner_whose_pid_was_given_to_another_process_counts_as_dead(start, tmp_path):
    _, tree = start(OWNER, child=ALONE)
    change_record(tmp_path, owner={"started": 1})
    assert processes.end_orphans(tmp_path) == pids(tree)


def test_without_a_record_nothing_is_ended(tmp_path):
    assert processes.end_orphans(tmp_path) == []


def test_the_record_of_a_live_child_is_not_removed(tmp_path):
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
def test_ending_a_leader_ends_everything_it_has_started(script):
    leader = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True
    )
    assert leader.stdout is not None
    with leader.stdout as ready:
        ready.readline()
        tree = process_tree(leader.pid)
        while script == ENDED and leader.pid in alive(tree):  # not waited for, it keeps its pid
            time.sleep(0.005)
        assert processes.end(leader.pid) == []
        # Everything it had started held this pipe open, and it has started nothing since.
        assert ready.read() == b""
    leader.wait()
    assert gone(tree)


@pytest.mark.parametrize("isolation", ["none", "bwrap"])
def test_a_box_is_on_record_as_long_as_it_lives(tmp_path, isolation):
    tmp_path.chmod(0o755)
    with open_box(make_spec(tmp_path, isolation=isolation), SLEEPER) as box:
        (name,) = records(tmp_path)
        assert name.endswith(f"~{ProcessId.current()}~{ProcessId.of(box.process.pid)}")
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
    assert process_tree(started[0]) == set()


@pytest.mark.parametrize("script", [JUDGE, SERVER], ids=["unsandboxed box", "server"])
def test_what_a_killed_command_ran_is_ended(start, tmp_path, script):
    command, tree = start(script)
    die(command)
    assert alive(tree) == pids(tree)  # nothing else ends it
    assert processes.end_orphans(tmp_path) == pids(tree)
    assert gone(tree)
