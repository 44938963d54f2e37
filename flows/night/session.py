"""One session of a night: a process that holds it, with its lock, heartbeat and signal handlers.

How the session ends is recorded in the ledger.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
from prefect import get_client, get_run_logger, runtime
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.settings import get_current_settings

from flows import state_home
from flows.night import interruption, night_views
from tasks.errors import NightlyError, UsageError
from tasks.history import heartbeat, ledger, night_folder
from tasks.history.night_folder import LEDGER, PULSE
from tasks.records import NightHeader, NightState
from tasks.trial import device_lock

# How long a night that got a SIGTERM tries to find out who sent it; a worker waits thirty seconds.
API_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Session:
    """A night that this process holds."""

    folder: Path  # nights/<tag> in the state folder
    book: ledger.Ledger
    pulse: heartbeat.Pulse
    # Set while runs apart from the trials are made.
    in_fresh_runs: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def state(self) -> NightState:
        return self.book.state

    def unfinished(self) -> str | None:
        """What Ctrl-C lets end first, if anything: a run, or a trial until git has it."""
        if self.in_fresh_runs.is_set():
            return "run"
        in_trial = self.book.has_night and bool(self.state.in_flight or self.state.pending)
        return "trial" if in_trial else None


def check_free(folder: Path, header: NightHeader | None = None) -> None:
    """Raises UsageError if another process has the night of this folder, or its header's device."""
    beat = heartbeat.last(folder / PULSE)
    if beat and beat.is_alive:
        raise UsageError(
            f"night {folder.name} is running (pid {beat.process.pid} on {beat.host}: "
            f"{beat.phase}): wait for it, or `./run stop {folder.name}`"
        )
    if header:
        device_lock.check(folder.parent.parent, header.settings, f"night {folder.name}")


@contextlib.contextmanager
def hold(
    folder: Path, header: NightHeader | None = None, *, measures: bool = True
) -> Iterator[Session]:
    """Holds the night of this folder, a new one with its `header` or an old one, during the block.

    With `measures` it holds the night's device, too. An exception out of the block is recorded as
    the event `stopped`: who asked for it, or what failed. Before the first event it is nobody's
    night, and its folder is removed. Raises UsageError if another process holds the night or the
    device.
    """
    path, beat = folder / LEDGER, heartbeat.last(folder / PULSE)
    if beat and beat.host != platform.node() and beat.is_alive:
        raise UsageError(
            f"night {folder.name} is running on {beat.host} "
            f"(pid {beat.process.pid}: {beat.phase}): wait for it; if that machine is dead, "
            "the night can be resumed anywhere "
            f"{heartbeat.LEASE_SECONDS:.0f} s after its last heartbeat"
        )
    if header is None:
        header = night_folder.read_state(folder).header
    device = device_lock.device_of(header.settings) if measures else None
    opened = (ledger.Ledger.open if ledger.exists(path) else ledger.Ledger.create)(path)
    is_new = not folder.exists()
    with device_lock.held(folder.parent.parent, device, f"night {folder.name}"), opened as book:
        if beat:
            book.count_used(beat.used_seconds)
        with heartbeat.beating(folder / PULSE, book.used_seconds) as pulse:
            session = Session(folder, book, pulse)
            before = book.state if book.has_night else None
            try:
                with interruption.ctrl_c_handled(folder, session.unfinished):
                    yield session
            except BaseException as error:
                if book.has_night and book.state is not before:  # a refused night stays as it was
                    _record_end(session, error)
                    if not (session.state.finished or isinstance(error, Exception)):
                        name_resume(folder.name, f"has stopped ({session.state.stopped})")
                    night_views.report_stop(folder, session.state)
                elif is_new and not book.has_night:  # it was refused before its first event
                    shutil.rmtree(folder, ignore_errors=True)  # the refusal is what to report
                raise


def name_resume(tag: str, end: str) -> None:
    """Logs how a night that is not finished goes on."""
    get_run_logger().info(f"night {tag} {end}: `./run resume {tag}` resumes it")


def _record_end(session: Session, error: BaseException) -> None:
    """Appends the event `stopped`, unless the night is finished."""
    if session.state.finished:
        return
    failed = isinstance(error, Exception)
    reason = f"{error}" if isinstance(error, NightlyError) else f"{type(error).__name__}: {error}"
    if isinstance(error, TerminationSignal):
        reason = "the flow run was cancelled" if _is_cancelled() else "interrupted (SIGTERM)"
    elif not failed:
        reason = f"interrupted ({error or type(error).__name__})"
    try:
        session.book.append("stopped", reason=reason.partition("\n")[0][:1000], failed=failed)
    except NightlyError as full:  # without it the ledger says enough: started and not finished
        get_run_logger().warning(f"the end of the night could not be recorded: {full}")


def _is_cancelled() -> bool:
    """Whether somebody cancelled this flow run: a SIGTERM does not say who sent it.

    False while Prefect's API is down.
    """
    api = get_current_settings().api.url
    if not api or not state_home.is_healthy(api, seconds=API_SECONDS):
        return False
    # The flow run itself may be gone: somebody deleted it on Prefect's page.
    gone = contextlib.suppress(httpx.HTTPError, ObjectNotFound)
    with gone, get_client(sync_client=True) as client:
        state = client.read_flow_run(runtime.flow_run.id).state
        return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)
    return False
