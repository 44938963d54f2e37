"""What a night costs around its trainings, early and late: proposer, ledger, git, Prefect, MLflow,
report data.

A whole night through the command line in a checkout of its own, on a private Prefect server and a
SQLite store of MLflow. Only the run itself is made up: a score drawn from the candidate's text, and
a curve of 200 points, at once. So the time from one applied trial to the next is all overhead, and
a trial late in the night is compared with one at its beginning.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tasks.files import FileRef
from tests.faults.stub_checkout import PROFILE, StubCheckout

TRIALS, WINDOW = 1000, 20  # trials at each end that are compared
MOST_RATIO, MOST_SECONDS = 1.3, 2.0
STEPS = (
    "proposed",
    "written",
    "started",
    "ran",
    "recorded",
    "decided",
    "committed",
    "advanced",
    "applied",
    "shown",
)
NIGHT = """
import hashlib, json, random, sys, time
from flows import state_home
from flows.command_line import server
home = state_home.locate()
state_home.configure(home)
with server.prefect_api(home):
    from tasks.trial import experiment

    def made_up(candidate, bench, seed, **others):
        text = candidate.source.encode() + bytes([seed])
        chance = random.Random(hashlib.sha256(text).digest())
        score = 2.3 + chance.gauss(0.0, 0.004)
        curve = tuple((step, 512 * step, 6.0 - step / 100) for step in range(200))
        blank = experiment.without_figures(
            "ok", "trained and scored", bench.profile, bench.isolation, seed
        )
        figures = {"val_bpb": score, "claimed_bpb": score, "seconds": 1.0, "cpu_seconds": 1.0, "tokens": 102400}
        figures |= {"audit_gap": 0.0, "audit_worst": 0.0, "startup_seconds": 1.0, "wall_seconds": 0.01, "curve": curve}
        return experiment.dataclasses.replace(blank, **figures, metrics={"tokens_per_second": 1e5}, log="step\\n" * 200)

    experiment.run_experiment = made_up
    from flows.nightly_research import nightly_research

    steps = open(sys.argv[1], "w")
    from flows.night import interruption
    interruption.reached = lambda name: print(json.dumps([name, time.monotonic()]), file=steps, flush=True)
    nightly_research(tag="long", profile=sys.argv[2], trials=int(sys.argv[3]))
"""


def run(repeats: int, json_file: Path | None = None, trials: int = TRIALS) -> bool:
    """One night of `trials` trials; prints the overhead early and late, and returns whether both
    limits hold."""
    with tempfile.TemporaryDirectory() as folder:
        checkout, steps = StubCheckout(Path(folder)), Path(folder, "steps")
        argv = [sys.executable, "-c", NIGHT, str(steps), PROFILE, str(trials)]
        done = subprocess.run(
            argv, cwd=folder, env=checkout.environment(), capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"the night ended with {done.returncode}: {done.stderr[-2000:]}")
        took = _seconds([json.loads(line) for line in steps.read_text().splitlines()])
        sizes = {
            "ledger": (checkout.home / "nights" / "long" / "ledger.jsonl").stat().st_size,
            "mlflow.db": (checkout.home / "mlflow.db").stat().st_size,
            "prefect": sum(
                path.stat().st_size for path in (checkout.home / "prefect").rglob("*.db")
            ),
        }
    ends = {"early": took[5 : 5 + WINDOW], "late": took[-WINDOW:]}
    median = {
        end: {name: statistics.median(trial[name] for trial in found) for name in found[0]}
        for end, found in ends.items()
    }
    early, late = median["early"]["whole"], median["late"]["whole"]
    figures = {"trials": len(took), "seconds": median, "ratio": late / early, "bytes": sizes}
    if json_file:
        FileRef.write(json_file, json.dumps(figures, indent=1).encode())
    print(f"seconds a trial, median of {WINDOW}: from trial 6, and at the end of {len(took)}")
    for name in median["early"]:
        print(f"  {name:10} {median['early'][name]:7.3f} {median['late'][name]:7.3f}")
    print(f"ratio {late / early:.2f} (at most {MOST_RATIO}), and at most {MOST_SECONDS:g} s")
    print(", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items()))
    return late / early <= MOST_RATIO and max(early, late) < MOST_SECONDS


def _seconds(reached: list[tuple[str, float]]) -> list[dict[str, float]]:
    """Of each trial, the seconds up to each milestone from the one before, and all of them."""
    trials: list[dict[str, float]] = []
    for (_, before), (name, now) in itertools.pairwise(reached):
        if name == "proposed":
            trials.append({})
        if trials and name in STEPS:
            trials[-1][name] = now - before
    return [{**trial, "whole": sum(trial.values())} for trial in trials]
