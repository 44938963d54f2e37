"""One stretch of a night in one process: its lock, its heartbeat, the signals it heeds, and its end put on record."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from prefect import get_client, get_run_logger, runtime
from prefect.client.schemas.objects import StateType
from prefect.exceptions import TerminationSignal
from prefect.settings import get_current_settings

from flows import state_home
from flows.night import interruption, night_views
from tasks.errors import NightlyError, UsageError
from tasks.history import heartbeat, ledger, night_folder
from tasks.history.night_folder import LEDGER, PULSE
from tasks.records import NightState
from tasks.trial import device_lock

API_SECONDS = 10.0  # for which a night that was ended by SIGTERM waits to hear whose it was; a worker leaves it thirty


@dataclasses.dataclass(frozen=True)
class Session:
    """A night that this process holds."""

    folder: Path  # nights/<tag> in the state folder
    book: ledger.Ledger
    pulse: heartbeat.Pulse

    @property
    def state(self) -> NightState:
        return self.book.state

    def is_in_trial(self) -> bool:
        """From a trial's start until git has it."""
        return self.book.has_night and bool(self.state.in_flight or self.state.pending)


@contextlib.contextmanager
def hold(
    folder: Path, header: dict[str, Any] | None = None, *, measures: bool = True
) -> Iterator[Session]:
    """Holds the night of this folder, a new one with its `header` or an old one, until the block ends.

    With `measures` it holds the night's device, too. An exception out of the block is put on record as the event
    `stopped`: whose wish it was, or what failed. Raises UsageError when another process holds the night or the device.
    """
    path, beat = folder / LEDGER, heartbeat.last(folder / PULSE)
    if beat and beat.host != platform.node() and beat.is_alive:
        raise UsageError(
            f"night {folder.name} is running on {beat.host} (pid {beat.process.pid}: {beat.phase}): wait for it; "
            f"if that machine is dead, {heartbeat.LEASE_SECONDS:.0f} s after its last heartbeat anybody may go on"
        )
    if header is None:
        header = night_folder.read_state(folder).header
    device = (
        device_lock.device_of(header["settings"]) if measures and "settings" in header else None
    )
    opened = (ledger.Ledger.open if ledger.exists(path) else ledger.Ledger.create)(path)
    with device_lock.held(folder.parent.parent, device, f"night {folder.name}"), opened as book:
        if beat:
            book.count_used(beat.used_seconds)
        with heartbeat.beating(folder / PULSE, book.used_seconds) as pulse:
            session, before = Session(folder, book, pulse), book.state if book.has_night else None
            try:
                with interruption.heeded(folder, session.is_in_trial):
                    yield session
            except BaseException as error:
                if book.has_night and book.state is not before:  # one that was refused is as it was
                    _put_on_record(session, error)
                    night_views.leave_word(folder, session.state)
                raise


def _put_on_record(session: Session, error: BaseException) -> None:
    """The event `stopped`. A finished night has none."""
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
    except (
        NightlyError
    ) as full:  # the ledger without it says as much: begun, not finished, nobody at work
        get_run_logger().warning(f"the end of the night could not be put on record: {full}")


def _is_cancelled() -> bool:
    """Whether somebody asked Prefect to end this flow run: a SIGTERM does not say whose it is. False while its API is down."""
    api = get_current_settings().api.url
    if not api or not state_home.is_healthy(api, seconds=API_SECONDS):
        return False
    with contextlib.suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        state = client.read_flow_run(runtime.flow_run.id).state
        return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)
    return False
