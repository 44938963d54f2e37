"""A run apart from the trials: the champion, whole or without some of its changes, with a new seed.

It goes through the quarantine as a champion's run in a trial does, and becomes one event `fresh`.
"""

from __future__ import annotations

import dataclasses

from prefect import get_run_logger

from flows.night import interruption
from flows.night.night import Night
from flows.night.quarantine import Quarantine
from flows.night.session import Session
from tasks.history import night_budget, trial_folder
from tasks.proposers.ablation import Changes, Group
from tasks.records import Conditions, FreshRun, NightState, RunResult
from tasks.statuses import PHASES, Purpose
from tasks.text import numbered, unlinked
from tasks.trial import conditions, seeds
from tasks.trial.experiment import naming, train_candidate


def make(
    night: Night,
    held: Session,
    changes: Changes,
    purpose: Purpose,
    left_out: Group,
    until: float | None,
) -> FreshRun:
    """Trains and audits the champion without some changes, and records it.

    `until` is as in `has_time`: it is not made again after that.
    """
    candidate, state = changes.without(left_out), held.state
    seed = seeds.fresh(state)
    what = f"{PHASES[purpose]}: {name_of(left_out, changes)}"

    def train(again: bool) -> RunResult:
        return train_candidate(
            what,
            candidate,
            night.bench,
            seed,
            worth_audit=lambda claimed: True,
            smoke=not again,
            report=naming(f"{what}, seed {seed}", held.pulse.enter),
            # Once everything is decided.
            holdout=purpose == "end",
        )

    def no_time() -> bool:
        return bool(interruption.requested_by(held.folder)) or not has_time(held, until)

    quarantine = Quarantine(night.bench, _usual(state), no_time, lambda: False)
    run = quarantine.settled("champion", what, train, _own(state, changes, left_out))
    interruption.reached("trained")
    folder = night.folder / "fresh" / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    trial_folder.write_baseline_run(folder, candidate.source, run)
    fresh = record(night, held, run, purpose, left_out, quarantine)
    interruption.reached("fresh")
    score = f"{run.status}: {run.reason}" if run.val_bpb is None else f"{run.val_bpb:.6f}"
    get_run_logger().info(unlinked(f"{what}, seed {seed}: {score}"))
    if fresh.unusual:
        get_run_logger().warning(f"{what}, seed {seed}: {fresh.unusual}")
    return fresh


def record(
    night: Night,
    held: Session,
    run: RunResult,
    purpose: Purpose,
    left_out: Group = (),
    quarantine: Quarantine | None = None,
) -> FreshRun:
    """The event `fresh` of a run of the present champion."""
    fresh = FreshRun(
        purpose=purpose,
        champion=str(held.state.champion),
        left_out=left_out,
        seed=run.seed,
        status=run.status,
        reason=run.reason,
        val_bpb=run.val_bpb,
        holdout_bpb=run.holdout_bpb,
        wall_seconds=run.wall_seconds,
        hardware=night.baseline.hardware,
        conditions=run.conditions,
        quarantined=tuple(aside.on_record() for aside in quarantine.runs) if quarantine else (),
        unusual=(quarantine.unusual or quarantine.machine_change) if quarantine else None,
    )
    held.book.append("fresh", run=dataclasses.asdict(fresh))
    return fresh


def has_time(held: Session, until: float | None) -> bool:
    """Whether one more run ends by `until`, in seconds of the night's age; None: at any time."""
    if until is None:
        return True
    return held.book.used_seconds() + night_budget.longest_run(held.state) <= until


def name_of(left_out: Group, changes: Changes) -> str:
    """A file for people: "the champion", "without trials 1, 3", "the baseline"."""
    if not left_out:
        return "the champion"
    if len(left_out) == len(changes.keeps):
        return "the baseline"
    return f"without {numbered(left_out)}"


def _usual(state: NightState) -> tuple[Conditions, ...]:
    """Fresh runs that count are usual, too: no other is made again for what they had to bear."""
    return (*state.usual, *conditions.of_runs(state.fresh_runs))


def _own(state: NightState, changes: Changes, left_out: Group) -> tuple[Conditions, ...]:
    """Of earlier runs of the same file."""
    assert state.baseline is not None
    same = [run for run in state.fresh_runs if run.champion == state.champion]
    own = conditions.of_runs(run for run in same if run.left_out == left_out)
    if not left_out:
        return (*state.champion_conditions, *own)
    is_baseline = len(left_out) == len(changes.keeps)
    return (*state.baseline.conditions, *own) if is_baseline else own
