"""`kill -9` of the judge, in each phase of a run: what it leaves alive, which must be nothing.

The judge is a fork of a process that has imported everything, so a repeat costs boxes alone. A phase is never guessed by the
clock: the candidate stops in it and renames its process, a name that is seen from outside the box.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.judge import watchdog
from tasks.judge.box import sweep
from tests.boxes import live_boxes, make_dataset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PHASES = {  # role and place where the candidate stops: how many boxes there are then, and repeats in the suite, 20 in all
    "smoke import": (1, 5),
    "train import": (1, 5),
    "train go": (2, 4),  # the box that will claim is warming up
    "claim import": (2, 2),  # and the one to be audited
    "claim forward": (2, 1),
    "audit import": (1, 2),
    "audit forward": (1, 1),
}
BOX_PROCESSES = (
    3  # bubblewrap outside, bubblewrap inside, Python: then the box has asked to die with us
)
REPEATS = int(
    os.environ.get("NIGHTLY_KILL_REPEATS", "0")
)  # of each phase, for a longer look by hand
GONE_SECONDS = 2.0
SPAWN_SECONDS = 0.02  # after the spawn of a box: bubblewrap has not yet asked to die with us
REACHED = "held-in-phase"  # a process name has at most 15 characters

CANDIDATE = """
import math, os, time
import trainer.harness as harness
VOCAB_SIZE, MAX_SEQ_LEN, DEVICE_BATCH_SIZE = 256, 8, 2

def hold(place):
    if os.environ["NIGHTLY_ROLE"] + " " + place == "{phase}":
        open("/proc/self/comm", "w").write("{reached}")
        time.sleep(600)

hold("import")

class Uniform:
    def eval(self):
        pass

    def __call__(self, idx, targets=None, reduction="mean"):
        import numpy as np
        import torch
        hold("forward")
        logits = np.zeros((*idx.shape, 256))
        losses = np.full(idx.numel(), math.log(256))
        return torch.from_numpy(logits if targets is None else losses)

def load_model(path, device):
    return Uniform()

def main():
    harness.ready(flops_per_token=1.0)
    hold("go")
    harness._link().send({{"msg": "done", "bytes": 1}}, b"x")  # not `finish`: that imports torch
    harness._link().wait_for_the_end()
"""

# Forks a judge for each order it reads. With `delay` the judge kills itself so long after the spawn of its first box.
JUDGES = """
import json, os, signal, sys, time
from pathlib import Path
from tasks.trial import experiment
from tasks.trial.baseline import first_caps
from tasks.judge import box
from tasks.records import Dataset
from tests.boxes import make_profile
from tests.faults.stub_torch import assemble_with_stub

experiment.assemble = assemble_with_stub

def judge(source, home, dataset, smoke, delay):
    spawn = box._popen
    def spawn_and_die(*arguments):
        running = spawn(*arguments)  # held: it must not be reaped before we die
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)
    if delay is not None:
        box._popen = spawn_and_die
    profile = make_profile()
    result = experiment.run_experiment(
        source, profile, Dataset(**dataset), Path(home), seed=1, caps=first_caps(profile), isolation="bwrap",
        worth_audit=lambda claimed: True, smoke=smoke,
    )
    print(result.status, result.reason, result.log, result.judge_log, file=sys.stderr)

for line in sys.stdin:
    if (pid := os.fork()) == 0:
        try:
            judge(**json.loads(line))
        finally:
            os._exit(1)
    print(pid, flush=True)
    os.waitpid(pid, 0)
"""


@pytest.fixture(scope="module")
def judges():
    """A process that has imported the judge and forks one for each line."""
    with subprocess.Popen(
        [sys.executable, "-c", JUDGES],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    made = make_dataset(tmp_path_factory.mktemp("dataset"))
    return {"fingerprint": made.fingerprint, "public": made.public, "train": made.train} | {
        "validation": made.validation,
        "validation_bytes": made.validation_bytes,
    }


@pytest.fixture
def home(tmp_path):
    yield tmp_path
    for gate in tmp_path.glob("boxes/*/*-gate"):
        gate.chmod(0o755)  # or pytest could not remove it


@pytest.fixture
def start(judges, dataset, home):
    """Starts a judge on a candidate that stops in `phase`; returns its pid and start time. It is dead after the test."""
    started = []

    def start(phase: str, delay: float | None = None) -> tuple[int, int]:
        order = {
            "source": CANDIDATE.format(phase=phase, reached=REACHED),
            "home": str(home),
            "dataset": dataset,
        }
        judges.stdin.write(
            json.dumps({**order, "smoke": phase.startswith("smoke"), "delay": delay}) + "\n"
        )
        judges.stdin.flush()
        pid = int(judges.stdout.readline())
        born = 0
        with contextlib.suppress(OSError):  # it may have been quick to die
            born = watchdog.started_at(pid)
        started.append((pid, born))
        return pid, born

    yield start
    for pid, born in started:
        if watchdog.is_alive(pid, born):
            os.kill(pid, signal.SIGKILL)
    for pid, born in live_boxes(home).items():
        if watchdog.is_alive(pid, born):
            os.kill(pid, signal.SIGKILL)


def wait_for(what: Callable[[], bool], seconds: float) -> float | None:
    """How long it took, in seconds, until `what` held; None if it did not in the time."""
    begun = time.monotonic()
    while not what():
        if time.monotonic() > begun + seconds:
            return None
        time.sleep(0.002)
    return time.monotonic() - begun


def is_held(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text() == REACHED + "\n"
    return False


def alive(processes: dict[int, int]) -> list[int]:
    return [pid for pid, born in processes.items() if watchdog.is_alive(pid, born)]


@pytest.mark.parametrize(
    ("phase", "repeat"),
    [
        (phase, repeat)
        for phase, (_, repeats) in PHASES.items()
        for repeat in range(REPEATS or repeats)
    ],
)
def test_kill_9_of_the_judge_leaves_no_box_alive(start, home, phase, repeat):
    judge, born = start(phase)
    full = 1 + PHASES[phase][0] * BOX_PROCESSES

    def reached() -> bool:
        tree = watchdog.process_tree(judge)
        return len(tree) == full and any(map(is_held, tree))

    assert wait_for(lambda: reached() or not watchdog.is_alive(judge, born), 120) is not None
    assert watchdog.is_alive(judge, born), "the run was over before it came to this phase"
    time.sleep(random.uniform(0, 0.05))
    tree = watchdog.process_tree(judge)
    assert len(tree) >= full
    os.kill(judge, signal.SIGKILL)
    gone = wait_for(lambda: not alive(tree) and not live_boxes(home), GONE_SECONDS)
    print(f"figures: {phase}: {len(tree) - 1} processes, gone after {gone} s")
    assert (alive(tree), live_boxes(home)) == ([], {})


@pytest.mark.parametrize("repeat", range(REPEATS or 5))
def test_a_box_that_outlives_a_kill_at_its_spawn_is_swept(start, home, repeat):
    judge, born = start("train import", delay=random.uniform(0, SPAWN_SECONDS))
    assert wait_for(lambda: not watchdog.is_alive(judge, born), 60) is not None

    def swept() -> bool:
        """As often as a start would: what is not bubblewrap yet, still mounting, is no orphan that can be told."""
        ended.update(sweep(home))
        return not live_boxes(home)

    survivors, ended = live_boxes(home), set[int]()
    gone = wait_for(swept, GONE_SECONDS)
    print(
        f"figures: spawn: {len(survivors)} processes outlived the kill, {len(ended)} were swept, gone after {gone} s"
    )
    assert live_boxes(home) == {}
