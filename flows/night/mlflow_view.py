"""MLflow's view of a night, written in a thread so that a slow store delays no trial.

What MLflow has missed is written as soon as it answers again, at the night's end, or by
`./run rebuild`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from flows import state_home
from flows.night.night import Night
from tasks import addresses
from tasks.cache import unscanned
from tasks.errors import NightlyError
from tasks.history import llm_calls, night_folder, trial_folder
from tasks.records import Baseline, NightState, RunResult, Trial
from tasks.usage import Call
from tasks.views import mlflow_client, mlflow_tags, refusals, tracking

# Seconds that the night waits for MLflow: after a trial, at its end for a slow store, and at its
# end for a store that is down and may be coming back.
PATIENCE = 5.0
LAST_PATIENCE = 120.0
BACK_SECONDS = 60.0
STOP_SECONDS = 10.0  # at an unexpected end
RETRY_SECONDS = 3.0

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Logged:
    """What MLflow has of a night's runs, by their tag `trial_id`."""

    done: frozenset[str]
    refused: Mapping[str, str]  # with MLflow's reason


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
        self._logged: Logged | None = None
        self._said: set[str] = set()  # refused runs that are in the log
        self._job: PrefectFuture[Logged] | None = None
        self._since = 0.0  # time.monotonic() at which the job was begun

    def follow(self, state: NightState, patience: float) -> None:
        """Writes what MLflow lacks, and waits `patience` seconds for it.

        Raises Unfinished while it goes on, NightlyError if it failed, for whatever reason, or has
        taken longer than LAST_PATIENCE. While it goes on after an attempt that failed, raises what
        that one did: a server that hangs is slower to fail than anybody waits.
        """
        failed: NightlyError | None = None
        try:
            self._collect(0.0)  # of a job for an earlier state
        except Unfinished:
            pass
        except NightlyError as error:
            failed = error
        if self._job is None:
            self._since = time.monotonic()
            self._job = catch_up.submit(
                unscanned(self._night), unscanned(state), unscanned(self._logged)
            )
        try:
            self._collect(patience)
        except Unfinished as unfinished:
            raise failed or unfinished from None

    def _collect(self, patience: float) -> None:
        if self._job is None:
            return
        try:
            self._logged = _result(self._job, patience)
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
        refused = self._logged.refused
        if new := {run: why for run, why in refused.items() if run not in self._said}:
            get_run_logger().warning(refusals.message(self._night.tag, new))
        self._said |= new.keys()

    def finish(self, state: NightState, before_end: Callable[[], None]) -> None:
        """Writes everything, what MLflow refused as well, and the night's own files.

        `before_end` is called once it is known what MLflow lacks. Raises NightlyError like
        `follow`.
        """
        until = time.monotonic() + BACK_SECONDS
        if self._job is not None:  # of an earlier state
            _retry(lambda: self.follow(state, LAST_PATIENCE), until)
        if self._logged:
            self._logged = Logged(self._logged.done, {})
        _retry(lambda: self.follow(state, LAST_PATIENCE), until)
        before_end()
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
def catch_up(night: Night, state: NightState, known: Logged | None) -> Logged:
    """Logs all runs, of baseline, trials and fresh ones, that MLflow lacks and has not refused."""
    return log_missing(night, state, known)


def log_missing(night: Night, state: NightState, known: Logged | None) -> Logged:
    """`catch_up` without Prefect.

    A run that cannot be logged while the night's own can is refused: the others go on without it.
    """
    store = _store(night.bench.home)
    if known is None:
        mlflow_client.make_if_missing(store.uri)
        known = Logged(tracking.finished_runs(store, state), {})
    done, refused = set(known.done), dict(known.refused)
    for trial_id, log in _missing(night, store, state, done | refused.keys()):
        try:
            log()
        except NightlyError as error:
            tracking.log_progress(store, state)  # raises if MLflow takes nothing at all
            refused[trial_id] = str(error)
        else:
            done.add(trial_id)
    refusals.write(night.folder, refused)
    return Logged(frozenset(done), refused)


def _missing(
    night: Night, store: mlflow_client.Store, state: NightState, known: set[str]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """The `trial_id` of the runs that are not `known`, each with what logs it."""
    # On other hardware the baseline at hand is the ledger's only once the champion is measured too.
    is_known = state.baseline is None or state.baseline.hardware == night.baseline.hardware
    for run in night.baseline.runs if is_known else ():
        if (trial_id := mlflow_tags.baseline_id(state, run)) not in known:
            log_run = functools.partial(tracking.log_baseline_run, store, state, night.base, run)
            yield trial_id, log_run
    for index, fresh in enumerate(state.all_fresh_runs):
        if fresh.purpose == "remeasurement":  # of a score that is not complete yet
            continue
        if (trial_id := mlflow_tags.fresh_id(state, index)) not in known:
            yield trial_id, functools.partial(tracking.log_fresh_run, store, state, index)
    ids = {trial.number: mlflow_tags.trial_id(state, trial) for trial in state.trials}
    missing = [trial for trial in state.trials if ids[trial.number] not in known]
    asked = any(trial.usage.calls for trial in missing)
    calls = _calls(night, {trial.number for trial in missing}) if asked else ()
    for trial in missing:
        its_calls = [call for call in calls if call.trial == trial.number]
        log = functools.partial(_log_trial, night, store, state, trial, its_calls)
        yield ids[trial.number], log


def _log_trial(
    night: Night, store: mlflow_client.Store, state: NightState, trial: Trial, calls: list[Call]
) -> None:
    folder = night.trial_folder(trial.number)
    runs = [_charted(run, night.baseline) for run in trial_folder.read_runs(folder)]
    tracking.log_trial(store, state, trial, runs, folder, calls)


def _charted(run: RunResult, baseline: Baseline) -> RunResult:
    """The run with those of its own figures that the baseline reports too.

    Each name is a chart on MLflow's page, where a figure of one trial alone compares nothing.
    """
    known = {name for other in baseline.runs for name in other.metrics}
    metrics = {name: value for name, value in run.metrics.items() if name in known}
    return dataclasses.replace(run, metrics=metrics)


@task(
    name="finish-night-in-mlflow",
    task_run_name="finish the night in MLflow",
    cache_policy=NO_CACHE,
)
def finish_night(night: Night, state: NightState) -> None:
    """Logs the report, the chart, the table and the calls of no trial, and ends the night's run."""
    unused = _calls(night, {0, len(state.trials) + 1})  # pings, and a proposal that was not run
    tracking.finish_night(_store(night.bench.home), state, night.folder, unused)


def stop(folder: Path, state: NightState) -> None:
    """Ends the night's run in MLflow after an unexpected end, if it is there.

    Waits STOP_SECONDS at most, as whoever sent a SIGTERM may send SIGKILL soon. Raises NightlyError
    if that failed; a resumed or rebuilt night then finds its run again.
    """
    store = _store(folder.parent.parent)
    if addresses.is_sqlite(store.uri) and not addresses.sqlite_path(store.uri).exists():
        return
    failures: queue.SimpleQueue[NightlyError | None] = queue.SimpleQueue()

    def write() -> None:
        try:
            tracking.stop_night(store, state)
            failures.put(None)
        except NightlyError as error:
            failures.put(error)

    threading.Thread(target=write, name="stop-night-in-mlflow", daemon=True).start()
    try:
        failure = failures.get(timeout=STOP_SECONDS)
    except queue.Empty:
        raise NightlyError(
            f"MLflow did not record the night's end within {STOP_SECONDS:.0f} s"
        ) from None
    if failure:
        raise failure


def _store(home: Path) -> mlflow_client.Store:
    return mlflow_client.Store(state_home.mlflow_uri(home), home / "mlartifacts")


def _calls(night: Night, trials: set[int]) -> tuple[Call, ...]:
    return llm_calls.read(night.folder / night_folder.CALLS, trials)
