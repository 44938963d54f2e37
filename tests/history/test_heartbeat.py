"""A night's heartbeat: when a night counts as alive; damaged files and full disks stop nothing."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

from tasks.history import heartbeat
from tasks.history.heartbeat import LEASE_SECONDS, SIZE, Heartbeat, Pulse
from tasks.judge.processes import ProcessId
from tests.faults.small_disk import can_mount

BEATS_UNTIL_KILLED = """
import sys, time
from pathlib import Path
from tasks.history import heartbeat
with heartbeat.beating(Path(sys.argv[1]), lambda: 7.0) as pulse:
    pulse.enter("training trial 3")
    print("beats", flush=True)
    time.sleep(600)
"""
ON_A_FULL_DISK = """
import sys
from pathlib import Path
from tasks.history import heartbeat
path = Path(sys.argv[1])
with heartbeat.beating(path, lambda: 0.0) as pulse:
    try:
        with (path.parent / "big").open("wb") as file:
            while True:
                file.write(bytes(2**16))
                file.flush()
    except OSError:
        pass
    pulse.enter("paused: the disk is full")
    print(heartbeat.last(path).phase)
"""


@pytest.fixture
def pulse(tmp_path):
    with (tmp_path / "heartbeat.json").open("w+b") as file:
        yield Pulse(file.fileno(), lambda: 12.34)


@pytest.fixture
def mine(tmp_path, pulse):
    pulse.enter("proposing")
    found = heartbeat.last(tmp_path / "heartbeat.json")
    assert found
    return found


def test_a_beat_names_the_process_and_what_it_does(mine):
    assert (mine.process.pid, mine.phase, mine.used_seconds, mine.error) == (
        os.getpid(),
        "proposing",
        12.3,
        None,
    )
    assert abs(mine.time - time.time()) < 60
    assert mine.is_alive


def test_an_error_stays_in_the_next_phase_until_it_is_solved(tmp_path, pulse):
    pulse.note("MLflow is down")
    pulse.enter("training")
    found = heartbeat.last(tmp_path / "heartbeat.json")
    assert found
    assert (found.phase, found.error) == ("training", "MLflow is down")
    pulse.note(None)
    found = heartbeat.last(tmp_path / "heartbeat.json")
    assert found
    assert found.error is None


def test_a_night_that_was_killed_is_dead_at_once(tmp_path):
    path = tmp_path / "heartbeat.json"
    child = subprocess.Popen(
        [sys.executable, "-c", BEATS_UNTIL_KILLED, str(path)],
        stdout=subprocess.PIPE,
        cwd=os.getcwd(),
    )
    assert child.stdout
    assert child.stdout.readline() == b"beats\n"
    living = heartbeat.last(path)
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
    dead = heartbeat.last(path)
    assert living
    assert dead
    assert (dead.process.pid, dead.phase) == (child.pid, "training trial 3")
    assert not dead.is_alive
    child.wait()
    child.stdout.close()


def test_a_night_is_alive_while_it_beats_and_its_last_phase_is_over(tmp_path):
    path = tmp_path / "heartbeat.json"
    with heartbeat.beating(path, lambda: 0.0) as pulse:
        pulse.enter("proposing")
        during = heartbeat.last(path)
    after = heartbeat.last(path)
    assert during
    assert during.is_alive
    assert after
    assert after.phase == "over"


def test_a_night_whose_pid_was_given_to_another_process_is_dead(mine):
    process = dataclasses.replace(mine.process, started=mine.process.started - 1)
    assert not dataclasses.replace(mine, process=process).is_alive


def test_a_night_from_before_a_restart_is_dead(mine):
    process = dataclasses.replace(mine.process, boot="an earlier one")
    assert not dataclasses.replace(mine, process=process).is_alive


@pytest.mark.parametrize(
    ("age", "alive"), [(LEASE_SECONDS - 60, True), (LEASE_SECONDS + 60, False)]
)
def test_a_night_of_another_machine_is_alive_until_its_lease_runs_out(mine, age, alive):
    process = ProcessId(pid=2**22 + 1, started=1, boot="its own")  # no process here
    beat = dataclasses.replace(mine, host="elsewhere", process=process, time=time.time() - age)
    assert beat.is_alive is alive


def test_a_clock_that_is_hours_ahead_does_not_extend_the_lease_of_another_machine(mine):
    assert not dataclasses.replace(mine, host="elsewhere", time=time.time() + 7200).is_alive


@pytest.mark.parametrize("days", [-1, 1])
def test_a_jump_of_the_clock_does_not_end_a_night_of_this_machine(mine, monkeypatch, days):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + days * 86400)
    assert mine.is_alive


@pytest.mark.parametrize(
    "content",
    [b"", b" " * SIZE, b'{"host": "a", "bo', b"[]", b"null", b'{"host": "a"}', b"\xff\xfe"],
)
def test_a_damaged_file_is_no_heartbeat(tmp_path, content):
    (tmp_path / "heartbeat.json").write_bytes(content)
    assert heartbeat.last(tmp_path / "heartbeat.json") is None


def test_without_a_file_there_is_no_heartbeat(tmp_path):
    assert heartbeat.last(tmp_path / "heartbeat.json") is None


def test_a_short_beat_overwrites_all_of_a_long_one(tmp_path, pulse):
    pulse.enter("p" * 2000)
    pulse.note("e" * 2000)
    pulse.enter("short")
    content = (tmp_path / "heartbeat.json").read_bytes()
    assert len(content) == SIZE
    assert Heartbeat.from_json(content).phase == "short"


def test_text_of_many_bytes_per_character_fits_into_the_block(tmp_path, pulse):
    pulse.note("\N{GRINNING FACE}" * 1000)
    pulse.enter("\N{GRINNING FACE}" * 1000)
    assert len((tmp_path / "heartbeat.json").read_bytes()) == SIZE
    assert heartbeat.last(tmp_path / "heartbeat.json")


@pytest.mark.skipif(not can_mount(), reason="no tmpfs can be mounted here")
def test_it_beats_on_a_full_disk(tmp_path):
    script = f'mount -t tmpfs -o size=1m none "{tmp_path}" && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-ec", script, "sh", sys.executable, "-c", ON_A_FULL_DISK]
    done = subprocess.run(
        [*argv, str(tmp_path / "heartbeat.json")], capture_output=True, text=True, cwd=os.getcwd()
    )
    assert done.stdout == "paused: the disk is full\n", done.stderr
