"""MLflow follows the night: written from a thread of its own, so that a store that is slow, full or down delays no trial long.

What MLflow has missed is written as soon as it answers again, at the night's end, or by `./run rebuild`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

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

PATIENCE = 5.0  # seconds that a trial waits for MLflow
LAST_PATIENCE = 120.0  # and the night's end, for one that answers slowly
BACK_SECONDS = 60.0  # and for one that is down: it may be on its way back
ASK_SECONDS = 3.0

Done = frozenset[int]


class MlflowView:
    """What MLflow has of one night, as far as this process knows, and the one job that may be writing to it."""

    def __init__(self, night: Night) -> None:
        self._night = night
        self._done: Done | None = None
        self._job: PrefectFuture[Done] | None = None

    def follow(self, state: NightState, patience: float = PATIENCE) -> None:
        """Writes what MLflow has not, and waits `patience` seconds for it. Raises NightlyError when it was not taken."""
        with contextlib.suppress(NightlyError):
            self._collect(
                0.0
            )  # a job of an earlier state: what it met is over, or it is still at it
        if self._job is None:
            self._job = catch_up.submit(
                unscanned(self._night), unscanned(state), unscanned(self._done)
            )
        self._collect(patience)

    def _collect(self, patience: float) -> None:
        if self._job is None:
            return
        try:
            self._done = self._job.result(timeout=patience)
        except TimeoutError:
            raise NightlyError(
                f"MLflow is not done after {patience:.0f} s; the night goes on meanwhile"
            ) from None
        except BaseException:
            self._job = None
            raise
        self._job = None

    def finish(self, state: NightState) -> None:
        """Everything, and the night's own files. Raises NightlyError when MLflow did not take it."""
        until = time.monotonic() + BACK_SECONDS
        if self._job is not None:
            _until_taken(
                lambda: self.follow(state, LAST_PATIENCE), until
            )  # a job of an earlier state
        _until_taken(lambda: self.follow(state, LAST_PATIENCE), until)
        _until_taken(lambda: self._end(state), until)

    def _end(self, state: NightState) -> None:
        try:
            finish_night.submit(unscanned(self._night), unscanned(state)).result(
                timeout=LAST_PATIENCE
            )
        except TimeoutError:
            raise NightlyError(
                f"MLflow did not take the night's end within {LAST_PATIENCE:.0f} s"
            ) from None


def _until_taken(write: Callable[[], None], until: float) -> None:
    """Writes again and again until MLflow takes it or the time is over, which is the time of `time.monotonic()`."""
    while True:
        try:
            return write()
        except NightlyError:
            if time.monotonic() > until:
                raise
        time.sleep(ASK_SECONDS)


@task(name="log-to-mlflow", cache_policy=NO_CACHE)
def catch_up(night: Night, state: NightState, done: Done | None) -> Done:
    """The baseline and each applied trial that is not `done`; a run that is there and finished is left as it is."""
    uri, artifacts = state_home.mlflow_uri(night.home), night.home / "mlartifacts"
    if done is None:
        mlflow_client.make_if_missing(uri)
        tracking.log_baseline(uri, artifacts, state, night.baseline.runs)
        done = tracking.finished_trials(uri, artifacts, state)
    missing = [trial for trial in state.trials if trial.number not in done]
    calls = (
        _calls(night, {trial.number for trial in missing})
        if any(trial.usage.calls for trial in missing)
        else ()
    )
    for trial in missing:
        folder = night.folder / "trials" / str(trial.number)
        its_calls = [call for call in calls if call.trial == trial.number]
        tracking.log_trial(
            uri, artifacts, state, trial, trial_folder.read_runs(folder), folder, its_calls
        )
    return done | {trial.number for trial in state.trials}


@task(name="finish-night-in-mlflow", cache_policy=NO_CACHE)
def finish_night(night: Night, state: NightState) -> None:
    """The report, the chart and the table, the calls that came to no trial, and the end of the night's run."""
    uri, artifacts = state_home.mlflow_uri(night.home), night.home / "mlartifacts"
    others = _calls(night, {0, len(state.trials) + 1})  # pings, and a proposal that nobody ran
    tracking.finish_night(uri, artifacts, state, night.folder, others)


def _calls(night: Night, trials: set[int]) -> tuple[Call, ...]:
    return llm_calls.read(night.folder / night_folder.CALLS, trials)
