"""How long the device waits between two trainings, and what starting ahead costs the one that runs.

The gap is that between the last byte of a checkpoint and the next go, on the judge's clock, in
whole nights through the command line. train.py is the stub: its start-up sleeps as long as imports
and compilation would take, its training as long as a GPU would work.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

from configs import Budget
from tasks.records import Bench, Candidate
from tasks.trial import experiment
from tasks.trial.baseline import first_caps
from tests.boxes import make_bench, make_dataset, make_profile
from tests.faults.stub_checkout import PROFILE, StubCheckout
from tests.faults.stub_torch import assemble_with_stub

STEP_SECONDS = 0.05
WORKER = """
import os, time
import numpy as np
import torch
import trainer.harness as harness
from trainer import prepare
VOCAB_SIZE, MAX_SEQ_LEN, DEVICE_BATCH_SIZE = 256, 8, 2
{startup}
class Uniform:
    def eval(self):
        return self
    def __call__(self, idx, targets=None, reduction="mean"):
        if targets is None:
            return torch.from_numpy(np.zeros((*idx.shape, 256)))
        return torch.from_numpy(np.full(idx.numel(), np.log(256)))

def load_model(path, device):
    return Uniform()

def main():
    budget, tokens, x = harness.ready(flops_per_token=1.0), 0, np.ones(4096)
    while budget.progress(tokens) < 1.0:
        for _ in range(200):
            x = np.tanh(x)
        tokens += 1000
    harness.finish({{"x": torch.from_numpy(x)}})
"""
BUSY = "end = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"


@dataclasses.dataclass(frozen=True)
class Gaps:
    """Seconds between two trainings of a night, by what came between them."""

    discarded: list[float]  # another trial; nothing was kept
    kept: list[float]  # another trial, after a keep
    confirmed: list[float]  # the same trial's second run

    @property
    def every(self) -> list[float]:
        return [*self.discarded, *self.kept, *self.confirmed]

    def describe(self) -> str:
        parts = [f"median {statistics.median(self.every):.1f} s of {len(self.every)}"]
        for name, found in dataclasses.asdict(self).items():
            if found:
                shown = f"{statistics.median(found):.1f} s, at most {max(found):.1f}"
                parts.append(f"{name} {len(found)}: {shown}")
        return "; ".join(parts)


def gaps(*, ahead: bool, startup: float, training: float, trials: int) -> Gaps:
    """Of one night of the stub on a `seconds` budget."""
    with tempfile.TemporaryDirectory() as folder:
        checkout = StubCheckout(Path(folder))
        _slow_down(checkout, startup)
        profile = checkout.folder / "bench.toml"
        text = (checkout.folder / PROFILE).read_text()
        text = re.sub(
            r'kind = "flops"\namount = .*', f'kind = "seconds"\namount = {training}', text
        )
        profile.write_text(
            text.replace("[limits]\n", f"[limits]\nstart_ahead = {str(ahead).lower()}\n")
        )
        clock = checkout.home / "clock"
        night = ("night", "--profile", str(profile), "--tag", "gaps", "--trials", str(trials))
        done = checkout.run(*night, NIGHTLY_TEST_CLOCK=str(clock))
        if done.returncode:
            raise SystemExit(f"the night ended with {done.returncode}: {done.stderr[-2000:]}")
        moments = [line.split() for line in clock.read_text().splitlines()]
        return _sorted(checkout.ledger("gaps"), [(what, float(at)) for what, at in moments])


def _slow_down(checkout: StubCheckout, startup: float) -> None:
    path = checkout.folder / "trainer" / "train.py"
    source = path.read_text()
    for old, new in (
        ("    budget = harness.ready", f"    time.sleep({startup})\n    budget = harness.ready"),
        (
            "        harness.log(step",
            f"        time.sleep({STEP_SECONDS})\n        harness.log(step",
        ),
        ("        use_as_much_as_a_training()\n", "        pass\n"),
    ):
        assert old in source
        source = source.replace(old, new)
    path.write_text(source)
    checkout.git("-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qam", "slow")


def _sorted(ledger: list[dict[str, Any]], moments: list[tuple[str, float]]) -> Gaps:
    """The gaps between trials: those after the baseline's three runs."""
    goes = [at for what, at in moments if what == "go"]
    found = Gaps([], [], [])
    runs = [
        (trial["verdict"], run)
        for trial in (event["trial"] for event in ledger if event["event"] == "decided")
        for run in range(max(len(trial["seeds"]), 1))
        if trial["seeds"]
    ]
    ends = [at for what, at in moments if what == "end"]
    last: tuple[str, int] | None = None
    for at, (verdict, run) in zip(goes[3:], runs, strict=False):
        before = [end for end in ends if end <= at]
        if last is not None and before:
            kind = found.confirmed if run else found.kept if last[0] == "keep" else found.discarded
            kind.append(at - before[-1])
        last = verdict, run
    return found


def speed(repeats: int, *, startup: float = 4.0, training: float = 8.0) -> dict[str, float]:
    """Tokens/s of a training alone and beside the start-up of the next run, medians of pairs.

    Both keep a core busy; the start-up uses that many CPU-seconds twice, as it has a smoke step.
    """
    vars(experiment)["assemble"] = assemble_with_stub
    figures: dict[str, list[float]] = {"alone": [], "beside": []}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        bench = _bench(Path(folder), training)
        for i in range(2 * repeats):
            beside = bool((i + 1) // 2 % 2)
            figures["beside" if beside else "alone"].append(
                _tokens_a_second(bench, startup if beside else None)
            )
    return {name: statistics.median(found) for name, found in figures.items()}


def _bench(folder: Path, training: float) -> Bench:
    budget = Budget(kind="seconds", amount=training)
    profile = make_profile(startup_seconds=120).model_copy(update={"budget": budget})
    (folder / "dataset").mkdir()
    return make_bench(make_dataset(folder / "dataset"), folder, profile, first_caps(profile))


def _tokens_a_second(bench: Bench, startup: float | None) -> float:
    early = None

    def enter(phase: str) -> None:
        nonlocal early
        if phase == "training" and startup:
            candidate = Candidate.parse(WORKER.format(startup=BUSY.format(seconds=startup)))
            early = experiment.start_early(candidate, bench, 1, lambda: None)

    run = experiment.run_experiment(
        Candidate.parse(WORKER.format(startup="")),
        bench,
        1,
        worth_audit=lambda claimed: False,
        report=enter,
    )
    if early is not None:
        early.end()
    if run.status != "ok":
        raise SystemExit(f"{run.status}: {run.reason}\n{run.log}")
    assert run.tokens is not None
    assert run.seconds is not None
    return run.tokens / run.seconds
