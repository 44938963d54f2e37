"""Measures the champion again once the machine has changed and its scores no longer hold.

On other hardware so is the baseline. From then on the night compares with these scores alone.
"""

from __future__ import annotations

import dataclasses
import statistics

from prefect import get_run_logger

from flows.night import fresh_run, interruption
from flows.night.night import Night
from flows.night.opening import baseline_event
from flows.night.session import Session
from tasks.errors import NightlyError
from tasks.history import champion
from tasks.records import Candidate, FreshRun, NightState, Remeasurement, RunResult
from tasks.trial import conditions, drift
from tasks.trial.experiment import naming, train_candidate

RUNS = 3
MOST_STOPPED = 3  # of a champion that has trained before: something else is broken


def step(night: Night, held: Session) -> bool:
    """Makes the next run of a measurement that is due, or records it. False if none is due.

    Raises NightlyError if the champion does not train.
    """
    state = held.state
    reason = due(night, state)
    if reason is None:
        return False
    runs = _runs_so_far(night, state)
    scored = [run for run in runs if run.val_bpb is not None]
    if _is_other_hardware(night, state) and state.champion == state.start_commit:
        _record(night, held, reason, night.baseline.runs)
    elif len(scored) >= RUNS:
        _record(night, held, reason, scored)
    else:
        if not runs:
            get_run_logger().warning(f"{reason}: the champion is measured again")
        run = _run(night, held, len(runs) + 1)
        stopped = len(runs) - len(scored) + 1
        if run.val_bpb is None and stopped % MOST_STOPPED == 0:
            raise NightlyError(
                f"the champion was to be measured again ({reason}), and {MOST_STOPPED} runs of it "
                f"were stopped, the last one with {run.status}: {run.reason}. `./run doctor` looks "
                f"closer; `./run resume {night.tag}` tries again"
            )
    return True


def due(night: Night, state: NightState) -> str | None:
    """Why the night must measure again before its next trial; None if nothing has changed."""
    assert state.baseline is not None
    if _is_other_hardware(night, state):
        return f"the hardware changed from {state.baseline.hardware} to {night.baseline.hardware}"
    return drift.of_champion(state)


def _is_other_hardware(night: Night, state: NightState) -> bool:
    assert state.baseline is not None
    return night.baseline.hardware != state.baseline.hardware


def _runs_so_far(night: Night, state: NightState) -> list[FreshRun]:
    """Those of an earlier process count too, unless that ran on other hardware."""
    return [run for run in _runs(state) if run.hardware == night.baseline.hardware]


def _runs(state: NightState) -> list[FreshRun]:
    return [
        run
        for run in state.fresh_runs
        if (run.purpose, run.champion) == ("remeasurement", state.champion)
    ]


def _run(night: Night, held: Session, number: int) -> FreshRun:
    state = held.state
    assert state.champion is not None
    # Fresh runs of a certification have a range of their own.
    used = [run.seed for run in _runs(state)]
    seed = max((*state.champion_seeds, *used), default=0) + 1
    what = f"the champion again, run {number}"
    run = train_candidate(
        what,
        Candidate.parse(champion.source_at(night.root, state.champion)),
        night.bench,
        seed,
        worth_audit=lambda claimed: True,
        smoke=False,
        report=naming(f"{what}, seed {seed}", held.pulse.enter),
    )
    fresh = fresh_run.record(night, held, run, "remeasurement")
    interruption.reached("measured_afresh")
    return fresh


def _record(
    night: Night, held: Session, reason: str, runs: list[FreshRun] | tuple[RunResult, ...]
) -> None:
    state = held.state
    assert state.baseline is not None
    scores = tuple(run.val_bpb for run in runs if run.val_bpb is not None)
    is_other = _is_other_hardware(night, state)
    found = Remeasurement(
        reason=reason,
        trials=len(state.trials),
        hardware_before=state.baseline.hardware,
        baseline_before=state.baseline.scores,
        champion_before=state.champion_scores,
        baseline=baseline_event(night, state.baseline.start_commit) if is_other else None,
        scores=scores,
        seeds=tuple(run.seed for run in runs if run.val_bpb is not None),
        conditions=conditions.of_runs(runs),
    )
    held.book.append("remeasured", **dataclasses.asdict(found))
    now, before = map(statistics.fmean, (scores, state.champion_scores))
    get_run_logger().info(
        f"the champion now has {now:.6f} bits per byte (before: {before:.6f}); later trials are "
        "compared with these runs alone"
    )
    interruption.reached("remeasured")
