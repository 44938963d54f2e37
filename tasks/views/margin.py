"""How far a trial was from the champion that it had to beat, and which differences are noise."""

from __future__ import annotations

import statistics

from tasks.records import NightState, Trial

# Standard errors: a smaller difference of two means is no evidence that they differ.
NOISE = 1.0


def to_beat(state: NightState) -> dict[int, float]:
    """The champion's score while each trial ran, in bits per byte, by trial number.

    Empty before there is a baseline. The mean is over the champion's runs, those that were made
    afresh for the trial among them.
    """
    if state.baseline is None:
        return {}
    champion, found = state.baseline.scores, {}
    for trial in state.trials:
        champion = (*champion, *trial.champion_scores)
        found[trial.number] = statistics.fmean(champion)
        if trial.verdict == "keep" and trial.scores:
            champion = trial.scores
    return found


def is_noise(trial: Trial) -> bool:
    """Whether its difference from the champion is smaller than one standard error of it."""
    return trial.z is not None and abs(trial.z) < NOISE


def outcome(trial: Trial) -> str:
    """The verdict in a word or a few: what became of a trial, also of one without a score."""
    if trial.status == "rejected_patch":
        return "rejected"
    if trial.status != "ok":
        return f"stopped: {trial.status}"
    return f"{trial.verdict}, within noise" if is_noise(trial) else trial.verdict
