"""Whole nights of one profile with different seeds: what each score says that they have gained.

The nights run in this checkout and state folder, as `./run night` does, and stay there: one that is
finished is read and not run again, and one that was stopped is resumed.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path

from flows import state_home
from tasks.files import FileRef
from tasks.history import night_folder
from tasks.noise import Noise
from tasks.records import NightState
from tests.benchmarks.night_gains import Gains, kept_trials

TRIALS = 25
SEEDS_APART = 1000  # more than a night uses
CLI = (sys.executable, "-P", "-m", "flows.command_line.cli")
NAMES = tuple(field.name for field in dataclasses.fields(Gains))


def run(
    repeats: int, json_file: Path | None = None, *, profile: str = "laptop", trials: int = TRIALS
) -> bool:
    """Prints a row for each of `repeats` nights, and returns whether all of them are finished."""
    states = [_night(profile, trials, 1 + SEEDS_APART * i) for i in range(repeats)]
    print("\n".join(table(states)))
    if json_file:
        rows = {state.header.tag: dataclasses.asdict(Gains.of(state)) for state in states}
        FileRef.write(json_file, json.dumps({"bits_per_byte": rows}, indent=1).encode())
    return all(state.finished for state in states)


def _night(profile: str, trials: int, seed: int) -> NightState:
    """The state at its end. SystemExit if the night ends with an error."""
    tag = f"bench-{Path(profile).stem}-{trials}-{seed}"
    folder = state_home.locate() / "nights" / tag
    begun = (folder / night_folder.LEDGER).exists()
    if not (begun and night_folder.read_state(folder).finished):
        limits = ("--trials", str(trials), "--seed", str(seed))
        new = ("night", "--tag", tag, "--profile", profile, *limits)
        command = ("resume", tag) if begun else new
        done = subprocess.run([*CLI, *command], cwd=state_home.ROOT, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise SystemExit(f"./run {' '.join(command)} ended with {done.returncode}")
    return night_folder.read_state(folder)


def table(states: list[NightState]) -> list[str]:
    """The lines of a table in bits per byte, and the mean over the nights."""
    gains = [Gains.of(state) for state in states]
    heads = ["night", "trials", "kept", "certified", "sd", *(f"{name} gain" for name in NAMES)]
    rows = [
        [*_counts(state), *map(_shown, _values(found))]
        for state, found in zip(states, gains, strict=True)
    ]
    columns = zip(*map(_values, gains), strict=True)
    rows.append(["mean", "", "", "", "", *map(_shown, map(_mean, columns))])
    heads[-1] = "optimism"
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (heads, *rows)
    ]


def _counts(state: NightState) -> list[str]:
    certification = state.certification
    certified = "-" if certification is None else str(len(certification.certified))
    sd = Noise.pooled(state.repeats).sd
    trials, kept = len(state.trials), len(kept_trials(state))
    return [state.header.tag, str(trials), str(kept), certified, f"{sd:.4f}"]


def _values(gains: Gains) -> list[float | None]:
    return [getattr(gains, name) for name in NAMES]


def _mean(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"
