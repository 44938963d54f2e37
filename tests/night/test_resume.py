"""Which night a start means: a retried flow run its own, a deployment the one that died, else a new
one. And what it keeps."""

import dataclasses
import json
import os
import platform
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect import flow
from prefect.logging import disable_run_logger

import configs
from flows import nightly_research
from flows.night import mlflow_view, opening, resume, session
from flows.night.night import Request
from tasks.errors import NightlyError, UsageError
from tasks.files import FileRef
from tasks.history import heartbeat, ledger, night_folder
from tasks.judge.processes import ProcessId
from tasks.records import Baseline, Bench, Candidate, Dataset
from tasks.trial import hardware
from tasks.trial.baseline import first_caps
from tasks.trial.baseline_facts import baseline_facts
from tests.synthetic_night import make_run
from tests.trials import (
    baseline_event,
    make_baseline,
    make_header,
    make_state,
    make_trial,
    night_event,
)

REQUEST = Request("laptop", None, None, None, None, 1, False)
HEADER = {"deployment": "local", "flow_run": "run-1"}
STOPPED = ("stopped", {"reason": "stopped by ./run stop", "failed": False})
FAILED = ("stopped", {"reason": "the GPU fell off", "failed": True})
FINISHED = ("finished", {"reason": "all 4 trials are done"})
HOUR = 3600.0


@pytest.fixture(autouse=True)
def _started_by_the_deployment(tmp_path, monkeypatch):
    monkeypatch.setenv("NIGHTLY_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__NAME", "local")
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", "run-2")


@pytest.fixture
def night(tmp_path):
    """A night `died` of the deployment: dead for `hours`, or alive."""

    def make(*events, alive=False, hours=1.0, tag="died", **header):
        folder = tmp_path / "nights" / tag
        with ledger.Ledger.create(folder / night_folder.LEDGER) as book:
            for name, fields in [
                ("night", night_event(**{**HEADER, "tag": tag, **header})),
                ("baseline", baseline_event()),
                *events,
            ]:
                book.append(name, **fields)
        process = ProcessId.current()
        if not alive:
            process = dataclasses.replace(process, started=1)
        last = time.time() - (0.0 if alive else hours * HOUR)
        beat = heartbeat.Heartbeat(platform.node(), process, last, 9.0, "training", 1.0, None)
        (folder / night_folder.PULSE).write_text(beat.to_json())

    return make


def test_a_night_that_died_goes_on(night):
    night()
    assert resume.choose_tag(REQUEST) == "died"


def test_a_night_that_failed_goes_on(night):
    night(FAILED)
    assert resume.choose_tag(REQUEST) == "died"


@pytest.mark.parametrize("end", [STOPPED, FINISHED])
def test_a_night_that_somebody_stopped_or_that_is_over_does_not(night, end):
    night(end)
    assert resume.choose_tag(REQUEST) != "died"


def test_a_night_that_died_long_ago_does_not(night):
    night(hours=resume.RESTART_HOURS + 1)
    assert resume.choose_tag(REQUEST) != "died"


@pytest.mark.parametrize(
    "other",
    [{"deployment": "nightly-research"}, {"deployment": None}, {"profile": "h100"}, {"seed": 2}],
)
def test_a_night_of_another_kind_does_not(night, other):
    night(**other)
    assert resume.choose_tag(REQUEST) != "died"


def test_a_start_from_a_shell_is_a_new_night(night, monkeypatch):
    night(deployment=None)
    monkeypatch.delenv("PREFECT__RUNTIME__DEPLOYMENT__NAME")
    assert resume.choose_tag(REQUEST) != "died"


def test_a_second_start_while_the_night_lives_is_refused_with_who_it_is(night):
    night(alive=True)
    with pytest.raises(
        UsageError,
        match=rf"night died of the deployment 'local' is running \(pid {os.getpid()}.*training",
    ):
        resume.choose_tag(REQUEST)


@pytest.mark.parametrize("end", [STOPPED, FAILED, FINISHED])
def test_a_retried_flow_run_goes_on_with_its_own_night_however_that_ended(night, end, monkeypatch):
    night(end)
    night(tag="later", flow_run="run-3")
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", "run-1")
    assert resume.choose_tag(REQUEST) == "died"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 2}, "was started with seed 1, not 2: `./run resume died`"),
        ({"profile": "h100"}, "was started with profile 'laptop', not 'h100'"),
        ({"proposer": "replay"}, "was started with proposer 'tpe', not 'replay'"),
    ],
)
def test_a_night_does_not_go_on_as_another_one(changes, said):
    state = make_state(header={"tag": "died"})
    with pytest.raises(UsageError, match=said):
        resume.check_request(state, dataclasses.replace(REQUEST, **changes))


@pytest.mark.parametrize(
    ("asks", "said"),
    [
        ({"seed": 2}, "was started with seed 1, not 2"),
        ({}, r"is finished \(all 4 trials are done\): `\./run resume died --trials N` extends it"),
    ],
)
def test_what_the_flow_would_refuse_is_refused_without_a_flow_run(night, asks, said):
    night(FINISHED)
    with pytest.raises(UsageError, match=said):
        nightly_research.check("died", dataclasses.replace(REQUEST, **asks))


def test_a_night_that_goes_on_passes_the_check_of_its_start(night):
    night(STOPPED)
    nightly_research.check("died", REQUEST)
    nightly_research.check("died", resume.request_of("died", 7, None), is_resume=True)


def test_a_night_that_runs_is_not_begun_again(night):
    night(alive=True)
    with pytest.raises(UsageError, match=rf"night died is running \(pid {os.getpid()} on "):
        nightly_research.check("died", REQUEST)


def test_a_resume_that_asks_for_too_little_is_refused_without_a_flow_run(night):
    trial = dataclasses.asdict(make_trial())
    started = {"trial": 1, "proposer": "tpe", "summary": "x", "parent": "c0"}
    night(
        ("started", started),
        ("decided", {"trial": trial}),
        ("applied", {"trial": 1, "commit": "c1"}),
    )
    with pytest.raises(UsageError, match="--trials 1: night died has finished 1"):
        nightly_research.check("died", resume.request_of("died", 1, None), is_resume=True)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_missing_store_of_mlflow_is_made_while_the_data_is_prepared(night, tmp_path, monkeypatch):
    night(STOPPED)
    begun: list[object] = []

    def no_data(held, **_):
        begun.append("data")
        raise UsageError("no data")

    monkeypatch.setattr(mlflow_view, "prepare_store", begun.append)
    monkeypatch.setattr(nightly_research, "open_night", no_data)
    monkeypatch.delenv("PREFECT__RUNTIME__FLOW_RUN__ID")
    with pytest.raises(UsageError, match="no data"):
        flow(nightly_research.research)("died", REQUEST, is_resume=True)
    assert begun == [tmp_path, "data"]


def test_a_night_that_is_refused_to_go_on_stays_as_it_was(night, tmp_path):
    night(STOPPED)
    folder = tmp_path / "nights" / "died"
    before = (folder / night_folder.LEDGER).read_bytes()
    with pytest.raises(UsageError, match="with seed 2"), session.hold(folder):
        raise UsageError("begun with seed 1, not with seed 2")
    assert (folder / night_folder.LEDGER).read_bytes() == before


def test_a_night_that_fails_after_it_went_on_says_why(night, tmp_path):
    night(STOPPED)
    with (
        pytest.raises(NightlyError, match="cannot follow"),
        session.hold(tmp_path / "nights" / "died") as held,
    ):
        _go_on_and_fail(held)
    assert (held.state.stopped, held.state.failed) == ("one event cannot follow another", True)


def _go_on_and_fail(held):
    held.book.append("resumed")
    raise NightlyError("one event cannot follow another")


# The device of a night, which is not another's meanwhile

ON_GPU = {"settings": {"device": "cuda", "budget": {"kind": "seconds"}}}
GPU = make_header(**ON_GPU)
CPU = make_header()


def test_a_second_night_on_one_gpu_is_refused_and_leaves_nothing(tmp_path):
    first, second = tmp_path / "nights" / "first", tmp_path / "nights" / "second"
    with session.hold(first, GPU):
        with (
            pytest.raises(UsageError, match="on which night first is running"),
            session.hold(second, GPU),
        ):
            pass
        assert not second.exists()


def test_a_night_that_is_refused_before_its_first_event_leaves_no_folder(tmp_path):
    folder = tmp_path / "nights" / "refused"
    with pytest.raises(UsageError, match="no"), session.hold(folder, CPU) as held:
        _refuse(held)
    assert not folder.exists()


def _refuse(held):
    FileRef.write(held.folder / night_folder.BASE, b"")
    raise UsageError("no")


def test_a_refusal_removes_no_folder_that_was_there_before(tmp_path):
    folder = tmp_path / "nights" / "kept"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="no"), session.hold(folder, CPU):
        raise UsageError("no")
    assert (folder / "notes.txt").read_text() == "mine"


def test_two_nights_on_a_cpu_with_a_budget_of_flops_do_not_disturb_each_other(tmp_path):
    with (
        session.hold(tmp_path / "nights" / "first", CPU),
        session.hold(tmp_path / "nights" / "second", CPU),
    ):
        pass


def test_the_views_of_a_night_can_be_made_again_while_another_has_its_gpu(night, tmp_path):
    night(FINISHED, **ON_GPU)
    with (
        session.hold(tmp_path / "nights" / "first", GPU),
        session.hold(tmp_path / "nights" / "died", measures=False) as held,
    ):
        assert held.state.finished


def test_a_night_that_goes_on_holds_its_gpu(night, tmp_path):
    night(**ON_GPU)
    with (
        session.hold(tmp_path / "nights" / "first", GPU),
        pytest.raises(UsageError, match="on which night first is running"),
        session.hold(tmp_path / "nights" / "died"),
    ):
        pass


def test_a_night_that_another_process_has_begun_meanwhile_is_not_cleared(night, tmp_path):
    night()
    path = tmp_path / "nights" / "died" / night_folder.LEDGER
    before = path.read_bytes()
    with (
        session.hold(path.parent) as held,
        pytest.raises(UsageError, match=r"has started meanwhile: `\./run resume died`"),
    ):
        nightly_research.begin(held, make_header(tag="died"), "")
    assert path.read_bytes() == before


@pytest.fixture
def opened(tmp_path):
    """A night as far as `check_comparable` looks, and the event of its baseline."""
    profile = configs.load("laptop")
    kernel = FileRef("kernels/owner--name@0-torch2.json", "ab", 1)
    dataset = Dataset("f00d", "public", "train", "validation", 1, attention_kernels=(kernel,))
    bench = Bench(profile, dataset, tmp_path, "bwrap", first_caps(profile))
    base = Candidate.parse("A = 1\n")
    facts = baseline_facts(base, bench)
    found = hardware.describe(profile.device, profile.threads)
    began = make_baseline(hardware=found, dataset="f00d", facts=facts)
    return SimpleNamespace(tag="nov21", bench=bench, base=base), began


def without_kernels(night):
    dataset = dataclasses.replace(night.bench.dataset, attention_kernels=())
    bench = dataclasses.replace(night.bench, dataset=dataset)
    return SimpleNamespace(tag=night.tag, bench=bench, base=night.base)


def test_a_night_goes_on_where_everything_is_as_it_was(opened):
    found, began = opened
    opening.check_comparable(found, began)
    opening.check_comparable(found, None)  # a new one


@pytest.mark.parametrize(
    "fact", ["harness.py", "dataset", "owner--name@0-torch2", "train.py", "isolation"]
)
def test_a_night_does_not_go_on_where_a_fact_of_its_baseline_is_another(opened, fact):
    found, began = opened
    began = dataclasses.replace(began, facts={**began.facts, fact: "c0ffee"})
    with pytest.raises(
        UsageError, match=f"night nov21 started with {fact} c0ffee and would resume with "
    ):
        opening.check_comparable(found, began)


def test_another_baseline_is_told_in_rounded_scores():
    scores = (1.7128908536363106, 1.75), (1.7128908536363106, 1.76)
    with pytest.raises(UsageError) as refused:
        opening._expect_same("a baseline of", *scores, "nov21", opening._listed)
    assert "of 1.712891, 1.750000 and would resume with 1.712891, 1.760000:" in str(refused.value)


def test_the_baseline_of_a_night_by_an_older_version_is_kept(tmp_path):
    """Its views can be made again; its trials do not go on, as the harness is another."""
    saved = dataclasses.asdict(Baseline((make_run(), make_run(seed=2)), "a CPU"))
    for run in saved["runs"]:
        for name in ("costs", "checkpoint_bytes", "state_bytes", "unread"):
            del run[name]
    FileRef.write(tmp_path / night_folder.BASELINE, json.dumps(saved).encode())
    kept = opening._kept_baseline(tmp_path / night_folder.BASELINE)
    assert kept == Baseline((make_run(), make_run(seed=2)), "a CPU")


@pytest.mark.parametrize(("text", "kept"), [("claims", True), ("others", False)])
def test_claims_of_the_baseline_that_were_changed_are_not_used_again(tmp_path, text, kept):
    claims = FileRef.write(tmp_path / "claims", b"claims")
    baseline = Baseline((make_run(),), "a CPU", reference=claims)
    saved = json.dumps(dataclasses.asdict(baseline)).encode()
    FileRef.write(tmp_path / night_folder.BASELINE, saved)
    Path(claims.path).write_text(text)
    with disable_run_logger():
        found = opening._kept_baseline(tmp_path / night_folder.BASELINE)
    assert found == (baseline if kept else dataclasses.replace(baseline, reference=None))


def test_a_night_does_not_resume_without_the_kernel_that_it_started_with(opened):
    found, began = opened
    with pytest.raises(UsageError, match="owner--name@0-torch2 ab and would resume with none"):
        opening.check_comparable(without_kernels(found), began)


def test_a_kernel_that_was_unavailable_when_a_night_started_is_not_used_later(opened):
    found, began = opened
    dataset = found.bench.dataset
    assert opening.without_later_kernels(dataset, began) == dataset
    facts = {name: fact for name, fact in began.facts.items() if "owner" not in name}
    began = dataclasses.replace(began, facts=facts)
    assert opening.without_later_kernels(dataset, began).attention_kernels == ()
    opening.check_comparable(without_kernels(found), began)


# What `./run resume` with new limits means


def limits(trials=None, hours=None, done=4):
    """The new limits of a night of four trials that finished after `done` of them."""
    state = make_state(*(make_trial(n + 1) for n in range(done)), header={"trials": 4})
    request = dataclasses.replace(REQUEST, trials=trials, hours=hours)
    return nightly_research.new_limits(state, request, 60.0, is_resume=True)


def test_hours_extend_a_night_that_ended_by_its_trials():
    assert limits(hours=8.0) == {"hours": 8.0, "trials": None}


def test_trials_extend_a_night_that_ended_by_its_hours():
    state = make_state(make_trial(1), header={"trials": None, "hours": 1.0})
    request = dataclasses.replace(REQUEST, trials=9)
    assert nightly_research.new_limits(state, request, 3700.0, is_resume=True) == {
        "trials": 9,
        "hours": None,
    }


def test_a_limit_that_still_leaves_room_stays():
    assert limits(trials=9) == {"trials": 9}
    assert limits(hours=2.0, done=2) == {"hours": 2.0}


def test_the_same_hours_again_extend_a_night_that_ended_by_its_trials():
    header = {"trials": 4, "hours": 8.0}
    state = make_state(*(make_trial(n + 1) for n in range(4)), header=header)
    request = dataclasses.replace(REQUEST, hours=8.0)
    assert nightly_research.new_limits(state, request, 60.0, is_resume=True) == {
        "hours": 8.0,
        "trials": None,
    }
    assert nightly_research.new_limits(state, request, 60.0, is_resume=False) == {}


def test_no_limits_change_nothing():
    assert limits() == {}
