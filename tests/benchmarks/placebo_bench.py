"""How often the real pipeline keeps a placebo, beside what the simulation of the rule says.

A whole night through the command line, half of whose trials are placebos: boxes, claims, audits,
git and MLflow are real. Only the trainer is a stub, tests/faults/noisy_train.py, whose scores
scatter from seed to seed as a model's do. The night's other trials are patches by `replay`: a large
gain now and then, so that the champion changes and is run afresh before the next placebo, and else
files that do not parse and cost nothing.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tasks.files import FileRef
from tasks.history import false_keeps, night_state
from tasks.noise import Noise
from tests.benchmarks import verdict_bench
from tests.checkouts import AUTHOR
from tests.faults.stub_checkout import PROFILE, StubCheckout

TAG = "placebos"
PLACEBOS = 16  # for each of the repeats
PLACEBOS_A_CHAMPION = 6
GAIN = 0.02  # bits per byte: five standard deviations of a run
BASELINE = "GAIN = 0.0\n"
NIGHT = "placebo_share = 0.5\ncertify_share = 0.0\nend_runs = 0\n"
NOISY = Path(__file__).parents[1] / "faults" / "noisy_train.py"


def run(repeats: int, json_file: Path | None = None) -> bool:
    """Prints both rates, and returns whether the simulated one is in the measured interval."""
    count = PLACEBOS * repeats
    with tempfile.TemporaryDirectory() as folder:
        checkout = _checkout(Path(folder), count)
        night = f"--profile {folder}/bench.toml --tag {TAG} --trials {2 * count}"
        done = checkout.run(
            "night", *night.split(), "--proposer", "replay", "--patches", f"{folder}/patches"
        )
        if done.returncode:
            raise SystemExit(f"the night ended with {done.returncode}: {done.stderr[-2000:]}")
        events = checkout.ledger(TAG)
    state = night_state.fold(events)
    measured, freedoms = false_keeps.of_night(state), _freedoms(events)
    simulated = _simulated(freedoms)
    placebos = state.placebos
    runs = sum(len(trial.scores) + len(trial.champion_scores) for trial in placebos)
    print(
        f"{len(placebos)} placebos of {len({trial.parent for trial in placebos})} champions took "
        f"{runs} runs and {state.used_seconds / 60:.1f} minutes; sd of one run "
        f"{Noise.pooled(state.repeats).sd:.4f} bits per byte, from {min(freedoms)} to "
        f"{max(freedoms)} degrees of freedom"
    )
    print(f"measured: {measured}\nsimulated at these degrees of freedom: {simulated:.1%}")
    if json_file:
        z = [trial.z for trial in placebos]
        figures = {**dataclasses.asdict(measured), "simulated": simulated, "df": freedoms, "z": z}
        FileRef.write(json_file, json.dumps(figures, indent=1).encode())
    assert measured.low is not None
    assert measured.high is not None
    return measured.placebos == count and measured.low <= simulated <= measured.high


def _checkout(folder: Path, candidates: int) -> StubCheckout:
    """With the noisy stub as its train.py, and a patch for each candidate."""
    checkout = StubCheckout(folder)
    source = NOISY.read_text()
    (folder / "trainer" / "train.py").write_text(source)
    checkout.git(*AUTHOR, "commit", "-qam", "noisy")
    profile = (folder / PROFILE).read_text()
    half = profile.replace("[night]\n", f"[night]\n{NIGHT}")
    (folder / "bench.toml").write_text(half)
    (folder / "patches").mkdir()
    for number in range(candidates):
        gains, rest = divmod(number, PLACEBOS_A_CHAMPION)
        better = source.replace(BASELINE, f"GAIN = {GAIN * (gains + 1):.2f}\n")
        (folder / "patches" / f"{number:03}.py").write_text("(" if rest else better)
    return checkout


def _freedoms(events: list[dict[str, Any]]) -> list[int]:
    """Of the sd that each placebo was judged by."""
    found, state = [], None
    for event in events:
        if event["event"] == "decided" and event["trial"]["placebo"]:
            assert state is not None
            found.append(Noise.pooled(state.repeats).degrees_of_freedom)
        state = night_state.after(state, event)
    return found


def _simulated(freedoms: list[int]) -> float:
    """The share of placebos that the rule keeps, against champions of three fresh runs."""
    ours = next(rule for rule in verdict_bench.RULES if rule.name == "ours")
    shares = {df: verdict_bench.kept_share(ours, 0.0, df) for df in set(freedoms)}
    return statistics.fmean(shares[df] for df in freedoms)
