"""Runs that begin before their trial, in real boxes: when they go on, and how they end.

No test waits for a time: a run says when it is ready, and a candidate that is to be caught before
that holds itself and renames its process, which can be seen from outside.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tasks.judge import gpu, priority, protocol
from tasks.judge.processes import Stat
from tasks.records import Baseline, Candidate
from tasks.trial import early_run, experiment
from tasks.trial.baseline import first_caps
from tasks.trial.early_run import TrialStart
from tests.boxes import HONEST, alive, live_boxes, make_bench, make_dataset, make_profile
from tests.faults.stub_torch import assemble_with_stub
from tests.synthetic_night import make_run
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
HELD = 'open("/proc/self/comm", "w").write("held"); import time; time.sleep(600)'


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def begin(dataset, folder, monkeypatch):
    """Begins a run early; the run, and an event for the moment at which it waits."""
    monkeypatch.setattr(experiment, "assemble", assemble_with_stub)
    begun = []

    def begin(source=HONEST, startup_cpu_seconds=None, **limits):
        ready = threading.Event()
        profile = make_profile(**limits)
        caps = dataclasses.replace(first_caps(profile), startup_cpu_seconds=startup_cpu_seconds)
        bench = make_bench(dataset, folder, profile, caps)
        run = experiment.start_early(Candidate.parse(source), bench, 7, ready.set)
        begun.append(run)
        return run, ready

    yield begin
    for run in begun:
        run.end()
    assert live_boxes(folder) == set()
    assert list(folder.glob("boxes/*")) == []


def start(phases=None, champion=()):
    notes = phases if phases is not None else []
    return TrialStart(lambda claimed: True, notes.append, champion)


def is_held(folder):
    return any(
        Path(f"/proc/{process.pid}/comm").read_text() == "held\n" for process in live_boxes(folder)
    )


def test_it_waits_at_rest_before_go_and_its_trial_ends_like_any_other(begin, folder):
    run, ready = begin()
    assert ready.wait(60)
    wait_for(lambda: all(Stat.read(p.pid).state in "TZ" for p in live_boxes(folder)), "rest")
    phases: list[str] = []
    result = run.finish(start(phases))
    assert (result.status, result.started_early, result.seed) == ("ok", True, 7)
    assert result.val_bpb == pytest.approx(8.0, abs=1e-6)
    assert result.audit_gap == 0.0
    assert phases == ["training", "scoring", "being audited"]


def test_it_learns_of_its_champion_when_its_trial_begins(begin, monkeypatch):
    go, champions = protocol.go, []

    def noting(box, gate, budget, started):
        champions.append(budget.champion)
        return go(box, gate, budget, started)

    monkeypatch.setattr(protocol, "go", noting)
    run, ready = begin()
    assert ready.wait(60)
    assert run.finish(start(champion=((5, 3.0),))).status == "ok"
    assert champions == [((5, 3.0),)]


def test_no_data_is_there_before_its_trial(begin, folder):
    _, ready = begin()
    assert ready.wait(60)
    (gate,) = folder.glob("boxes/*/train-gate")
    assert gate.stat().st_mode & 0o777 == 0


def test_it_starts_up_at_a_low_priority_and_trains_at_the_usual_one(begin, folder, monkeypatch):
    calls: list[str] = []

    def noting(name):
        real = getattr(priority, name)

        def note(root):
            calls.append(name)
            return real(root)

        return note

    for name in ("lower", "restore", "rest", "wake"):
        monkeypatch.setattr(priority, name, noting(name))
    run, ready = begin()
    assert ready.wait(60)
    assert run.finish(start()).status == "ok"
    assert calls == ["lower", "lower", "rest", "restore", "wake"]


def test_an_end_leaves_no_box(begin, folder):
    run, ready = begin()
    assert ready.wait(60)
    run.end()
    assert live_boxes(folder) == set()
    assert list(folder.glob("boxes/*")) == []


@pytest.mark.parametrize("role", ["smoke", "train"])
def test_so_does_an_end_before_it_is_ready(begin, folder, role):
    run, _ = begin(f'import os\nif os.environ["NIGHTLY_ROLE"] == "{role}": {HELD}\n{HONEST}')
    wait_for(lambda: is_held(folder), role)
    run.end()
    assert live_boxes(folder) == set()


class Interrupted(Exception):
    """What Prefect raises for a SIGTERM, made up."""


def test_an_interrupt_of_the_night_in_its_training_leaves_no_box(begin, folder):
    def interrupt(signal_number, frame):
        raise Interrupted

    def send():
        wait_for(lambda: is_held(folder), "its training")
        os.kill(os.getpid(), signal.SIGUSR1)

    loop = "    while budget.progress(tokens) < 1.0:\n"
    assert loop in HONEST
    held = f'        import os\n        if os.environ["NIGHTLY_ROLE"] == "train": {HELD}\n'
    run, ready = begin(HONEST.replace(loop, loop + held))
    assert ready.wait(60)
    usual = signal.signal(signal.SIGUSR1, interrupt)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(Interrupted):
            run.finish(start())
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, usual)
    assert not run.is_alive
    assert live_boxes(folder) == set()


def test_a_trial_may_begin_before_it_is_ready(begin, folder):
    slow = HONEST.replace("def main():", "def main():\n    import time; time.sleep(0.5)")
    run, _ = begin(slow)
    result = run.finish(start())
    assert (result.status, result.started_early) == ("ok", True)


def test_a_crash_is_the_trials_result_and_nothing_is_run_again(begin, folder, monkeypatch):
    run, _ = begin(HONEST.replace("import torch\n", "import torch, nothing_like_that\n"))
    wait_for(lambda: not run.is_alive, "the crash")
    monkeypatch.setattr(experiment, "open_box", None)  # would fail
    result = run.finish(start())
    assert (result.status, result.val_bpb) == ("startup_crashed", None)
    assert "nothing_like_that" in result.reason


@pytest.mark.parametrize(
    ("code", "limits"),
    [
        ("x = bytearray(2**31)", {"memory_gib": 0.5}),
        ("while True: pass", {"startup_cpu_seconds": 0.5}),
    ],
    ids=["memory", "CPU time"],
)
def test_what_may_be_its_neighbours_fault_is_nobodys_result(begin, code, limits):
    run, _ = begin(f"{code}\n{HONEST}", **limits)
    assert run.finish(start()) is None


def test_a_box_that_was_killed_while_it_waits_is_run_from_the_start(begin, folder):
    run, ready = begin()
    assert ready.wait(60)
    boxes = live_boxes(folder)
    for process in boxes:
        process.kill()
    wait_for(lambda: not alive(boxes), "the end of the box")
    assert run.finish(start()) is None


def test_a_failure_of_ours_before_the_trial_has_it_run_from_the_start(begin, monkeypatch):
    monkeypatch.setattr("tasks.judge.bwrap.find_bwrap", lambda: Path("/bin/false"))
    run, _ = begin()
    assert run.finish(start()) is None


JUDGE = """
import json, os, signal, sys
from pathlib import Path
from tasks.records import Candidate, Dataset
from tasks.trial import experiment
from tests.boxes import HONEST, alive, live_boxes, make_bench
from tests.faults.stub_torch import assemble_with_stub
experiment.assemble = assemble_with_stub
bench = make_bench(Dataset(**json.loads(sys.argv[2])), Path(sys.argv[1]))
def die():
    print(len(live_boxes(bench.home)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
experiment.start_early(Candidate.parse(HONEST), bench, 1, die)
signal.pause()
"""


def test_kill_9_while_it_waits_leaves_nothing_alive(dataset, folder):
    argv = [sys.executable, "-c", JUDGE, str(folder), json.dumps(dataclasses.asdict(dataset))]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert int(done.stdout) >= 3
    wait_for(lambda: live_boxes(folder) == set(), "the end of the box")


def profile_of(device="cuda", **limits):
    return make_profile(**limits).model_copy(update={"device": device})


def baseline_of(peak_vram_mb=60_000.0):
    run = make_run(metrics={"peak_vram_mb": peak_vram_mb} if peak_vram_mb else {})
    return Baseline(runs=(run,), hardware="h")


@pytest.mark.parametrize(
    ("gib", "peak", "said"),
    [
        (141, 60_000.0, None),
        (80, 60_000.0, "twice the baseline's peak of 58.6 GiB does not fit into the GPU's 80.0"),
        (0, 60_000.0, "the driver does not say how much memory"),
        (80, None, "the baseline does not report peak_vram_mb"),
    ],
)
def test_twice_the_baselines_peak_must_fit_into_a_made_up_card(monkeypatch, gib, peak, said):
    card = gpu.Gpu("H", gib * 2**30, None, "1")
    monkeypatch.setattr("tasks.trial.hardware.first_gpu", lambda: card)
    found = early_run.obstacle(profile_of(memory_gib=0.001), baseline_of(peak))
    assert (found or "").startswith(said or "")
    assert bool(found) == bool(said)


def test_twice_the_limit_of_a_box_must_fit_into_the_machines_memory(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9999999 kB\nMemAvailable:    4194304 kB\n")
    monkeypatch.setattr(early_run, "MEMINFO", tmp_path / "meminfo")
    assert early_run.obstacle(profile_of("cpu", memory_gib=2), baseline_of()) is None
    found = early_run.obstacle(profile_of("cpu", memory_gib=2.5), baseline_of())
    assert found is not None
    assert "2.5 GiB, does not fit into the 4.0 GiB" in found
    assert early_run.obstacle(profile_of("mps"), baseline_of()) is not None
    (tmp_path / "meminfo").unlink()
    assert early_run.obstacle(profile_of("cpu"), baseline_of()) is not None
