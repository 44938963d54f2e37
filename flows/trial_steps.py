"""The steps of one trial: propose, run, decide, apply. What each leaves behind is durable before the next begins."""

from __future__ import annotations

import ast
import dataclasses
import statistics
import time

from prefect import get_run_logger

from configs import knobs
from flows.gpu_trial import run_trial
from flows.opening import Night
from flows.quoting import whole
from flows.session import Session
from tasks import champion, milestones, proposal, trial_folder, verdict
from tasks.baseline import caps_after, unusual
from tasks.records import NightSoFar, NightState, Proposal, RunResult, Trial, Verdict


def one_trial(night: Night, held: Session) -> bool:
    """Proposes a candidate, runs it and decides. False when nothing was proposed."""
    log, state = get_run_logger(), held.state
    number, parent = len(state.trials) + 1, state.champion
    assert parent is not None
    held.pulse.enter(f"trial {number}: proposing")
    current = champion.source_at(night.root, parent)
    proposed = proposal.propose_patch(night.proposer, whole(so_far(night, state, current)), whole(seen(night, state)))
    if proposed is None:
        return False
    milestones.reached("proposed")
    folder, began = night.folder / "trials" / str(number), time.monotonic()
    trial_folder.write_proposal(folder, current, proposed)
    milestones.reached("written")
    held.book.append("started", trial=number, proposer=proposed.proposer, summary=proposed.summary, parent=parent)
    milestones.reached("started")
    log.info(f"trial {number}: {proposed.summary}")
    runs, decided = run_and_judge(night, held, current, proposed)
    milestones.reached("ran")
    trial = trial_of(night, number, parent, proposed, runs, decided, time.monotonic() - began)
    trial_folder.write_result(folder, runs, trial)
    milestones.reached("recorded")
    held.book.append("decided", trial=dataclasses.asdict(trial))
    milestones.reached("decided")
    score = "no score" if trial.val_bpb is None else f"{trial.val_bpb:.6f}"
    log.info(f"trial {number}: {trial.verdict} ({score}): {trial.reason}")
    return True


def run_and_judge(night: Night, held: Session, current: str, proposed: Proposal) -> tuple[tuple[RunResult, ...], Verdict]:
    if proposed.problem:
        return (), verdict.failed("rejected_patch", proposed.problem)
    state = held.state
    return run_trial(
        len(state.trials) + 1,
        proposed.source,
        lines_added=code_lines(proposed.source) - code_lines(current),
        champion_scores=state.champion_scores,
        sd=verdict.pooled_sd(state.groups),
        profile=night.profile,
        dataset=night.dataset,
        home=night.home,
        seed=night.seed,
        caps=caps_after(night.baseline),
        isolation=night.isolation,
        tell=held.pulse.enter,
    )


def apply_verdict(night: Night, held: Session, trial: Trial) -> None:
    """Git, then ledger `applied`: each may be done again after a kill and then changes nothing."""
    source = trial_folder.read_source(night.folder / "trials" / str(trial.number))
    commit = champion.commit_candidate(night.root, night.tag, trial, source)
    milestones.reached("committed")
    if trial.verdict == "keep":
        champion.advance(night.root, night.tag, commit, trial.parent)
    milestones.reached("advanced")
    held.book.append("applied", trial=trial.number, commit=commit)
    milestones.reached("applied")


def so_far(night: Night, state: NightState, current: str) -> NightSoFar:
    assert state.champion_bpb is not None
    assert state.baseline is not None
    return NightSoFar(
        tag=night.tag,
        seed=night.seed,
        next_trial=len(state.trials) + 1,
        champion=current,
        champion_bpb=state.champion_bpb,
        baseline_bpb=state.baseline["val_bpb"],
        baseline_knobs=dict(knobs.read(night.base)),
        trials=state.trials,
    )


def seen(night: Night, state: NightState) -> dict[str, int]:
    """Every code that was measured so far, by AST, and its trial; 0 is the baseline."""
    earlier = {trial.ast_sha256: trial.number for trial in reversed(state.trials) if trial.ast_sha256}
    return {**earlier, str(knobs.ast_sha256(night.base)): 0}


def code_lines(source: str) -> int:
    """Lines of code in a normal form: comments, blank lines and formatting neither cost nor earn anything."""
    return len(ast.unparse(ast.parse(source)).splitlines())


def trial_of(
    night: Night,
    number: int,
    parent: str,
    proposed: Proposal,
    runs: tuple[RunResult, ...],
    decided: Verdict,
    wall_seconds: float,
) -> Trial:
    scores = tuple(run.val_bpb for run in runs if run.val_bpb is not None)
    whole = bool(runs) and len(scores) == len(runs)
    return Trial(
        number=number,
        proposer=proposed.proposer,
        summary=proposed.summary,
        status=runs[-1].status if runs else "rejected_patch",
        verdict=decided.decision,
        reason=decided.reason,
        z=decided.z,
        val_bpb=statistics.fmean(scores) if whole else None,
        scores=scores,
        seeds=tuple(run.seed for run in runs),
        knobs=dict(knobs.read(proposed.source)),
        ast_sha256=knobs.ast_sha256(proposed.source),
        parent=parent,
        commit=None,
        seconds=statistics.fmean(run.seconds or 0.0 for run in runs) if whole else None,
        peak_memory_bytes=max((run.peak_memory_bytes or 0 for run in runs), default=0) or None,
        isolation=night.isolation,
        audit_gap=max((run.audit_gap for run in runs if run.audit_gap is not None), default=None),
        unusual=next((found for run in runs if (found := unusual(night.baseline, run))), None),
        wall_seconds=wall_seconds if runs else None,
    )
