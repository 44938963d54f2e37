"""What ways of searching bring: simulated nights of 100 runs with a simulated researcher, seeded.

All is measured in the mean gain of the night's first good idea; the noise of a run is given in that
unit. The researcher's ideas have a hidden true gain, a kind (some kinds are good more often), parts
of the file that they touch, a noisy estimate of their own gain, and some crash. The more was found,
the smaller is what is left. Ideas that touch a part which changed since they were made conflict, or
bring half. Some ideas lead to another family of files (another depth), worse at first, where less
has been found already. What chooses, stacks, keeps and certifies is the project's own code.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from tasks.noise import Noise
from tasks.records import Estimate
from tasks.search import archive, expectation, planner, stacking
from tasks.search.expectation import Measured
from tasks.search.surrogate import Features, Surrogate, Tried
from tasks.statuses import Search
from tasks.trial import certification, verdict
from tests.benchmarks import verdict_bench

RUNS, RESERVED = verdict_bench.RUNS, verdict_bench.RESERVED
NIGHTS = 30  # the table of docs/search.md: --repeats 6
SDS = (0.25, 1.0, 2.0)  # of one run
FREEDOM = 8  # of its estimate, at the start
QUEUE = 12  # ideas that wait at most
ARCHIVE = 3  # files at most
GOOD = (0.36, 0.22, 0.14, 0.09, 0.06, 0.03)  # share of good ideas by kind: 15 % of all
NULL = 0.3  # of the others, that change nothing
CRASH = (0.02, 0.05, 0.08, 0.10, 0.15, 0.2)  # by kind
PARTS, MOST_TOUCHED = 12, 3
CORRELATION = 0.3  # of estimates with true gains
OPTIMISM = 3.0  # estimates are so many times the gain, and as much too high
OVERLAP = 0.5  # of a stale idea's gain, if it touches a part that changed since and can be merged
SWITCH = 0.04  # of the ideas lead to another family
DEFICIT = 1.5  # by which its first file is worse, in mean gains
CARRIED = 0.5  # of what was found already, the share that helps there too
SPOILED = 0.4  # of the good ideas have a part that does harm
SPOILING = 0.3  # its mean, as a share of the mean gain
Order = Literal["surrogate", "estimate", "model"]
WAYS = ("stack", "archive", "ablation")


@dataclasses.dataclass(frozen=True)
class Searcher:
    """A way of searching: `[search]` of a profile, and by what the next idea is chosen."""

    name: str
    ideas: int = 1
    order: Order = "surrogate"
    stack: float = 0.0
    archive: float = 0.0
    ablation: float = 0.0
    of_mind: int = 1  # the idea that is given is the best, by its own estimate, of so many


SEARCHERS = (
    Searcher("one idea a call"),
    Searcher("one idea, the model's favourite of four", of_mind=4),
    Searcher("four, in the model's order", 4, "model"),
    Searcher("four, by the model's estimates", 4, "estimate"),
    Searcher("four, by the surrogate", 4),
    Searcher("one, stacking", stack=0.1),
    Searcher("four, stacking", 4, stack=0.1),
    Searcher("four, archive", 4, archive=0.1),
    Searcher("four, ablation", 4, ablation=0.05),
)


@dataclasses.dataclass
class Idea:
    gain: float  # true, against the file that it was made against
    features: Features
    crashes: bool
    family: int
    made: int  # changes of its family's file before it
    call: int
    spoiled: float = 0.0  # what a part of it costs
    switch: float | None = None  # the deficit of the family that it leads to


@dataclasses.dataclass
class Family:
    """A file that ideas are made against: the champion, or one of the archive."""

    truth: float
    found: float  # good ideas, for what is left
    changes: list[frozenset[str]] = dataclasses.field(default_factory=list)  # parts, in order
    measured: float = -math.inf  # minus its score
    built: int = 0  # trials on it, of an archive's file


class Researcher:
    """Makes ideas; each of its nights has own hit rates of the kinds."""

    def __init__(self, searcher: Searcher, seed: int) -> None:
        self.searcher, self.random = searcher, np.random.default_rng(seed)
        self.kinds = self.random.permutation(len(GOOD))
        self.calls = 0
        self.spread = 1.14  # sd of true gains at the beginning

    def ideas(self, family: int, file: Family, count: int) -> list[Idea]:
        self.calls += 1
        minds = [
            [self._idea(family, file) for _ in range(self.searcher.of_mind)] for _ in range(count)
        ]
        return [max(mind, key=_own_estimate) for mind in minds]

    def _idea(self, family: int, file: Family) -> Idea:
        random = self.random
        mean = verdict_bench.LESS_LEFT**file.found
        number = int(random.integers(len(GOOD)))
        kind, luck, size = int(self.kinds[number]), random.random(), mean * random.exponential()
        good = GOOD[kind]
        if luck < good:
            gain = size
        else:
            gain = 0.0 if luck < good + (1 - good) * NULL else -random.exponential()
        noise = self.spread * math.sqrt(1 / CORRELATION**2 - 1) * random.normal()
        estimate = Estimate(OPTIMISM * (gain + noise + self.spread), OPTIMISM * self.spread)
        touched = random.choice(PARTS, int(random.integers(1, MOST_TOUCHED + 1)), replace=False)
        parts = frozenset(f"part{each}" for each in touched)
        lines = int(random.integers(1, 60))
        features = Features(f"kind{number}", lines, parts, estimate)
        crashes = random.random() < CRASH[kind]
        spoiled = (random.random() < SPOILED) * SPOILING * mean * random.exponential()
        switch = DEFICIT * random.exponential() if random.random() < SWITCH else None
        made = len(file.changes)
        return Idea(gain, features, crashes, family, made, self.calls, spoiled, switch)


def _own_estimate(idea: Idea) -> float:
    return idea.features.estimate.gain if idea.features.estimate else 0.0


@dataclasses.dataclass
class Kept:
    """A change that the champion has, as the certification will take it out."""

    effect: float
    seen: tuple[float, float]  # by the search: gain and certainty, as verdict_bench.Kept
    spoiled: float = 0.0  # of the effect, what a part of the change costs


class Night:
    """One night's search. Scores are bits: lower is better."""

    def __init__(self, searcher: Searcher, sd: float, seed: int) -> None:
        self.searcher, self.sd = searcher, sd
        self.random = np.random.default_rng((seed, 1))
        self.researcher = Researcher(searcher, seed)
        self.squares, self.df = sd**2 * self.random.chisquare(FREEDOM), FREEDOM
        self.families = [Family(0.0, 0.0)]
        self.family = 0  # the champion's
        self.champion = [self._score(0.0) for _ in range(verdict_bench.BASELINE_RUNS)]
        self.kept: list[Kept] = []
        self.seen = 0.0, 0.0  # of the last candidate, as Kept.seen
        self.tried: list[Tried] = []
        self.queue: list[Idea] = []
        self.made: dict[int, list[Features]] = {}  # by call
        self.measured: list[Measured] = []
        self.brought: list[tuple[int, bool, int]] = []  # trial, whether it was kept, runs
        self.missed: dict[int, Idea] = {}  # near misses, by trial
        self.failed: list[frozenset[int]] = []
        self.near = self.used = self.turn = self.trials = 0
        self.gains = dict.fromkeys(("proposal", *WAYS), 0.0)
        self.reserved = [min(verdict_bench.OURS.reserved(n), RESERVED) for n in range(RUNS + 1)]

    @property
    def file(self) -> Family:
        return self.families[self.family]

    @property
    def noise(self) -> Noise:
        return Noise(math.sqrt(self.squares / self.df), self.df)

    def run(self) -> None:
        searcher = self.searcher
        shares: dict[Search, float] = {
            "stack": searcher.stack,
            "archive": searcher.archive,
            "ablation": searcher.ablation,
        }
        while self.used < RUNS - self.reserved[len(self.kept)]:
            self.turn += 1
            due = planner.turn_of(self.turn, shares)
            if due == "stack" and self._stack():
                continue
            if due == "ablation" and self._ablate():
                continue
            self._propose(self._parent() if due == "archive" else None)

    def _score(self, truth: float) -> float:
        return float(self.random.normal(-truth, self.sd))

    def _judge(self, truth: float, added: int = 0) -> tuple[bool, list[float], float]:
        """Runs a candidate of this true gain on the baseline as the search rule asks for it."""
        scores: list[float] = []
        before, rule = len(self.champion), verdict.RULE
        while True:
            if scores and verdict.champion_is_due(len(self.champion), len(scores), rule):
                self.champion.append(self._score(self.file.truth))
                self.used += 1
            scores.append(self._score(truth))
            self.used += 1
            decided = verdict.decide(self.champion, scores, self.noise, added, rule)
            if decided.decision != "confirm":
                break
        gain = statistics.fmean(self.champion) - statistics.fmean(scores)
        for repeats in (scores[1:], self.champion[before:]):
            if len(repeats) > 1:
                self.squares += statistics.variance(repeats) * (len(repeats) - 1)
                self.df += len(repeats) - 1
        is_kept = decided.decision == "keep"
        variance = 1 / certification.CHAMPION_RUNS + 1 / len(scores)
        seen = gain * math.sqrt(variance / (1 / len(self.champion) + 1 / len(scores)))
        self.seen = seen, 1 / variance
        self.near += not is_kept and len(scores) == 1 and (decided.z or 0) > 0
        if is_kept:
            self.champion = scores
        self.trials += 1
        return is_kept, scores, gain

    def _propose(self, parent: int | None) -> None:
        idea = self._choose(self.family if parent is None else parent)
        if parent is not None:
            self.families[parent].built += 1
        way = "proposal" if parent is None else "archive"
        if idea.crashes:
            self.used += 1
            self.tried.append(Tried(idea.features, None))
            return
        base = self.families[idea.family]
        effect = idea.gain * self._overlap(idea)
        truth = base.truth + (-idea.switch if idea.switch is not None else effect)
        before, old = self.file.truth, self.family
        used = self.used
        is_kept, scores, gain = self._judge(truth)
        self.brought.append((self.trials, is_kept, self.used - used))
        self.tried.append(Tried(idea.features, gain, len(scores)))
        measured = -statistics.fmean(scores)
        if idea.switch is not None:
            found = CARRIED * base.found
            self.families.append(Family(truth, found, list(base.changes), measured))
            if is_kept:
                self.family = len(self.families) - 1
        elif is_kept or (idea.family != self.family and measured > base.measured):
            base.truth, base.measured = truth, measured
            base.changes.append(idea.features.parts)
            base.found += effect > 0
            if is_kept:
                self.family = idea.family
        elif idea.family == self.family and gain > 0:
            self.missed[self.trials] = idea
        if is_kept:
            self.gains[way] += truth - before
            self.kept.append(Kept(truth - before, self.seen, idea.spoiled if effect > 0 else 0.0))
            if self.family != old:
                self.missed.clear()
        if idea.switch is None and idea.family == old:
            error = expectation.error(len(scores), self.noise.sd)
            self.measured.append(Measured((self.trials,), gain, error))

    def _overlap(self, idea: Idea) -> float:
        """What is left of a gain if parts that it touches have changed since."""
        since = self.families[idea.family].changes[idea.made :]
        is_hit = any(idea.features.parts & parts for parts in since)
        return OVERLAP if is_hit and idea.gain > 0 else 1.0

    def _choose(self, family: int) -> Idea:
        file, searcher = self.families[family], self.searcher
        if searcher.ideas == 1:
            return self.researcher.ideas(family, file, 1)[0]
        surrogate = Surrogate(self.tried, self.noise.sd) if searcher.order == "surrogate" else None
        self._drop_stale(family)
        mine = [idea for idea in self.queue if idea.family == family]
        calls = [self.made[call] for call in sorted(self.made)[-planner.CALLS :]]
        flat = [_now(idea, file) for idea in mine] + [each for call in calls for each in call]
        scores = iter(self._scores(surrogate, flat))
        waiting = list(itertools.islice(scores, len(mine)))
        fresh = [list(itertools.islice(scores, len(call))) for call in calls]
        is_due = planner.is_call_due(waiting, fresh)
        if searcher.order == "model":
            is_due = not mine
        if is_due:
            new = self.researcher.ideas(family, file, searcher.ideas)
            self.made[self.researcher.calls] = [idea.features for idea in new]
            self.queue += new
            mine += new
            waiting = self._scores(surrogate, [_now(idea, file) for idea in mine])
        best = max(range(len(mine)), key=lambda i: waiting[i])
        chosen = mine[best]
        self.queue.remove(chosen)
        order = sorted(range(len(mine)), key=lambda i: -waiting[i])
        for i in order[QUEUE + 1 :]:
            self.queue.remove(mine[i])
        return dataclasses.replace(chosen, features=_now(chosen, file))

    def _scores(self, surrogate: Surrogate | None, candidates: Sequence[Features]) -> list[float]:
        if surrogate:
            return [each.score for each in surrogate.expect(candidates)]
        if self.searcher.order == "model":
            return [-float(i) for i in range(len(candidates))]
        return [each.estimate.gain if each.estimate else 0.0 for each in candidates]

    def _drop_stale(self, family: int) -> None:
        """Ideas that conflict with what has changed since."""
        changes = self.families[family].changes
        left = []
        for idea in self.queue:
            since = changes[idea.made :]
            is_hit = any(idea.features.parts & parts for parts in since)
            # Half of them conflict, always the same ones.
            clashes = is_hit and (len(idea.features.parts) + idea.features.lines) % 2 == 0
            if not (idea.family == family and clashes):
                left.append(idea)
        self.queue = left

    def _parent(self) -> int | None:
        """As Archive.parent: of the files that are nearly as good, what was built on least."""
        least = -statistics.fmean(self.champion) - archive.NEAR * self.noise.sd
        others = [i for i in range(len(self.families)) if i != self.family]
        near = [i for i in others if self.families[i].measured >= least]
        best = sorted(near, key=lambda i: -self.families[i].measured)[:ARCHIVE]
        left = [i for i in best if self.families[i].built < archive.MOST_BUILT]
        return min(left, key=lambda i: self.families[i].built, default=None)

    def _stack(self) -> bool:
        sd = self.noise.sd
        before = expectation.prior(self.measured, sd)
        if before is None:
            return False
        found = expectation.posterior(self.measured, before)
        changes = self.file.changes
        near = {
            number: found[number]
            for number, idea in self.missed.items()
            if number in found and not any(idea.features.parts & p for p in changes[idea.made :])
        }

        def conflicts(group: tuple[int, ...]) -> bool:
            parts = [self.missed[number].features.parts for number in group]
            return len(frozenset().union(*parts)) < sum(map(len, parts))

        brought = [
            (max(found[n].gain, 0.0) if is_kept and n in found else 0.0, runs)
            for n, is_kept, runs in self.brought[-stacking.RECENT :]
        ]
        least = stacking.usual(brought)
        chosen = stacking.choose(near, conflicts, self.failed, sd, least)
        if chosen is None:
            return False
        members = [self.missed[number] for number in chosen]
        effect = sum(idea.gain for idea in members)
        is_kept, scores, gain = self._judge(self.file.truth + effect)
        self.measured.append(Measured(chosen, gain, expectation.error(len(scores), sd)))
        if not is_kept:
            self.failed.append(frozenset(chosen))
            return True
        self.file.truth += effect
        self.gains["stack"] += effect
        for number in chosen:
            self.file.changes.append(self.missed.pop(number).features.parts)
        self.file.found += sum(idea.gain > 0 for idea in members)
        self.kept.append(Kept(effect, self.seen))
        return True

    def _ablate(self) -> bool:
        """The last keep that was not taken apart, without its cheapest part."""
        waiting = [kept for kept in self.kept if not math.isnan(kept.spoiled)]
        if not waiting:
            return False
        kept, luck = waiting[-1], self.random.random()
        if kept.spoiled and luck < 0.5:
            effect = kept.spoiled
        else:
            effect = 0.0 if luck < 0.75 else -0.3 * abs(kept.effect)
        kept.spoiled = math.nan
        is_kept, _, _ = self._judge(self.file.truth + effect, added=-3)
        if is_kept:
            self.file.truth += effect
            self.gains["ablation"] += effect
            self.kept.append(Kept(effect, self.seen, math.nan))
        return True


def _now(idea: Idea, file: Family) -> Features:
    return dataclasses.replace(idea.features, is_stale=idea.made < len(file.changes))


@dataclasses.dataclass(frozen=True)
class Row:
    """A way of searching at one noise; gains are means over nights."""

    searcher: str
    sd: float
    search: float
    certified: float
    error: float  # standard, of that; as the next
    ratio: float  # certified, of the first way's
    ratio_error: float
    false_claims: float
    trials: float
    calls: float
    # Shares of the search's gain.
    stacks: float
    archive: float
    ablation: float

    def __str__(self) -> str:
        columns = (
            f"{self.sd:g}",
            self.searcher,
            f"{self.trials:.0f}",
            f"{self.calls:.0f}",
            f"{self.search:.1f}",
            f"{self.certified:.1f} ± {self.error:.1f}",
            f"{self.ratio:.2f} ± {self.ratio_error:.2f}",
            f"{self.false_claims:.1%}",
            *(f"{share:.0%}" for share in (self.stacks, self.archive, self.ablation)),
        )
        return f"| {' | '.join(columns)} |"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Many nights of one way of searching; arrays have one element a night, the rest are means."""

    search: verdict_bench.Floats
    certified: verdict_bench.Floats
    false_claims: float  # as a share of the certified
    trials: float
    calls: float
    shares: tuple[float, ...]  # of the search's gain, that each of WAYS has


def outcome(searcher: Searcher, sd: float, count: int) -> Outcome:
    found = [Night(searcher, sd, seed) for seed in range(count)]
    for night in found:
        night.run()
    search = np.array([night.file.truth for night in found])
    certified, false_claims = _certify(found, sd)
    whole = max(float(search.sum()), 1e-9)
    return Outcome(
        search,
        certified,
        false_claims,
        statistics.fmean(night.trials for night in found),
        statistics.fmean(night.researcher.calls for night in found),
        tuple(math.fsum(night.gains[way] for night in found) / whole for way in WAYS),
    )


def _certify(found: Sequence[Night], sd: float) -> tuple[verdict_bench.Floats, float]:
    """The certified true gain of each night; and the share of claims that are false."""
    kept = verdict_bench.Kept(len(found))
    for i, night in enumerate(found):
        kept.number[i] = len(night.kept)
        for j, change in enumerate(night.kept):
            kept.effects[i, j] = change.effect
            kept.gains[i, j], kept.certainties[i, j] = change.seen
    kept.cut()
    near = np.array([float(night.near) for night in found])
    search = verdict_bench._Nights(verdict_bench.RULES[-1], sd, FREEDOM, len(found), 1)
    search.squares = np.array([night.squares for night in found])
    search.df = np.array([float(night.df) for night in found])
    used = np.array([float(night.used) for night in found])
    certifier = verdict_bench.OURS
    work = verdict_bench.Certifications(certifier, kept, certifier.nulls(near))
    for spent in range(RUNS):
        if not (left := used + spent < RUNS).any():
            break
        work.run(search, left)
    chosen = work.certified(*work.z_scores(*search.noise))
    gains = (work.effects * chosen).sum(axis=1)
    return gains, verdict_bench._false_share(chosen, work.effects)


def row(searcher: Searcher, sd: float, found: Outcome, first: Outcome) -> Row:
    """`first` is the outcome that ratios are of, with the same seeds."""
    root = math.sqrt(len(found.search))
    ratio = found.certified.mean() / first.certified.mean()
    error = (found.certified - ratio * first.certified).std() / first.certified.mean() / root
    return Row(
        searcher.name,
        sd,
        float(found.search.mean()),
        float(found.certified.mean()),
        float(found.certified.std() / root),
        float(ratio),
        float(error),
        found.false_claims,
        found.trials,
        found.calls,
        *found.shares,
    )


def rows(count: int) -> Iterator[Row]:
    """In several processes, each a way of searching and a noise."""
    # A night solves small systems: threads would only wait for each other.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    jobs = list(itertools.product(SDS, SEARCHERS))
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(outcome, searcher, sd, count) for sd, searcher in jobs]
        first: Outcome | None = None
        for (sd, searcher), each in zip(jobs, waiting, strict=True):
            found = each.result()
            first = found if first is None or searcher is SEARCHERS[0] else first
            yield row(searcher, sd, found, first)


HEADINGS = (
    *("sd", "search", "trials", "calls", "search gain", "certified gain", "ratio"),
    *("false claims", "by stacks", "by the archive", "by ablation"),
)


def run(repeats: int, json_file: Path | None = None) -> bool:
    """Prints the table; always True, as it measures and demands nothing."""
    count = repeats * NIGHTS // 3
    print(
        f"Nights of {RUNS} runs, {count} of each; gains in the mean gain of a night's first good "
        f"idea, with\nstandard errors; sd: of one run, in the same unit. Ratio: of the certified "
        f"gain to that of\n'{SEARCHERS[0].name}'. The last three: shares of the search gain."
    )
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    table = []
    for found in rows(count):
        print(found, flush=True)
        table.append(dataclasses.asdict(found))
    if json_file:
        json_file.write_text(json.dumps(table, indent=1) + "\n")
    return True
