"""How far a trial was from the champion that it had to beat, and which differences are noise."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from tasks.records import NightState, Trial

# Standard errors: a smaller difference of two means is no evidence that they differ.
NOISE = 1.0


def to_beat(state: NightState) -> dict[int, float]:
    """The champion's score that each trial was compared with, in bits per byte, by trial number."""
    return {trial.number: before for trial, before, _ in champions(state)}


def baseline_of(state: NightState, number: int) -> float | None:
    """The baseline's score, bits per byte, on the hardware of trial `number`."""
    if state.baseline is None:
        return None
    on_other = [each for each in state.remeasurements if each.baseline and number <= each.trials]
    return statistics.fmean(on_other[0].baseline_before) if on_other else state.baseline.val_bpb


def champions(state: NightState) -> Iterator[tuple[Trial, float, float]]:
    """Each trial with the champion's score that it was compared with, and the champion's after it.

    In bits per byte, means over the champion's runs: those that were made afresh for the trial are
    among them. For a placebo, only over those by which nobody chose the champion. None before there
    is a baseline.
    """
    if state.baseline is None:
        return
    again = {each.trials: each for each in state.remeasurements}
    scores = next((each.baseline_before for each in state.remeasurements), state.baseline.scores)
    champion, unselected = baseline_of(state, 1) or state.baseline.val_bpb, scores
    for trial in state.trials:
        if trial.number - 1 in again:
            scores = unselected = again[trial.number - 1].scores
            champion = statistics.fmean(scores)
        if trial.champion_scores:
            scores = (*scores, *trial.champion_scores)
            unselected = (*unselected, *trial.champion_scores)
            champion = statistics.fmean(scores)
        before = champion
        if trial.placebo and unselected:
            before = statistics.fmean(unselected)
        if trial.verdict == "keep" and trial.val_bpb is not None:
            champion, scores, unselected = trial.val_bpb, trial.scores, ()
        yield trial, before, champion


def is_noise(trial: Trial) -> bool:
    """Whether its difference from the champion is smaller than one standard error of it."""
    return trial.z is not None and abs(trial.z) < NOISE


def outcome(trial: Trial) -> str:
    """The verdict in a word or a few: what became of a trial, also of one without a score."""
    if trial.placebo:
        return "placebo" if trial.placebo == "discard" else "placebo, a false keep"
    if trial.status == "rejected_patch":
        return "rejected"
    if trial.status != "ok":
        return f"stopped: {trial.status}"
    return f"{trial.verdict}, within noise" if is_noise(trial) else trial.verdict
