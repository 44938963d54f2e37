"""What the watchdog measures of real processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.judge import kernel_limits
from tasks.judge.watchdog import Watchdog
from tests.boxes import UNWAITED

SHARED = 2**26  # bytes; an interpreter takes some 10 MiB besides
CODE = """
import mmap, time
memory = mmap.mmap(-1, {size})
memory.write(bytes({written}))
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("written", [SHARED, SHARED // 2, 0])
def test_shared_memory_counts_once_whether_it_was_written_or_not(written):
    argv = [sys.executable, "-c", CODE.format(size=SHARED, written=written)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        watchdog = Watchdog(process.pid, memory_bytes=2**40, tasks=100)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            watchdog.start()
            while not watchdog.peak_memory_bytes:
                time.sleep(0.01)
        finally:
            watchdog.stop()
            process.kill()
    assert SHARED < watchdog.peak_memory_bytes < 1.4 * SHARED


def test_a_cgroup_of_its_own_counts_the_cpu_time_of_children_that_nobody_waits_for(
    cgroup, monkeypatch
):
    mount, folder = cgroup
    monkeypatch.setattr(kernel_limits, "CGROUPS", mount)
    code = "import sys; sys.stdin.readline()" + UNWAITED + "print(flush=True); sys.stdin.readline()"
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = Watchdog(process.pid, memory_bytes=2**40, tasks=100)
        (folder / "cgroup.procs").write_text(str(process.pid))
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        assert watchdog.cpu_seconds() >= 0.4


def test_without_a_cgroup_of_its_own_a_process_has_no_time_by_cgroup():
    assert kernel_limits.cgroup_cpu_seconds(os.getpid()) == 0.0


@pytest.fixture
def cgroup():
    """Where cgroups of version 2 are mounted, and a new one there."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        kind, place = line.partition(" - ")[2].split()[0], line.split()[4]
        if kind == "cgroup2" and os.access(place, os.W_OK):
            folder = Path(place, f"nightly-test-{os.getpid()}")
            break
    else:
        pytest.skip("no cgroup of version 2 that we may make another in")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    yield Path(place), folder
    while (folder / "cgroup.procs").read_text():
        time.sleep(0.01)
    folder.rmdir()
