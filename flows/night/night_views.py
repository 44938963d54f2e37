"""What people look at while and after a night: MLflow runs, Prefect artifacts, the report. All made from the ledger's state.

A view that fails is said and made again at the end; it costs a trial seconds at most and never its result.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import httpx
from prefect import get_client, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.actions import ArtifactCreate
from prefect.context import FlowRunContext
from prefect.exceptions import Abort
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings

from flows import state_home
from flows.night.mlflow_view import MlflowView
from flows.night.night import Night
from tasks.cache import unscanned
from tasks.errors import NightlyError
from tasks.history import heartbeat
from tasks.records import NightState
from tasks.views import chart, notification, report

BACK_SECONDS = 15.0  # for which a night that is over waits for Prefect's API
PATIENCE = 5.0  # seconds that a trial waits for Prefect's API
ROWS = 20  # of the table on Prefect's page, besides the keeps: it is sent whole after each trial


class Untold(Abort):
    """A night is over and Prefect's API is gone: for an Abort Prefect makes no call, where it would try for minutes."""

    def __init__(self, tag: str) -> None:
        super().__init__(f"night {tag} is over")
        self.tag = tag


def take_leave(tag: str) -> None:
    """Waits for Prefect's API, which is to hear of a night's end. Raises Untold when it stays away.

    A worker's flow run waits as long as Prefect does: nobody sits before it.
    """
    here, api, until = (
        FlowRunContext.get(),
        get_current_settings().api.url,
        time.monotonic() + BACK_SECONDS,
    )
    ours = here is not None and here.flow_run is not None and here.flow_run.deployment_id is None
    while api and ours and not state_home.is_healthy(api, seconds=2.0):
        if time.monotonic() > until:
            get_run_logger().warning(
                "Prefect's API does not answer: on its pages the night goes on, but it is over"
            )
            raise Untold(tag)
        time.sleep(0.5)


def name_flow_run(tag: str) -> None:
    """The flow run is called by the night's tag, which is not known before the flow runs when it is today's date."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(runtime.flow_run.id, name=tag)


class Views:
    """All views of one night. What goes wrong with one is logged and shown in the heartbeat."""

    def __init__(self, night: Night, pulse: heartbeat.Pulse) -> None:
        self._night = night
        self._pulse = pulse
        self._mlflow = MlflowView(night)
        self._failed: dict[str, str] = {}  # view -> what was said of it

    def show(self, state: NightState) -> None:
        """The baseline and every applied trial so far, in MLflow and in the night's table."""
        self._try("MLflow", lambda: self._mlflow.follow(state))
        self._try("Prefect", lambda: _send_table(state))

    def show_end(self, state: NightState) -> None:
        """The report and its companions, and whatever MLflow has missed."""
        write_report(unscanned(self._night), unscanned(state))
        self._try("Prefect", lambda: _send_report(self._night))
        self._try("MLflow", lambda: self._mlflow.finish(state))

    def rebuild(self, state: NightState) -> None:
        """Everything, once more. Raises NightlyError where a view cannot be written."""
        write_report(unscanned(self._night), unscanned(state))
        self._mlflow.finish(state)
        _send_table(state)
        _send_report(self._night)

    def _try(self, view: str, show: Callable[[], None]) -> None:
        """An outage is said once, not after each trial, and so is its end."""
        try:
            show()
        except NightlyError as error:
            self._pulse.note(str(error))
            if self._failed.get(view) != str(error):
                get_run_logger().warning(str(error))
            self._failed[view] = str(error)
        else:
            if self._failed.pop(view, None):
                get_run_logger().info(f"{view} takes it again")
                self._pulse.note(next(iter(self._failed.values()), None))


@task(name="write-report", cache_policy=NO_CACHE)
def write_report(night: Night, state: NightState) -> None:
    """report.md, results.tsv and progress.png in the night's folder."""
    report.write(state, night.folder)
    chart.draw(state, night.folder / "progress.png")


def _send_table(state: NightState) -> None:
    fields = ("number", "summary", "verdict", "status", "val_bpb", "z", "reason")
    shown = [
        trial
        for trial in state.trials
        if trial.verdict == "keep" or trial.number > len(state.trials) - ROWS
    ]
    table = [{name: getattr(trial, name) for name in fields} for trial in shown]
    _send("table", "trials", f"night {state.header['tag']}", json.dumps(table))


def _send_report(night: Night) -> None:
    _send("markdown", "report", night.tag, (night.folder / "report.md").read_text(encoding="utf-8"))


def _send(kind: str, key: str, description: str, data: str) -> None:
    """An artifact of the flow run. Raises NightlyError when Prefect's API does not take it.

    Asked once and for seconds, where Prefect's own functions would try for a minute, or for six when it does not answer.
    """
    artifact = ArtifactCreate(
        type=kind,
        key=key,
        description=description,
        flow_run_id=UUID(str(runtime.flow_run.id)),
        data=data,
    )
    once = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})
    try:
        with once, get_client(sync_client=True, httpx_settings={"timeout": PATIENCE}) as client:
            client.create_artifact(artifact)
    except httpx.HTTPError as error:
        raise NightlyError(
            f"Prefect's API does not take it ({type(error).__name__}): the night goes on, its pages miss what happens meanwhile"
        ) from error


def tell(kind: notification.Kind, state: NightState) -> None:
    """Sends one notice, its text made from the ledger's state."""
    facts = {
        "champion_bpb": state.champion_bpb,
        "baseline_bpb": state.baseline["val_bpb"] if state.baseline else None,
        "champion_commit": state.champion,
        "trials": len(state.trials),
        "kept": sum(trial.verdict == "keep" for trial in state.trials),
        "reason": state.finished or state.stopped,
    }
    tag = state.header["tag"]
    texts = {
        "failed": f"Night {tag} failed: {state.stopped}. `./run resume {tag}` goes on with it.",
        "finished": f"Night {tag} is over: {state.finished}.\n{report.headline(state)}",
        "new-champion": f"Night {tag} has a new champion.\n{report.headline(state)}",
    }
    try:
        notification.send(kind, tag, texts[kind].replace("**", ""), facts)
    except NightlyError as error:
        get_run_logger().warning(str(error))


def leave_word(folder: Path, state: NightState) -> None:
    """After an end that nobody waited for: a report, as far as there is room for it, and a notice if it was our failure."""
    with contextlib.suppress(OSError):
        report.write(state, folder)
    if state.failed:
        tell("failed", state)
