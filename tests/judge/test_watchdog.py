"""What the watchdog measures of real processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.judge import kernel_limits, memory
from tasks.judge.watchdog import Watchdog
from tests.boxes import UNWAITED

SHARED = 2**26  # bytes; an interpreter takes some 10 MiB besides
CODE = """
import mmap, time
memory = mmap.mmap(-1, {size})
memory.write(bytes({written}))
{then}
print("ready", flush=True)
time.sleep(600)
"""


def peak(written: int, then: str = "", reserves: bool = False) -> int:
    """Bytes that are counted of a process with SHARED bytes of shared memory."""
    argv = [sys.executable, "-c", CODE.format(size=SHARED, written=written, then=then)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        watchdog = Watchdog(process.pid, memory_bytes=2**40, tasks=100, reserves=reserves)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            watchdog.start()
            while not watchdog.peak_memory_bytes:
                time.sleep(0.01)
        finally:
            watchdog.stop()
            process.kill()
    return watchdog.peak_memory_bytes


@pytest.mark.parametrize("written", [SHARED, SHARED // 2, 0])
def test_shared_memory_counts_once_whether_it_was_written_or_not(written):
    assert SHARED < peak(written) < 1.4 * SHARED


UNMAP = "memory.madvise(mmap.MADV_DONTNEED)"  # the pages stay, and are in no resident set


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees what a mapping holds")
@pytest.mark.parametrize(
    ("written", "then", "counted"),
    [(0, "", 0), (SHARED, "", SHARED), (SHARED, UNMAP, SHARED), (SHARED // 2, UNMAP, SHARED // 2)],
)
def test_in_a_box_for_cuda_shared_memory_counts_by_what_it_holds(written, then, counted):
    assert counted < peak(written, then, reserves=True) < counted + 0.4 * SHARED


@pytest.mark.parametrize("most", [0, 2**20, 2**30])
def test_for_an_ordinary_user_it_counts_up_to_the_growth_of_all_shared_memory_made_up(
    monkeypatch, most
):
    monkeypatch.setattr(memory, "_held", lambda mapped: None)
    argv = [sys.executable, "-c", CODE.format(size=SHARED, written=0, then="")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert memory.hidden([process.pid], most) == min(most, SHARED)
        process.kill()


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
