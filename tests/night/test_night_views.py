"""Whatever a view raises costs that view: a warning and an error in the heartbeat, not the night.

A real MLflow store and a real Prefect server; the night is made up.
"""

import base64
import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import socket
import threading

import pytest
from prefect import flow, get_client, runtime
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.exceptions import ObjectNotFound

import configs
from flows import state_home
from flows.command_line import commands
from flows.night import mlflow_view, night_views, session
from flows.night.night import Night
from flows.night.night_views import Views
from tasks.errors import NightlyError
from tasks.history import heartbeat, night_folder, trial_folder
from tasks.history.ledger import Ledger
from tasks.history.llm_calls import CallLog
from tasks.records import Baseline, Bench, Candidate, Caps, Dataset
from tasks.text import in_markdown
from tasks.views import chart, notification, refusals, report, tracking
from tasks.views.mlflow_client import Store
from tests import synthetic_night
from tests.certified_night import END, certified_night
from tests.links import EVIL, links
from tests.trials import crash, keep, make_state, make_trial, night_event
from tests.waiting import WAIT_SECONDS, wait_for

FIRST = make_state(make_trial(1), finished=None)
SECOND = make_state(make_trial(1), keep(2, summary="DEPTH 2 -> 1"), finished=None)
FAILED = make_state(make_trial(1), finished=None, stopped="RuntimeError: boom", failed=True)

pytestmark = [
    pytest.mark.slow,  # a Prefect server and flow runs
    pytest.mark.usefixtures("prefect_server"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # mlflow on sqlalchemy 2.1
]


@pytest.fixture
def night(tmp_path, empty_store, monkeypatch) -> Night:
    """A night that has nothing but a folder and an MLflow store; a view may take its time."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(mlflow_view, "BACK_SECONDS", 0.0)
    for view, name in (
        (mlflow_view, "PATIENCE"),
        (mlflow_view, "LAST_PATIENCE"),
        (night_views, "PATIENCE"),
    ):
        monkeypatch.setattr(view, name, WAIT_SECONDS)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    folder = tmp_path / "nights" / "nov21"
    folder.mkdir(parents=True)
    dataset = Dataset("d5", "public", "train", "validation", 1)
    bench = Bench(configs.load("laptop"), dataset, tmp_path, "bwrap", Caps(None, 1, 1, 1, 1))
    return Night(
        tag="nov21",
        folder=folder,
        root=tmp_path,
        bench=bench,
        base=Candidate.parse("DEPTH = 3\n"),
        baseline=Baseline((), "a CPU"),
        seed=1,
        calls=CallLog(folder / night_folder.CALLS),
    )


@flow
def show(night: Night, *states, end: bool = False) -> str | None:
    """A session of the night that shows these states; returns the error in its heartbeat."""
    with heartbeat.beating(night.folder / night_folder.PULSE, lambda: 0.0) as pulse:
        views = Views(night, pulse)
        for state in states:
            views.show(state)
        if end:
            views.show_end(states[-1])
    beat = heartbeat.last(night.folder / night_folder.PULSE)
    assert beat is not None
    return beat.error


def warnings(caplog) -> list[str]:
    """What the night has logged; Prefect logs the failure of a task itself, as an error."""
    found = [record for record in caplog.records if record.levelno == logging.WARNING]
    return [record.getMessage() for record in found if record.name.startswith("prefect.flow_runs")]


def client(night: Night):
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{night.bench.home}/mlflow.db")


@flow
def rebuild(night: Night, state) -> None:
    with heartbeat.beating(night.folder / night_folder.PULSE, lambda: 0.0) as pulse:
        Views(night, pulse).rebuild(state)


def all_runs(night: Night) -> list:
    found = client(night)
    experiments = [experiment.experiment_id for experiment in found.search_experiments()]
    return list(found.search_runs(experiments))


def run_names(night: Night) -> set[str]:
    return {run.info.run_name for run in all_runs(night)}


def add_child(night: Night, tags: dict[str, str]) -> None:
    """A finished run below the night's, as a person makes one in a notebook."""
    store = Store(f"sqlite:///{night.bench.home}/mlflow.db", night.bench.home / "mlartifacts")
    tracking.log_progress(store, FIRST)
    parent = tracking._night(client(night), store, FIRST).info
    child = client(night).create_run(
        parent.experiment_id, tags={"mlflow.parentRunId": parent.run_id, **tags}, run_name="mine"
    )
    client(night).set_terminated(child.info.run_id)


RESUMED = pytest.mark.parametrize("resumed", [False, True], ids=["running", "resumed"])


@RESUMED
def test_runs_of_somebody_else_below_the_nights_are_passed_over(night, caplog, resumed):
    if resumed:
        assert show(night, FIRST) is None
    add_child(night, {})
    add_child(night, {"trial_id": "nov21:\u00b2"})
    assert show(night, FIRST, SECOND) is None
    assert warnings(caplog) == []
    assert run_names(night) == {"nov21", "mine", "DEPTH 3 -> 2 (trial 1)", "DEPTH 2 -> 1 (trial 2)"}


@RESUMED
def test_a_private_function_of_mlflow_that_a_monkeypatch_makes_raise_costs_that_view_only(
    night, caplog, monkeypatch, resumed
):
    if resumed:
        assert show(night, FIRST) is None

    def changed(*_, **__):
        raise AttributeError("'NoneType' object has no attribute 'page'")

    private = "mlflow.tracking._tracking_service.client.TrackingServiceClient.search_runs"
    with monkeypatch.context() as patch:
        patch.setattr(private, changed)
        error = show(night, FIRST, SECOND, end=True)
    assert error is not None
    assert "AttributeError: 'NoneType' object has no attribute 'page'" in error
    assert warnings(caplog) == [error]
    assert (night.folder / "report.md").is_file()

    caplog.clear()
    assert show(night, SECOND, end=True) is None  # the next session writes what was missed
    assert warnings(caplog) == []
    assert {"DEPTH 3 -> 2 (trial 1)", "DEPTH 2 -> 1 (trial 2)"} <= run_names(night)


def refused_trial(**changes):
    """A trial that MLflow refuses for the name of its knob, which is too long to be one of ours."""
    return make_trial(1, knobs={"K" * 300: 1}, **changes)


REFUSED = make_state(refused_trial(), keep(2, summary="DEPTH 2 -> 1"), finished=None)


def test_a_trial_that_mlflow_refuses_keeps_no_other_out(night, caplog):
    first = make_state(refused_trial(), finished=None)
    assert show(night, first, REFUSED, end=True) is None
    (warning,) = warnings(caplog)
    assert warning.startswith("MLflow lacks trial 1 (MLflow at sqlite:")
    assert "'Param key' exceeds the maximum length of 250 characters" in warning
    assert warning.endswith(": `./run rebuild nov21` tries again")
    assert "- MLflow lacks trial 1 (" in (night.folder / "report.md").read_text()
    assert list(refusals.read(night.folder)) == ["nov21:1"]
    runs = {run.info.run_name: run.info.status for run in all_runs(night)}
    assert runs["DEPTH 2 -> 1 (trial 2)"] == "FINISHED"
    assert (runs["nov21"], runs["DEPTH 3 -> 2 (trial 1)"]) == ("KILLED", "RUNNING")

    with pytest.raises(NightlyError, match="MLflow lacks trial 1"):
        rebuild(night, REFUSED)
    rebuild(night, SECOND)  # as a version that gets on with that trial
    assert refusals.read(night.folder) == {}
    assert "MLflow lacks" not in (night.folder / "report.md").read_text()
    assert {run.info.status for run in all_runs(night)} == {"FINISHED", "KILLED"}


def test_a_candidates_words_keep_no_trial_out_of_a_view(night, caplog):
    words = "\ud800\0\x1b[31m" + "| ![x](http://evil) " * 900
    trial = make_trial(1, summary=words, reason=words, knobs={"A": words})
    state = make_state(trial, keep(2, summary="DEPTH 2 -> 1"), finished=None)

    @flow
    def show_it() -> str | None:  # as a parameter of a flow, Prefect would refuse the state itself
        return show.fn(night, state, end=True)

    assert show_it() is None
    assert warnings(caplog) == []
    assert len(all_runs(night)) == 3


def test_a_damaged_result_keeps_no_other_trial_out_of_mlflow(night, caplog):
    place = night.trial_folder(1)
    place.mkdir(parents=True)
    (place / "result.json").write_text("{")
    assert show(night, SECOND) is None
    assert "DEPTH 2 -> 1 (trial 2)" in run_names(night)
    (warning,) = warnings(caplog)
    assert f"MLflow lacks trial 1 ({place / 'result.json'} is damaged" in warning


def test_what_fails_while_mlflow_is_down_is_not_refused(night, monkeypatch):
    known = mlflow_view.log_missing(night, FIRST, None)
    with socket.socket() as taken, monkeypatch.context() as patch:
        taken.bind(("127.0.0.1", 0))  # not listening: connections are refused
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(NightlyError, match="Ledger and git have the data"):
            mlflow_view.log_missing(night, SECOND, known)
    assert refusals.read(night.folder) == {}
    assert mlflow_view.log_missing(night, SECOND, known).done == {"nov21:1", "nov21:2"}


def test_fresh_runs_are_in_mlflow_once_whoever_logs_them(night):
    state = certified_night(finished=None)
    known = mlflow_view.log_missing(night, dataclasses.replace(state, fresh_runs=END[:1]), None)
    assert "nov21:fresh:0" in known.done
    assert {f"nov21:fresh:{i}" for i in range(2)} <= mlflow_view.log_missing(
        night, dataclasses.replace(state, fresh_runs=END[:2]), known
    ).done
    again = mlflow_view.log_missing(night, dataclasses.replace(state, fresh_runs=END[:2]), None)
    assert again.refused == {}
    assert sum("baseline, fresh seed" in each.info.run_name for each in all_runs(night)) == 2


def test_an_unfinished_measurement_of_the_champion_keeps_nothing_out_of_mlflow(night):
    measured = dataclasses.replace(END[0], purpose="remeasurement")
    state = certified_night(
        finished=None, fresh_runs=(measured, END[1]), earlier_fresh_runs=END[2:6]
    )
    known = mlflow_view.log_missing(night, state, None)
    assert known.refused == {}
    fresh = {run for run in known.done if "fresh" in run}
    assert fresh == {f"nov21:fresh:{index}" for index in (0, 1, 2, 3, 5)}


def test_a_figure_that_the_baseline_does_not_report_is_no_chart(night):
    def run(**metrics):
        return synthetic_night.make_run(metrics=metrics)

    night = dataclasses.replace(night, baseline=Baseline((run(depth=3.0),), "a CPU"))
    trial = keep(commit="c1")
    night.trial_folder(1).mkdir(parents=True)
    runs = (run(depth=2.0, mine=1.0),)
    trial_folder.write_result(night.trial_folder(1), runs, trial)
    mlflow_view.log_missing(night, make_state(trial, finished=None), None)
    (found,) = [each for each in all_runs(night) if "trial 1" in each.info.run_name]
    reported = {name for name in found.data.metrics if name.startswith("self_reported")}
    assert reported == {"self_reported_depth"}


def test_a_timeout_inside_the_job_is_a_failure_and_no_job_that_still_runs(
    night, caplog, monkeypatch
):
    errors = [TimeoutError("stale file handle")]

    def late(*_, **__):
        if errors:
            raise errors.pop()
        return frozenset()

    monkeypatch.setattr(tracking, "finished_runs", late)
    assert show(night, FIRST, SECOND) is None
    assert warnings(caplog) == ["MLflow failed: TimeoutError: stale file handle"]
    assert {"DEPTH 3 -> 2 (trial 1)", "DEPTH 2 -> 1 (trial 2)"} <= run_names(night)


@RESUMED
@pytest.mark.parametrize(
    ("module", "name", "error", "there"),
    [
        (report, "markdown", OSError(errno.EIO, "broken disk"), "progress.png"),
        (chart, "_draw", ValueError("no such backend"), "report.md"),
    ],
    ids=["report", "chart"],
)
def test_a_report_or_chart_that_a_monkeypatch_makes_raise_is_missing_and_the_rest_is_there(
    night, caplog, monkeypatch, resumed, module, name, error, there
):
    if resumed:
        assert show(night, FIRST) is None

    def broken(*_):
        raise error

    monkeypatch.setattr(module, name, broken)
    noted = show(night, FIRST, SECOND, end=True)
    assert noted is not None
    assert str(error) in noted
    assert warnings(caplog) == [noted]
    assert (night.folder / there).is_file()
    assert {"DEPTH 3 -> 2 (trial 1)", "DEPTH 2 -> 1 (trial 2)"} <= run_names(night)


def artifact(key: str) -> str:
    """The data of the latest artifact with this key."""
    with get_client(sync_client=True) as client:
        (found,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )
    return str(found.data)


def test_the_report_on_prefects_page_has_its_picture_in_it(night):
    assert show(night, SECOND, end=True) is None
    picture = base64.b64encode((night.folder / report.PICTURE).read_bytes()).decode()
    assert f"![Progress](data:image/png;base64,{picture})" in artifact("report")
    assert f"![Progress]({report.PICTURE})" in (night.folder / report.FILE).read_text()


def test_a_report_whose_picture_a_monkeypatch_keeps_from_being_drawn_has_no_broken_link(
    night, monkeypatch
):
    def broken(*_):
        raise ValueError("no such backend")

    monkeypatch.setattr(chart, "_draw", broken)
    show(night, SECOND, end=True)
    assert "![" not in artifact("report")


def test_the_table_on_prefects_page_has_rounded_figures_and_whole_reasons(night):
    reason = "stopped: ended while training: RuntimeError: loss nan at step 6: it has diverged"
    trials = (
        make_trial(1, val_bpb=1.6612345678, z=-1.2345, reason="worse by 0.01: no gain"),
        keep(2, 1.5987654321, summary="x" * 99),
        crash(3, reason=reason),
        crash(4, status="rejected_patch", reason="not run: [x](http) **b**"),
    )
    show(night, make_state(*trials, finished=None))
    rows = json.loads(artifact("trials"))
    assert [list(row) for row in rows] == [
        ["trial", "what", "verdict", "val_bpb", "vs champion", "z", "why"]
    ] * 4
    assert [list(row.values())[2:] for row in rows] == [
        ["discard", "1.661235", "+0.011235", "-1.23", "no gain"],
        ["keep", "1.598765", "-0.051235", "4.00", "better"],
        ["stopped: train_crashed", "", "", "", reason],
        ["rejected", "", "", "", r"not run: \[x](http) \*\*b\*\*"],
    ]
    assert len(rows[1]["what"]) == night_views.LONGEST_SUMMARY


@pytest.fixture
def slow_store(night, monkeypatch):
    """MLflow is not done until the second state has been shown."""
    shown, log_missing = threading.Event(), mlflow_view.log_missing

    def wait(*arguments):
        shown.wait()
        return log_missing(*arguments)

    def send_table(state):
        if state == SECOND:
            shown.set()

    monkeypatch.setattr(mlflow_view, "log_missing", wait)
    monkeypatch.setattr(mlflow_view, "PATIENCE", 0.0)
    monkeypatch.setattr(night_views, "_send_table", send_table)


@pytest.mark.usefixtures("slow_store")
def test_a_store_that_a_monkeypatch_makes_slow_is_no_error(night, caplog):
    caplog.set_level(logging.DEBUG, "prefect.flow_runs")
    assert show(night, FIRST, SECOND) is None
    assert warnings(caplog) == []
    assert caplog.messages.count("MLflow is not done after 0 s") == 2


@pytest.mark.usefixtures("slow_store")
def test_a_store_that_a_monkeypatch_makes_hang_is_one_warning(night, caplog, monkeypatch):
    monkeypatch.setattr(mlflow_view, "LAST_PATIENCE", 0.0)
    error = show(night, FIRST, SECOND)
    assert error == "MLflow is not done after 0 s; the night continues meanwhile"
    assert warnings(caplog) == [error]


def test_a_store_that_a_monkeypatch_makes_slow_to_fail_is_an_error(night, monkeypatch):
    """As a server that hangs: each attempt fails after its trial has gone on."""
    fails, over = threading.Event(), threading.Event()

    def log_missing(night, state, known):
        (fails if state == FIRST else over).wait()
        raise NightlyError("no answer")

    @flow
    def follow_both() -> None:
        view = mlflow_view.MlflowView(night)
        with pytest.raises(mlflow_view.Unfinished):
            view.follow(FIRST, 0.0)
        fails.set()
        assert view._job is not None
        view._job.wait()
        try:
            with pytest.raises(NightlyError, match="no answer"):
                view.follow(SECOND, 0.0)
        finally:
            over.set()

    monkeypatch.setattr(mlflow_view, "log_missing", log_missing)
    follow_both()


def test_no_artifact_has_a_link_of_a_candidates(night):
    evil = " ".join(EVIL)
    trial = make_trial(1, summary=evil, reason=evil)
    assert show(night, make_state(trial, finished=None, stopped=evil), end=True) is None
    with get_client(sync_client=True) as client:
        newest = client.read_artifacts(sort=ArtifactSort.CREATED_DESC, limit=2)
    assert {artifact.type for artifact in newest} == {"table", "markdown"}
    for artifact in newest:
        words = re.sub(
            r"\(data:image/png;base64,[^)]*\)", "", str(artifact.data)
        )  # our own picture
        assert "evil" in words
        assert links(words) == []
    (table,) = [json.loads(str(artifact.data)) for artifact in newest if artifact.type == "table"]
    assert table[0]["why"] == in_markdown(evil)


def test_a_full_disk_is_left_to_the_night_which_waits_for_room(night, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(report, "write", full)
    with pytest.raises(OSError, match="No space left"):
        show(night, FIRST, end=True)


def test_prefect_that_does_not_take_the_nights_name_costs_the_name(caplog, monkeypatch):
    def changed(*_, **__):
        raise TypeError("update_flow_run() got an unexpected keyword argument 'name'")

    monkeypatch.setattr("prefect.client.orchestration.SyncPrefectClient.update_flow_run", changed)
    flow(night_views.name_flow_run)("nov21")
    (warning,) = warnings(caplog)
    assert "could not be named nov21: TypeError: " in warning


def test_an_api_that_does_not_speak_http_is_not_healthy():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            client, _ = server.accept()
            with client:
                client.recv(1000)
                client.sendall(b"no such protocol\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert not state_home.is_healthy(f"http://127.0.0.1:{server.getsockname()[1]}/api")
        thread.join()


def test_a_flow_run_that_somebody_deleted_was_not_cancelled():
    found = []

    @flow
    def stopped_by_sigterm() -> None:
        with get_client(sync_client=True) as client:
            client.delete_flow_run(runtime.flow_run.id)
        found.append(session._is_cancelled())

    with pytest.raises(ObjectNotFound):  # Prefect's own, when it records the end of the run
        stopped_by_sigterm()
    assert found == [False]


def test_a_failed_nights_report_and_notice_that_raise_leave_its_own_error(
    tmp_path, caplog, monkeypatch
):
    def broken(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(report, "write", broken)
    monkeypatch.setattr(notification, "_emit", broken)
    flow(night_views.report_stop)(tmp_path, FAILED)
    assert warnings(caplog) == [
        "the report view failed: RuntimeError: can't start new thread",
        "the notice view failed: RuntimeError: can't start new thread",
    ]


def test_a_notice_whose_text_cannot_be_made_is_a_warning(caplog, monkeypatch):
    def broken(*_):
        raise KeyError("sd")

    monkeypatch.setattr(report, "headline", broken)
    flow(night_views.notify)("new-champion", SECOND)
    assert warnings(caplog) == ["the notice view failed: KeyError: 'sd'"]


def test_a_missing_store_is_made_in_the_background(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow_view.prepare_store(tmp_path)
    wait_for((tmp_path / "mlflow.db").exists, "the store")


def test_a_store_that_cannot_be_made_ahead_is_left_to_the_first_run(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("a file, where the folder should be")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    mlflow_view.prepare_store(tmp_path / "home")
    wait_for(lambda: "mlflow-store" not in [t.name for t in threading.enumerate()], "its thread")
    assert raised == []


def test_a_night_without_a_report_names_the_command_that_writes_it(tmp_path, capsys):
    folder = tmp_path / "nights" / "nov21"
    with Ledger.create(folder / night_folder.LEDGER) as book:
        book.append("night", **night_event())
    assert commands._print_night(tmp_path, "nov21", as_json=False) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "night nov21 has no report" in printed.err
    assert "`./run report nov21` writes it" in printed.err
