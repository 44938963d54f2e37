"""What can be said of a candidate before it is run: from its idea, its patch and the night."""

from __future__ import annotations

import functools

from tasks.proposers import touched
from tasks.records import Idea, NightSoFar, Trial
from tasks.search import trial_sources
from tasks.search.surrogate import Features, Tried

LATEST = 200  # trials that are learned from
# Ways of searching whose trials tell what a researcher's ideas are worth.
RESEARCHED = ("proposal", "archive")


def of_idea(base: str, source: str, idea: Idea, *, is_stale: bool = False) -> Features:
    """Of a candidate that was made of the file `base`."""
    lines, parts = _patch(base, source)
    return Features(idea.kind or idea.proposer, lines, parts, idea.estimate, is_stale)


def tried(night: NightSoFar) -> list[Tried]:
    """What came of the researched candidates that were run.

    One that was built on another file than the champion gained on that one.
    """
    found = []
    for trial in night.trials[-LATEST:]:
        if trial.status == "rejected_patch" or trial.idea.search not in RESEARCHED:
            continue
        base, beaten = _beaten(trial, night)
        if trial.val_bpb is not None and beaten is None:
            continue
        gain = None if trial.val_bpb is None or beaten is None else beaten - trial.val_bpb
        source = trial_sources.after(night, trial)
        is_known = base is not None and source is not None  # of a lost folder, only the score
        features = of_idea(
            str(base) if is_known else "",
            str(source) if is_known else "",
            trial.idea,
            is_stale=_was_stale(trial, night),
        )
        found.append(Tried(features, gain, max(len(trial.scores), 1), trial.wall_seconds))
    return found


def _beaten(trial: Trial, night: NightSoFar) -> tuple[str | None, float | None]:
    """The file that a candidate was made of, and its score; None if unknown."""
    if trial.idea.search == "archive":
        for parent in night.trials:
            if parent.number in trial.idea.built_on:
                return trial_sources.after(night, parent), parent.val_bpb
    return trial_sources.before(night, trial), night.to_beat.get(trial.number)


def _was_stale(trial: Trial, night: NightSoFar) -> bool:
    """Whether another champion came between its proposal and its run."""
    if trial.idea.queued is None:
        return False
    made = int(trial.idea.queued.partition(".")[0])
    return any(t.verdict == "keep" and made <= t.number < trial.number for t in night.trials)


@functools.lru_cache(maxsize=512)
def _patch(base: str, source: str) -> tuple[int, frozenset[str]]:
    """(lines removed and added, what they belong to)."""
    lines = sum(b - a + d - c for a, b, c, d in touched.edits(base, source))
    return lines, frozenset(touched.touched(base, source).names)
