"""What keep rules do with noise: simulated nights of 100 runs, seeded, so that figures repeat.

All is measured in the mean gain of the night's first good candidate; `sd` is the noise of one run
in that unit. A night starts with three runs of its baseline and an sd estimated with some degrees
of freedom, to which its own repeats add. Candidates are good, harmful or change nothing; the more
was found, the smaller is what is left to find.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.trial import verdict

RUNS = 100  # of a night, the champion's fresh ones among them
NIGHTS = 1000
NULLS = 100_000  # candidates that change nothing
SDS = (0.25, 0.5, 1.0, 2.0)
FREEDOMS = (2, 8, 20)
NIGHTS_FREEDOM = 8
LESS_LEFT = 0.93  # of the mean gain, after each good candidate that was kept
BASELINE_RUNS = 3
UNREACHED = 1e9  # a threshold that nothing passes

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Correction = Callable[[Floats, Floats], Floats]  # of Student's t by the degrees of freedom


class World(NamedTuple):
    """The shares of all candidates that are good and that change nothing; the others do harm."""

    good: float
    null: float


WORLDS = {"15 % good": World(0.15, 0.25), "4 % good": World(0.04, 0.6)}


def as_it_is(t: Floats, df: Floats) -> Floats:
    return t


def shrunk(t: Floats, df: Floats) -> Floats:
    return t / (1 + 2 / df)


def as_normal(t: Floats, df: Floats) -> Floats:
    """As `verdict.z_score`."""
    z: Floats = np.sign(t) * np.sqrt(df * np.log1p(t * t / df)) * (8 * df + 1) / (8 * df + 3)
    return z


@dataclasses.dataclass(frozen=True)
class Rule:
    """Kept above `keep`, discarded below `drop`, by the number of the candidate's runs."""

    name: str
    keep: tuple[float, ...]
    drop: tuple[float, ...]
    correction: Correction = as_it_is
    # Whether the champion is run afresh before the candidate's next run.
    due: Callable[[Floats, Floats], Mask] = lambda champion, candidate: champion < 0


def until(most: int) -> Callable[[Floats, Floats], Mask]:
    return lambda champion, candidate: champion < most


def due(champion: Floats, candidate: Floats) -> Mask:
    """As `verdict.champion_is_due`."""
    return champion < np.minimum(candidate + 1, verdict.CHAMPION_RUNS)


def one_sided(chance: float) -> float:
    return NormalDist().inv_cdf(1 - chance)


RULES = (
    Rule("greedy", (0.0,), (0.0,)),
    Rule("one run, z > 2", (2.0,), (2.0,)),
    Rule("two runs (until 2026)", (2.0, 0.5), (0.3, 0.5)),
    # Each decision at 5 %, shared among five looks at as many pairs of runs, as a test that may be
    # stopped at any time must (PACE, arXiv 2606.08106, controls each decision).
    Rule(
        "any time, 5 pairs",
        (one_sided(0.01),) * 5,
        (0.0,) * 4 + (one_sided(0.01),),
        as_normal,
        lambda champion, candidate: champion < candidate + 1,
    ),
    Rule(
        "five runs, t",
        (3.3, 2.8, 2.4, 2.1, 1.8),
        (0.4, 0.8, 1.1, 1.4, 1.8),
        shrunk,
        until(5),
    ),
    Rule("ours", verdict.KEEP, verdict.DROP, as_normal, due),
)


class _Nights:
    """Many nights at once, each array with one element a night. Scores are bits: lower is better.

    `truth` is the champion's true gain on the baseline. The candidate's state is that of the one
    that is being tried.
    """

    def __init__(self, rule: Rule, sd: float, df: float, count: int, seed: int) -> None:
        self.rule, self.sd, self.count = rule, sd, count
        self.random = np.random.default_rng(seed)
        # The estimate of the sd: a sum of squares, which repeats in the night add to.
        self.squares, self.df = sd**2 * self.random.chisquare(df, count), np.full(count, float(df))
        self.truth = np.zeros(count)
        self.champion_sum = self.random.normal(0, sd, (count, BASELINE_RUNS)).sum(axis=1)
        self.champion_runs = np.full(count, float(BASELINE_RUNS))
        self.sum, self.runs, self.effect = np.zeros((3, count))
        self.first, self.later_squares = np.zeros((2, count))
        self.used = np.zeros(count)

    def run_champion(self, where: Mask) -> None:
        self.champion_sum += where * self.scores(self.truth)
        self.champion_runs += where
        self.used += where

    def run_candidate(self, where: Mask) -> None:
        score = self.scores(self.truth + self.effect)
        self.sum += where * score
        self.first = np.where(where & (self.runs == 0), score, self.first)
        self.later_squares += where * (self.runs > 0) * score**2
        self.runs += where
        self.used += where

    def scores(self, gain: Floats) -> Floats:
        return self.random.normal(0, self.sd, self.count) - gain

    def verdicts(self) -> tuple[Mask, Mask]:
        """(kept, discarded); elsewhere, run again."""
        runs = np.maximum(self.runs, 1)
        gain = self.champion_sum / self.champion_runs - self.sum / runs
        error = np.sqrt(self.squares / self.df * (1 / self.champion_runs + 1 / runs))
        z = self.rule.correction(gain / error, self.df)
        look = np.minimum(runs.astype(int), len(self.rule.keep)) - 1
        kept = z > np.array(self.rule.keep)[look]
        last = look == len(self.rule.keep) - 1
        return kept, ~kept & (last | (z < np.array(self.rule.drop)[look]))

    def learn(self, decided: Mask) -> None:
        """Adds the repeats of decided candidates to the estimate of the sd, but for the first run.

        That it was run again was because of that one's score.
        """
        later = np.maximum(self.runs - 1, 1)
        around_mean = self.later_squares - (self.sum - self.first) ** 2 / later
        self.squares += decided * (self.runs > 2) * np.maximum(around_mean, 0)
        self.df += decided * (later - 1)

    def try_others(self, where: Mask, effect: Floats) -> None:
        self.effect = np.where(where, effect, self.effect)
        for state in (self.sum, self.runs, self.later_squares):
            state[where] = 0

    def crown(self, kept: Mask) -> None:
        self.truth += kept * self.effect
        self.champion_sum = np.where(kept, self.sum, self.champion_sum)
        self.champion_runs = np.where(kept, self.runs, self.champion_runs)


def kept_share(rule: Rule, effect: float, df: float, count: int = NULLS, seed: int = 1) -> float:
    """How often a candidate that gains `effect` standard deviations is kept.

    Against a champion of three runs that nobody has selected.
    """
    trial = _Nights(rule, 1.0, df, count, seed)
    trial.effect[:] = effect
    open_, kept = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
    for _ in rule.keep:
        trial.run_champion(open_ & (trial.runs > 0) & rule.due(trial.champion_runs, trial.runs))
        trial.run_candidate(open_)
        keep, discard = trial.verdicts()
        kept |= open_ & keep
        open_ &= ~(keep | discard)
    return float(kept.mean())


@dataclasses.dataclass(frozen=True)
class Night:
    """Means over many nights; `progress` is the champion's true gain."""

    progress: float
    candidates: float
    keeps: float
    false_keeps: float


def nights(
    rule: Rule, world: World, sd: float, df: float, count: int = NIGHTS, seed: int = 1
) -> Night:
    night = _Nights(rule, sd, df, count, seed)
    found, kept_all, false = np.zeros(count), np.zeros(count), np.zeros(count)
    candidates, trying = np.zeros(count), np.zeros(count, dtype=bool)
    while (going := night.used < RUNS).any():
        fresh = going & ~trying
        night.try_others(fresh, _effects(world, LESS_LEFT**found, night.random))
        candidates += fresh
        trying |= fresh
        again = going & trying & (night.runs > 0)
        night.run_champion(again & rule.due(night.champion_runs, night.runs))
        night.run_candidate(going & trying)
        keep, discard = night.verdicts()
        kept, decided = going & trying & keep, going & trying & (keep | discard)
        night.learn(decided)
        night.crown(kept)
        kept_all += kept
        false += kept & (night.effect <= 0)
        found += kept & (night.effect > 0)
        trying &= ~decided
    return Night(
        float(night.truth.mean()),
        float(candidates.mean()),
        float(kept_all.mean()),
        float(false.sum() / max(kept_all.sum(), 1)),
    )


def _effects(world: World, mean: Floats, random: np.random.Generator) -> Floats:
    """The true gain of a new candidate in each night, where a good one gains `mean` on average."""
    kind, size = random.random(len(mean)), random.exponential(1.0, len(mean))
    harm = np.where(kind < world.good + world.null, 0.0, -size)
    return np.where(kind < world.good, size * mean, harm)


@dataclasses.dataclass(frozen=True)
class Row:
    """A rule's figures in one world."""

    rule: str
    world: str
    nulls_kept: tuple[float, ...]  # for each of FREEDOMS
    progress: tuple[float, ...]  # for each of SDS, as a share of greedy's
    false_keeps: tuple[float, ...]  # for each of SDS, as a share of the keeps
    candidates: tuple[float, ...]  # for each of SDS

    def __str__(self) -> str:
        columns = [
            " / ".join(f"{share:.1%}" for share in self.nulls_kept),
            " / ".join(f"{share:.0%}" for share in self.progress),
            " / ".join(f"{share:.0%}" for share in self.false_keeps),
            " / ".join(f"{count:.0f}" for count in self.candidates),
        ]
        return f"| {self.world} | {self.rule} | {' | '.join(columns)} |"


def rows(count: int = NIGHTS) -> Iterator[Row]:
    for name, world in WORLDS.items():
        most = [nights(RULES[0], world, sd, NIGHTS_FREEDOM, count).progress for sd in SDS]
        for rule in RULES:
            found = [nights(rule, world, sd, NIGHTS_FREEDOM, count) for sd in SDS]
            yield Row(
                rule.name,
                name,
                tuple(kept_share(rule, 0.0, df) for df in FREEDOMS),
                tuple(night.progress / best for night, best in zip(found, most, strict=True)),
                tuple(night.false_keeps for night in found),
                tuple(night.candidates for night in found),
            )


def run(repeats: int, json_file: Path | None = None) -> bool:
    """Prints the table; always True, as it measures and demands nothing."""
    freedoms, sds = " / ".join(map(str, FREEDOMS)), " / ".join(f"{sd:g}" for sd in SDS)
    print(f"Nights of {RUNS} runs, {NIGHTS} of each; sd of one run, in mean gains: {sds}")
    print(
        f"| candidates | rule | changes of nothing kept, df {freedoms} | true progress of ", end=""
    )
    print("greedy's | false keeps | candidates tried |")
    print("|---|---|---|---|---|---|")
    table = []
    for row in rows(repeats * NIGHTS // 3):
        print(row, flush=True)
        table.append(dataclasses.asdict(row))
    if json_file:
        json_file.write_text(json.dumps(table, indent=1) + "\n")
    return True
