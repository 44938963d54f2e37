"""Whose CPU time a box shared, measured of real processes; the machine's account is made up."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tasks.judge import contention
from tasks.judge.contention import ContentionWatch
from tasks.judge.watchdog import TICK, Watchdog
from tests.waiting import wait_for

SPIN = "import os; os.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
CPU = min(os.sched_getaffinity(0))


@contextlib.contextmanager
def running(code: str) -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def watching(code: str) -> Iterator[ContentionWatch]:
    """A watch over a process that stands in for a box."""
    with running(code) as pid:
        watchdog = Watchdog(pid, memory_bytes=2**40, tasks=100)
        watchdog.start()
        try:
            wait_for(watchdog.pids, "a first look")
            yield ContentionWatch(watchdog)
        finally:
            watchdog.stop()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Writes how many CPU-seconds all processes of a made-up machine have used, and others have."""
    monkeypatch.setattr(contention, "STAT", tmp_path / "stat")

    def write(busy: float, stolen: float, interrupts: float = 0.0) -> None:
        ticks = interrupts * TICK
        fields = (busy * TICK, 0, 0, 99, 99, ticks, ticks, stolen * TICK, 0, 0)
        (tmp_path / "stat").write_text(f"cpu  {' '.join(str(int(f)) for f in fields)}\ncpu0 1\n")

    return write


def test_threads_that_share_a_cpu_wait_for_it():
    spin = SPIN.format(cpu=CPU)
    with watching(spin) as watch, running(spin):
        wait_for(lambda: sum(watch._waited.values()) > 0.02, "a thread that waits")
        seen = watch.stop()
    assert seen.waited is not None
    assert seen.waited > 0.02


def test_a_box_that_sleeps_waits_for_nothing():
    with watching("import time; time.sleep(600)") as watch:
        waited = watch.stop().waited
    assert waited is not None
    assert waited < 0.01


def test_what_others_use_is_neither_the_boxs_nor_the_nights_on_a_made_up_machine(machine):
    machine(1000.0, 10.0)
    with watching(SPIN.format(cpu=CPU)) as watch:
        begun = watch._first
        wait_for(lambda: watch._read().ours > begun.ours + 0.1, "CPU time of the box")
        machine(1005.0, 12.0)
        seen = watch.stop()
    assert seen.others is not None
    assert 0.0 < seen.others < 4.95  # 5 of which the box has used a part
    assert seen.stolen == 2.0


def test_interrupts_are_nobodys_process_on_a_made_up_machine(machine):
    machine(1000.0, 10.0)
    with watching("import time; time.sleep(600)") as watch:
        machine(1000.0, 10.0, interrupts=5.0)
        assert watch.stop().others == 0.0


def test_a_system_that_has_no_account_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(contention, "STAT", tmp_path / "none")
    with watching("import time; time.sleep(600)") as watch:
        seen = watch.stop()
    assert (seen.others, seen.stolen) == (None, None)
