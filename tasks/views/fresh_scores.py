"""What a night's gain is worth: fresh runs of baseline, champion and certified champion.

The search chose its champion by scores that it has seen, so these flatter it, and what it wins on
new seeds is less. Only runs of the night's end count here: their seeds are new and they decided
nothing, where the runs of a certification decided what is certified. The holdout is a text that
decided nothing, either. Scores and gains are in bits per byte.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Collection, Iterable, Sequence

from tasks.noise import students_t
from tasks.records import FreshRun, NightState
from tasks.text import score

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of two, with its interval by Student's t at CONFIDENCE."""

    mean: float
    low: float | None  # None: no file has two runs, so nothing is known of their spread
    high: float | None
    runs: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return score(self.mean)
        return f"{score(self.mean)} ({score(self.low)} to {score(self.high)})"

    @classmethod
    def of(cls, scores: Sequence[float]) -> Estimate | None:
        return cls._of(statistics.fmean(scores), scores) if scores else None

    @classmethod
    def gain(cls, before: Sequence[float], after: Sequence[float]) -> Estimate | None:
        """By how much `after` is lower, which is better. Both are taken to scatter alike."""
        if not (before and after):
            return None
        return cls._of(statistics.fmean(before) - statistics.fmean(after), before, after)

    @classmethod
    def _of(cls, mean: float, *groups: Sequence[float]) -> Estimate:
        runs = sum(map(len, groups))
        freedom = runs - len(groups)
        if freedom < 1:
            return cls(mean, None, None, runs)
        squares = sum(statistics.pvariance(group) * len(group) for group in groups)
        error = math.sqrt(squares / freedom * sum(1 / len(group) for group in groups))
        half = students_t((1 - CONFIDENCE) / 2, freedom) * error
        return cls(mean, mean - half, mean + half, runs)


@dataclasses.dataclass(frozen=True)
class FileScores:
    """One train.py: the score that it had in the search, and those of fresh runs."""

    trials: tuple[int, ...]  # the kept trials whose changes it has
    commit: str | None
    search: float | None  # None: no trial had just these changes
    fresh: Estimate | None
    holdout: Estimate | None
    # By how much each is better than the baseline's; None for the baseline itself.
    search_gain: float | None
    fresh_gain: Estimate | None
    holdout_gain: Estimate | None
    optimism: float | None  # search_gain minus fresh_gain


@dataclasses.dataclass(frozen=True)
class FreshScores:
    baseline: FileScores
    champion: FileScores | None  # None: nothing was kept
    certified: FileScores | None  # None: nothing is certified

    def files(self) -> dict[str, FileScores]:
        """Those that there are, by name."""
        found = {
            "baseline": self.baseline,
            "champion": self.champion,
            "certified": self.certified,
        }
        return {name: file for name, file in found.items() if file}


def of_night(state: NightState) -> FreshScores | None:
    """None before there is a baseline."""
    baseline, certification = state.baseline, state.certification
    if baseline is None:
        return None
    kept = kept_trials(state)
    certified = certification.certified if certification else ()
    tip = certification.tip if certification else None
    return FreshScores(
        _scores(state, (), state.start_commit),
        _scores(state, kept, state.champion) if kept else None,
        _scores(state, certified, tip) if certified else None,
    )


def kept_trials(state: NightState) -> tuple[int, ...]:
    return tuple(trial.number for trial in state.keeps)


def _scores(state: NightState, trials: tuple[int, ...], commit: str | None) -> FileScores:
    runs, others = (_end_runs(state, changes) for changes in (trials, ()))
    base = state.baseline.val_bpb if state.baseline else None
    search = state.champion_bpb if trials == kept_trials(state) else None if trials else base
    gain = fresh_gain = holdout_gain = None
    if trials:
        gain = base - search if base is not None and search is not None else None
        fresh_gain = Estimate.gain(_val(others), _val(runs))
        holdout_gain = Estimate.gain(_holdout(others), _holdout(runs))
    return FileScores(
        trials=trials,
        commit=commit,
        search=search,
        fresh=Estimate.of(_val(runs)),
        holdout=Estimate.of(_holdout(runs)),
        search_gain=gain,
        fresh_gain=fresh_gain,
        holdout_gain=holdout_gain,
        optimism=None if gain is None or fresh_gain is None else gain - fresh_gain.mean,
    )


def _end_runs(state: NightState, trials: Collection[int]) -> list[FreshRun]:
    """The end's runs of the file with just these trials' changes."""
    return [
        run
        for run in state.fresh_runs
        if run.purpose == "end" and changes(state, run) == set(trials)
    ]


def changes(state: NightState, run: FreshRun) -> set[int] | None:
    """The kept trials whose changes a run's file has.

    None if its champion is none of the night's.
    """
    if run.champion == state.start_commit:
        return set()
    last = next((trial.number for trial in state.keeps if trial.commit == run.champion), None)
    if last is None:
        return None
    return {trial.number for trial in state.keeps if trial.number <= last} - set(run.left_out)


def _val(runs: Iterable[FreshRun]) -> list[float]:
    return [run.val_bpb for run in runs if run.val_bpb is not None]


def _holdout(runs: Iterable[FreshRun]) -> list[float]:
    return [run.holdout_bpb for run in runs if run.holdout_bpb is not None]
