"""What it brings that a proposal is made while the trial before trains: trials an hour with `[llm]
ahead`, and without.

Two nights through the command line, one after the other on the same machine, against a model that
takes 30 s to answer; each trial trains for 20 s. The model is a script on loopback: its patches
change a number that does nothing.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from datetime import datetime
from pathlib import Path

from tasks.files import FileRef
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


def run(repeats: int, json_file: Path | None = None) -> bool:
    """Prints trials an hour of both nights, and returns whether their ratio holds."""
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
    if json_file:
        figures = {"trials_an_hour": {"after": rates[False], "ahead": rates[True]}, "ratio": ratio}
        FileRef.write(json_file, json.dumps(figures, indent=1).encode())
    return ratio >= LEAST_RATIO


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
