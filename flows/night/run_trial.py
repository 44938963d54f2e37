"""One trial: train the candidate, and once more with a new seed where one run cannot tell.

A plain function over the task `train-candidate`. On one GPU the night's flow calls it; with several, the same function
becomes the deployable flow of a GPU work pool.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from configs import Profile
from tasks.history.night_budget import MOST_RUNS
from tasks.judge.bwrap import Isolation
from tasks.records import Caps, Dataset, RunResult, Verdict
from tasks.trial import verdict
from tasks.trial.experiment import Tell, naming, train_candidate


def run_trial(
    number: int,
    source: str,
    *,
    statements_added: int,
    champion_scores: Sequence[float],
    sd: float,
    profile: Profile,
    dataset: Dataset,
    home: Path,
    seed: int,
    caps: Caps,
    isolation: Isolation,
    tell: Tell = lambda phase: None,
) -> tuple[tuple[RunResult, ...], Verdict]:
    """Runs `source` until the verdict is keep or discard; a stopped run is discarded at once.

    A run that the rule would not discard is audited before anything is decided, so no unaudited score enters a keep.
    """
    runs: list[RunResult] = []
    scores: list[float] = []
    while True:
        run = train_candidate(
            f"trial {number}",
            source,
            profile,
            dataset,
            home,
            seed=seed + len(runs),
            caps=caps,
            isolation=isolation,
            worth_audit=functools.partial(
                _may_be_kept, champion_scores, tuple(scores), sd, statements_added
            ),
            smoke=not runs,
            tell=naming(f"trial {number}, seed {seed + len(runs)}", tell),
        )
        runs.append(run)
        if run.val_bpb is None:
            return tuple(runs), verdict.failed(run.status, run.reason)
        scores.append(run.val_bpb)
        decided = verdict.decide(champion_scores, scores, sd, statements_added)
        if decided.decision != "confirm":
            return tuple(runs), decided
        if len(runs) == MOST_RUNS:
            raise AssertionError(f"the rule asked for a run beyond {MOST_RUNS}")


def _may_be_kept(
    champion_scores: Sequence[float],
    scores: Sequence[float],
    sd: float,
    statements_added: int,
    claimed: float,
) -> bool:
    """Whether a run that claims this score could become part of a keep."""
    return (
        verdict.decide(champion_scores, [*scores, claimed], sd, statements_added).decision
        != "discard"
    )
