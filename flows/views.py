"""What people look at while and after a night: MLflow runs, Prefect artifacts, the report. All made from the ledger's state.

A view that fails is said and made again at the end; it never costs a trial.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from prefect import get_client, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows import server
from flows.opening import Night
from tasks import chart, report, tracking
from tasks.baseline import saved_run
from tasks.records import NightlyError, NightState, RunResult, Trial


def name_flow_run(tag: str) -> None:
    """The flow run is called by the night's tag, which is not known before the flow runs when it is today's date."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(runtime.flow_run.id, name=tag)


def show_baseline(night: Night, state: NightState) -> None:
    _try("MLflow", lambda: log_baseline(night, state))


def show_trial(night: Night, state: NightState) -> None:
    """The last applied trial, in MLflow and in the night's table."""
    _try("MLflow", lambda: log_trial(night, state, state.trials[-1]))
    fields = ("number", "summary", "verdict", "status", "val_bpb", "z", "reason")
    table = [{name: getattr(trial, name) for name in fields} for trial in state.trials]
    create_table_artifact(table, key="trials", description=f"night {night.tag}")


def show_end(night: Night, state: NightState) -> None:
    """The report and its companions, and whatever MLflow has missed."""
    write_report(night, state)
    _try("MLflow", lambda: finish_night(night, state))


@task(name="log-baseline-to-mlflow", cache_policy=NO_CACHE)
def log_baseline(night: Night, state: NightState) -> None:
    tracking.log_baseline(server.mlflow_uri(night.home), night.home / "mlartifacts", state, night.baseline.runs)


@task(name="log-trial-to-mlflow", task_run_name="log trial {trial.number} to mlflow", cache_policy=NO_CACHE)
def log_trial(night: Night, state: NightState, trial: Trial) -> None:
    folder = night.folder / "trials" / str(trial.number)
    tracking.log_trial(server.mlflow_uri(night.home), night.home / "mlartifacts", state, trial, read_runs(folder), folder)


@task(name="write-report", cache_policy=NO_CACHE)
def write_report(night: Night, state: NightState) -> None:
    report.write(state, night.folder)
    chart.draw(state, night.folder / "progress.png")
    create_markdown_artifact((night.folder / "report.md").read_text(encoding="utf-8"), key="report", description=night.tag)


@task(name="finish-night-in-mlflow", cache_policy=NO_CACHE)
def finish_night(night: Night, state: NightState) -> None:
    """Every trial once more (one that is there is left alone), then the night's own files."""
    uri, artifacts = server.mlflow_uri(night.home), night.home / "mlartifacts"
    tracking.log_baseline(uri, artifacts, state, night.baseline.runs)
    for trial in state.trials:
        folder = night.folder / "trials" / str(trial.number)
        tracking.log_trial(uri, artifacts, state, trial, read_runs(folder), folder)
    tracking.finish_night(uri, artifacts, state, night.folder)


def read_runs(folder: Path) -> tuple[RunResult, ...]:
    """The runs of a trial from its result.json."""
    saved = json.loads((folder / "result.json").read_text(encoding="utf-8"))["runs"]
    return tuple(map(saved_run, saved))


def _try(view: str, show: Callable[[], None]) -> None:
    try:
        show()
    except NightlyError as error:
        get_run_logger().warning(f"{view}: {error}")
