"""MLflow's view of a night: a parent run, and below it a run for each baseline seed and each trial.

Written from the ledger's state, the runs and the trial's folder, so it can be written again: a run
is found by its tag `trial_id`, then completed or left alone, never doubled. Functions raise
NightlyError if MLflow fails: by then ledger and git have the trial, so the night logs a warning and
calls again later.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from tasks import addresses
from tasks.history import trial_folder
from tasks.records import Candidate, NightState, RunResult, Trial
from tasks.text import one_line, shortened
from tasks.usage import Call, Usage, total
from tasks.views import fresh_scores, margin, mlflow_page, mlflow_tags, report
from tasks.views.mlflow_client import Store, connect, plain
from tasks.views.mlflow_tags import baseline_tags, night_tags, trial_tags
from tasks.views.tracing import log_calls

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

# MLflow's limits; "words" are parameters and tags.
METRICS_A_BATCH = 1000
WORDS_A_BATCH = 100
LONGEST_NAME = 200  # of a run; ours
LONGEST_PARAMETER = 500  # ours: MLflow's server takes 1 MB a batch, where a character may be six
RUNS_A_PAGE = 1000
SHOWN_DIGITS = 9  # of a mean
ENDED = "ended"  # tag of the night's run: the ledger's last event when that run was ended
NIGHT_FILES = (report.FILE, report.PICTURE, "results.tsv")
# Figures of a run of which a trial shows the mean.
MEASURED = (
    *("seconds", "cpu_seconds", "tokens", "startup_seconds", "startup_gpu_seconds"),
    *("audit_gap", "parameters"),
)
PLAIN = str.maketrans(" ", "_", "()")  # a reason as a part of a metric's name
# Of the machine while a run trained: means over the runs.
CONDITIONS = {
    "steps": "steps",
    "cpu_waited_seconds": "cpu_waited",
    "cpu_others_seconds": "cpu_others",
    "cpu_stolen_seconds": "cpu_stolen",
    "sm_clock_mhz": "sm_clock",
    "lowest_sm_clock_mhz": "lowest_sm_clock",
    "gpu_others": "gpu_others",
}
SIZES = {  # in MLflow: the figure in bytes, and the unit that it is shown in
    "peak_memory_gib": ("peak_memory_bytes", 2**30),
    "peak_gpu_gib": ("peak_gpu_bytes", 2**30),
    "checkpoint_mib": ("checkpoint_bytes", 2**20),
}


def log_baseline_run(store: Store, state: NightState, base: Candidate, run: RunResult) -> None:
    """A child run for one run of the baseline, which trained `base`; named by its seed."""
    with connect(store.uri) as client, tempfile.TemporaryDirectory() as made:
        night = _night(client, store, state)
        child = _child(client, night, f"baseline seed {run.seed}", baseline_tags(state, run), [run])
        if child.info.status == "RUNNING":
            figures = _figures(child, [run], {"val_bpb": run.val_bpb})
            _log(client, child, [*figures, *_curves(child, [run])], base.knobs, {})
            folder = Path(made)
            trial_folder.write_baseline_run(folder, base.source, run)
            _upload(client, child, folder)
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
        child = _child(client, night, _name(trial), trial_tags(state, trial), runs)
        if child.info.status == "RUNNING":
            known = {"val_bpb": trial.val_bpb, "z": trial.z, **_spending(trial.usage)}
            again = zip(trial.champion_seeds, trial.champion_scores, strict=True)
            known |= {f"champion_bpb_seed_{seed}": score for seed, score in again}
            points = [*_figures(child, runs, known), *_curves(child, runs)]
            _log(client, child, points, trial.knobs, {})
            if folder.is_dir():
                _upload(client, child, folder)
            _log_calls(store, child, state, calls)
            progress = [point for point in _progress(night, state) if point.step == trial.number]
            _update_night(client, night, state, progress)
            _end(client, child, trial.status == "ok")
        return str(child.info.run_id)


def log_progress(store: Store, state: NightState) -> None:
    """The night's own run alone, with nothing in it that a candidate wrote."""
    with connect(store.uri) as client:
        night = _night(client, store, state)
        _update_night(client, night, state, _progress(night, state))


def log_fresh_run(store: Store, state: NightState, index: int) -> None:
    """A child run for a run apart from the trials: `index` is its place among all of them."""
    run = state.all_fresh_runs[index]
    with connect(store.uri) as client:
        night = _night(client, store, state)
        name = f"{mlflow_tags.fresh_file(state, run)}, fresh seed {run.seed}"
        child = _child(client, night, name, mlflow_tags.fresh_tags(state, index), [])
        if child.info.status == "RUNNING":
            names = ("val_bpb", "holdout_bpb", "wall_seconds")
            _log(client, child, _figures(child, [], {n: getattr(run, n) for n in names}), {}, {})
            _update_night(client, night, state, _fresh_points(night.info.start_time, state))
            _end(client, child, run.status == "ok")


def finished_runs(store: Store, state: NightState) -> frozenset[str]:
    """The tags `trial_id` of the runs that are complete in MLflow."""
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
    # A person may have put a run there, without our tag.
    return frozenset(run.data.tags.get("trial_id", "") for run in found)


def finish_night(store: Store, state: NightState, folder: Path, calls: Sequence[Call] = ()) -> None:
    """Ends the night's run, with the files of `folder` for people and the calls of no trial."""
    with connect(store.uri) as client:
        night = _night(client, store, state)
        _update_night(client, night, state, _progress(night, state))
        for path in filter(Path.is_file, (folder / name for name in NIGHT_FILES)):
            if path.name == report.FILE:  # its page shows no picture in Markdown
                text = report.alone(path.read_text(encoding="utf-8"), None)
                client.log_text(night.info.run_id, text, path.name)
            else:
                client.log_artifact(night.info.run_id, str(path))
        _end_night(client, night, state)
        _log_calls(store, night, state, calls)


def stop_night(store: Store, state: NightState) -> None:
    """Ends the night's run after an unexpected end of the night, if MLflow has that run."""
    with connect(store.uri) as client:
        experiment = client.get_experiment_by_name(_experiment_name(state))
        night = experiment and _find_night(client, str(experiment.experiment_id), state)
        if night:
            _update_night(client, night, state, [])
            _end_night(client, night, state)


def _end_night(client: MlflowClient, night: Run, state: NightState) -> None:
    unfinished = "FAILED" if state.failed else "KILLED"
    client.set_tag(night.info.run_id, ENDED, state.updated)
    client.set_terminated(night.info.run_id, "FINISHED" if state.finished else unfinished)


def _end(client: MlflowClient, run: Run, is_ok: bool) -> None:
    client.set_terminated(run.info.run_id, "FINISHED" if is_ok else "FAILED")


def _log_calls(store: Store, run: Run, state: NightState, calls: Sequence[Call]) -> None:
    night = f"{state.header.tag}:{state.header.began}"  # another machine's may have the same tag
    log_calls(store.uri, run.info.run_id, run.info.experiment_id, night, calls)


def _experiment_name(state: NightState) -> str:
    return f"nightly-research/{PurePath(state.header.profile).name.removesuffix('.toml')}"


def _experiment(client: MlflowClient, store: Store, state: NightState) -> str:
    """The id of the profile's experiment; made if need be, with the view of its runs."""
    name = _experiment_name(state)
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server has a place of its own for artifacts.
        is_local = addresses.is_sqlite(store.uri)
        location = addresses.of_file(store.artifacts / name) if is_local else None
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return str(client.create_experiment(name, location, {**kind, **mlflow_page.TAG}))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    for key, value in mlflow_page.TAG.items():
        if found.tags.get(key) != value:
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def _find_night(client: MlflowClient, experiment: str, state: NightState) -> Run | None:
    query = " and ".join(f"tags.{name} = '{value}'" for name, value in _identity(state).items())
    found = client.search_runs([experiment], query, max_results=1)
    return found[0] if found else None


def _identity(state: NightState) -> dict[str, str]:
    """The tags by which the night's run is found."""
    return {"night": state.header.tag, "night_started": state.header.began}


def _night(client: MlflowClient, store: Store, state: NightState) -> Run:
    """The parent run, found by tag and start time; made if need be."""
    experiment = _experiment(client, store, state)
    if found := _find_night(client, experiment, state):
        is_over = state.finished or state.stopped or _is_late(found, state)
        if found.info.status != "RUNNING" and not is_over:
            client.update_run(found.info.run_id, "RUNNING")  # a resumed night
        return found
    run = client.create_run(experiment, run_name=state.header.tag, tags=_identity(state))
    _update_night(client, run, state, _progress(run, state))
    return run


def _is_late(night: Run, state: NightState) -> bool:
    """Whether the run was ended by a later event: this job began before a signal ended the night.

    A resumed night has an event that is later still.
    """
    return state.updated < night.data.tags.get(ENDED, "")


def _update_night(
    client: MlflowClient, night: Run, state: NightState, points: Sequence[Metric]
) -> None:
    """What changes in the parent run with each trial, and `points` of its curves."""
    params = {name: getattr(state.header, name) for name in ("profile", "seed", "proposer")}
    sd = state.baseline.sd if state.baseline else None
    tags = {} if _is_late(night, state) else night_tags(state)
    _log(client, night, points, {**params, "baseline_sd": sd}, tags)


def _progress(night: Run, state: NightState) -> list[Metric]:
    """The champion's score and the costs, as curves by trial number.

    A point has the same timestamp whenever it is made, so that MLflow stores it once.
    """
    if state.baseline is None:
        return []
    start = night.info.start_time
    start_score, kept = state.baseline.val_bpb, 0
    spent = Usage()
    names = ("baseline_bpb", "champion_bpb")
    points = [_metric(name, start_score, start) for name in names]
    for trial, _, champion in margin.champions(state):
        kept += trial.verdict == "keep"
        spent = total([spent, trial.usage])
        named = {"champion_bpb": champion, "kept": kept, "trials": trial.number, **_spending(spent)}
        points += [
            _metric(name, value, start + trial.number, trial.number)
            for name, value in named.items()
        ]
    return [*points, *_fresh_points(start, state)]


def _fresh_points(start: int, state: NightState) -> list[Metric]:
    """What fresh runs say of the gain, by how many there are; the note has their intervals."""
    fresh = fresh_scores.of_night(state) if state.fresh_runs else None
    figures: dict[str, float | None] = {}
    for name, file in fresh.files().items() if fresh else ():
        estimates = {
            "fresh_bpb": file.fresh,
            "holdout_bpb": file.holdout,
            "fresh_gain": file.fresh_gain,
            "holdout_gain": file.holdout_gain,
        }
        known = {what: estimate.mean for what, estimate in estimates.items() if estimate}
        figures |= {f"{name}_{what}": mean for what, mean in known.items()}
        figures[f"{name}_optimism"] = file.optimism
    step = len(state.all_fresh_runs)
    return [
        # Rounded, as MLflow's page shows all digits.
        _metric(name, round(value, SHOWN_DIGITS), start + step, step)
        for name, value in figures.items()
        if value is not None
    ]


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
    return client.create_run(experiment, began, clean, plain(name))


def _name(trial: Trial) -> str:
    """What changed comes first: lists and charts cut a name's end."""
    number = f" (trial {trial.number})"
    return f"{shortened(one_line(trial.idea.summary), LONGEST_NAME - len(number))}{number}".strip()


def _upload(client: MlflowClient, run: Run, folder: Path) -> None:
    """The folder's files as artifacts; `patch.diff` as `patch.diff.txt`.

    MLflow's page shows a file only if the end of its name is on a list, which `.diff` is not.
    """
    with tempfile.TemporaryDirectory() as made:
        copy = shutil.copytree(folder, Path(made) / "files")
        for patch in list(copy.rglob("*.diff")):
            patch.rename(f"{patch}.txt")
        client.log_artifacts(run.info.run_id, str(copy))


def _figures(
    child: Run, runs: Sequence[RunResult], known: Mapping[str, float | None]
) -> list[Metric]:
    """What is `known`, means over the runs, each seed's score, and what the candidate reported."""
    values = {
        **known,
        **{name: _mean(getattr(run, name) for run in runs) for name in MEASURED},
        **{
            name: _mean(size / unit if (size := getattr(run, field)) else None for run in runs)
            for name, (field, unit) in SIZES.items()
        },
        **_conditions(runs),
    }
    if len(runs) > 1:
        values |= {f"val_bpb_seed_{run.seed}": run.val_bpb for run in runs}
    for run in runs[:1]:
        # A slash, which an older night's name may have, makes a section of charts.
        reported = {name.replace("/", "_"): value for name, value in run.metrics.items()}
        values |= {f"self_reported_{name}": value for name, value in reported.items()}
    start = child.info.start_time
    return [_metric(name, value, start) for name, value in values.items() if value is not None]


def _conditions(runs: Sequence[RunResult]) -> dict[str, float | None]:
    """The means over the runs; of what held the clock back, the share of the time by reason."""
    known = [run.conditions for run in runs if run.conditions]
    reasons = sorted({reason for each in known for reason in each.held_back})
    shares = {
        f"held_back_{reason.translate(PLAIN)}": _mean(
            each.held_back.get(reason, 0.0) for each in known
        )
        for reason in reasons
    }
    return shares | {
        name: _mean(getattr(each, field) for each in known) for name, field in CONDITIONS.items()
    }


def _curves(child: Run, runs: Sequence[RunResult]) -> list[Metric]:
    """Training loss in nats by step: `train_loss`, and `train_loss_seed_N` for a second run.

    And, as `..._in_tenths`, the ten points that a researcher and `./run show` get of it.
    """
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
        tenths = {step: loss for step, _, loss in run.curve_in_tenths}
        pace = 100.0 * (run.seconds or 0.0)
        points += [
            _metric(f"{name}_in_tenths", loss, start + int(j * pace), step)
            for j, (step, loss) in enumerate(tenths.items(), start=1)
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
        (name, shortened(plain(value), LONGEST_PARAMETER))
        for name, value in params.items()
        if value is not None
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
