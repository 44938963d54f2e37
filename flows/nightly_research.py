"""The night: prepare, measure the baseline, then propose, train, judge, keep or discard, until trials or hours are over.

Git and the ledger are the truth; Prefect and MLflow are views of it. The order for a trial: ledger `started`, its runs,
ledger `decided` (the commit point), git, ledger `applied`, MLflow. So a night that was killed goes on where it stopped:
every start with its tag, a retried flow run and `./run resume` are the same thing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import flow, get_run_logger

from flows import state_home
from flows.night import (
    full_disk,
    interruption,
    night_views,
    researcher,
    resume,
    session,
    trial_steps,
)
from flows.night.night import Night, Request
from flows.night.night_views import Views, name_flow_run, take_leave
from flows.night.opening import baseline_event, check_comparable, new_night, open_night
from flows.night.proposals import Proposals
from flows.night.session import Session
from flows.night.trial_steps import apply_verdict, is_to_end, next_proposal, one_trial
from tasks.errors import NightlyError, UsageError
from tasks.files import FileRef
from tasks.history import champion, night_budget, night_folder
from tasks.views import costs, notification

MOST_TRIES = 20  # of work that a full disk stops, while there seems to be room


@flow(name="nightly-research")
def nightly_research(
    tag: str | None = None,
    profile: str = "laptop",
    trials: int | None = None,
    hours: float | None = None,
    proposer: str | None = None,
    patches: str | None = None,
    seed: int = 1,
    allow_unsandboxed: bool = False,
    model: str | None = None,
) -> str:
    """Runs a research night, or goes on with one, and returns its tag.

    Args:
        tag: the night's name; its branch is autoresearch/TAG. Default: today, as in nov21. A night of this name that is
            not finished goes on.
        profile: a name from configs/ or the path of a .toml file.
        trials: end after this many trials. Without trials and hours, the profile's.
        hours: end in time before this many hours of work are over.
        proposer: tpe, llm, mixed, command or replay. Default: the profile's.
        patches: replay only: the folder of patches, or the tag of a night.
        seed: first training seed of every candidate, and the proposer's.
        allow_unsandboxed: go on without a sandbox where none can be made; every trial says so.
        model: llm and mixed only: the model, as the endpoint of OPENAI_BASE_URL names it. Default: the profile's.

    Raises:
        NightlyError: a subclass says who must act; the text has the value, the limit and the remedy.
    """
    request = Request(profile, trials, hours, proposer, patches, seed, allow_unsandboxed, model)
    return research(tag or resume.choose_tag(request), request)


@flow(name="resume-night", flow_run_name="resume {tag}")
def resume_night(tag: str, trials: int | None = None, hours: float | None = None) -> str:
    """Goes on with a night: finishes what was decided, runs again only the trial that was in flight.

    Args:
        tag: the night's name.
        trials: its number of trials from now on, done ones included; so a finished night goes on, too.
        hours: its hours from now on, used ones included.
    """
    header = night_folder.read_state(night_folder.find(state_home.locate(), tag)).header
    as_begun = Request(
        profile=header["profile"],
        trials=trials or header["trials"],
        hours=hours or header["hours"],
        proposer=header["proposer"],
        patches=header["patches"],
        seed=header["seed"],
        allow_unsandboxed=header["isolation"] == "none",
        model=costs.model(header),
    )
    return research(tag, as_begun, resuming_it=True)


def research(tag: str, request: Request, *, resuming_it: bool = False) -> str:
    """The night of this tag, new or not, from wherever its ledger says it is, to its end and its report."""
    folder = state_home.locate() / "nights" / tag
    notification.check()
    name_flow_run(tag)
    new = new_night(tag, request) if resume.begins_anew(folder) else None
    with session.hold(folder, new[0] if new else None) as held:
        if new:
            begin(held, *new)
            researcher.ping(held)
        else:
            resume.check_request(held.state, request)
            go_on(held, request, resuming_it=resuming_it)
        night = open_night(held)
        views = Views(night, held.pulse)
        if not held.state.finished:
            check_comparable(night, held.state.baseline)
            resume.put_in_order(night, held.state)
            full_disk.prune(night)
            run_trials(night, held, views)
        end(night, held, views)
    take_leave(tag)
    return tag


def begin(held: Session, header: dict[str, Any], base: str) -> None:
    """The first event of a new night. The source of its baseline is there before.

    Raises UsageError when another process has begun it while this one looked around.
    """
    if held.book.has_night and held.state.baseline:
        raise UsageError(
            f"night {header['tag']} has begun meanwhile: `./run resume {header['tag']}` goes on with it"
        )
    held.book.clear()
    FileRef.write(held.folder / night_folder.BASE, base.encode())
    researcher.keep_program(held.folder, header)
    held.book.append("night", **header)
    trial_steps.reached("opened")


def go_on(held: Session, request: Request, *, resuming_it: bool) -> None:
    """The event `resumed`. A finished night has one only when it gets more trials or hours."""
    tag, state = held.folder.name, held.state
    champion.check_not_checked_out(state_home.ROOT, tag)
    more = {
        name: value
        for name in ("trials", "hours")
        if (value := getattr(request, name)) not in (None, state.header[name])
    }
    if state.finished and not more:
        if resuming_it or resume.is_retry(state):
            get_run_logger().info(
                f"night {tag} is finished ({state.finished}); --trials or --hours would give it more"
            )
            return
        raise UsageError(
            f"night {tag} exists and is finished ({state.finished}): `./run resume {tag} --trials N` gives it more, "
            f"or choose another --tag"
        )
    if (trials := more.get("trials")) and trials <= len(state.trials):
        raise UsageError(
            f"--trials {trials}: night {tag} has done {len(state.trials)}, and those count, too: ask for more than that"
        )
    researcher.check(state.header)
    researcher.ping(held, may_go_on=not resuming_it)
    held.book.append("resumed", **more)
    get_run_logger().info(f"night {tag} goes on with trial {len(held.state.trials) + 1}")


def run_trials(night: Night, held: Session, views: Views) -> None:
    """Step after step, until the night is finished or stopped."""
    if held.state.champion is None:
        title = f"night {night.tag}: train.py with the knobs of profile {night.profile.name}"
        commit = champion.start_branch(
            night.root, night.tag, held.state.header["head"], night.base, title
        )
        trial_steps.reached("branched")
        held.book.append("baseline", **baseline_event(night), start_commit=commit)
        trial_steps.reached("measured")
    views.show(held.state)
    proposals = Proposals(
        night,
        researcher.proposer_of(held, night.profile, night.dataset, night.baseline, night.calls),
    )
    try:
        while not (held.state.finished or held.state.stopped):
            patiently(night, held, lambda: step(night, held, views, proposals))
    finally:
        proposals.abandon()


def patiently(night: Night, held: Session, work: Callable[[], None]) -> None:
    """Does work that may be done again and again; where the disk is full it waits for room and does it once more."""
    for _ in range(MOST_TRIES):
        try:
            return work()
        except (OSError, NightlyError) as error:
            if not full_disk.made_room(night, held, error):
                raise
    work()


def step(night: Night, held: Session, views: Views, proposals: Proposals) -> None:
    """What comes next, whatever was before: apply what is decided, end the night, or take one more trial to its decision."""
    if held.state.pending:
        apply_verdict(night, held, held.state.pending)
        views.show(held.state)
        if held.state.trials[-1].verdict == "keep":
            night_views.tell("new-champion", held.state)
        trial_steps.reached("shown")
        return
    held.pulse.enter(f"trial {len(held.state.trials) + 1}: proposing")
    proposals.wait()
    if who := interruption.asked(held.folder):
        held.book.append("stopped", reason=f"stopped by {who}", failed=False)
    elif reason := night_budget.over(held.state, held.book.used_seconds()):
        held.book.append("finished", reason=reason)
        trial_steps.reached("finished")
    elif (proposed := next_proposal(night, held, proposals)) is None:
        held.book.append(
            "finished", reason=f"the proposer {proposals.proposer.name} has nothing left to propose"
        )
        trial_steps.reached("finished")
    elif not is_to_end(night, held):
        one_trial(night, held, proposals, proposed)


def end(night: Night, held: Session, views: Views) -> None:
    """What a person sees in the morning."""
    over = held.state.finished or held.state.stopped
    held.pulse.enter("writing the report")
    patiently(night, held, lambda: views.show_end(held.state))
    if held.state.finished:
        night_views.tell("finished", held.state)
    trial_steps.reached("reported")
    get_run_logger().info(f"night {night.tag} is over: {over}")


@flow(name="rebuild-night", flow_run_name="rebuild {tag}")
def rebuild_night(tag: str) -> None:
    """Raises UsageError while another process holds the night, NightlyError where a view cannot be written."""
    with session.hold(night_folder.find(state_home.locate(), tag), measures=False) as held:
        night = open_night(held)
        resume.put_in_order(night, held.state)
        Views(night, held.pulse).rebuild(held.state)
