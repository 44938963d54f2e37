"""The steps of one trial: propose, run, decide, apply.

What each step leaves behind is durable before the next begins.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time

from prefect import get_run_logger

from configs import canonical_form, traits
from flows.night import interruption, studies
from flows.night.night import Night
from flows.night.proposals import Proposals
from flows.night.run_trial import Comparison, Tried, run_trial
from flows.night.session import Session
from tasks.history import champion, night_budget, trial_folder
from tasks.history.growth import Size
from tasks.judge.curve import Tenth, slowest
from tasks.noise import estimate, noise_of
from tasks.records import Candidate, NightSoFar, NightState, Proposal, RunResult, Trial
from tasks.text import unlinked
from tasks.trial import conditions, hardware, placebo, seeds, verdict
from tasks.trial.baseline import unusual
from tasks.trial.early_run import EarlyRun
from tasks.views import margin

# What a proposer can learn from, as the training box's log or the reason tells it.
FIXABLE = ("startup_crashed", "train_crashed", "out_of_memory", "dishonest_flops")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a trial ended: what was run in the end, and what came of it."""

    proposal: Proposal
    tried: Tried
    wall_seconds: float


def next_proposal(
    night: Night, so_far: NightSoFar, parent: str, proposals: Proposals
) -> Proposal | None:
    """What the next trial tries against the champion, commit `parent`; None if nothing is left.

    The champion itself if the trial is a placebo, of which the proposer hears nothing.
    """
    if is_placebos_turn(night, so_far.next_trial):
        proposed: Proposal | None = placebo.proposal(so_far.champion)
    else:
        proposed = proposals.next(so_far, parent)
    interruption.reached("proposed")
    return proposed


def one_trial(
    night: Night, held: Session, proposals: Proposals, so_far: NightSoFar, proposed: Proposal
) -> None:
    """Runs a proposed candidate and decides; meanwhile the next one is proposed and started up."""
    log, number, parent = get_run_logger(), so_far.next_trial, held.state.champion
    assert parent is not None
    began, folder, idea = time.monotonic(), night.trial_folder(number), proposed.idea
    trial_folder.write_proposal(folder, so_far.champion.source, proposed, parent)
    interruption.reached("written")
    held.book.append(
        "started", trial=number, proposer=idea.proposer, summary=idea.summary, parent=parent
    )
    interruption.reached("started")
    stands_in = idea.stands_in and f"{idea.proposer} stands in: {idea.stands_in}"
    aside = "; ".join(filter(None, [stands_in, idea.note]))
    log.info(unlinked(f"trial {number}: {idea.summary}{f' ({aside})' if aside else ''}"))
    early = proposals.next_run.take(proposed.candidate)
    if not (proposed.problem or night_budget.is_last(held.state)):
        meanwhile = while_in_flight(so_far, proposed)
        if not is_placebos_turn(night, meanwhile.next_trial):  # nobody proposes those
            proposals.think_ahead(meanwhile, parent)
    proposed, tried = run_and_judge(night, held, proposals, so_far, proposed, early)
    interruption.reached("ran")
    outcome = Outcome(proposed, tried, time.monotonic() - began)
    trial = trial_of(night, number, parent, outcome, champion_size(held.state))
    if trial.verdict == "keep":
        proposals.next_run.end()
    quarantined = tuple(aside.run for aside in tried.quarantined)
    trial_folder.write_result(folder, tried.runs, trial, tried.champion_runs, quarantined)
    interruption.reached("recorded")
    held.book.append("decided", trial=dataclasses.asdict(trial))
    interruption.reached("decided")
    score = "no score" if trial.val_bpb is None else f"{trial.val_bpb:.6f}"
    log.info(unlinked(f"trial {number}: {trial.verdict} ({score}): {trial.reason}"))


def run_and_judge(
    night: Night,
    held: Session,
    proposals: Proposals,
    so_far: NightSoFar,
    proposed: Proposal,
    early: EarlyRun | None = None,
) -> tuple[Proposal, Tried]:
    """The candidate's runs and verdict; its proposer may fix one that crashes, a few times.

    `early` is the first run, if it has begun already.
    """
    if proposed.problem:
        return proposed, Tried((), verdict.failed("rejected_patch", proposed.problem))
    number, parent = so_far.next_trial, held.state.champion
    assert parent is not None
    folder, is_placebo = night.trial_folder(number), placebo.is_placebo(proposed)
    seed = seeds.of_placebo(night.seed, number) if is_placebo else night.seed
    while True:
        comparison = Comparison(
            so_far.champion,
            held.state.champion_scores,
            held.state.champion_seeds,
            noise_of(held.state),
            proposed.candidate.statements - so_far.champion.statements,
            tenths_to_match(night, held.state, so_far.champion, proposed.candidate),
            champion_conditions=held.state.champion_conditions,
            usual=held.state.usual,
            rule=night.bench.profile.verdict,
        )
        if is_placebo:
            comparison = unselected(comparison, held.state)
        tried = run_trial(
            number,
            proposed.candidate,
            studies.keeping(night),
            seed,
            comparison,
            held.pulse.enter,
            early,
            proposals.next_run,
            lambda: night_budget.no_time_for_run(held.state, held.book.used_seconds()),
        )
        if is_placebo:
            return proposed, tried
        last = tried.runs[-1]
        early = None
        fixes = len(trial_folder.attempts(folder))
        if (
            last.status not in FIXABLE
            or fixes >= night.bench.profile.llm.fixes
            or is_to_end(night, held)
        ):
            return proposed, tried
        held.pulse.enter(f"trial {number}: fixing a crash")
        so_far = with_seen(so_far, proposed, number)
        fixed = proposals.fix(so_far, proposed, last)
        if fixed is None:
            return proposed, tried
        crash = unlinked(f"{last.status}: {last.reason}")
        get_run_logger().info(f"trial {number}: {crash}; its proposer has fixed it")
        trial_folder.write_fixed(folder, so_far.champion.source, fixed, parent, tried.runs)
        interruption.reached("fixed")
        proposed = fixed


def unselected(comparison: Comparison, state: NightState) -> Comparison:
    """For a placebo: with those of the champion's scores by which nobody chose it."""
    return dataclasses.replace(
        comparison,
        champion_scores=state.champion_fresh,
        champion_runs=placebo.CHAMPION_RUNS,
    )


def tenths_to_match(
    night: Night, state: NightState, champion: Candidate, candidate: Candidate
) -> tuple[Tenth, ...]:
    """How the champion's runs fared, by tenths of a budget of seconds.

    None for a candidate with another vocabulary, whose tokens and losses are other ones, nor if the
    machine has changed since.
    """
    is_comparable = champion.knobs.get("VOCAB_SIZE") == candidate.knobs.get("VOCAB_SIZE")
    if night.bench.profile.budget.kind != "seconds" or not is_comparable:
        return ()
    keeps = state.keeps
    if keeps:
        is_known = keeps[-1].number >= state.first_comparable
    else:  # on other hardware the baseline was run again
        is_known = not state.remeasurements or state.remeasurements[-1].baseline is not None
    if not is_known:
        return ()
    folder = night.trial_folder(keeps[-1].number) if keeps else None
    runs = trial_folder.read_runs(folder) if folder else night.baseline.runs
    return slowest(run.tenths for run in runs)


def is_to_end(night: Night, held: Session) -> bool:
    """Whether the night ends after this trial: asking a model may take minutes."""
    budget_over = night_budget.over(held.state, held.book.used_seconds())
    return bool(interruption.requested_by(night.folder) or budget_over)


def apply_verdict(night: Night, held: Session, trial: Trial) -> None:
    """Git, then ledger `applied`: repeated after a kill, each changes nothing."""
    source = trial_folder.read_source(night.trial_folder(trial.number))
    commit = champion.commit_candidate(night.root, night.tag, trial, source)
    interruption.reached("committed")
    if trial.verdict == "keep":
        champion.advance(night.root, night.tag, commit, trial.parent)
    interruption.reached("advanced")
    agreed = estimate(held.state).agrees
    held.book.append("applied", trial=trial.number, commit=commit)
    interruption.reached("applied")
    if (found := estimate(held.state)).agrees != agreed:
        get_run_logger().warning(f"noise: {found}")


def night_so_far(night: Night, state: NightState) -> NightSoFar:
    """What a proposer is given for the next trial."""
    assert state.champion is not None
    assert state.champion_bpb is not None
    assert state.baseline is not None
    seen: dict[str, int] = {}
    for trial in reversed(state.candidates):  # the first trial of the same code is the one to name
        seen.update((digest, trial.number) for digest in _digests(night, trial) if digest)
    return NightSoFar(
        tag=night.tag,
        seed=night.seed,
        next_trial=len(state.trials) + 1,
        champion=Candidate.parse(champion.source_at(night.root, state.champion)),
        champion_bpb=state.champion_bpb,
        baseline_bpb=state.baseline.val_bpb,
        baseline_knobs=night.base.knobs,
        trials=state.candidates,
        placebos=len(state.placebos),
        seen={**seen, str(night.base.digest): 0},
        sd=noise_of(state).sd,
        folder=night.folder,
        first_comparable=state.first_comparable,
        to_beat=margin.to_beat(state),
    )


def _digests(night: Night, trial: Trial) -> tuple[str | None, ...]:
    """Of a trial's candidate, and of its versions that crashed, as this version computes them."""
    recorded = (*trial.crashed, trial.digest)
    if all(canonical_form.is_current(digest) for digest in recorded if digest):
        return recorded
    folder = night.trial_folder(trial.number)
    return tuple(map(_digest, (*trial_folder.attempts(folder), trial_folder.read_source(folder))))


@functools.cache
def _digest(source: str) -> str | None:
    return Candidate.parse(source).digest


def with_seen(so_far: NightSoFar, proposed: Proposal, number: int) -> NightSoFar:
    """The same night, with the candidate of trial `number` among those that were tried."""
    seen = {**so_far.seen, str(proposed.candidate.digest): number}
    return dataclasses.replace(so_far, seen=seen)


def while_in_flight(so_far: NightSoFar, proposed: Proposal) -> NightSoFar:
    """The same night one trial later, while the proposed candidate still trains."""
    if placebo.is_placebo(proposed):
        return dataclasses.replace(
            so_far,
            next_trial=so_far.next_trial + 1,
            placebos=so_far.placebos + 1,
            beside_placebo=True,
        )
    so_far = with_seen(so_far, proposed, so_far.next_trial)
    return dataclasses.replace(so_far, next_trial=so_far.next_trial + 1, in_flight=proposed)


def is_placebos_turn(night: Night, number: int) -> bool:
    return placebo.is_due(number, night.seed, night.bench.profile.night.placebo_share)


def _unusual(night: Night, runs: tuple[RunResult, ...]) -> str | None:
    """What is unusual about the first run about which something is."""
    device = night.bench.profile.device
    return next((found for run in runs if (found := unusual(night.baseline, run, device))), None)


def champion_size(state: NightState) -> Size:
    """How large the champion is, and what it took to train it."""
    assert state.baseline is not None
    return Size.of(state.keeps[-1] if state.keeps else state.baseline)


def trial_of(night: Night, number: int, parent: str, outcome: Outcome, before: Size) -> Trial:
    """The finished trial, as the ledger records it; `before` is the champion's size."""
    proposed, runs, decided = outcome.proposal, outcome.tried.runs, outcome.tried.verdict
    champion_runs, noise = outcome.tried.champion_runs, outcome.tried.noise
    profile = night.bench.profile
    size = Size.of_runs(runs)
    said = decided.decision if placebo.is_placebo(proposed) else None
    if said:
        decided = placebo.never_kept(decided)
    scores = tuple(run.val_bpb for run in runs if run.val_bpb is not None)
    is_scored = bool(runs) and len(scores) == len(runs)
    attempts = trial_folder.attempts(night.trial_folder(number))
    usage = night.calls.usage(number)
    if traits(proposed.idea.proposer).has_own_account:
        usage = dataclasses.replace(usage, dollars=None)
    return Trial(
        number=number,
        idea=proposed.idea,
        status=runs[-1].status if runs else "rejected_patch",
        verdict=decided.decision,
        reason=decided.reason,
        z=decided.z,
        val_bpb=statistics.fmean(scores) if is_scored else None,
        scores=scores,
        seeds=tuple(run.seed for run in runs),
        knobs=proposed.candidate.knobs,
        digest=proposed.candidate.digest,
        parent=parent,
        commit=None,
        seconds=statistics.fmean(run.seconds or 0.0 for run in runs) if is_scored else None,
        **vars(size),
        grown=size.growth(before),
        isolation=night.bench.isolation,
        audit_gap=max((run.audit_gap for run in runs if run.audit_gap is not None), default=None),
        unusual="; ".join(filter(None, [_unusual(night, runs), outcome.tried.unusual])) or None,
        wall_seconds=outcome.wall_seconds if runs else None,
        fixes=len(attempts),
        crashed=tuple(str(Candidate.parse(source).digest) for source in attempts),
        longest_run_seconds=max(
            (run.wall_seconds or 0.0 for run in (*runs, *champion_runs)), default=None
        ),
        usage=usage,
        champion_scores=tuple(run.val_bpb for run in champion_runs if run.val_bpb is not None),
        champion_seeds=tuple(run.seed for run in champion_runs),
        placebo=said,
        noise_sd=noise.sd if noise else None,
        noise_df=noise.degrees_of_freedom if noise else None,
        hardware=hardware.label(profile.device, profile.threads) if runs else None,
        conditions=conditions.of_runs(runs),
        champion_conditions=conditions.of_runs(champion_runs),
        quarantined=tuple(aside.on_record() for aside in outcome.tried.quarantined),
        machine_change=outcome.tried.machine_change,
    )
