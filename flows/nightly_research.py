"""The night: prepare, measure the baseline, then propose, train, judge, keep or discard.

Git and the ledger are the truth; Prefect and MLflow are views of it. The order for a trial: ledger
`started`, its runs, ledger `decided` (the commit point), git, ledger `applied`, MLflow. So a night
that was killed resumes where it stopped: a start with its tag, a retried flow run and
`./run resume` all do the same. Once its trials are over, what was kept is certified.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from logging import INFO, WARNING
from typing import Annotated, Any, TypeVar

from prefect import flow, get_run_logger
from pydantic import Field

import configs
from flows import state_home
from flows.night import (
    certification_steps,
    full_disk,
    interruption,
    isolation,
    mlflow_view,
    night_views,
    remeasurement,
    researcher,
    resume,
    session,
    studies,
)
from flows.night.next_run import NextRun
from flows.night.night import Night, Request
from flows.night.night_views import Views
from flows.night.opening import baseline_event, check_comparable, new_night, open_night, plan
from flows.night.proposals import Proposals
from flows.night.session import Session
from flows.night.trial_steps import (
    apply_verdict,
    is_to_end,
    next_proposal,
    night_so_far,
    one_trial,
)
from tasks.errors import NightlyError, UsageError
from tasks.files import FileRef
from tasks.history import champion, git_readiness, night_budget, night_folder
from tasks.noise import estimate
from tasks.records import NightHeader, NightState
from tasks.views import notification

# Types of the flows' parameters: the server checks them when somebody asks for a deployment's run,
# so that a value that cannot be right makes none. Its profiles are those at the last ./run deploy.
Tag = Annotated[str, Field(pattern=f"^{champion.TAG.pattern}$")]
ProfileName = Annotated[str, Field(pattern=rf"^({'|'.join(configs.names())}|.*\.toml)$")]
Proposer = Annotated[str, Field(pattern=f"^({'|'.join(configs.PROPOSERS)})$")]
Trials = Annotated[int, Field(gt=0)]
Hours = Annotated[float, Field(gt=0)]
Result = TypeVar("Result")

MOST_TRIES = 20  # of work that a full disk stops while there seems to be room


@flow(name="nightly-research")
def nightly_research(
    tag: Tag | None = None,
    profile: ProfileName = "laptop",
    trials: Trials | None = None,
    hours: Hours | None = None,
    proposer: Proposer | None = None,
    patches: str | None = None,
    seed: int = 1,
    allow_unsandboxed: bool = False,
    model: str | None = None,
    notes: str | None = None,
) -> str:
    """Runs a research night, or resumes one, and returns its tag.

    Args:
        tag: the night's name; its branch is autoresearch/TAG. Default: today, as in nov21. An
            unfinished night of this name is resumed.
        profile: a name from configs/ or the path of a .toml file.
        trials: end after this many trials. Without trials and hours, the profile's.
        hours: end before this many hours of work are over.
        proposer: tpe, llm, mixed, command or replay. Default: the profile's.
        patches: replay only: the folder of patches, or the tag of a night.
        seed: first training seed of every candidate, and the proposer's.
        allow_unsandboxed: continue without a sandbox if none can be made; every trial says so.
        model: llm and mixed only: the model, as the endpoint names it. Default: the profile's.
        notes: llm, mixed and command only: a night whose last notes the researcher begins with.

    Raises:
        NightlyError: a subclass says who must act; the text has the value, the limit and the
            remedy.
    """
    request = Request(
        profile, trials, hours, proposer, patches, seed, allow_unsandboxed, model, notes
    )
    return research(tag or resume.choose_tag(request), request)


@flow(name="tournament", flow_run_name="tournament {tag}")
def tournament(tag: Tag, request: Request) -> str:
    """Runs a night in which the request's contenders compete, or resumes it; returns its tag."""
    return research(tag, request)


@flow(name="resume-night", flow_run_name="resume {tag}")
def resume_night(tag: Tag, trials: Trials | None = None, hours: Hours | None = None) -> str:
    """Resumes a night: finishes what was decided, runs only the trial in flight again.

    Args:
        tag: the night's name.
        trials: its number of trials from now on, finished ones included.
        hours: its hours from now on, used ones included. A finished night continues with either.
    """
    return research(tag, resume.request_of(tag, trials, hours), is_resume=True)


@flow(name="rebuild-night", flow_run_name="rebuild {tag}")
def rebuild_night(tag: str) -> None:
    """Writes all views of a night again from its ledger and git.

    Raises UsageError while another process holds the night, NightlyError if a view cannot be
    written.
    """
    folder = night_folder.find(state_home.locate(), tag)
    with session.hold(folder, measures=False) as held:
        night = open_night(held, continues=False)
        resume.repair(night, held.state)
        Views(night, held.pulse).rebuild(held.state)


def check(tag: str, request: Request, *, is_resume: bool = False) -> None:
    """Raises, without a flow run, the UsageError with which `research` would refuse this request.

    What is wrong only on another machine, or shows only once the data is there, is not looked for.
    """
    folder = state_home.locate() / "nights" / tag
    notification.check()
    if resume.starts_over(folder):
        header, _ = plan(tag, request)
    else:
        state = night_folder.read_state(folder)
        header = state.header
        resume.check_request(state, request)
        if asked_limits(state, request, state.used_seconds, is_resume=is_resume) is not None:
            researcher.check(header)
    session.check_free(folder, header)


def research(tag: str, request: Request, *, is_resume: bool = False) -> str:
    """The night of this tag, new or not, from wherever its ledger says it is to its report."""
    folder = state_home.locate() / "nights" / tag
    notification.check()
    night_views.name_flow_run(tag)
    new = new_night(tag, request) if resume.starts_over(folder) else None
    # A model that refuses ends a new night before it has a folder.
    pings = researcher.ping(new[0]) if new else ()
    with session.hold(folder, new[0] if new else None) as held:
        if new:
            try_gpu(held, new[0])
            begin(held, *new)
            researcher.keep_pings(folder, pings)
        else:
            resume.check_request(held.state, request)
            continue_night(held, request, is_resume=is_resume)
        mlflow_view.prepare_store(state_home.locate())
        night = open_night(held, continues=not held.state.finished)
        views = Views(night, held.pulse)
        if not held.state.finished:
            check_comparable(night, held.state.baseline)
            resume.repair(night, held.state)
            full_disk.prune(night)
            run_trials(night, held, views)
        end(night, held, views)
    night_views.await_prefect(tag)
    return tag


def try_gpu(held: Session, header: NightHeader) -> None:
    """Before anything of this start is recorded. Raises BoxError if the GPU cannot train."""
    isolation.try_gpu(state_home.locate(), header.settings, header.isolation, held.pulse.enter)


def begin(held: Session, header: NightHeader, base: str) -> None:
    """The first event of a new night, after the source of its baseline is saved.

    Raises UsageError if another process has started it meanwhile.
    """
    tag = header.tag
    if held.book.has_night and held.state.baseline:
        raise UsageError(f"night {tag} has started meanwhile: `./run resume {tag}` resumes it")
    held.book.clear()
    FileRef.write(held.folder / night_folder.BASE, base.encode())
    researcher.keep_program(held.folder, header)
    researcher.keep_notes(held.folder, researcher.read_notes(header))
    held.book.append("night", **header.to_json())
    interruption.reached("opened")


def continue_night(held: Session, request: Request, *, is_resume: bool) -> None:
    """The event `resumed`. A finished night gets one only with more trials or hours."""
    tag, state = held.folder.name, held.state
    limits = asked_limits(state, request, held.book.used_seconds(), is_resume=is_resume)
    if limits is None:
        get_run_logger().info(
            f"night {tag} is finished ({state.finished}); --trials or --hours would extend it"
        )
        return
    researcher.check(state.header)
    try_gpu(held, state.header)
    held.pulse.enter("asking the model for a word")
    researcher.keep_pings(held.folder, researcher.ping(state.header, unattended=not is_resume))
    held.book.append("resumed", **limits)
    is_over = night_budget.over(held.state, held.book.used_seconds())
    where = "its end" if is_over else f"trial {len(held.state.trials) + 1}"
    get_run_logger().info(f"night {tag} resumes with {where}")


def asked_limits(
    state: NightState, request: Request, used_seconds: float, *, is_resume: bool
) -> dict[str, Any] | None:
    """`new_limits`; None for a finished night that only repeats its end.

    Raises UsageError if the night cannot go on like that.
    """
    tag, trials = state.header.tag, request.trials
    git_readiness.check_writable(state_home.ROOT)
    champion.check_not_checked_out(state_home.ROOT, tag)
    is_asked = is_resume or trials != state.header.trials  # a retried flow run repeats its own
    if trials and is_asked and trials <= len(state.trials):
        raise UsageError(
            f"--trials {trials}: night {tag} has finished {len(state.trials)}, and they count: ask "
            "for more than that"
        )
    limits = new_limits(state, request, used_seconds, is_resume=is_resume)
    if not state.finished or limits:
        return limits
    if is_resume or resume.is_retry(state):
        return None
    raise UsageError(
        f"night {tag} exists and is finished ({state.finished}): `./run resume {tag} --trials N` "
        "extends it, or choose another --tag"
    )


def new_limits(
    state: NightState, request: Request, used_seconds: float, *, is_resume: bool
) -> dict[str, Any]:
    """The limits that the request changes.

    If the night ended by the limit that is not mentioned, that limit is lifted: a night of four
    trials that is resumed for eight hours ends by the hours.
    """
    header = state.header
    asked = {"trials": request.trials, "hours": request.hours}
    given = {name: value for name, value in asked.items() if value is not None}
    changed = {name: value for name, value in given.items() if value != getattr(header, name)}
    if not state.finished or not (changed or (is_resume and given)):
        return changed
    header = dataclasses.replace(
        header, trials=request.trials or header.trials, hours=request.hours or header.hours
    )
    extended = dataclasses.replace(state, header=header)
    if "trials" not in given and night_budget.trials_over(extended):
        return {**given, "trials": None}
    if "hours" not in given and night_budget.hours_over(extended, used_seconds):
        return {**given, "hours": None}
    return changed


def run_trials(night: Night, held: Session, views: Views) -> None:
    """Step after step, until the night is finished or stopped."""
    if held.state.champion is None:
        title = f"night {night.tag}: train.py with the knobs of profile {night.bench.profile.name}"
        head, source = held.state.header.head, night.base.source
        commit = champion.start_branch(night.root, night.tag, head, source, title)
        interruption.reached("branched")
        held.book.append("baseline", **dataclasses.asdict(baseline_event(night, commit)))
        interruption.reached("measured")
    found = estimate(held.state)
    get_run_logger().log(INFO if found.agrees else WARNING, f"noise: {found}")
    views.show(held.state)
    proposer = researcher.proposer_of(held, night.bench, night.baseline, night.calls)
    proposals = Proposals(night, proposer, NextRun.of(night))

    def one_step() -> None:
        try:
            step(night, held, views, proposals)
        except (OSError, NightlyError):
            proposals.next_run.end()  # to make room, the rows that it waits for may be removed
            raise

    try:
        while not (held.state.finished or held.state.stopped):
            despite_full_disk(night, held, one_step)
    finally:
        try:
            proposals.abandon()
        finally:
            proposals.next_run.close()


def despite_full_disk(night: Night, held: Session, work: Callable[[], Result]) -> Result:
    """Does repeatable work; if the disk is full, waits for room and does it again."""
    for _ in range(MOST_TRIES):
        try:
            return work()
        except (OSError, NightlyError) as error:
            if not full_disk.made_room(night, held, error):
                raise
    return work()


def step(night: Night, held: Session, views: Views, proposals: Proposals) -> None:
    """The next step: apply a verdict, end the night, or take one more trial to its verdict."""
    state = held.state
    if state.pending:
        apply_verdict(night, held, state.pending)
        studies.after_trial(night, held.state)
        proposals.next_run.aside(lambda: views.show(held.state))
        if held.state.trials[-1].verdict == "keep":
            night_views.notify("new-champion", held.state)
        interruption.reached("shown")
        return
    held.pulse.enter(f"trial {len(state.trials) + 1}: proposing")
    proposals.wait()
    if interruption.requested_by(held.folder):
        stop(held)
        return
    if reason := night_budget.over(state, held.book.used_seconds()):
        finish(night, held, proposals, reason)
        return
    if remeasurement.step(night, held):
        if held.state.remeasurements != state.remeasurements:
            views.show(held.state)
        return
    so_far = night_so_far(night, state)
    proposed = next_proposal(night, so_far, str(state.champion), proposals)
    if proposed is None:
        why = f"the proposer {proposals.proposer.name} has nothing left to propose"
        finish(night, held, proposals, why)
    elif not is_to_end(night, held):
        one_trial(night, held, proposals, so_far, proposed)


def stop(held: Session) -> None:
    who = interruption.requested_by(held.folder)
    held.book.append("stopped", reason=f"stopped by {who}", failed=False)


def finish(night: Night, held: Session, proposals: Proposals, reason: str) -> None:
    """Ends a night whose trials are over, after its certification."""
    proposals.next_run.end()
    if not certification_steps.at_end(night, held):
        stop(held)
        return
    studies.end(night.folder)
    held.book.append("finished", reason=reason)
    interruption.reached("finished")


def end(night: Night, held: Session, views: Views) -> None:
    """What a person sees in the morning."""
    held.pulse.enter("writing the report")
    despite_full_disk(night, held, lambda: views.show_end(held.state))
    if held.state.finished:
        night_views.notify("finished", held.state)
    interruption.reached("reported")
    if held.state.finished:
        get_run_logger().info(f"night {night.tag} is over: {held.state.finished}")
    else:
        session.name_resume(night.tag, f"has stopped ({held.state.stopped})")
