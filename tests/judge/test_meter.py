"""What a scoring box spends, phase by phase, in a real box; a GPU is made up."""

import time

import pytest

from tasks.judge.box import open_box
from tasks.judge.meter import Meter, Spent, excess
from tasks.judge.nvml import BusyClock
from tasks.judge.protocol import Stopped, blaming
from tasks.judge.wire import Wire
from tests.boxes import SAY, answer, make_spec, verdict

BURN = """
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
"""
# Each part of the work waits for a byte: what it does before a meter looks would not be counted.
WORKS = f"""{SAY}{BURN}
say(0)
wire.recv(1)
burn(0.2)
say({{'msg': 'ready'}})
wire.recv(1)
burn(0.4)
say(2)
time.sleep(600)
"""
ENDLESS = f"{SAY}\nsay(0)\nwhile True: pass"
ROOMY = Spent(600.0, 600.0, None)


def ignore(spent):
    pass


@pytest.fixture
def box(folder):
    def start(script):
        return open_box(make_spec(folder), ["-c", script])

    return start


def test_each_phase_has_its_own_account(box):
    noted: list[Spent] = []
    with box(WORKS) as running:
        answer(running)
        meter = Meter(running, None)
        with meter.phase("eval_startup", None, noted.append):
            running.wire.send(b"x")
            answer(running)
        with meter.phase("eval", ROOMY, noted.append):
            running.wire.send(b"x")
            answer(running)
    loading, scoring = noted
    assert 0.15 < loading.cpu_seconds < scoring.cpu_seconds
    assert loading.seconds > 0
    assert loading.gpu_seconds is None


@pytest.mark.parametrize(
    ("phase", "status", "doing"),
    [
        ("eval_startup", "eval_timeout", "while loading its checkpoint"),
        ("eval", "eval_timeout", "while scoring"),
        ("audit_startup", "audit_timeout", "while loading its checkpoint for the audit"),
        ("audit", "audit_timeout", "while being audited"),
    ],
)
def test_more_than_the_limit_is_a_status_with_both_figures(box, phase, status, doing):
    """Whether the watchdog sees it in the middle of the phase or it shows at its end."""
    with box(WORKS) as running:
        answer(running)
        limited = Meter(running, None).phase(phase, Spent(600.0, 0.05, None), ignore)
        running.wire.send(b"x")
        with pytest.raises(Stopped) as stopped, limited, blaming(running, phase, 600.0):
            Wire(running.wire).read(time.monotonic() + 600.0)
    assert stopped.value.status == status
    assert f"CPU-seconds {doing}, the limit is 0.05" in stopped.value.reason


def test_the_watchdog_ends_a_box_that_never_answers(box):
    with box(ENDLESS) as running:
        answer(running)
        limited = Meter(running, None).phase("eval", Spent(600.0, 0.1, None), ignore)
        with pytest.raises(Stopped), limited:
            running.process.wait()
        status, reason = verdict(running)
    assert status == "eval_timeout"
    assert "while scoring, the limit is 0.10" in reason


def test_what_is_spent_between_two_phases_counts_in_the_second(box):
    with box(WORKS) as running:
        answer(running)
        meter = Meter(running, None)
        with meter.phase("eval_startup", None, ignore):
            pass
        for _ in range(2):
            running.wire.send(b"x")
            answer(running)
        with pytest.raises(Stopped), meter.phase("eval", Spent(600.0, 0.4, None), ignore):
            pass


def test_a_made_up_gpus_busy_seconds_are_measured_and_limited(box):
    gpu = BusyClock(library=None, device=None)
    with box(WORKS) as running:
        answer(running)
        meter = Meter(running, gpu)
        limited = meter.phase("eval", Spent(600.0, 600.0, 2.0), ignore)
        with pytest.raises(Stopped, match=r"used 3\.00 GPU-seconds while scoring"), limited:
            gpu.seconds = 3.0


def test_a_clock_without_a_gpu_exceeds_nothing():
    assert excess(Spent(1.0, 1.0, None), Spent(2.0, 2.0, 1.0)) is None
    assert excess(Spent(3.0, 1.0, None), Spent(2.0, 2.0, None)) == (3.0, 2.0, "s")
