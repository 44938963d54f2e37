"""What keep rules do with noise: simulated nights of 100 runs, seeded, so that figures repeat.

All is measured in the mean gain of the night's first good candidate; `sd` is the noise of one run
in that unit. A night starts with three runs of its baseline and an sd estimated with some degrees
of freedom, to which its own repeats add. Candidates are good, harmful or change nothing; the more
was found, the smaller is what is left to find. Some of the runs may be reserved to certify what
was kept: each kept change is taken out alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.history import night_budget
from tasks.trial import certification, verdict

RUNS = 100  # of a night, the champion's fresh ones and the certification's among them
RESERVED = 15  # of them, for the certification, at most
NIGHTS = 1000
NULLS = 100_000  # candidates that change nothing
SDS = (0.25, 0.5, 1.0, 2.0)
FREEDOMS = (2, 8, 20)
LESS_LEFT = 0.93  # of the mean gain, after each good candidate that was kept
BASELINE_RUNS = 3

Shares = tuple[float | None, ...]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Correction = Callable[[Floats, Floats], Floats]  # of Student's t by the degrees of freedom


class World(NamedTuple):
    """The shares of all candidates that are good and that change nothing; the others do harm."""

    good: float
    null: float
    # Of the good ones' gains, in their mean: exponential, or the same everywhere between limits.
    between: tuple[float, float] | None = None


WORLDS = {
    "15 % good": World(0.15, 0.25),
    "4 % good": World(0.04, 0.6),
    "4 % good, alike": World(0.04, 0.6, (0.4, 1.6)),
}


def as_it_is(t: Floats, df: Floats) -> Floats:
    return t


def shrunk(t: Floats, df: Floats) -> Floats:
    return t / (1 + 2 / df)


def as_normal(t: Floats, df: Floats) -> Floats:
    """As `verdict.z_score`."""
    z: Floats = np.sign(t) * np.sqrt(df * np.log1p(t * t / df)) * (8 * df + 1) / (8 * df + 3)
    return z


def upper_tail(z: Floats) -> Floats:
    """The chance that a standard normal number is larger."""
    chance = np.ones_like(z)
    real = np.isfinite(z)
    chance[real] = [math.erfc(x / math.sqrt(2)) / 2 for x in z[real]]
    return chance


@dataclasses.dataclass(frozen=True)
class Certifier:
    """Which kept changes are certified, and which get another run; as `certification`.

    With no nulls, all are certified whose z is above `least`. `search` says whether what the search
    has seen counts too.
    """

    search: bool = True
    least: float = certification.LEAST_Z
    enough: float = certification.ENOUGH_Z
    hopeless: tuple[float, ...] = certification.HOPELESS_Z
    most_runs: int = verdict.RULE.certification_runs
    whole_runs: float = certification.WHOLE_RUNS
    luck: float = verdict.RULE.false_discovery_rate
    spared: float = certification.SPARED
    near_nulls: float = certification.NULLS
    least_nulls: float = certification.LEAST_NULLS
    reserved: Callable[[int], int] = night_budget.worthwhile_runs

    def nulls(self, near: Floats) -> Floats:
        """By the number of candidates that were better in their one run and discarded."""
        return np.maximum(self.near_nulls * near, self.least_nulls)


# A change is certified as soon as its z is above 1.64, and gets no further run.
PLAIN = Certifier(
    False, 1.64, 1.64, (-0.3,), 6, 1.3, near_nulls=0, least_nulls=0, reserved=lambda _: RESERVED
)
OURS = Certifier()


@dataclasses.dataclass(frozen=True)
class Rule:
    """Kept above `keep`, discarded below `drop`, by the number of the candidate's runs."""

    name: str
    keep: tuple[float, ...]
    drop: tuple[float, ...]
    correction: Correction = as_it_is
    # Whether the champion is run afresh before the candidate's next run.
    due: Callable[[Floats, Floats], Mask] = lambda champion, candidate: champion < 0
    certifier: Certifier | None = None


def until(most: int) -> Callable[[Floats, Floats], Mask]:
    return lambda champion, candidate: champion < most


def due(champion: Floats, candidate: Floats) -> Mask:
    """As `verdict.champion_is_due`."""
    return champion < np.minimum(candidate + 1, verdict.RULE.champion_runs)


def one_sided(chance: float) -> float:
    return NormalDist().inv_cdf(1 - chance)


RULES = (
    Rule("greedy", (0.0,), (0.0,)),
    Rule("one run, z > 2", (2.0,), (2.0,)),
    Rule("two runs (until 2026)", (2.0, 0.5), (0.3, 0.5), certifier=PLAIN),
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
        PLAIN,
    ),
    # For small gains; set by a profile's table [verdict].
    Rule(
        "ours, patient",
        (3.4, 2.6, 2.1, 1.9, 1.4),
        (0.65, 0.95, 1.0, 1.1, 1.4),
        as_normal,
        lambda champion, candidate: champion < np.minimum(candidate + 1, 7),
        OURS,
    ),
    Rule("ours", verdict.RULE.keep, verdict.RULE.drop, as_normal, due, OURS),
)


class _Repeats:
    """Runs of one file a night, or a table of files, by whose scatter the sd is estimated."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.runs, self.sum, self.squares = np.zeros((3, *shape))

    def add(self, where: Mask, score: Floats) -> None:
        self.runs += where
        self.sum += where * score
        self.squares += where * score**2

    def replace(self, where: Mask, other: _Repeats | None) -> None:
        for name in ("runs", "sum", "squares"):
            new = getattr(other, name) if other else 0.0
            setattr(self, name, np.where(where, new, getattr(self, name)))

    @property
    def mean(self) -> Floats:
        return self.sum / np.maximum(self.runs, 1)

    @property
    def freedom(self) -> Floats:
        return np.maximum(self.runs - 1, 0)

    @property
    def scatter(self) -> Floats:
        """The sum of squares around the mean."""
        return np.maximum(self.squares - self.sum * self.mean, 0)


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
        # Of the sd: without the run for whose score the file was run again.
        self.repeats, self.champion_repeats = _Repeats((count,)), _Repeats((count,))
        self.used = np.zeros(count)

    def run_champion(self, where: Mask) -> None:
        score = self.scores(self.truth)
        self.champion_sum += where * score
        self.champion_runs += where
        self.champion_repeats.add(where, score)
        self.used += where

    def run_candidate(self, where: Mask) -> None:
        score = self.scores(self.truth + self.effect)
        self.repeats.add(where & (self.runs > 0), score)
        self.sum += where * score
        self.runs += where
        self.used += where

    def scores(self, gain: Floats) -> Floats:
        return self.random.normal(0, self.sd, self.count) - gain

    @property
    def noise(self) -> tuple[Floats, Floats]:
        """(sum of squares, degrees of freedom), those of the champion's repeats among them."""
        repeats = self.champion_repeats
        return self.squares + repeats.scatter, self.df + repeats.freedom

    @property
    def sd_estimate(self) -> Floats:
        squares, df = self.noise
        return np.sqrt(squares / df)

    def t_scores(self) -> Floats:
        runs = np.maximum(self.runs, 1)
        gain = self.champion_sum / self.champion_runs - self.sum / runs
        return gain / (self.sd_estimate * np.sqrt(1 / self.champion_runs + 1 / runs))

    def z_scores(self) -> Floats:
        return self.rule.correction(self.t_scores(), self.noise[1])

    def verdicts(self) -> tuple[Mask, Mask]:
        """(kept, discarded); elsewhere, run again."""
        z, most = self.z_scores(), len(self.rule.keep)
        look = np.clip(self.runs.astype(int), 1, most) - 1
        kept = z > np.array(self.rule.keep)[look]
        return kept, ~kept & ((look == most - 1) | (z < np.array(self.rule.drop)[look]))

    def learn(self, decided: Mask, kept: Mask) -> None:
        """Adds the repeats of files that are done with to the estimate of the sd."""
        for repeats, where in ((self.repeats, decided & ~kept), (self.champion_repeats, kept)):
            self.squares += where * repeats.scatter
            self.df += where * repeats.freedom

    def try_others(self, where: Mask, effect: Floats) -> None:
        self.effect = np.where(where, effect, self.effect)
        self.sum[where] = 0
        self.runs[where] = 0
        self.repeats.replace(where, None)

    def crown(self, kept: Mask) -> None:
        self.truth += kept * self.effect
        self.champion_sum = np.where(kept, self.sum, self.champion_sum)
        self.champion_runs = np.where(kept, self.runs, self.champion_runs)
        self.champion_repeats.replace(kept, self.repeats)


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


class Kept:
    """What some nights have kept, a row a night: true gains, and what the search has seen of them.

    `certainties` are inverse variances of `gains`, in those of one run; as `certification.Searched`.
    """

    def __init__(self, count: int) -> None:
        self.effects, self.gains, self.certainties = np.zeros((3, count, RUNS))
        self.number = np.zeros(count, dtype=int)

    @property
    def real(self) -> Mask:
        return np.arange(self.effects.shape[1]) < self.number[:, None]

    def add(self, where: Mask, night: _Nights) -> None:
        """Keeps the present candidates of these nights."""
        variance = 1 / certification.CHAMPION_RUNS + 1 / np.maximum(night.runs, 1)
        cell = where, self.number[where]
        self.effects[cell] = night.effect[where]
        self.gains[cell] = (night.t_scores() * night.sd_estimate * np.sqrt(variance))[where]
        self.certainties[cell] = 1 / variance[where]
        self.number += where

    def cut(self) -> None:
        """Drops the columns that no night has."""
        width = max(int(self.number.max()), 1)
        for name in ("effects", "gains", "certainties"):
            setattr(self, name, getattr(self, name)[:, :width])


class Certifications:
    """The certifications of many nights at once; a row a night, a column a kept change.

    `effects` are their true gains, `real` says which columns a night has.
    """

    def __init__(self, certifier: Certifier, kept: Kept, nulls: Floats) -> None:
        self.certifier, self.kept, self.nulls = certifier, kept, nulls
        self.effects, self.real = kept.effects, kept.real
        self.whole, self.without = _Repeats((len(self.real),)), _Repeats(self.real.shape)

    def z_scores(self, squares: Floats, df: Floats) -> tuple[Floats, Floats]:
        """(of the fresh runs, of all runs); NaN without fresh ones.

        The sums of squares and degrees of freedom are those of the search.
        """
        whole, without = self.whole, self.without
        squares = squares + whole.scatter + without.scatter.sum(axis=1)
        df = df + whole.freedom + without.freedom.sum(axis=1)
        gain = without.mean - whole.mean[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            fresh = 1 / (1 / whole.runs[:, None] + 1 / without.runs)
            search = self.kept.certainties * self.certifier.search
            both = (gain * fresh + self.kept.gains * search) / (fresh + search)
            t = np.stack((gain * np.sqrt(fresh), both * np.sqrt(fresh + search)))
            z = as_normal(t / np.sqrt(squares / df)[:, None], df[:, None])
        has_runs = self.real & (without.runs > 0) & (whole.runs[:, None] > 0)
        first, second = np.where(has_runs, z, np.nan)
        return first, second

    def certified(self, z: Floats, z_of_all: Floats) -> Mask:
        rule = self.certifier
        ranked = np.where(z > rule.least, z_of_all, -np.inf)
        order = np.argsort(-ranked, axis=1)
        ranked, rank = np.take_along_axis(ranked, order, axis=1), np.arange(1, z.shape[1] + 1)
        expected = self.nulls[:, None] * upper_tail(ranked)
        enough = np.isfinite(ranked) & (expected <= rule.luck * (rank - rule.spared))
        count = np.where(enough, rank, 0).max(axis=1)
        found = np.zeros_like(self.real)
        np.put_along_axis(found, order, rank <= count[:, None], axis=1)
        return found

    def following(self, z: Floats, z_of_all: Floats) -> tuple[Mask, Mask, npt.NDArray[np.intp]]:
        """(the nights that run the whole champion next, those that run it without a change, which).

        The others are done.
        """
        rule, runs = self.certifier, self.without.runs
        limit = np.array(rule.hopeless)[np.clip(runs.astype(int), 1, len(rule.hopeless)) - 1]
        decided = (z < limit) | ((z_of_all > rule.enough) & self.certified(z, z_of_all))
        undecided = self.real & (runs < rule.most_runs) & ~decided
        going = undecided.any(axis=1)
        most = np.where(self.real, runs, 0).max(axis=1)
        whole = going & (self.whole.runs < np.maximum(1, np.floor(rule.whole_runs * most + 0.5)))
        order = np.where(undecided, runs * 1e6 - np.nan_to_num(z), np.inf)
        return whole, going & ~whole, order.argmin(axis=1)

    def run(self, search: _Nights, where: Mask) -> None:
        """One more run of each of these nights that is not done."""
        whole, without, which = self.following(*self.z_scores(*search.noise))
        zeros = np.zeros(len(where))
        self.whole.add(where & whole, search.scores(zeros))
        column = (where & without)[:, None] & (np.arange(self.real.shape[1]) == which[:, None])
        self.without.add(column, search.scores(zeros)[:, None] + self.effects)


@dataclasses.dataclass(frozen=True)
class Night:
    """Means over many nights; `progress` is the champion's true gain."""

    progress: float
    candidates: float
    keeps: float
    false_keeps: float
    certified_progress: float = 0.0
    false_claims: float = 0.0  # as a share of the certified


def nights(
    rule: Rule,
    world: World,
    sd: float,
    df: float,
    count: int = NIGHTS,
    seed: int = 1,
    *,
    certify: bool = False,
) -> Night:
    """Whole nights; with `certify`, the rule's certifier has some of their runs at the end."""
    night, certifier = _Nights(rule, sd, df, count, seed), rule.certifier if certify else None
    changes, near, found = Kept(count), np.zeros(count), np.zeros(count)
    candidates, trying = np.zeros(count), np.zeros(count, dtype=bool)
    reserved = np.array(
        [min(certifier.reserved(n), RESERVED) if certifier else 0 for n in range(RUNS + 1)]
    )
    while (going := night.used < RUNS - reserved[changes.number]).any():
        fresh = going & ~trying
        night.try_others(fresh, _effects(world, LESS_LEFT**found, night.random))
        candidates += fresh
        trying |= fresh
        again = going & trying & (night.runs > 0)
        night.run_champion(again & rule.due(night.champion_runs, night.runs))
        night.run_candidate(going & trying)
        keep, discard = night.verdicts()
        kept, decided = going & trying & keep, going & trying & (keep | discard)
        near += decided & ~kept & (night.runs == 1) & (night.t_scores() > 0)
        changes.add(kept, night)
        night.learn(decided, kept)
        night.crown(kept)
        found += kept & (night.effect > 0)
        trying &= ~decided
    changes.cut()
    progress, false = float(night.truth.mean()), _false_share(changes.real, changes.effects)
    keeps = float(changes.number.mean())
    means = Night(progress, float(candidates.mean()), keeps, false)
    if not certifier:
        return means
    work = Certifications(certifier, changes, certifier.nulls(near))
    for spent in range(RUNS):
        if not (left := night.used + spent < RUNS).any():
            break
        work.run(night, left)
    certified = work.certified(*work.z_scores(*night.noise))
    return dataclasses.replace(
        means,
        certified_progress=float((work.effects * certified).sum(axis=1).mean()),
        false_claims=_false_share(certified, work.effects),
    )


def _false_share(chosen: Mask, effects: Floats) -> float:
    return float((chosen & (effects <= 0)).sum() / max(chosen.sum(), 1))


def _effects(world: World, mean: Floats, random: np.random.Generator) -> Floats:
    """The true gain of a new candidate in each night, where a good one gains `mean` on average."""
    kind, size = random.random(len(mean)), random.exponential(1.0, len(mean))
    harm = np.where(kind < world.good + world.null, 0.0, -size)
    gain = random.uniform(*world.between, len(mean)) if world.between else size
    return np.where(kind < world.good, gain * mean, harm)


@dataclasses.dataclass(frozen=True)
class Row:
    """A rule's figures in one world, with one number of degrees of freedom.

    Those of several nights are for each of SDS; shares of progress are of greedy's, None where that
    has made none.
    """

    world: str
    df: int
    rule: str
    nulls_kept: float
    progress: Shares
    false_keeps: tuple[float, ...]  # as a share of the keeps
    candidates: tuple[float, ...]
    # Of nights that end with a certification; empty for a rule that is not certified.
    search: Shares = ()
    certified: Shares = ()
    false_claims: tuple[float, ...] = ()

    def __str__(self) -> str:
        columns = [
            self.world,
            f"{self.df}",
            self.rule,
            f"{self.nulls_kept:.1%}",
            *(_shares(shares) for shares in (self.progress, self.false_keeps)),
            " / ".join(f"{count:.0f}" for count in self.candidates),
            *(_shares(shares) for shares in (self.search, self.certified)),
            _shares(self.false_claims, ".1%"),
        ]
        return f"| {' | '.join(columns)} |"


def _shares(shares: Shares, form: str = ".0%") -> str:
    return " / ".join("-" if s is None else format(s, form) for s in shares) or "-"


HEADINGS = (
    "candidates",
    "df",
    "rule",
    "null changes kept",
    "progress",
    "false keeps",
    "tried",
    "progress before certification",
    "certified progress",
    "false claims",
)


def row(rule: Rule, name: str, df: int, most: tuple[float, ...], count: int = NIGHTS) -> Row:
    """`most` is greedy's progress for each of SDS."""
    world = WORLDS[name]
    found = [nights(rule, world, sd, df, count) for sd in SDS]
    ends = [nights(rule, world, sd, df, count, certify=True) for sd in SDS if rule.certifier]

    def of_most(progress: list[float]) -> Shares:
        both = zip(progress, most, strict=True)
        return tuple(share / best if best > 0 else None for share, best in both)

    return Row(
        name,
        df,
        rule.name,
        kept_share(rule, 0.0, df, NULLS),
        of_most([night.progress for night in found]),
        tuple(night.false_keeps for night in found),
        tuple(night.candidates for night in found),
        of_most([night.progress for night in ends]) if ends else (),
        of_most([night.certified_progress for night in ends]) if ends else (),
        tuple(night.false_claims for night in ends),
    )


def rows(count: int = NIGHTS) -> Iterator[Row]:
    for name, world in WORLDS.items():
        # Greedy asks for no sd. More nights, as all others are measured by it.
        most = tuple(nights(RULES[0], world, sd, 8, 10 * count).progress for sd in SDS)
        for df in FREEDOMS:
            for rule in RULES:
                yield row(rule, name, df, most, count)


def run(repeats: int, json_file: Path | None = None) -> bool:
    """Prints the table; always True, as it measures and demands nothing."""
    sds = " / ".join(f"{sd:g}" for sd in SDS)
    count = repeats * NIGHTS // 3
    print(
        f"Nights of {RUNS} runs, {count} of each; df: of the sd, at the start. Figures in a row "
        f"are for an sd\nof one run of {sds} mean gains; progress is the true gain as a share of "
        f"greedy's.\nThe last three columns: of these runs, up to {RESERVED} certify what was kept."
    )
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    table = []
    for found in rows(count):
        print(found, flush=True)
        table.append(dataclasses.asdict(found))
    if json_file:
        json_file.write_text(json.dumps(table, indent=1) + "\n")
    return True
