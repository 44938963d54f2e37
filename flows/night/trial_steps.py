"""The steps of one trial: propose, run, decide, apply. What each leaves behind is durable before the next begins."""

from __future__ import annotations

import dataclasses
import statistics
import time

from prefect import get_run_logger

from configs import knobs
from flows.night import interruption
from flows.night.night import Night
from flows.night.proposals import Proposals
from flows.night.run_trial import run_trial
from flows.night.session import Session
from tasks.history import champion, night_budget, trial_folder
from tasks.records import NightSoFar, NightState, Proposal, RunResult, Trial, Verdict
from tasks.trial import verdict
from tasks.trial.baseline import caps_after, unusual

MENDABLE = (
    "startup_crashed",
    "train_crashed",
    "out_of_memory",
)  # what a proposer can learn from the training box's log


def next_proposal(night: Night, held: Session, proposals: Proposals) -> Proposal | None:
    """What the next trial tries; None when there is nothing left."""
    assert held.state.champion is not None
    proposed = proposals.next(so_far(night, held.state), held.state.champion)
    reached("proposed")
    return proposed


def one_trial(night: Night, held: Session, proposals: Proposals, proposed: Proposal) -> None:
    """Runs a proposed candidate and decides; meanwhile the next one is proposed."""
    log, state = get_run_logger(), held.state
    number, parent = len(state.trials) + 1, state.champion
    assert parent is not None
    folder, began, before = (
        night.folder / "trials" / str(number),
        time.monotonic(),
        so_far(night, state),
    )
    trial_folder.write_proposal(folder, before.champion, proposed, parent)
    reached("written")
    held.book.append(
        "started", trial=number, proposer=proposed.proposer, summary=proposed.summary, parent=parent
    )
    reached("started")
    why = proposed.stands_in and f"{proposed.proposer} stands in: {proposed.stands_in}"
    aside = "; ".join(filter(None, [why, proposed.note]))
    log.info(f"trial {number}: {proposed.summary}{f' ({aside})' if aside else ''}")
    if not (proposed.problem or night_budget.is_last(held.state)):
        proposals.think_ahead(while_in_flight(before, proposed), parent)
    proposed, runs, decided = run_and_judge(night, held, proposals, before, proposed)
    reached("ran")
    trial = trial_of(night, number, parent, proposed, runs, decided, time.monotonic() - began)
    trial_folder.write_result(folder, runs, trial)
    reached("recorded")
    held.book.append("decided", trial=dataclasses.asdict(trial))
    reached("decided")
    score = "no score" if trial.val_bpb is None else f"{trial.val_bpb:.6f}"
    log.info(f"trial {number}: {trial.verdict} ({score}): {trial.reason}")


def run_and_judge(
    night: Night, held: Session, proposals: Proposals, before: NightSoFar, proposed: Proposal
) -> tuple[Proposal, tuple[RunResult, ...], Verdict]:
    """The candidate's runs and verdict; one that crashes goes back to its proposer, who may mend it a few times."""
    if proposed.problem:
        return proposed, (), verdict.failed("rejected_patch", proposed.problem)
    number, folder = before.next_trial, night.folder / "trials" / str(before.next_trial)
    assert held.state.champion is not None
    while True:
        runs, decided = run_trial(
            number,
            proposed.source,
            statements_added=verdict.statements(proposed.source)
            - verdict.statements(before.champion),
            champion_scores=held.state.champion_scores,
            sd=verdict.pooled_sd(held.state.groups),
            profile=night.profile,
            dataset=night.dataset,
            home=night.home,
            seed=night.seed,
            caps=caps_after(night.baseline),
            isolation=night.isolation,
            tell=held.pulse.enter,
        )
        tries = len(trial_folder.attempts(folder))
        if (
            runs[-1].status not in MENDABLE
            or tries >= night.profile.llm.fixes
            or is_to_end(night, held)
        ):
            return proposed, runs, decided
        held.pulse.enter(f"trial {number}: mending what crashed")
        crashed = dataclasses.replace(
            before, seen={**before.seen, str(knobs.ast_sha256(proposed.source)): number}
        )
        mended = proposals.mend(crashed, proposed, runs[-1])
        if mended is None:
            return proposed, runs, decided
        get_run_logger().info(
            f"trial {number}: {runs[-1].status}: {runs[-1].reason}; its proposer has mended it"
        )
        trial_folder.write_mended(folder, before.champion, mended, held.state.champion, runs)
        reached("mended")
        proposed, before = mended, crashed


def is_to_end(night: Night, held: Session) -> bool:
    """Whether the night ends after this trial: a model may take minutes."""
    return bool(
        interruption.asked(night.folder) or night_budget.over(held.state, held.book.used_seconds())
    )


def apply_verdict(night: Night, held: Session, trial: Trial) -> None:
    """Git, then ledger `applied`: each may be done again after a kill and then changes nothing."""
    source = trial_folder.read_source(night.folder / "trials" / str(trial.number))
    commit = champion.commit_candidate(night.root, night.tag, trial, source)
    reached("committed")
    if trial.verdict == "keep":
        champion.advance(night.root, night.tag, commit, trial.parent)
    reached("advanced")
    held.book.append("applied", trial=trial.number, commit=commit)
    reached("applied")


def so_far(night: Night, state: NightState) -> NightSoFar:
    assert state.champion is not None
    assert state.champion_bpb is not None
    assert state.baseline is not None
    measured = (
        (trial, digest)
        for trial in reversed(state.trials)
        for digest in (*trial.crashed, trial.ast_sha256)
    )
    earlier = {digest: trial.number for trial, digest in measured if digest}
    return NightSoFar(
        tag=night.tag,
        seed=night.seed,
        next_trial=len(state.trials) + 1,
        champion=champion.source_at(night.root, state.champion),
        champion_bpb=state.champion_bpb,
        baseline_bpb=state.baseline["val_bpb"],
        baseline_knobs=dict(knobs.read(night.base)),
        trials=state.trials,
        seen={**earlier, str(knobs.ast_sha256(night.base)): 0},
        sd=verdict.pooled_sd(state.groups),
        folder=night.folder,
    )


def while_in_flight(before: NightSoFar, proposed: Proposal) -> NightSoFar:
    """The same night a trial later, while the proposed one still trains."""
    seen = {**before.seen, str(knobs.ast_sha256(proposed.source)): before.next_trial}
    return dataclasses.replace(
        before, next_trial=before.next_trial + 1, seen=seen, in_flight=proposed
    )


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
    attempts = trial_folder.attempts(night.folder / "trials" / str(number))
    usage = night.calls.usage(number)
    if proposed.proposer == "command":  # it has its own account
        usage = dataclasses.replace(usage, dollars=None)
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
        outcome=proposed.outcome,
        kind=proposed.kind,
        hypothesis=proposed.hypothesis,
        expected=proposed.expected,
        stands_in=proposed.stands_in,
        note=proposed.note,
        fixes=len(attempts),
        crashed=tuple(str(knobs.ast_sha256(source)) for source in attempts),
        longest_run_seconds=max((run.wall_seconds or 0.0 for run in runs), default=None),
        usage=usage,
    )


def reached(step: str) -> None:
    """Names a place between two durable steps where a machine may die; does nothing. Tests end the process there."""
