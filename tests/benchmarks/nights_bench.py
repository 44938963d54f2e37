"""Whole nights of one profile with different seeds: what each score says that they have gained.

The nights run in this checkout and state folder, as `./run night` does, and stay there: one that is
finished is read and not run again, and one that was stopped is resumed.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

from flows import state_home
from tasks.files import FileRef
from tasks.history import night_folder
from tasks.records import NightState
from tasks.views import fresh_scores
from tasks.views.fresh_scores import Estimate

TRIALS = 25
SEEDS_APART = 1000  # more than a night uses


@dataclasses.dataclass(frozen=True)
class Gains:
    """By how many bits per byte a night's champions are better than its baseline.

    All but the first by the fresh runs of the night's end; None where there are none.
    """

    search: float | None  # of the champion, by the scores that it was chosen by
    fresh: Estimate | None
    certified: Estimate | None  # of the certified champion
    holdout: Estimate | None  # of the champion, on the text that nothing was chosen by
    certified_holdout: Estimate | None
    optimism: float | None  # the first less the second

    @classmethod
    def of(cls, state: NightState) -> Gains:
        found = fresh_scores.of_night(state)
        champion, certified = (found.champion, found.certified) if found else (None, None)
        return cls(
            search=champion.search_gain if champion else None,
            fresh=champion.fresh_gain if champion else None,
            certified=certified.fresh_gain if certified else None,
            holdout=champion.holdout_gain if champion else None,
            certified_holdout=certified.holdout_gain if certified else None,
            optimism=champion.optimism if champion else None,
        )


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
        done = subprocess.run(
            [state_home.ROOT / "run", *command], cwd=state_home.ROOT, stdout=subprocess.DEVNULL
        )
        if done.returncode:
            raise SystemExit(f"./run {' '.join(command)} ended with {done.returncode}")
    return night_folder.read_state(folder)


def table(states: list[NightState]) -> list[str]:
    """The lines of a table in bits per byte, and the mean over the nights."""
    gains = [Gains.of(state) for state in states]
    names = [field.name.replace("_", " ") for field in dataclasses.fields(Gains)]
    heads = ["night", "trials", "kept", "certified", *(f"{name} gain" for name in names[:-1])]
    rows = [
        [*_counts(state), *map(_shown, _values(of))]
        for state, of in zip(states, gains, strict=True)
    ]
    columns = zip(*map(_values, gains), strict=True)
    rows.append(["mean", "", "", "", *(_shown(_mean(column)) for column in columns)])
    rows.insert(0, [*heads, names[-1]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _counts(state: NightState) -> list[str]:
    kept = len(fresh_scores.kept_trials(state))
    certification = state.certification
    certified = "-" if certification is None else str(len(certification.certified))
    return [state.header.tag, str(len(state.trials)), str(kept), certified]


def _values(gains: Gains) -> list[float | Estimate | None]:
    return [getattr(gains, field.name) for field in dataclasses.fields(Gains)]


def _mean(values: Sequence[float | Estimate | None]) -> float | None:
    known = [v.mean if isinstance(v, Estimate) else v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def _shown(value: float | Estimate | None) -> str:
    if not isinstance(value, Estimate):
        return "-" if value is None else f"{value:+.4f}"
    if value.low is None or value.high is None:
        return f"{value.mean:+.4f}"
    return f"{value.mean:+.4f} ±{(value.high - value.low) / 2:.4f}"
