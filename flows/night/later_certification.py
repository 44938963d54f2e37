"""The flow behind `./run certify`: certifies a night after its end; may be run repeatedly."""

from __future__ import annotations

import functools

from prefect import flow, get_run_logger

from flows import nightly_research, state_home
from flows.night import certification_steps, mlflow_view, night_views, resume, session
from flows.night.certification_steps import Limits
from flows.night.night import Night
from flows.night.night_views import Views
from flows.night.opening import check_comparable, open_night
from flows.night.session import Session
from flows.night.trial_steps import apply_verdict
from tasks.history import (
    certified_branch,
    champion,
    git_readiness,
    night_budget,
    night_folder,
)


def check(tag: str) -> None:
    """Raises, without a flow run, the UsageError with which `certify_night` would refuse."""
    folder = night_folder.find(state_home.locate(), tag)
    state = night_folder.read_state(folder)
    git_readiness.check_writable(state_home.ROOT)
    champion.check_not_checked_out(state_home.ROOT, f"{tag}{champion.CERTIFIED}")
    if state.pending:
        champion.check_not_checked_out(state_home.ROOT, tag)
    certified_branch.check(state_home.ROOT, tag, certification_steps.tips(folder))
    session.check_free(folder, state.header)


@flow(name="certify-night", flow_run_name="certify {tag}")
def certify_night(tag: str, runs: int | None = None, hours: float | None = None) -> None:
    """Makes fresh runs of a night's champion and of it without each change, and says what helps.

    Args:
        tag: the night's name. No process may hold it.
        runs: at most so many runs. Default: what the open claims need, within bounds.
        hours: end within so many hours.

    Raises:
        NightlyError: a subclass says who must act.
    """
    with session.hold(night_folder.find(state_home.locate(), tag)) as held:
        before = held.state
        nightly_research.try_gpu(held, before.header)
        mlflow_view.prepare_store(state_home.locate())
        night = open_night(held)
        check_comparable(night, before.baseline)
        resume.repair(night, before)
        if before.pending:
            apply_verdict(night, held, before.pending)
        if not _certify(night, held, runs, hours):
            again = f"`./run certify {tag}` continues it"
            get_run_logger().info(f"the certification of night {tag} has stopped: {again}")
        if before.stopped and not held.state.stopped:
            # The events above mark the night as running again, and it is not.
            held.book.append("stopped", reason=before.stopped, failed=before.failed)
        held.pulse.enter("writing the report")
        views = Views(night, held.pulse)
        nightly_research.despite_full_disk(night, held, lambda: views.show_end(held.state))
    night_views.await_prefect(tag)


def _certify(night: Night, held: Session, runs: int | None, hours: float | None) -> bool:
    """False: somebody asked to stop."""
    despite = functools.partial(nightly_research.despite_full_disk, night, held)
    if held.state.keeps and not despite(lambda: certification_steps.measure_again(night, held)):
        return False
    made = certification_steps.made(held.state)
    more = runs or night_budget.worthwhile_runs(len(held.state.keeps))
    until = None if hours is None else held.book.used_seconds() + hours * 3600
    limits = Limits(made + more, until)
    return despite(lambda: certification_steps.certify(night, held, limits))
