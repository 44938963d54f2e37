"""The views of a night: MLflow runs, Prefect artifacts, the report, notices.

All are made from the ledger. A view that fails is logged once and written again at the end. It may
cost a trial a few seconds, but never its result, and never the night.
"""

from __future__ import annotations

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
from flows.night import mlflow_view
from flows.night.night import Night
from tasks.cache import unscanned
from tasks.errors import NightlyError
from tasks.files import FULL
from tasks.history import earlier_noise, heartbeat
from tasks.records import NightState, Trial
from tasks.text import difference, in_markdown, one_line, score, shortened
from tasks.views import chart, margin, notification, refusals, report

BACK_SECONDS = 15.0  # for which a finished night waits for Prefect's API to come back
PATIENCE = 5.0  # seconds for which a trial waits for Prefect's API
FILES = ("report", "chart")  # views in the night's folder: they wait for room on the disk
LONGEST_SUMMARY = 40  # characters, in that table
ROWS = 20  # of the table on Prefect's page, besides the keeps: it is sent whole after each trial


class PrefectUnreachable(Abort):
    """The night is over and Prefect's API is gone.

    After an Abort Prefect makes no call, where it would retry for minutes.
    """

    def __init__(self, tag: str) -> None:
        super().__init__(f"night {tag} is over")
        self.tag = tag


def await_prefect(tag: str) -> None:
    """Waits for Prefect's API, so that it records the night's end.

    A worker's flow run does not: nobody is waiting for it, so Prefect's own retries may take their
    time. Raises PrefectUnreachable if the API does not come back.
    """
    here, api = FlowRunContext.get(), get_current_settings().api.url
    is_ours = here is not None and here.flow_run is not None and here.flow_run.deployment_id is None
    until = time.monotonic() + BACK_SECONDS
    while api and is_ours and not state_home.is_healthy(api, seconds=2.0):
        if time.monotonic() > until:
            get_run_logger().warning(
                "Prefect's API does not answer: its pages show a running night, but it is over"
            )
            raise PrefectUnreachable(tag)
        time.sleep(0.5)


def name_flow_run(tag: str) -> None:
    """Names the flow run after the night; a tag from today's date is not known before it runs.

    If Prefect refuses that, its pages show a name of its own, and a warning is logged.
    """
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(runtime.flow_run.id, name=tag)
    except Exception as error:
        get_run_logger().warning(
            f"the flow run could not be named {tag}: {type(error).__name__}: {error}"
        )


class Views:
    """All views of one night. A failure of one is logged and shown in the heartbeat."""

    def __init__(self, night: Night, pulse: heartbeat.Pulse) -> None:
        self._night = night
        self._pulse = pulse
        self._mlflow = mlflow_view.MlflowView(night)
        self._failures: dict[str, str] = {}  # by view

    def show(self, state: NightState) -> None:
        """The baseline and every applied trial so far, in MLflow and in the night's table."""
        self._record_noise(state)
        self._try("MLflow", lambda: self._follow_in_mlflow(state))
        self._try("Prefect", lambda: _send_table(state))

    def show_end(self, state: NightState) -> None:
        """The report with its chart and table, and whatever MLflow has missed.

        Raises OSError if the disk is too full for the report: the night waits for room.
        """
        self._record_noise(state)
        written = self._try(
            "report", lambda: write_report(unscanned(self._night), unscanned(state))
        )
        drawn = self._try("chart", lambda: draw_chart(unscanned(self._night), unscanned(state)))
        if written:
            self._try("Prefect", lambda: _send_report(self._night, has_chart=drawn))
        self._try("MLflow", lambda: self._finish_mlflow(state))

    def rebuild(self, state: NightState) -> None:
        """Everything, once more. Raises NightlyError if a view cannot be written."""
        earlier_noise.record(self._night.bench.home, state)
        write_report(unscanned(self._night), unscanned(state))
        draw_chart(unscanned(self._night), unscanned(state))
        self._finish_mlflow(state)
        _send_table(state)
        _send_report(self._night, has_chart=True)
        if refused := refusals.read(self._night.folder):
            raise NightlyError(refusals.message(self._night.tag, refused))

    def _record_noise(self, state: NightState) -> None:
        """For the next night, which does with less where the disk takes none."""
        self._try("noise", lambda: earlier_noise.record(self._night.bench.home, state))

    def _follow_in_mlflow(self, state: NightState) -> None:
        try:
            self._mlflow.follow(state, mlflow_view.PATIENCE)
        except mlflow_view.Unfinished as unfinished:
            get_run_logger().debug(str(unfinished))

    def _finish_mlflow(self, state: NightState) -> None:
        known = refusals.read(self._night.folder)

        def name_refused() -> None:
            if refusals.read(self._night.folder) != known:
                write_report(unscanned(self._night), unscanned(state))

        self._mlflow.finish(state, name_refused)

    def _try(self, view: str, show: Callable[[], None]) -> bool:
        """Whether a view could be shown. Logs an outage once, not after each trial, and its end."""
        try:
            show()
        except Exception as error:
            if view in FILES and isinstance(error, OSError) and error.errno in FULL:
                raise
            self._fail(view, _message(view, error))
            return False
        if self._failures.pop(view, None):
            get_run_logger().info(f"{view} works again")
            self._pulse.note(next(iter(self._failures.values()), None))
        return True

    def _fail(self, view: str, message: str) -> None:
        self._pulse.note(message)
        if self._failures.get(view) != message:
            get_run_logger().warning(message)
        self._failures[view] = message


def _message(view: str, error: Exception) -> str:
    if isinstance(error, NightlyError):
        return str(error)
    return f"the {view} view failed: {type(error).__name__}: {error}"


@task(name="write-report", task_run_name="write the report", cache_policy=NO_CACHE)
def write_report(night: Night, state: NightState) -> None:
    """report.md and results.tsv in the night's folder."""
    report.write(state, night.folder)


@task(name="draw-chart", task_run_name="draw the chart", cache_policy=NO_CACHE)
def draw_chart(night: Night, state: NightState) -> None:
    """progress.png in the night's folder."""
    chart.draw(state, night.folder / report.PICTURE)


def _send_table(state: NightState) -> None:
    first = len(state.trials) - ROWS
    shown = [t for t in state.trials if t.verdict == "keep" or t.number > first]
    description = f"night {state.header.tag}"
    champions = margin.to_beat(state)
    rows = [_row(trial, champions.get(trial.number)) for trial in shown]
    _send("table", "trials", description, json.dumps(rows))


def _row(trial: Trial, champion: float | None) -> dict[str, object]:
    """What fits beside each other on Prefect's page, where nothing wraps and a cell is Markdown."""
    why = trial.reason
    if trial.status == "ok":  # before the last colon are figures, and those have their columns
        why = why.rpartition(": ")[2]
    return {
        "trial": trial.number,
        "what": in_markdown(shortened(one_line(trial.idea.summary), LONGEST_SUMMARY)),
        "verdict": margin.outcome(trial),
        "val_bpb": "" if trial.val_bpb is None else score(trial.val_bpb),
        "vs champion": "" if trial.val_bpb is None else difference(trial.val_bpb, champion),
        "z": "" if trial.z is None else f"{trial.z:.2f}",
        "why": in_markdown(why),
    }


def _send_report(night: Night, *, has_chart: bool) -> None:
    """The report with the chart in it: Prefect's pages show no file of the night's folder."""
    text = (night.folder / report.FILE).read_text(encoding="utf-8")
    picture = (night.folder / report.PICTURE).read_bytes() if has_chart else None
    _send("markdown", "report", f"night {night.tag}", report.alone(text, picture))


def _send(kind: str, key: str, description: str, data: str) -> None:
    """Creates an artifact of the flow run. Raises NightlyError if Prefect's API fails.

    Sent once, within seconds: Prefect's own functions would retry for one to six minutes.
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
            f"Prefect's API accepts no artifacts ({type(error).__name__}): the night continues, "
            "but its pages miss what happens meanwhile"
        ) from error


def notify(kind: notification.Kind, state: NightState) -> None:
    """Sends one notice, made from the ledger's state. A failure is logged."""
    try:
        notification.send(kind, state.header.tag, _notice(kind, state), _facts(state))
    except Exception as error:
        get_run_logger().warning(_message("notice", error))


def _facts(state: NightState) -> dict[str, object]:
    return {
        "champion_bpb": state.champion_bpb,
        "baseline_bpb": state.baseline.val_bpb if state.baseline else None,
        "champion_commit": state.champion,
        "trials": len(state.trials),
        "kept": len(state.keeps),
        "reason": state.finished or state.stopped,
    }


def _notice(kind: notification.Kind, state: NightState) -> str:
    tag = state.header.tag
    if kind == "failed":
        return f"Night {tag} failed: {state.stopped}. `./run resume {tag}` resumes it."
    what = "is over" if kind == "finished" else "has a new champion"
    return f"Night {tag} {what}.\n{report.headline(state)}".replace("**", "")


def report_stop(folder: Path, state: NightState) -> None:
    """After an unexpected end: a report, if there is room for it, a notice of a failure, and the
    end of the night's run in MLflow.
    """
    try:
        report.write(state, folder)
    except Exception as error:
        get_run_logger().warning(_message("report", error))
    if state.failed:
        notify("failed", state)
    try:
        mlflow_view.stop(folder, state)
    except Exception as error:
        get_run_logger().warning(_message("MLflow", error))
