"""A run that a busy machine slows down is made again: a real box, and real processes that take the
CPUs.

What is usual is made up, a quiet machine: the one where the tests run may never be one.
"""

import contextlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs import Budget
from flows.night import quarantine, run_trial
from flows.night.run_trial import Comparison
from tasks.judge.processes import ProcessId, is_ours
from tasks.noise import Noise
from tasks.records import Candidate, Conditions
from tasks.trial import experiment
from tests.boxes import HONEST, make_bench, make_dataset, make_profile
from tests.faults.stub_torch import assemble_with_stub
from tests.waiting import wait_for

# They end with this process at the latest.
BUSY = """
import os, sys
if os.fork():
    os._exit(0)
os.setsid()
parent = os.getpid()
children = [os.fork() for _ in range(2 * os.cpu_count()) if os.getpid() == parent]
if os.getpid() == parent:
    print(parent, *children, flush=True)
    sys.stdin.read()
while os.getppid() == parent:
    pass
"""
QUIET = Conditions(2.0, cpu_used=2.0, cpu_waited=0.0, cpu_others=0.0, cpu_stolen=0.0)
SECONDS = 2


@contextlib.contextmanager
def strangers() -> Iterator[list[ProcessId]]:
    """Processes that are not below this one, two for each CPU, each of them busy."""
    argv = [sys.executable, "-c", BUSY]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as made:
        assert made.stdout is not None
        pids = [int(pid) for pid in made.stdout.readline().split()]
        found = [ProcessId.of(pid) for pid in pids]
        try:
            wait_for(lambda: not any(map(is_ours, pids)), "the end of their parent")
            yield found
        finally:
            end(found)


def end(found: list[ProcessId]) -> None:
    for process in found:
        process.kill()


@pytest.mark.slow
def test_a_run_slowed_by_a_busy_loop_is_run_again(tmp_path: Path, monkeypatch) -> None:
    profile = make_profile(memory_gib=1).model_copy(
        update={"budget": Budget(kind="seconds", amount=SECONDS)}
    )
    (tmp_path / "dataset").mkdir()
    bench = make_bench(make_dataset(tmp_path / "dataset"), tmp_path, profile)
    candidate = Candidate.parse(
        HONEST.replace("        harness.log(step=tokens, tokens=tokens, loss=1.0)\n", "")
    )
    usual = (QUIET, QUIET)
    compared = Comparison(candidate, (7.0,), (1,), Noise(0.01, 20), 0, usual=usual)
    seeds = []

    with strangers() as busy:

        def train(what, candidate, bench, seed, *, worth_audit, smoke, report, early, champion):
            seeds.append(seed)
            if len(seeds) == 2:
                end(busy)
            return experiment.run_experiment(candidate, bench, seed, worth_audit=worth_audit)

        monkeypatch.setattr(experiment, "assemble", assemble_with_stub)
        monkeypatch.setattr(run_trial, "train_candidate", train)
        monkeypatch.setattr(quarantine, "get_run_logger", logging.getLogger)
        tried = run_trial.run_trial(1, candidate, bench, 1, compared)
    assert "its threads waited" in tried.quarantined[0].disturbance
    assert tried.quarantined[0].run.status == "ok"
    # On a machine that stays busy it counts in the end.
    assert seeds == [1] * len(seeds)
    assert len(tried.quarantined) == len(seeds) - 1
    (run,) = tried.runs
    assert (run.seed, run.status) == (1, "ok")
