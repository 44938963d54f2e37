"""`kill -9` of the judge in each phase of a run leaves no process alive.

The judge is a fork of a process that has imported everything, so a repeat costs only its boxes. No
phase is guessed by the clock: the candidate stops in it and renames its process, which can be seen
from outside the box.
"""

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.judge import processes
from tasks.judge.box import sweep
from tasks.judge.processes import ProcessId, process_tree
from tests.boxes import alive, live_boxes, make_dataset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PHASES = {  # role and place where the candidate stops: boxes there are then, and repeats here
    "smoke import": (1, 5),
    "train import": (1, 5),
    "train go": (2, 4),  # the claim box is warming up
    "claim import": (2, 2),  # the audit box is warming up
    "claim forward": (2, 1),
    "audit import": (1, 2),
    "audit forward": (1, 1),
}
BOX_PROCESSES = 3  # bubblewrap outside, bubblewrap inside, Python: then the box dies with us
REPEATS = int(os.environ.get("NIGHTLY_KILL_REPEATS", "0"))  # of each phase, for a closer look
PATIENCE = 120.0
SPAWN_SECONDS = 0.02  # after a box's spawn: bubblewrap has not yet asked to die with us
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

# Forks a judge for each order it reads, which with `delay` kills itself that many seconds after the
# spawn of its first box.
JUDGES = """
import json, os, signal, sys, time
from pathlib import Path
from tasks.trial import experiment
from tasks.trial.baseline import first_caps
from tasks.judge import box
from tasks.records import Dataset
from tasks.records import Candidate
from tests.boxes import make_bench
from tests.faults.stub_torch import assemble_with_stub

experiment.assemble = assemble_with_stub

def judge(source, home, dataset, smoke, delay):
    spawn = box._popen
    def spawn_and_die(*arguments):
        running = spawn(*arguments)  # kept: it must not be reaped before we die
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)
    if delay is not None:
        box._popen = spawn_and_die
    result = experiment.run_experiment(
        Candidate.parse(source), make_bench(Dataset(**dataset), Path(home)), seed=1,
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
    return dataclasses.asdict(make_dataset(tmp_path_factory.mktemp("dataset")))


@pytest.fixture
def start(judges, dataset, folder):
    """Starts a judge on a candidate that stops in `phase`; its process, dead after the test."""
    started: set[ProcessId] = set()

    def start(phase: str, delay: float | None = None) -> ProcessId:
        order = {
            "source": CANDIDATE.format(phase=phase, reached=REACHED),
            "home": str(folder),
            "dataset": dataset,
            "smoke": phase.startswith("smoke"),
            "delay": delay,
        }
        judges.stdin.write(json.dumps(order) + "\n")
        judges.stdin.flush()
        pid = int(judges.stdout.readline())
        judge = ProcessId(pid, 0, "")
        with contextlib.suppress(OSError):  # it may be dead already
            judge = ProcessId.of(pid)
        started.add(judge)
        return judge

    yield start
    processes.kill_all(started)
    processes.kill_all(live_boxes(folder))


def wait_for(what: Callable[[], bool]) -> float | None:
    """How many seconds passed until `what` held; None if it never did."""
    begun = time.monotonic()
    while not what():
        if time.monotonic() > begun + PATIENCE:
            return None
        time.sleep(0.002)
    return time.monotonic() - begun


def is_held(process: ProcessId) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/comm").read_text() == REACHED + "\n"
    return False


@pytest.mark.parametrize(
    ("phase", "repeat"),
    [
        (phase, repeat)
        for phase, (_, repeats) in PHASES.items()
        for repeat in range(REPEATS or repeats)
    ],
)
def test_kill_9_of_the_judge_leaves_no_box_alive(start, folder, phase, repeat):
    judge = start(phase)
    full = 1 + PHASES[phase][0] * BOX_PROCESSES

    def reached() -> bool:
        tree = process_tree(judge.pid)
        return len(tree) == full and any(map(is_held, tree))

    assert wait_for(lambda: reached() or not judge.is_alive) is not None
    assert judge.is_alive, "the run ended before this phase"
    time.sleep(random.uniform(0, 0.05))
    tree = process_tree(judge.pid)
    assert len(tree) >= full
    judge.kill()
    gone = wait_for(lambda: not alive(tree) and not live_boxes(folder))
    print(f"figures: {phase}: {len(tree) - 1} processes, gone after {gone} s")
    assert (alive(tree), live_boxes(folder)) == ([], set())


@pytest.mark.parametrize("repeat", range(REPEATS or 5))
def test_a_box_that_survives_a_kill_at_its_spawn_is_swept(start, folder, repeat):
    judge = start("train import", delay=random.uniform(0, SPAWN_SECONDS))
    assert wait_for(lambda: not judge.is_alive) is not None

    def swept() -> bool:
        """Sweeps again and again: a process that does not run bubblewrap yet is not recognised."""
        ended.update(sweep(folder))
        return not live_boxes(folder)

    survivors, ended = live_boxes(folder), set[int]()
    gone = wait_for(swept)
    print(
        f"figures: spawn: {len(survivors)} processes survived the kill, {len(ended)} were swept, "
        f"gone after {gone} s"
    )
    assert live_boxes(folder) == set()
