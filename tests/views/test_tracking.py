"""A night in real MLflow stores: names, figures, curves, files, and nothing twice."""

import dataclasses
import itertools
import json
import shutil
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import knobs
from flows import state_home
from tasks.errors import NightlyError
from tasks.judge import protocol
from tasks.records import Candidate, Conditions, NightState, Program, Quarantined, RunResult, Trial
from tasks.usage import Usage
from tasks.views import mlflow_page, mlflow_tags, report, tracking
from tasks.views.mlflow_client import Store, connect
from tests import synthetic_night, trials
from tests.certified_night import END, FOUND, certified_night
from tests.links import EVIL, links
from tests.trials import keep, make_baseline, make_call

pytestmark = [
    pytest.mark.slow,  # a new store costs seconds: it is made once and copied
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # mlflow on sqlalchemy 2.1
]


@pytest.fixture
def store(empty_store, tmp_path):
    path = shutil.copy(empty_store, tmp_path / "mlflow.db")
    return ReadableStore(f"sqlite:///{path}", tmp_path / "mlartifacts")


class ReadableStore(Store):
    """A store, written through tasks.views.tracking and read through MLflow's own client."""

    @property
    def client(self):
        import mlflow

        return mlflow.MlflowClient(self.uri)

    def runs(self) -> dict:
        """All runs by name."""
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        found = self.client.search_runs(experiments)
        assert len({run.info.run_name for run in found}) == len(found)
        return {run.info.run_name: run for run in found}

    def history(self, run, key: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in self.client.get_metric_history(run.info.run_id, key)]


def make_run(**changes) -> RunResult:
    fields = {
        "seconds": 5.0,
        "cpu_seconds": 4.0,
        "tokens": 1000,
        "peak_memory_bytes": 2**29,
        "metrics": {"mfu": 0.5},
        "curve": ((0, 100, 5.0), (1, 200, 4.0), (2, 300, 3.0)),
    }
    return synthetic_night.make_run(**{**fields, **changes})


BASE = Candidate.parse("DEPTH = 3\n")


def make_trial(**changes) -> Trial:
    knobs = {"DEPTH": 2, "ADAM_BETAS": (0.8, 0.95), "WINDOW_PATTERN": "L"}
    return keep(**{"number": 3, "knobs": knobs, "commit": "c3", **changes})


def make_state(*done: Trial, **changes) -> NightState:
    """An unfinished night whose baseline has two runs."""
    kept = [trial for trial in done if trial.verdict == "keep"]
    fields = {
        "baseline": make_baseline(scores=(1.64, 1.66), seeds=(1, 2), start_commit="c0"),
        "champion": kept[-1].commit if kept else "c0",
        "champion_scores": (1.64, 1.66),
        "finished": None,
    }
    return trials.make_state(*done, **{**fields, **changes})


def log_night(store: Store, state: NightState) -> str:
    """Logs a night with nothing below it; returns the id of its run."""
    with connect(store.uri) as client:
        run = tracking._night(client, store, state)
        tracking._update_night(client, run, state, tracking._progress(run, state))
        return str(run.info.run_id)


def log_trial(
    store: Store, trial: Trial, *runs: RunResult, folder: Path = Path("/nonexistent"), calls=()
) -> str:
    return tracking.log_trial(store, make_state(trial), trial, runs, folder, calls)


def test_a_night_is_a_run_with_its_provenance(store):
    log_night(store, make_state())
    run = store.runs()["nov21"]
    assert run.info.status == "RUNNING"
    assert run.data.params == {
        "profile": "laptop",
        "seed": "1",
        "proposer": "tpe",
        "baseline_sd": "0.01",
    }
    assert (
        run.data.tags.items()
        >= {"night": "nov21", "champion": "c0", "hardware": "a CPU", "dataset": "d5"}.items()
    )
    assert (run.data.metrics["baseline_bpb"], run.data.metrics["champion_bpb"]) == (1.65, 1.65)
    assert store.client.get_experiment(run.info.experiment_id).name == "nightly-research/laptop"


def test_nights_are_found_by_their_model_and_program(store):
    def log(tag: str, **header) -> None:
        log_night(store, make_state(header={"tag": tag, **header}))

    asking = {"proposer": "llm", "settings": {"llm": {"model": "m/1"}}}
    log("a", **asking, program=Program("program.md", "5a" * 32, ""))
    log("b", **asking, program=Program("program.md", "6b" * 32, ""))
    log("c")
    experiments = [found.experiment_id for found in store.client.search_experiments()]

    def found(query: str) -> list[str]:
        return sorted(run.info.run_name for run in store.client.search_runs(experiments, query))

    assert found("tags.model = 'm/1' and tags.program = 'program.md'") == ["a", "b"]
    assert found("tags.program_sha256 = '5a5a5a5a5a5a'") == ["a"]
    assert not {"model", "program", "program_sha256"} & store.runs()["c"].data.tags.keys()


def test_a_users_profile_is_an_experiment_of_its_name(store):
    state = make_state(header={"profile": "/a/mine.v2.toml"})
    log_night(store, state)
    assert store.client.get_experiment_by_name("nightly-research/mine.v2")


def test_a_night_of_the_same_tag_elsewhere_is_another_run(store):
    first, other = make_state(), make_state(header={"began": "2026-11-22T00:00:00+00:00"})
    assert log_night(store, first) != log_night(store, other)


def test_an_experiment_deleted_by_the_user_comes_back(store):
    run_id = log_night(store, make_state())
    store.client.delete_experiment(store.client.get_run(run_id).info.experiment_id)
    log_night(store, make_state())
    assert "nov21" in store.runs()


def test_every_seed_of_the_baseline_is_a_child(store):
    for _ in range(2):
        for run in (make_run(seed=1), make_run(seed=2, val_bpb=1.7)):
            tracking.log_baseline_run(store, make_state(), BASE, run)
    runs = store.runs()
    assert set(runs) == {"nov21", "baseline seed 1", "baseline seed 2"}
    child = runs["baseline seed 2"]
    assert child.data.tags["mlflow.parentRunId"] == runs["nov21"].info.run_id
    assert (child.info.status, child.data.metrics["val_bpb"]) == ("FINISHED", 1.7)
    assert store.history(child, "train_loss") == [(0, 5.0), (1, 4.0), (2, 3.0)]


def test_a_run_of_the_baseline_has_what_a_trial_has(store):
    run = make_run(log="step 1", judge_log="scored")
    tracking.log_baseline_run(store, make_state(), BASE, run)
    child = store.runs()["baseline seed 1"]
    assert child.data.params == {"DEPTH": "3"}
    wanted = {
        "trial_id": "nov21:baseline:1",
        "verdict": "baseline",
        "reason": "what every trial is compared with, trained with seed 1",
        "status": "ok",
        "commit": "c0",
    }
    assert child.data.tags.items() >= wanted.items()
    assert "`git show c0:trainer/train.py`" in child.data.tags["mlflow.note.content"]

    def text(name: str) -> str:
        return Path(store.client.download_artifacts(child.info.run_id, name)).read_text()

    assert (text("train.py"), "step 1" in text("run.log")) == ("DEPTH = 3\n", True)
    assert "scored" in text("judge.log")
    files = {file.path for file in store.client.list_artifacts(child.info.run_id)}
    assert files == {"train.py", "run.log", "judge.log", "result.json"}
    assert [run["seed"] for run in json.loads(text("result.json"))["runs"]] == [1]


def test_a_long_name_keeps_the_trials_number(store):
    log_trial(store, make_trial(summary="DEPTH 3 -> 2 because " + "x" * 900), make_run())
    (name,) = store.runs().keys() - {"nov21"}
    assert name.startswith("DEPTH 3 -> 2 because")
    assert name.endswith("... (trial 3)")
    assert len(name) == tracking.LONGEST_NAME


NUMBERS = itertools.count(1)
WORDS = st.text(max_size=60) | st.just("\ud800\0" * 20) | st.just("x" * 9000)


@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    metrics=st.lists(
        st.from_regex(protocol.METRIC_NAME, fullmatch=True), unique_by=str.lower, max_size=30
    ),
    names=st.lists(st.from_regex(knobs.CAPITALS, fullmatch=True), max_size=30),
    words=WORDS,
)
def test_every_name_that_is_let_in_is_taken(store, metrics, names, words):
    number = next(NUMBERS)
    trial = make_trial(
        number=number,
        summary=words,
        reason=words,
        hypothesis=words,
        knobs=dict.fromkeys(names, words),
    )
    calls = [make_call(number, error=words, answer=words, model=words, request_id=words)]
    run_id = log_trial(store, trial, make_run(metrics=dict.fromkeys(metrics, 1.5)), calls=calls)
    run = store.client.get_run(run_id)
    assert run.data.params.keys() == set(names)
    assert run.data.metrics.items() >= {f"self_reported_{name}": 1.5 for name in metrics}.items()
    assert run.info.status == "FINISHED"


def test_what_is_no_name_of_a_parameter_is_no_knob():
    source = f"{'K' * 100} = 1\n{'L' * 101} = 2\n"
    assert Candidate.parse(source).knobs == {"K" * 100: 1}


def test_the_experiment_has_the_view_in_which_its_page_opens(store):
    run_id = log_night(store, make_state())
    experiment = store.client.get_run(run_id).info.experiment_id
    key = f"mlflow.sharedViewState.{mlflow_page.NAME}"
    view = json.loads(store.client.get_experiment(experiment).tags[key])
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`val_bpb`", True)
    assert {"metrics.`z`", "tags.`verdict`", "tags.`reason`"} <= set(view["selectedColumns"])
    store.client.set_experiment_tag(experiment, key, "{}")  # as an older version had it
    log_night(store, make_state())
    assert json.loads(store.client.get_experiment(experiment).tags[key]) == view


@pytest.mark.parametrize(("failed", "status"), [(False, "KILLED"), (True, "FAILED")])
def test_a_night_that_is_stopped_is_ended_until_it_is_resumed(store, failed, status):
    def state(second: int, **changes) -> NightState:
        updated = f"2026-11-21T23:00:0{second}+00:00"
        return make_state(make_trial(number=1), updated=updated, **changes)

    def log_a_trial(state: NightState) -> None:
        tracking.log_trial(store, state, make_trial(number=1), [], Path("/nonexistent"))

    log_night(store, state(1))
    stopped = state(2, stopped="interrupted (SIGTERM)", failed=failed)
    tracking.stop_night(store, stopped)
    log_a_trial(state(1))  # by a job that began before
    run = store.runs()["nov21"]
    assert run.info.status == status
    assert run.data.tags["mlflow.note.content"] == "1 trial, 1 kept. interrupted (SIGTERM)"
    log_a_trial(state(3))  # resumed
    assert store.runs()["nov21"].info.status == "RUNNING"


def test_a_night_that_mlflow_does_not_have_is_not_made_when_it_is_stopped(store):
    tracking.stop_night(store, make_state(stopped="interrupted (SIGTERM)"))
    assert store.runs() == {}
    log_night(store, make_state(header={"tag": "other"}))
    tracking.stop_night(store, make_state(stopped="interrupted (SIGTERM)"))
    assert set(store.runs()) == {"other"}


def test_a_killed_nights_run_is_ended_by_a_rebuild(store, tmp_path):
    log_night(store, make_state(in_flight=1))  # kill -9: the ledger has no end either
    tracking.finish_night(store, make_state(in_flight=1), tmp_path)
    assert store.runs()["nov21"].info.status == "KILLED"


def test_a_trial_shows_its_size_and_what_it_needs_more(store):
    grown = "parameters 0.53 M -> 33 M, checkpoint 2.1 MiB -> 132 MiB"
    run = make_run(parameters=33_000_000, checkpoint_bytes=132 * 2**20, peak_gpu_bytes=2**31)
    log_trial(store, make_trial(grown=grown), run)
    logged = store.runs()["DEPTH 3 -> 2 (trial 3)"]
    sizes = {"parameters": 33e6, "checkpoint_mib": 132, "peak_memory_gib": 0.5, "peak_gpu_gib": 2}
    assert logged.data.metrics.items() >= sizes.items()
    assert logged.data.tags["grown"] == grown
    note = logged.data.tags["mlflow.note.content"]
    assert f"Much larger than its champion: `{grown}`" in note


def test_a_trial_is_a_child_with_knobs_figures_and_tags(store):
    log_trial(store, make_trial(), make_run())
    run = store.runs()["DEPTH 3 -> 2 (trial 3)"]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"DEPTH": "2", "ADAM_BETAS": "(0.8, 0.95)", "WINDOW_PATTERN": "L"}
    assert run.data.metrics == {
        "val_bpb": 1.6,
        "z": 4.0,
        "seconds": 5.0,
        "cpu_seconds": 4.0,
        "tokens": 1000,
        "startup_seconds": 2.0,
        "peak_memory_gib": 0.5,
        "self_reported_mfu": 0.5,
        "train_loss": 3.0,
        "train_loss_in_tenths": 3.0,
    }
    wanted = {
        "trial_id": "nov21:3",
        "commit": "c3",
        "verdict": "keep",
        "status": "ok",
        "reason": make_trial().reason,
    }
    assert run.data.tags.items() >= wanted.items()
    assert "git show c3" in run.data.tags["mlflow.note.content"]
    # the trial's own time, not that of writing it down
    assert run.info.end_time - run.info.start_time >= 7000


def test_a_trial_says_what_it_cost_and_why_it_was_tried(store):
    asked = Usage(calls=3, prompt_tokens=20_000, completion_tokens=900, dollars=0.25)
    told = {
        "kind": "optimizer",
        "outcome": "ok",
        "fixes": 1,
        "hypothesis": "less is\nmore",
        "expected": "1.5",
        "note": "a fix",
    }
    log_trial(store, make_trial(usage=asked, **told), make_run())
    run = store.runs()["DEPTH 3 -> 2 (trial 3)"]
    spent = {"llm_calls": 3, "prompt_tokens": 20_000, "completion_tokens": 900, "dollars": 0.25}
    assert run.data.metrics.items() >= spent.items()
    assert run.data.tags.items() >= {"kind": "optimizer", "outcome": "ok", "fixes": "1"}.items()
    note = run.data.tags["mlflow.note.content"]
    assert "Why it should help: `less is more`\n\nExpected: `1.5`\n\nNote: `a fix`\n\n" in note


def test_a_trial_without_a_model_says_nothing_of_one(store):
    log_trial(store, make_trial(), make_run())
    run = store.runs()["DEPTH 3 -> 2 (trial 3)"]
    assert not {"kind", "outcome", "fixes"} & set(run.data.tags)
    assert not {"llm_calls", "prompt_tokens", "dollars"} & {
        *run.data.metrics,
        *store.runs()["nov21"].data.metrics,
    }


def test_an_unknown_price_is_not_logged(store):
    log_trial(store, make_trial(usage=Usage(1, 100, 10, None)), make_run())
    for run in store.runs().values():
        assert (run.data.metrics["prompt_tokens"], "dollars" in run.data.metrics) == (100, False)


def test_a_models_words_are_not_rendered_as_markdown(store):
    evil = "`![](http://x/y.png)\n\n# " * 900
    log_trial(
        store,
        make_trial(
            **dict.fromkeys(
                ("summary", "reason", "hypothesis", "expected", "stands_in", "note"), evil
            )
        ),
        make_run(),
    )
    (run,) = [run for name, run in store.runs().items() if name != "nov21"]
    note = run.data.tags["mlflow.note.content"]
    assert note.endswith("refs/trials/nov21/3.")
    outside = "".join(note.split("`")[::2])  # what is in no pair of backticks
    assert "![" not in outside
    assert "#" not in outside


def test_no_tag_has_a_link_of_a_candidates(store):
    evil = " ".join(EVIL)
    names = ("summary", "reason", "unusual", "hypothesis", "expected", "stands_in", "note")
    log_trial(store, make_trial(**dict.fromkeys(names, evil)), make_run())
    log_night(store, make_state(finished=None, stopped=evil))
    for run in store.runs().values():
        # A run's name is shown whole, as the link to the run.
        tags = {name: tag for name, tag in run.data.tags.items() if name != "mlflow.runName"}
        assert [name for name, tag in tags.items() if links(tag)] == []
        assert "evil" in tags["mlflow.note.content"]


def test_a_trials_requests_are_traces_of_its_run(store):
    trial = make_trial(usage=Usage(2, 20, 2, 0.0))
    calls = [
        make_call(3, 1, outcome="malformed", error="no end"),
        make_call(3, 2, time="2026-11-21T22:06:00+00:00"),
    ]
    run_id = log_trial(store, trial, make_run(), calls=calls)
    store.client.update_run(run_id, "RUNNING")  # as a kill before the last call leaves it
    log_trial(store, trial, make_run(), calls=calls)
    run = store.client.get_run(run_id)
    found = store.client.search_traces(
        locations=[run.info.experiment_id], run_id=run_id, order_by=["timestamp_ms ASC"]
    )
    assert [(trace.info.client_request_id, trace.info.state.value) for trace in found] == [
        ("3.1", "ERROR"),
        ("3.2", "OK"),
    ]


def test_a_second_seed_has_its_score_and_curve_too(store):
    trial = make_trial(val_bpb=1.65, scores=(1.6, 1.7), seeds=(1, 2))
    log_trial(store, trial, make_run(), make_run(seed=2, val_bpb=1.7, curve=((0, 9, 4.5),)))
    run = store.runs()["DEPTH 3 -> 2 (trial 3)"]
    assert (
        run.data.metrics.items()
        >= {"val_bpb": 1.65, "val_bpb_seed_1": 1.6, "val_bpb_seed_2": 1.7}.items()
    )
    assert (len(store.history(run, "train_loss")), store.history(run, "train_loss_seed_2")) == (
        3,
        [(0, 4.5)],
    )


def test_a_failed_trial_is_failed_and_has_no_score(store):
    trial = make_trial(verdict="discard", status="train_crashed", val_bpb=None, z=None, scores=())
    failed = make_run(
        status="train_crashed", val_bpb=None, cpu_seconds=None, tokens=None, peak_memory_bytes=None
    )
    log_trial(store, trial, failed)
    run = store.runs()["DEPTH 3 -> 2 (trial 3)"]
    assert (run.info.status, run.data.tags["status"]) == ("FAILED", "train_crashed")
    assert not {"val_bpb", "z", "cpu_seconds", "tokens", "peak_memory_gib"} & set(run.data.metrics)


def test_the_conditions_of_a_trials_runs_are_means_over_them(store):
    runs = (
        make_run(conditions=Conditions(5.0, cpu_waited=1.0, sm_clock=1700, gpu_others=0)),
        make_run(
            seed=2, conditions=Conditions(5.0, sm_clock=1500, held_back={"heat (hardware)": 1})
        ),
        make_run(seed=3),
    )
    log_trial(store, make_trial(), *runs)
    metrics = store.runs()["DEPTH 3 -> 2 (trial 3)"].data.metrics
    assert (
        metrics.items()
        >= {
            "cpu_waited_seconds": 1.0,
            "sm_clock_mhz": 1600.0,
            "gpu_others": 0.0,
            "held_back_heat_hardware": 0.5,
        }.items()
    )
    assert "cpu_stolen_seconds" not in metrics


def test_a_rejected_patch_has_a_run_without_figures(store):
    log_trial(
        store,
        make_trial(status="rejected_patch", verdict="discard", val_bpb=None, z=None, knobs={}),
    )
    assert store.runs()["DEPTH 3 -> 2 (trial 3)"].data.metrics == {}


def test_every_file_of_the_trial_is_an_artifact(store, tmp_path):
    folder = tmp_path / "3"
    folder.mkdir()
    for name in ("patch.diff", "train.py", "run.log", "result.json"):
        (folder / name).write_text(name)
    (folder / "attempts" / "1").mkdir(parents=True)
    (folder / "attempts" / "1" / "patch.diff").write_text("of a crash")
    run_id = log_trial(store, make_trial(), make_run(), folder=folder)
    found = [file.path for file in store.client.list_artifacts(run_id)]
    shown = "patch.diff.txt"  # MLflow's page shows no file whose name ends in .diff
    assert found == ["attempts", shown, "result.json", "run.log", "train.py"]
    for name, content in ((shown, "patch.diff"), (f"attempts/1/{shown}", "of a crash")):
        assert Path(store.client.download_artifacts(run_id, name)).read_text() == content
    assert (folder / "patch.diff").is_file()
    assert Path(store.client.download_artifacts(run_id, "run.log")).read_text() == "run.log"
    assert list(store.artifacts.rglob("train.py"))


def test_what_is_logged_again_is_there_once(store):
    assert log_trial(store, make_trial(), make_run()) == log_trial(store, make_trial(), make_run())
    assert len(store.runs()) == 2


def test_a_half_written_run_is_completed_and_no_point_is_doubled(store):
    run_id = log_trial(store, make_trial(), make_run())
    store.client.update_run(run_id, "RUNNING")  # as a kill before the last call leaves it
    assert log_trial(store, make_trial(), make_run()) == run_id
    run = store.runs()["DEPTH 3 -> 2 (trial 3)"]
    assert run.info.status == "FINISHED"
    assert store.history(run, "train_loss") == [(0, 5.0), (1, 4.0), (2, 3.0)]


def test_a_long_curve_takes_several_batches(store):
    log_trial(
        store,
        make_trial(),
        make_run(curve=tuple((step, step, float(step)) for step in range(2000))),
    )
    run = store.runs()["DEPTH 3 -> 2 (trial 3)"]
    assert len(store.history(run, "train_loss")) == 2000
    # What the researcher reads and `./run show` prints.
    tenths = store.history(run, "train_loss_in_tenths")
    assert [loss for _, loss in tenths][1:9] == [200 * k + 99.5 for k in range(1, 9)]
    assert len(tenths) == 10


def test_a_strange_candidate_cannot_keep_itself_out_of_the_record(store):
    knobs = {f"K{i}": "\ud800\0" for i in range(250)} | {"K" * 100: "x" * 9000}
    trial = make_trial(
        summary="\x1b[31m\ud800" + "y" * 900, reason="`![](http://x)`\0" + "z" * 9000, knobs=knobs
    )
    older = {"../..": 1.0, "a//b": 2.0, ".": 3.0}  # names that an older version let in
    log_trial(store, trial, make_run(metrics=older, curve=((7, 1, 2.0),) * 5))
    (run,) = [run for name, run in store.runs().items() if name != "nov21"]
    assert len(run.data.params) == 251
    # MLflow's server takes no batch over 1 MB.
    assert max(map(len, run.data.params.values())) == tracking.LONGEST_PARAMETER
    assert (run.data.metrics["self_reported_."], run.data.metrics["train_loss"]) == (3.0, 2.0)


def test_the_nights_run_has_the_champions_score_by_trial(store):
    trials = (
        make_trial(number=1),
        make_trial(number=2, verdict="discard", val_bpb=1.7),
        make_trial(number=3, val_bpb=1.5),
    )
    log_night(store, make_state(*trials[:1]))
    log_night(store, make_state(*trials))
    run = store.runs()["nov21"]
    assert store.history(run, "champion_bpb") == [(0, 1.65), (1, 1.6), (2, 1.6), (3, 1.5)]
    assert (run.data.metrics["kept"], run.data.metrics["trials"], run.data.tags["champion"]) == (
        2,
        3,
        "c3",
    )


def test_each_trial_adds_its_point_to_the_nights_curve(store):
    first, second = make_trial(number=1), make_trial(number=2, val_bpb=1.5, summary="other")
    tracking.log_trial(store, make_state(first), first, [make_run()], Path("/nonexistent"))
    tracking.log_trial(
        store,
        make_state(first, second),
        second,
        [make_run()],
        Path("/nonexistent"),
    )
    assert store.history(store.runs()["nov21"], "champion_bpb") == [(0, 1.65), (1, 1.6), (2, 1.5)]


def test_the_nights_run_has_what_was_spent_so_far(store):
    asked = [Usage(1, 100, 10, 0.5), Usage(), Usage(2, 200, 20, 0.25)]
    trials = [make_trial(number=i, usage=usage) for i, usage in enumerate(asked, start=1)]
    for trial in trials:
        tracking.log_trial(
            store,
            make_state(*trials),
            trial,
            [make_run()],
            Path("/nonexistent"),
        )
    run = store.runs()["nov21"]
    assert store.history(run, "dollars") == [(1, 0.5), (2, 0.5), (3, 0.75)]
    assert [
        run.data.metrics[name] for name in ("llm_calls", "prompt_tokens", "completion_tokens")
    ] == [3, 300, 30]


def test_a_finished_night_has_its_report(store, tmp_path):
    for name in tracking.NIGHT_FILES:
        (tmp_path / name).write_text(name)
    tracking.finish_night(store, make_state(finished="all 2 trials are done"), tmp_path)
    run = store.runs()["nov21"]
    assert run.info.status == "FINISHED"
    assert "all 2 trials are done" in run.data.tags["mlflow.note.content"]
    assert {file.path for file in store.client.list_artifacts(run.info.run_id)} == set(
        tracking.NIGHT_FILES
    )


def test_the_report_in_mlflow_names_its_picture_which_that_page_would_not_show(store, tmp_path):
    state = make_state(make_trial())
    report.write(state, tmp_path)
    (tmp_path / report.PICTURE).write_bytes(b"png")
    tracking.finish_night(store, state, tmp_path)
    run = store.runs()["nov21"]
    found = store.client.download_artifacts(run.info.run_id, report.FILE, str(tmp_path / ""))
    text = Path(found).read_text()
    assert "![" not in text
    assert "The chart of all trials: `progress.png`" in text


def test_a_state_folder_of_any_name_holds_the_store_and_its_files(
    empty_store, tmp_path, monkeypatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = tmp_path / "of%2Fall? #1 \u00e9"
    home.mkdir()
    before = shutil.copy(empty_store, home / "mlflow.db").stat().st_size
    store = ReadableStore(state_home.mlflow_uri(home), home / "mlartifacts")
    (tmp_path / "report.md").write_text("the report")
    tracking.finish_night(store, make_state(finished="done"), tmp_path)
    run = store.runs()["nov21"]
    assert [file.path for file in store.client.list_artifacts(run.info.run_id)] == ["report.md"]
    [report] = home.glob("mlartifacts/**/report.md")
    assert report.read_text() == "the report"
    assert sorted(path.name for path in tmp_path.iterdir()) == [home.name, "report.md"]
    assert (home / "mlflow.db").stat().st_size >= before


def test_nothing_is_printed_on_stdout(store, capfd):
    log_trial(store, make_trial(), make_run())
    assert capfd.readouterr().out == ""


def test_a_server_that_is_down_is_a_message(tmp_path):
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(NightlyError, match="Ledger and git have the data"):
            log_night(Store(f"http://127.0.0.1:{taken.getsockname()[1]}", tmp_path), make_state())


def test_a_damaged_store_is_a_message(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database, whatever its name says")
    with pytest.raises(NightlyError, match="Ledger and git have the data"):
        log_night(Store(f"sqlite:///{tmp_path}/mlflow.db", tmp_path), make_state())


def test_a_placebo_is_called_one_and_counted_apart():
    state = make_state(keep(1), trials.make_trial(2, placebo="keep"), finished="enough")
    tags = mlflow_tags.trial_tags(state, state.trials[1])
    assert tags["verdict"] == "placebo"
    assert "**placebo**" in tags["mlflow.note.content"]
    note = mlflow_tags.night_tags(state)["mlflow.note.content"]
    assert note is not None
    assert note.startswith("1 trial, 1 kept, 1 placebo. ")


def test_a_fresh_run_is_a_child_with_what_was_left_out_and_no_trial(store):
    state = certified_night(finished=None)
    for index in (0, 6, 6):
        tracking.log_fresh_run(store, state, index)
    runs = store.runs()
    assert set(runs) == {
        "nov21",
        "baseline, fresh seed 11",
        "champion c6 without trial 6, fresh seed 31",
    }
    run = runs["champion c6 without trial 6, fresh seed 31"].data
    assert run.metrics == {"val_bpb": 1.605, "holdout_bpb": pytest.approx(1.705)}
    told = {"verdict": "fresh", "seeds": "31", "left_out": "6", "purpose": "end", "commit": "c6"}
    assert run.tags.items() >= told.items()
    assert tracking.finished_runs(store, state) == {"nov21:fresh:0", "nov21:fresh:6"}


def test_fresh_runs_after_a_remeasurement_are_others_than_those_before(store):
    aside = Quarantined("champion", 4, "the hypervisor took 30% of the CPU time", "ok", 1.7)
    run = dataclasses.replace(END[0], quarantined=(aside,))
    state = certified_night(finished=None, earlier_fresh_runs=END[:1], fresh_runs=(run,))
    tracking.log_fresh_run(store, state, 1)
    assert tracking.finished_runs(store, state) == {"nov21:fresh:1"}
    assert any(found.data.tags.get("quarantined") == "1" for found in store.runs().values())


def test_the_nights_run_has_what_fresh_runs_and_the_certification_say(store):
    state = certified_night()
    log_night(store, state)
    night = store.runs()["nov21"]
    figures = {
        "baseline_fresh_bpb": 1.65,
        "champion_fresh_gain": 0.04,
        "champion_holdout_gain": 0.04,
        "champion_optimism": 0.01,
        "certified_fresh_gain": 0.035,
    }
    found = night.data.metrics
    assert {name: found[name] for name in figures} == pytest.approx(figures)
    assert "certified_optimism" not in found
    assert [step for step, _ in store.history(night, "champion_fresh_bpb")] == [len(END)]
    told = {
        "certified": "1 4",
        "not_shown": "6",
        "open": "-",
        "certified_commit": FOUND.tip,
    }
    assert night.data.tags.items() >= told.items()
    note = night.data.tags["mlflow.note.content"]
    assert "5 trials, 3 kept. Certified: 2 of 3 kept changes" in note
    assert "| search champion c6 | 1.600000 | 1.610000 (1.585159 to 1.634841) |" in note


def test_a_trial_has_the_scores_of_the_champions_runs_beside_it(store):
    log_trial(store, make_trial(champion_scores=(1.63,), champion_seeds=(9,)), make_run())
    run = store.runs()["DEPTH 3 -> 2 (trial 3)"].data
    assert (run.metrics["champion_bpb_seed_9"], run.tags["champion_seeds"]) == (1.63, "9")
