"""What a night has gained by each of its scores, from its ledger."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

from tasks.records import FreshRun, NightState


@dataclasses.dataclass(frozen=True)
class Gains:
    """By how many bits per byte a night's champions are better than its baseline.

    All but the first by fresh runs of the night's end; None where it made none, or certified
    nothing yet.
    """

    search: float | None  # by the scores that the champion was chosen by
    fresh: float | None
    certified: float | None  # of the certified champion
    holdout: float | None
    certified_holdout: float | None
    optimism: float | None  # by how much the champion's search score is better than its fresh one

    @classmethod
    def of(cls, state: NightState) -> Gains:
        kept = kept_trials(state)
        chosen = state.champion_bpb
        before = state.baseline.val_bpb if state.baseline else None
        certification = state.certification
        uncertified = None
        if certification and certification.champion == state.champion:
            uncertified = tuple(number for number in kept if number not in certification.certified)
        fresh = _mean(state, (), lambda run: run.val_bpb)
        return cls(
            search=_difference(before, chosen),
            fresh=_gain(state, (), lambda run: run.val_bpb),
            certified=_gain(state, uncertified, lambda run: run.val_bpb),
            holdout=_gain(state, (), lambda run: run.holdout_bpb),
            certified_holdout=_gain(state, uncertified, lambda run: run.holdout_bpb),
            optimism=_difference(fresh, chosen),
        )


def kept_trials(state: NightState) -> tuple[int, ...]:
    return tuple(trial.number for trial in state.trials if trial.verdict == "keep")


Score = Callable[[FreshRun], float | None]


def _gain(state: NightState, left_out: tuple[int, ...] | None, score: Score) -> float | None:
    """Of the champion without these changes; None: of no file at all."""
    if left_out is None:
        return None
    baseline, champion = (_mean(state, out, score) for out in (kept_trials(state), left_out))
    return _difference(baseline, champion)


def _mean(state: NightState, left_out: tuple[int, ...], score: Score) -> float | None:
    runs = [
        run
        for run in state.fresh_runs
        if (run.purpose, run.champion, run.left_out) == ("end", state.champion, left_out)
    ]
    scores = [found for run in runs if (found := score(run)) is not None]
    return statistics.fmean(scores) if scores else None


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
