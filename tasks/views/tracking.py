"""MLflow as a view of the night: a parent run, below it one run for each baseline seed and each trial.

Written from the ledger's state, the runs and the trial's folder, so it can be written again: a run is found by its tag
`trial_id` and finished or left alone, never doubled. Functions raise NightlyError when MLflow does not take it: the trial
is in the ledger and in git by then, so the flow warns, goes on, and calls again for all trials at the end.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from tasks.records import NightState, RunResult, Trial
from tasks.usage import Call, Usage, total
from tasks.views import costs
from tasks.views.mlflow_client import plain, speaking_to
from tasks.views.mlflow_words import night_words, trial_words
from tasks.views.tracing import log_calls

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

METRICS_A_BATCH, WORDS_A_BATCH, LONGEST_KEY = (
    1000,
    100,
    250,
)  # MLflow's; words are parameters and tags
LONGEST_NAME = 200  # ours
NIGHT_FILES = ("report.md", "progress.png", "results.tsv")


def log_baseline(uri: str, artifacts: Path, state: NightState, runs: Sequence[RunResult]) -> None:
    """A child run for each run of the baseline, named by its seed."""
    with speaking_to(uri) as client:
        night = _night(client, uri, artifacts, state)
        for run in runs:
            tags = {"trial_id": f"{state.header.tag}:baseline:{run.seed}", "status": run.status}
            child = _child(client, night, f"baseline seed {run.seed}", tags, [run])
            if child.info.status == "RUNNING":
                figures = _figures(child, [run], {"val_bpb": run.val_bpb})
                _log(client, child, [*figures, *_curves(child, [run])], {}, {})
                client.set_terminated(
                    child.info.run_id, "FINISHED" if run.status == "ok" else "FAILED"
                )


def log_trial(
    uri: str,
    artifacts: Path,
    state: NightState,
    trial: Trial,
    runs: Sequence[RunResult],
    folder: Path,
    calls: Sequence[Call] = (),
) -> str:
    """A child run for an applied trial, with every file of `folder` as an artifact and its calls as traces; returns its id.

    A run that is there and finished is left as it is; one that a kill left half-written is completed.
    """
    with speaking_to(uri) as client:
        night = _night(client, uri, artifacts, state)
        child = _child(
            client, night, f"{trial.number} {trial.idea.summary}", trial_words(state, trial), runs
        )
        if child.info.status == "RUNNING":
            figures = _figures(
                child, runs, {"val_bpb": trial.val_bpb, "z": trial.z, **_spending(trial.usage)}
            )
            _log(client, child, [*figures, *_curves(child, runs)], trial.knobs, {})
            if folder.is_dir():
                client.log_artifacts(child.info.run_id, str(folder))
            log_calls(uri, child.info.run_id, child.info.experiment_id, _began(state), calls)
            points = [point for point in _progress(night, state) if point.step == trial.number]
            _bring_up_to_date(client, night, state, points)
            client.set_terminated(
                child.info.run_id, "FINISHED" if trial.status == "ok" else "FAILED"
            )
        return str(child.info.run_id)


def finished_trials(uri: str, artifacts: Path, state: NightState) -> frozenset[int]:
    """Numbers of the trials whose runs are complete in MLflow already."""
    found: list[Run] = []
    with speaking_to(uri) as client:
        night = _night(client, uri, artifacts, state)
        query = (
            f"tags.`mlflow.parentRunId` = '{night.info.run_id}' and attributes.status != 'RUNNING'"
        )
        token: str | None = ""  # of the first page
        while token is not None:
            page = client.search_runs(
                [night.info.experiment_id], query, max_results=1000, page_token=token or None
            )
            found, token = [*found, *page], page.token or None
    ids = (run.data.tags.get("trial_id", "").removeprefix(f"{state.header.tag}:") for run in found)
    return frozenset(int(number) for number in ids if number.isdecimal())


def finish_night(
    uri: str, artifacts: Path, state: NightState, folder: Path, calls: Sequence[Call] = ()
) -> None:
    """Adds the report, the chart and the table of `folder` to the night's run, and the calls of no trial, and ends it."""
    with speaking_to(uri) as client:
        night = _night(client, uri, artifacts, state)
        run_id = night.info.run_id
        _bring_up_to_date(client, night, state, _progress(night, state))
        for path in filter(Path.is_file, (folder / name for name in NIGHT_FILES)):
            client.log_artifact(run_id, str(path))
        log_calls(uri, run_id, night.info.experiment_id, _began(state), calls)
        client.set_terminated(
            run_id, "FINISHED" if state.finished else "FAILED" if state.failed else "KILLED"
        )


def _began(state: NightState) -> str:
    """What no other night has."""
    return f"{state.header.tag}:{state.header.began}"


def _experiment(client: MlflowClient, uri: str, artifacts: Path, state: NightState) -> str:
    name = f"nightly-research/{PurePath(state.header.profile).name.removesuffix('.toml')}"
    found = client.get_experiment_by_name(name)
    if found is None:
        ours = uri.startswith(
            "sqlite:"
        )  # a server of the user's has a place for artifacts of its own
        location = (artifacts.resolve() / name).as_uri() if ours else None
        return str(
            client.create_experiment(
                name, location, {"mlflow.experimentKind": "custom_model_development"}
            )
        )
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _night(client: MlflowClient, uri: str, artifacts: Path, state: NightState) -> Run:
    """The parent run: found by tag and start time, since another machine's night may have the same tag."""
    experiment = _experiment(client, uri, artifacts, state)
    tags = {"night": state.header.tag, "night_started": state.header.began}
    query = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
    if found := client.search_runs([experiment], query, max_results=1):
        if found[0].info.status != "RUNNING" and not (state.finished or state.stopped):
            client.update_run(found[0].info.run_id, "RUNNING")  # a night that goes on
        return found[0]
    run = client.create_run(experiment, run_name=tags["night"], tags=tags)
    _bring_up_to_date(client, run, state, _progress(run, state))
    return run


def _bring_up_to_date(
    client: MlflowClient, night: Run, state: NightState, points: Sequence[Metric]
) -> None:
    """What of the parent run changes with each trial, and `points` of its curves."""
    params = {name: getattr(state.header, name) for name in ("profile", "seed", "proposer")}
    sd = state.baseline.sd if state.baseline else None
    _log(client, night, points, {**params, "baseline_sd": sd}, night_words(state))


def _progress(night: Run, state: NightState) -> list[Metric]:
    """The champion's score and what was spent, as curves by trial number; the same points however often they are made."""
    if state.baseline is None:
        return []
    champion, kept, spent, start = (
        state.baseline.val_bpb,
        0,
        Usage(),
        night.info.start_time,
    )
    points = [_metric("baseline_bpb", champion, start), _metric("champion_bpb", champion, start)]
    for trial in state.trials:
        if trial.verdict == "keep" and trial.val_bpb is not None:
            champion, kept = trial.val_bpb, kept + 1
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
    parent, experiment = night.info.run_id, night.info.experiment_id
    query = f"tags.trial_id = '{tags['trial_id']}' and tags.`mlflow.parentRunId` = '{parent}'"
    if found := client.search_runs([experiment], query, max_results=1):
        return found[0]
    took = sum((run.startup_seconds or 0.0) + (run.seconds or 0.0) for run in runs)
    began = int((time.time() - took) * 1000)  # so that the page's duration is the trial's
    clean = {key: plain(value) for key, value in {**tags, "mlflow.parentRunId": parent}.items()}
    return client.create_run(experiment, began, clean, plain(name)[:LONGEST_NAME])


def _figures(
    child: Run, runs: Sequence[RunResult], known: Mapping[str, float | None]
) -> list[Metric]:
    """What is known, the means of what the judge measured, each seed's score, and, named so, what the candidate said."""
    measured = (
        "seconds",
        "cpu_seconds",
        "tokens",
        "startup_seconds",
        "startup_gpu_seconds",
        "audit_gap",
    )
    means = {
        **known,
        **{name: _mean(getattr(run, name) for run in runs) for name in measured},
        "peak_memory_gib": _mean(
            run.peak_memory_bytes and run.peak_memory_bytes / 2**30 for run in runs
        ),
    }
    means |= {f"val_bpb_seed_{run.seed}": run.val_bpb for run in runs if len(runs) > 1}
    means |= {
        f"self_reported/{name.replace('/', '_')}": value
        for run in runs[:1]
        for name, value in run.metrics.items()
    }
    return [
        _metric(name, value, child.info.start_time)
        for name, value in means.items()
        if value is not None
    ]


def _curves(child: Run, runs: Sequence[RunResult]) -> list[Metric]:
    """Training loss in nats by step: `train_loss`, and `train_loss_seed_N` for a repeat."""
    points = []
    for i, run in enumerate(runs):
        name = f"train_loss_seed_{run.seed}" if i else "train_loss"
        by_step = {step: loss for step, _, loss in run.curve}
        pace = 1000.0 * (run.seconds or 0.0) / max(len(by_step), 1)
        start = child.info.start_time
        points += [
            _metric(name, loss, start + int(j * pace), step)
            for j, (step, loss) in enumerate(by_step.items())
        ]
    return points


def _spending(usage: Usage) -> dict[str, float]:
    """Empty where no model was asked; without dollars where a price is unknown."""
    if not usage.calls:
        return {}
    tokens = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    return {
        "llm_calls": usage.calls,
        **tokens,
        **({} if usage.dollars is None else {"dollars": usage.dollars}),
    }


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
    """In batches. A value with the timestamp and step that it had before is no second point, nor an equal parameter."""
    from mlflow.entities import Param, RunTag

    named = [
        Param(name[:LONGEST_KEY], plain(value))
        for name, value in params.items()
        if value is not None
    ]
    marks = [RunTag(name, plain(value)) for name, value in tags.items() if value is not None]
    for i in range(0, max(len(named), len(marks)), WORDS_A_BATCH):
        part = slice(i, i + WORDS_A_BATCH)
        client.log_batch(run.info.run_id, params=named[part], tags=marks[part])
    for i in range(0, len(metrics), METRICS_A_BATCH):
        client.log_batch(run.info.run_id, metrics=metrics[i : i + METRICS_A_BATCH])


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
