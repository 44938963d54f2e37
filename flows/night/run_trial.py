"""One trial: train the candidate, and again with a new seed if one run cannot decide.

A plain function over the task `train-candidate`, called by the night's flow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from prefect import get_run_logger

from flows.night.next_run import NextRun
from tasks.history.night_budget import MOST_RUNS
from tasks.records import Bench, Candidate, RunResult, Verdict
from tasks.statuses import Status
from tasks.trial import verdict
from tasks.trial.early_run import EarlyRun
from tasks.trial.experiment import Report, ignore, naming, train_candidate


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a candidate's scores are compared with, in bits per byte."""

    champion_scores: tuple[float, ...]
    sd: float  # of one run
    statements_added: int  # by the candidate; negative if its code is smaller

    def decide(self, scores: Sequence[float]) -> Verdict:
        return verdict.decide(self.champion_scores, scores, self.sd, self.statements_added)


def run_trial(
    number: int,
    candidate: Candidate,
    bench: Bench,
    first_seed: int,
    comparison: Comparison,
    report: Report = ignore,
    early: EarlyRun | None = None,
    next_run: NextRun | None = None,
) -> tuple[tuple[RunResult, ...], Verdict]:
    """Runs the candidate until the verdict is keep or discard; a stopped run is discarded at once.

    A run that the rule would not discard is audited before anything is decided, so no unaudited
    score enters a keep. `early` is the first run, if it has begun already. `next_run` may begin
    while a run trains; one that ran out of memory beside it is run again alone.
    """
    runs: list[RunResult] = []
    scores: list[float] = []

    def may_be_kept(claimed: float) -> bool:
        return comparison.decide([*scores, claimed]).decision != "discard"

    while True:
        seed = first_seed + len(runs)
        reported = naming(f"trial {number}, seed {seed}", report)
        run = train_candidate(
            f"trial {number}",
            candidate,
            bench,
            seed,
            worth_audit=may_be_kept,
            smoke=not runs,
            report=next_run.watching(reported) if next_run else reported,
            early=early,
        )
        early = None
        if run.status in _excused(bench) and next_run and next_run.is_begun:
            get_run_logger().info(
                f"trial {number}: {run.status} beside the next trial: run again, alone"
            )
            next_run.end()
            continue
        runs.append(run)
        if run.val_bpb is None:
            return tuple(runs), verdict.failed(run.status, run.reason)
        scores.append(run.val_bpb)
        decided = comparison.decide(scores)
        if decided.decision != "confirm":
            return tuple(runs), decided
        if len(runs) == MOST_RUNS:
            raise AssertionError(f"the rule asked for a run beyond {MOST_RUNS}")


def _excused(bench: Bench) -> tuple[Status, ...]:
    """What may be the fault of the next trial's start-up, beside which the run was made.

    A GPU's time is counted for both of them together.
    """
    if bench.profile.device == "cpu":
        return ("out_of_memory",)
    return ("out_of_memory", "eval_timeout", "audit_timeout")
