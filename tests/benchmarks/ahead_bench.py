"""What it brings that the next trial is prepared while a trial trains.

`with` and `without`: the seconds between two trainings of a night with `[limits] start_ahead`, and
without. `speed`: what that costs the training that runs meanwhile, on a CPU. `proposals`: trials an
hour with `[llm] ahead`, and without.

The nights go through the command line, one after the other on the same machine. For `proposals` a
model, a script on loopback, takes 30 s to answer, and each trial trains for 20 s; its patches
change a number that does nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.files import FileRef
from tests.benchmarks import start_gap
from tests.faults.llm_server import FAKE_KEY, LlmServer, Step, after, ok
from tests.faults.stub_checkout import PROFILE, StubCheckout

THINKS, TRAINS, TRIALS = 30.0, 20.0, 6  # seconds, seconds, trials of a night
STEPS = 79  # of the stub's budget
LEAST_RATIO = 1.6
PATCH = """SUMMARY: WEIGHT_DECAY {number}
KIND: optimizer
HYPOTHESIS: It does nothing, and tells one patch from the next.
EXPECTED: none
<<<<<<< SEARCH
WEIGHT_DECAY = 0.2  # does nothing
=======
WEIGHT_DECAY = 0.2{number:03}  # does nothing
>>>>>>> REPLACE
"""


MOST_GAP_SECONDS = 6.0
LEAST_SPEED = 0.9
PARTS = ("without", "with", "speed", "proposals")


def run(
    repeats: int,
    json_file: Path | None = None,
    *,
    parts: Sequence[str] = PARTS,
    startup: float = 2.0,
    training: float = 6.0,
    trials: int = 6,
) -> bool:
    """Prints the figures of these parts, and returns whether they hold."""
    figures: dict[str, Any] = {}
    holds = True
    for part in parts:
        if part == "proposals":
            figures[part] = _proposals()
            holds &= figures[part]["ratio"] >= LEAST_RATIO
        elif part == "speed":
            figures[part] = found = start_gap.speed(repeats)
            ratio = found["beside"] / found["alone"]
            print(
                f"tokens/s alone {found['alone']:,.0f}, beside a start-up {found['beside']:,.0f}: "
                f"{ratio:.3f} (at least {LEAST_SPEED})",
                flush=True,
            )
            holds &= ratio >= LEAST_SPEED
        else:
            gaps = start_gap.gaps(
                ahead=part == "with", startup=startup, training=training, trials=trials
            )
            figures[part] = dataclasses.asdict(gaps)
            print(
                f"{part} start_ahead, {startup:g} s a start-up, {training:g} s a training, "
                f"{trials} trials: {gaps.describe()}",
                flush=True,
            )
            median = statistics.median(gaps.every)
            holds &= part == "without" or median <= MOST_GAP_SECONDS
    if json_file:
        FileRef.write(json_file, json.dumps(figures, indent=1).encode())
    return holds


def _proposals() -> dict[str, Any]:
    """Prints trials an hour of both nights."""
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        checkout = StubCheckout(Path(folder))
        _train_for(checkout, TRAINS)
        for ahead in (False, True):
            rates[ahead] = _trials_an_hour(checkout, ahead)
            print(f"{'ahead' if ahead else 'after'}: {rates[ahead]:.0f} trials an hour", flush=True)
    ratio = rates[True] / rates[False]
    print(
        f"ratio {ratio:.2f} (at least {LEAST_RATIO}), {THINKS:g} s a proposal, {TRAINS:g} s a training, {TRIALS} trials each"
    )
    return {"trials_an_hour": {"after": rates[False], "ahead": rates[True]}, "ratio": ratio}


def _train_for(checkout: StubCheckout, seconds: float) -> None:
    """Has every training of the stub take that long, step by step, so that its smoke step stays
    short."""
    path = checkout.folder / "trainer" / "train.py"
    step = "        step, tokens = step + 1, tokens + TOTAL_BATCH_SIZE\n"
    path.write_text(
        path.read_text().replace(step, f"{step}        time.sleep({seconds / STEPS:.4f})\n")
    )
    checkout.git("-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qam", "slow")


def _trials_an_hour(checkout: StubCheckout, ahead: bool) -> float:
    """Of a whole night, from the first trial's start to the last one's; the first proposal is
    nobody's to hide."""
    numbers = itertools.count(1)

    def answer(body: dict[str, object]) -> Step:
        if "ready" in json.dumps(body)[:500]:  # the ping
            return ok("ready")
        return after(THINKS, ok(PATCH.format(number=next(numbers))))

    profile = checkout.folder / "bench.toml"
    patient = f"ahead = {str(ahead).lower()}\nanswer_seconds = 60"
    profile.write_text(
        (checkout.folder / PROFILE).read_text().replace("answer_seconds = 5", patient)
    )
    tag = "ahead" if ahead else "after"
    with LlmServer(answer) as server:
        done = checkout.run(
            *(
                "night",
                "--profile",
                str(profile),
                "--tag",
                tag,
                "--trials",
                str(TRIALS),
                "--proposer",
                "llm",
            ),
            OPENAI_BASE_URL=server.url,
            OPENAI_API_KEY=FAKE_KEY,
        )
    if done.returncode:
        raise SystemExit(f"the night ended with {done.returncode}: {done.stderr[-2000:]}")
    started = [
        datetime.fromisoformat(event["time"])
        for event in checkout.ledger(tag)
        if event["event"] == "started"
    ]
    return 3600 * (len(started) - 1) / (started[-1] - started[0]).total_seconds()
