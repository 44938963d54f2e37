"""MLflow's view of a night: a parent run, and below it a run for each baseline seed and each trial.

Written from the ledger's state, the runs and the trial's folder, so it can be written again: a run
is found by its tag `trial_id`, then completed or left alone, never doubled. Functions raise
NightlyError if MLflow fails: by then ledger and git have the trial, so the night logs a warning and
calls again later.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from tasks import addresses
from tasks.records import NightState, RunResult, Trial
from tasks.usage import Call, Usage, total
from tasks.views.mlflow_client import Store, connect, plain
from tasks.views.mlflow_tags import night_tags, trial_tags
from tasks.views.tracing import log_calls

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

# MLflow's limits; "words" are parameters and tags.
METRICS_A_BATCH = 1000
WORDS_A_BATCH = 100
LONGEST_KEY = 250
LONGEST_NAME = 200  # ours
RUNS_A_PAGE = 1000
NIGHT_FILES = ("report.md", "progress.png", "results.tsv")
# Figures of a run of which a trial shows the mean.
MEASURED = (
    *("seconds", "cpu_seconds", "tokens", "startup_seconds", "startup_gpu_seconds"),
    "audit_gap",
)


def log_baseline(store: Store, state: NightState, runs: Sequence[RunResult]) -> None:
    """A child run for each run of the baseline, named by its seed."""
    with connect(store.uri) as client:
        night = _night(client, store, state)
        for run in runs:
            tags = {"trial_id": f"{state.header.tag}:baseline:{run.seed}", "status": run.status}
            child = _child(client, night, f"baseline seed {run.seed}", tags, [run])
            if child.info.status == "RUNNING":
                figures = _figures(child, [run], {"val_bpb": run.val_bpb})
                _log(client, child, [*figures, *_curves(child, [run])], {}, {})
                _end(client, child, run.status == "ok")


def log_trial(
    store: Store,
    state: NightState,
    trial: Trial,
    runs: Sequence[RunResult],
    folder: Path,
    calls: Sequence[Call] = (),
) -> str:
    """A child run for an applied trial; returns its id.

    Every file of `folder` becomes an artifact, every call a trace. A finished run is left as it is;
    one that a kill left half-written is completed.
    """
    with connect(store.uri) as client:
        night = _night(client, store, state)
        name = f"{trial.number} {trial.idea.summary}"
        child = _child(client, night, name, trial_tags(state, trial), runs)
        if child.info.status == "RUNNING":
            known = {"val_bpb": trial.val_bpb, "z": trial.z, **_spending(trial.usage)}
            points = [*_figures(child, runs, known), *_curves(child, runs)]
            _log(client, child, points, trial.knobs, {})
            if folder.is_dir():
                client.log_artifacts(child.info.run_id, str(folder))
            _log_calls(store, child, state, calls)
            progress = [point for point in _progress(night, state) if point.step == trial.number]
            _update_night(client, night, state, progress)
            _end(client, child, trial.status == "ok")
        return str(child.info.run_id)


def finished_trials(store: Store, state: NightState) -> frozenset[int]:
    """Numbers of the trials whose runs are complete in MLflow."""
    found: list[Run] = []
    with connect(store.uri) as client:
        night = _night(client, store, state).info
        query = f"tags.`mlflow.parentRunId` = '{night.run_id}' and attributes.status != 'RUNNING'"
        token: str | None = ""  # of the first page
        while token is not None:
            page = client.search_runs(
                [night.experiment_id], query, max_results=RUNS_A_PAGE, page_token=token or None
            )
            found += page
            token = page.token or None
    # A person may have put a run there: without our tag, or with another text in it.
    ids = (run.data.tags.get("trial_id", "").removeprefix(f"{state.header.tag}:") for run in found)
    return frozenset(int(number) for number in ids if number.isdecimal())


def finish_night(store: Store, state: NightState, folder: Path, calls: Sequence[Call] = ()) -> None:
    """Ends the night's run, with the files of `folder` for people and the calls of no trial."""
    with connect(store.uri) as client:
        night = _night(client, store, state)
        _update_night(client, night, state, _progress(night, state))
        for path in filter(Path.is_file, (folder / name for name in NIGHT_FILES)):
            client.log_artifact(night.info.run_id, str(path))
        _log_calls(store, night, state, calls)
        unfinished = "FAILED" if state.failed else "KILLED"
        client.set_terminated(night.info.run_id, "FINISHED" if state.finished else unfinished)


def _end(client: MlflowClient, run: Run, is_ok: bool) -> None:
    client.set_terminated(run.info.run_id, "FINISHED" if is_ok else "FAILED")


def _log_calls(store: Store, run: Run, state: NightState, calls: Sequence[Call]) -> None:
    night = f"{state.header.tag}:{state.header.began}"  # another machine's may have the same tag
    log_calls(store.uri, run.info.run_id, run.info.experiment_id, night, calls)


def _experiment(client: MlflowClient, store: Store, state: NightState) -> str:
    name = f"nightly-research/{PurePath(state.header.profile).name.removesuffix('.toml')}"
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server has a place of its own for artifacts.
        is_local = addresses.is_sqlite(store.uri)
        location = addresses.of_file(store.artifacts / name) if is_local else None
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return str(client.create_experiment(name, location, kind))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _night(client: MlflowClient, store: Store, state: NightState) -> Run:
    """The parent run, found by tag and start time; made if need be."""
    experiment = _experiment(client, store, state)
    tags = {"night": state.header.tag, "night_started": state.header.began}
    query = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
    if found := client.search_runs([experiment], query, max_results=1):
        if found[0].info.status != "RUNNING" and not (state.finished or state.stopped):
            client.update_run(found[0].info.run_id, "RUNNING")  # a resumed night
        return found[0]
    run = client.create_run(experiment, run_name=tags["night"], tags=tags)
    _update_night(client, run, state, _progress(run, state))
    return run


def _update_night(
    client: MlflowClient, night: Run, state: NightState, points: Sequence[Metric]
) -> None:
    """What changes in the parent run with each trial, and `points` of its curves."""
    params = {name: getattr(state.header, name) for name in ("profile", "seed", "proposer")}
    sd = state.baseline.sd if state.baseline else None
    _log(client, night, points, {**params, "baseline_sd": sd}, night_tags(state))


def _progress(night: Run, state: NightState) -> list[Metric]:
    """The champion's score and the costs, as curves by trial number.

    A point has the same timestamp whenever it is made, so that MLflow stores it once.
    """
    if state.baseline is None:
        return []
    start = night.info.start_time
    champion = state.baseline.val_bpb
    kept = 0
    spent = Usage()
    points = [_metric("baseline_bpb", champion, start), _metric("champion_bpb", champion, start)]
    for trial in state.trials:
        if trial.verdict == "keep" and trial.val_bpb is not None:
            champion = trial.val_bpb
            kept += 1
        spent = total([spent, trial.usage])
        named = {"champion_bpb": champion, "kept": kept, "trials": trial.number, **_spending(spent)}
        points += [
            _metric(name, value, start + trial.number, trial.number)
            for name, value in named.items()
        ]
    return points


def _child(
    client: MlflowClient, night: Run, name: str, tags: Mapping[str, str], runs: Sequence[RunResult]
) -> Run:
    """The night's run with this tag `trial_id`; made if need be."""
    parent, experiment = night.info.run_id, night.info.experiment_id
    query = f"tags.trial_id = '{tags['trial_id']}' and tags.`mlflow.parentRunId` = '{parent}'"
    if found := client.search_runs([experiment], query, max_results=1):
        return found[0]
    took = sum((run.startup_seconds or 0.0) + (run.seconds or 0.0) for run in runs)
    began = int((time.time() - took) * 1000)  # so that the page shows the trial's duration
    clean = {key: plain(value) for key, value in {**tags, "mlflow.parentRunId": parent}.items()}
    return client.create_run(experiment, began, clean, plain(name)[:LONGEST_NAME])


def _figures(
    child: Run, runs: Sequence[RunResult], known: Mapping[str, float | None]
) -> list[Metric]:
    """What is `known`, means over the runs, each seed's score, and what the candidate reported."""
    peaks = (run.peak_memory_bytes for run in runs)
    values = {
        **known,
        **{name: _mean(getattr(run, name) for run in runs) for name in MEASURED},
        "peak_memory_gib": _mean(peak / 2**30 if peak else None for peak in peaks),
    }
    if len(runs) > 1:
        values |= {f"val_bpb_seed_{run.seed}": run.val_bpb for run in runs}
    for run in runs[:1]:
        reported = {name.replace("/", "_"): value for name, value in run.metrics.items()}
        values |= {f"self_reported/{name}": value for name, value in reported.items()}
    start = child.info.start_time
    return [_metric(name, value, start) for name, value in values.items() if value is not None]


def _curves(child: Run, runs: Sequence[RunResult]) -> list[Metric]:
    """Training loss in nats by step: `train_loss`, and `train_loss_seed_N` for a second run."""
    points = []
    start = child.info.start_time
    for i, run in enumerate(runs):
        name = f"train_loss_seed_{run.seed}" if i else "train_loss"
        by_step = {step: loss for step, _, loss in run.curve}
        pace = 1000.0 * (run.seconds or 0.0) / max(len(by_step), 1)  # milliseconds a point
        points += [
            _metric(name, loss, start + int(j * pace), step)
            for j, (step, loss) in enumerate(by_step.items())
        ]
    return points


def _spending(usage: Usage) -> dict[str, float]:
    """Empty if no model was asked; without dollars if a price is unknown."""
    if not usage.calls:
        return {}
    counts: dict[str, float] = {
        "llm_calls": usage.calls,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }
    return counts if usage.dollars is None else {**counts, "dollars": usage.dollars}


def _metric(name: str, value: float, timestamp: int, step: int = 0) -> Metric:
    from mlflow.entities import Metric

    return Metric(name, value, timestamp, step)


def _log(
    client: MlflowClient,
    run: Run,
    metrics: Sequence[Metric],
    params: Mapping[str, object],
    tags: Mapping[str, object],
) -> None:
    """Logs in batches, what is None left out.

    A value logged again with its timestamp and step adds no second point, nor does an equal
    parameter.
    """
    from mlflow.entities import Param, RunTag

    known = [
        (name[:LONGEST_KEY], plain(value)) for name, value in params.items() if value is not None
    ]
    marks = [RunTag(name, plain(value)) for name, value in tags.items() if value is not None]
    for i in range(0, max(len(known), len(marks)), WORDS_A_BATCH):
        part = slice(i, i + WORDS_A_BATCH)
        named = [Param(*pair) for pair in known[part]]
        client.log_batch(run.info.run_id, params=named, tags=marks[part])
    for i in range(0, len(metrics), METRICS_A_BATCH):
        client.log_batch(run.info.run_id, metrics=metrics[i : i + METRICS_A_BATCH])


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
