"""What the watchdog measures of real processes."""

import subprocess
import sys
import time

import pytest

from tasks.judge.watchdog import Watchdog

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
