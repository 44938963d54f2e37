"""Nights whose truth is known: what search keeps and certification certifies of planted changes.

Five changes that gain one to three standard deviations of a run, five that lose as much and ten
that do nothing go through whole nights, in another order and with other luck each time. Command
line, boxes, judge, git and MLflow are real; only train.py is a stub, tests/faults/noisy_train.py,
with the noise of a real one. What each change is worth is measured apart from the nights, without
boxes, by 20 seeds.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tasks.files import FileRef
from tasks.history import night_folder
from tasks.records import TRAIN, NightState
from tasks.views.fresh_scores import kept_trials
from tests.benchmarks.nights_bench import Gains
from tests.checkouts import AUTHOR
from tests.faults.stub_checkout import PROFILE, StubCheckout

SD = 0.004  # NOISE of the stub, bits per byte
SIZES = (1.0, 1.5, 2.0, 2.5, 3.0)  # standard deviations of one run
CHANGES = (*SIZES, *(-size for size in SIZES), *[0.0] * 10)
SEEDS = 20
SEEDS_APART = 1000  # more than a night uses
# A night of 20 trials, a quarter of them gains, has fewer runs to certify each of them with than
# one of 100 trials.
NIGHT = "[night]\nplacebo_share = 0.0\ncertify_share = 0.35\n"
MOST_FALSE, UNLIKELY = 0.05, 0.05  # of the certified changes; probability
HERE = "    gain = GAIN\n"  # in the stub
NOISY = Path(__file__).parents[1] / "faults" / "noisy_train.py"
SCORES = """
import contextlib, io, json, os, runpy, sys
scores = []
for path in sys.argv[2:]:
    scores.append([])
    for seed in range(int(sys.argv[1])):
        os.environ["NIGHTLY_SEED"] = str(seed)
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path(path, run_name="__main__")
        scores[-1].append(float(shown.getvalue().split("val_bpb:")[1].split()[0]))
print(json.dumps(scores))
"""


class Found(NamedTuple):
    """What became of the changes in one night, by their places in CHANGES."""

    kept: frozenset[int]
    certified: frozenset[int]

    @classmethod
    def of(cls, state: NightState, order: Sequence[int]) -> Found:
        """Trial k tried change `order[k - 1]`."""
        certified = state.certification.certified if state.certification else ()
        numbers = (kept_trials(state), certified)
        return cls(*(frozenset(order[number - 1] for number in found) for found in numbers))


class Truth(NamedTuple):
    """Scores of SEEDS seeds, bits per byte: the unchanged file's, and those of each change."""

    unchanged: Sequence[float]
    changed: Sequence[Sequence[float]]

    def gain(self, places: Sequence[int]) -> tuple[float, float]:
        """What these changes gain on average, and its standard error, in SDs."""
        runs = [score for place in places for score in self.changed[place]]
        gain = statistics.fmean(self.unchanged) - statistics.fmean(runs)
        variances = [statistics.variance(scores) / len(scores) for scores in (self.unchanged, runs)]
        return gain / SD, math.sqrt(sum(variances)) / SD


def run(repeats: int, json_file: Path | None = None) -> bool:
    """Prints what became of each change, and returns whether the certificates hold.

    They do unless more of them are false than luck would make of a rule that allows MOST_FALSE.
    """
    nights: list[Found] = []
    gains: list[Gains] = []
    with tempfile.TemporaryDirectory() as folder:
        checkout = StubCheckout(Path(folder))
        profile = (checkout.folder / PROFILE).read_text().replace("[night]\n", NIGHT)
        (checkout.folder / "planted.toml").write_text(profile)
        for number in range(1, repeats + 1):
            order = random.Random(number).sample(range(len(CHANGES)), len(CHANGES))
            state = _night(checkout, number, order)
            nights.append(Found.of(state, order))
            gains.append(Gains.of(state))
            what = "kept {}; certified {}".format(*map(_sizes, nights[-1]))
            print(f"night {number} of {repeats}: {what}", file=sys.stderr, flush=True)
        truth = _truth(checkout)
    print("\n".join(table(truth, nights)))
    if json_file:
        figures = {
            "changes_sd": CHANGES,
            "truth_bits_per_byte": truth._asdict(),
            "kept": [sorted(night.kept) for night in nights],
            "certified": [sorted(night.certified) for night in nights],
            "gains_bits_per_byte": [dataclasses.asdict(gain) for gain in gains],
        }
        FileRef.write(json_file, json.dumps(figures, indent=1).encode())
    certified = [night.certified for night in nights]
    return holds(sum(map(len, certified)), sum(map(_false, certified)))


def source(night: int) -> str:
    """The stub with a line for each change, and luck of its own for each night."""
    lines = "".join(f"    # Change {place}.\n    gain += 0.0\n" for place in range(len(CHANGES)))
    return f"# Night {night}.\n{NOISY.read_text().replace(HERE, HERE + lines)}"


def changed(text: str, place: int) -> str:
    """The source with a change: one line is another, whatever it is worth."""
    lines, size = text.splitlines(keepends=True), CHANGES[place]
    sign = "+" if size > 0 else "-"
    lines[lines.index(f"    # Change {place}.\n") + 1] = f"    gain {sign}= {abs(size) * SD}\n"
    return "".join(lines)


def patch(text: str, place: int) -> str:
    """The change as a diff that no other change gets in the way of."""
    before, after = (one.splitlines(keepends=True) for one in (text, changed(text, place)))
    return "".join(difflib.unified_diff(before, after, f"a/{TRAIN}", f"b/{TRAIN}", n=0))


def _night(checkout: StubCheckout, number: int, order: Sequence[int]) -> NightState:
    tag, text = f"planted{number}", source(number)
    patches = checkout.folder / "patches" / tag
    patches.mkdir(parents=True)
    for trial, place in enumerate(order, 1):
        name = f"{trial:02}-change-{place}.diff"
        (patches / name).write_text(patch(text, place))
    (checkout.folder / TRAIN).write_text(text)
    checkout.git(*AUTHOR, "commit", "-qm", tag, TRAIN)
    profile, seed = str(checkout.folder / "planted.toml"), str(1 + SEEDS_APART * number)
    how = ("--proposer", "replay", "--patches", str(patches), "--trials", str(len(order)))
    done = checkout.run("night", "--tag", tag, "--profile", profile, "--seed", seed, *how)
    if done.returncode:
        raise SystemExit(f"night {tag} ended with {done.returncode}: {done.stderr[-2000:]}")
    return night_folder.read_state(checkout.home / "nights" / tag)


def _truth(checkout: StubCheckout) -> Truth:
    """Measured without boxes, and without the CPU time that a box must take."""
    base = source(0).replace("STEP_CPU_SECONDS = 0.004", "STEP_CPU_SECONDS = 0.0")
    texts = [base, *(changed(base, place) for place in range(len(CHANGES)))]
    paths = [checkout.folder / f"file-{number}.py" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    stub = checkout.folder / "tests" / "faults" / "torch_stub"
    environment = checkout.environment(PYTHONPATH=f"{stub}:{checkout.folder}", NIGHTLY_DEVICE="cpu")
    argv = [sys.executable, "-c", SCORES, str(SEEDS), *map(str, paths)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the changes could not be measured: {done.stderr[-2000:]}")
    unchanged, *changes = json.loads(done.stdout)
    return Truth(unchanged, changes)


def table(truth: Truth, nights: Sequence[Found]) -> list[str]:
    """What became of the changes, those that do nothing in one line, and of the nights' claims."""
    lines = [f"{'planted':>9} {f'by {SEEDS} seeds':>15} {'kept':>9} {'certified':>9}"]
    columns = {"kept": [n.kept for n in nights], "certified": [n.certified for n in nights]}
    for size in sorted(set(CHANGES), reverse=True):
        places = [place for place, other in enumerate(CHANGES) if other == size]
        gain, error = truth.gain(places)
        counts = (sum(len(found & set(places)) for found in all_) for all_ in columns.values())
        kept, certified = (f"{count} of {len(places) * len(nights)}" for count in counts)
        lines.append(f"{size:+6.1f} sd {gain:+8.2f} ±{error:5.2f} {kept:>9} {certified:>9}")
    for name, column in columns.items():
        every, false = sum(map(len, column)), sum(map(_false, column))
        gains = len(SIZES) * len(nights)
        worth = statistics.fmean(sum(CHANGES[place] for place in found) for found in column)
        lines.append(
            f"{name}: {every} changes, {false} of them false; {gains - every + false} of {gains} "
            f"gains missed; worth {worth:+.1f} sd a night, of {sum(SIZES):+.1f}"
        )
    return lines


def _sizes(places: frozenset[int]) -> str:
    sizes = sorted((CHANGES[place] for place in places), reverse=True)
    return f"{', '.join(f'{size:+.1f}' for size in sizes)} sd" if sizes else "nothing"


def _false(places: frozenset[int]) -> int:
    return sum(CHANGES[place] <= 0 for place in places)


def holds(certified: int, false: int) -> bool:
    """Whether so many false ones are no surprise where MOST_FALSE are allowed."""
    odds = (
        math.comb(certified, k) * MOST_FALSE**k * (1 - MOST_FALSE) ** (certified - k)
        for k in range(false, certified + 1)
    )
    return sum(odds) > UNLIKELY
