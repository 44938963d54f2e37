"""MLflow's view of a night, written in a thread so that a slow store delays no trial.

What MLflow has missed is written as soon as it answers again, at the night's end, or by
`./run rebuild`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from flows import state_home
from flows.night.night import Night
from tasks.cache import unscanned
from tasks.errors import NightlyError
from tasks.history import llm_calls, night_folder, trial_folder
from tasks.records import NightState
from tasks.usage import Call
from tasks.views import mlflow_client, tracking

# Seconds that the night waits for MLflow: after a trial, at its end for a slow store, and at its
# end for a store that is down and may be coming back.
PATIENCE = 5.0
LAST_PATIENCE = 120.0
BACK_SECONDS = 60.0
RETRY_SECONDS = 3.0

Done = frozenset[int]  # trials whose runs are complete in MLflow
T = TypeVar("T")


class Unfinished(NightlyError):
    """MLflow is still writing, which takes a while and is no failure."""


def prepare_store(home: Path) -> None:
    """Makes a missing store in the background, as that takes most of a minute on a busy machine.

    What goes wrong is reported when the first run is written, which tries it again.
    """

    def make() -> None:
        with contextlib.suppress(NightlyError):
            mlflow_client.make_if_missing(state_home.mlflow_uri(home))

    threading.Thread(target=make, name="mlflow-store", daemon=True).start()


class MlflowView:
    """What MLflow has of one night, and the one job that may be writing to it."""

    def __init__(self, night: Night) -> None:
        self._night = night
        self._done: Done | None = None
        self._job: PrefectFuture[Done] | None = None
        self._since = 0.0  # time.monotonic() at which the job was begun

    def follow(self, state: NightState, patience: float) -> None:
        """Writes what MLflow lacks, and waits `patience` seconds for it.

        Raises Unfinished while it goes on, NightlyError if it failed, for whatever reason, or has
        taken longer than LAST_PATIENCE.
        """
        with contextlib.suppress(NightlyError):  # of a job for an earlier state
            self._collect(0.0)
        if self._job is None:
            self._since = time.monotonic()
            self._job = catch_up.submit(
                unscanned(self._night), unscanned(state), unscanned(self._done)
            )
        self._collect(patience)

    def _collect(self, patience: float) -> None:
        if self._job is None:
            return
        try:
            self._done = _result(self._job, patience)
        except TimeoutError:
            if time.monotonic() - self._since < LAST_PATIENCE:
                raise Unfinished(f"MLflow is not done after {patience:.0f} s") from None
            raise NightlyError(
                f"MLflow is not done after {LAST_PATIENCE:.0f} s; the night continues meanwhile"
            ) from None
        except BaseException:
            self._job = None
            raise
        self._job = None

    def finish(self, state: NightState) -> None:
        """Writes everything, and the night's own files. Raises NightlyError like `follow`."""
        until = time.monotonic() + BACK_SECONDS
        if self._job is not None:  # of an earlier state
            _retry(lambda: self.follow(state, LAST_PATIENCE), until)
        _retry(lambda: self.follow(state, LAST_PATIENCE), until)
        _retry(lambda: self._end(state), until)

    def _end(self, state: NightState) -> None:
        ending = finish_night.submit(unscanned(self._night), unscanned(state))
        try:
            _result(ending, LAST_PATIENCE)
        except TimeoutError:
            raise NightlyError(
                f"MLflow did not record the night's end within {LAST_PATIENCE:.0f} s"
            ) from None


def _result(job: PrefectFuture[T], patience: float) -> T:
    """A job's result. Raises TimeoutError while it runs, NightlyError if it failed.

    MLflow raises more than its own exceptions: a changed private API, a run that somebody edited.
    """
    outcome = job.result(timeout=patience, raise_on_failure=False)
    if isinstance(outcome, NightlyError):
        raise outcome
    if isinstance(outcome, BaseException):
        raise NightlyError(f"MLflow failed: {type(outcome).__name__}: {outcome}") from outcome
    return outcome


def _retry(write: Callable[[], None], until: float) -> None:
    """Repeats `write` until MLflow accepts it or time.monotonic() reaches `until`."""
    while True:
        try:
            return write()
        except NightlyError:
            if time.monotonic() > until:
                raise
        time.sleep(RETRY_SECONDS)


@task(name="log-to-mlflow", task_run_name="log to MLflow", cache_policy=NO_CACHE)
def catch_up(night: Night, state: NightState, done: Done | None) -> Done:
    """Logs the baseline and each applied trial that is not `done`; finished runs are left alone."""
    return log_missing(night, state, done)


def log_missing(night: Night, state: NightState, done: Done | None) -> Done:
    """`catch_up` without Prefect."""
    store = _store(night)
    if done is None:
        mlflow_client.make_if_missing(store.uri)
        tracking.log_baseline(store, state, night.baseline.runs)
        done = tracking.finished_trials(store, state)
    missing = [trial for trial in state.trials if trial.number not in done]
    asked = any(trial.usage.calls for trial in missing)
    calls = _calls(night, {trial.number for trial in missing}) if asked else ()
    for trial in missing:
        folder = night.trial_folder(trial.number)
        runs = trial_folder.read_runs(folder)
        its_calls = [call for call in calls if call.trial == trial.number]
        tracking.log_trial(store, state, trial, runs, folder, its_calls)
    return done | {trial.number for trial in state.trials}


@task(
    name="finish-night-in-mlflow",
    task_run_name="finish the night in MLflow",
    cache_policy=NO_CACHE,
)
def finish_night(night: Night, state: NightState) -> None:
    """Logs the report, the chart, the table and the calls of no trial, and ends the night's run."""
    unused = _calls(night, {0, len(state.trials) + 1})  # pings, and a proposal that was not run
    tracking.finish_night(_store(night), state, night.folder, unused)


def _store(night: Night) -> mlflow_client.Store:
    home = night.bench.home
    return mlflow_client.Store(state_home.mlflow_uri(home), home / "mlartifacts")


def _calls(night: Night, trials: set[int]) -> tuple[Call, ...]:
    return llm_calls.read(night.folder / night_folder.CALLS, trials)
