"""Which night a start means: a retried flow run its own, a deployment the one that died, else a new one. And what it keeps."""

import dataclasses
import json
import os
import platform
import time
from types import SimpleNamespace

import pytest

import configs
from flows import nightly_research
from flows.night import opening, resume, session
from flows.night.night import Request
from tasks.errors import NightlyError, UsageError
from tasks.files import FileRef
from tasks.history import heartbeat, ledger, night_folder, night_state
from tasks.judge.processes import ProcessId
from tasks.records import Dataset
from tasks.trial import hardware
from tasks.trial.baseline import baseline_facts

REQUEST = Request("laptop", None, None, None, None, 1, False)
HEADER = {
    "profile": "laptop",
    "proposer": "tpe",
    "patches": None,
    "seed": 1,
    "trials": 4,
    "hours": None,
}
HEADER |= {"deployment": "local", "flow_run": "run-1", "began": "2026-11-21T22:00:00+00:00"}
BASELINE = {
    "val_bpb": 1.65,
    "scores": [1.64, 1.65, 1.66],
    "sd": 0.01,
    "start_commit": "c0",
    "wall_seconds": 30.0,
}
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
                ("night", {**HEADER, "tag": tag, **header}),
                ("baseline", BASELINE),
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
        ({"seed": 2}, "was begun with seed 1, not 2: `./run resume died`"),
        ({"profile": "h100"}, "was begun with profile 'laptop', not 'h100'"),
        ({"proposer": "replay"}, "was begun with proposer 'tpe', not 'replay'"),
    ],
)
def test_a_night_does_not_go_on_as_another_one(changes, said):
    state = night_state.fold(
        [{"event": "night", "time": "t", "v": night_state.FORMAT, **HEADER, "tag": "died"}]
    )
    with pytest.raises(UsageError, match=said):
        resume.check_request(state, dataclasses.replace(REQUEST, **changes))


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

GPU = {"settings": {"device": "cuda", "budget": {"kind": "seconds"}}}
CPU = {"settings": {"device": "cpu", "budget": {"kind": "flops"}}}


def test_a_second_night_on_one_gpu_is_refused_and_leaves_nothing(tmp_path):
    first, second = tmp_path / "nights" / "first", tmp_path / "nights" / "second"
    with session.hold(first, GPU):
        with (
            pytest.raises(UsageError, match="on which night first is running"),
            session.hold(second, GPU),
        ):
            pass
        assert not second.exists()


def test_two_nights_on_a_cpu_with_a_budget_of_flops_do_not_disturb_each_other(tmp_path):
    with (
        session.hold(tmp_path / "nights" / "first", CPU),
        session.hold(tmp_path / "nights" / "second", CPU),
    ):
        pass


def test_the_views_of_a_night_can_be_made_again_while_another_has_its_gpu(night, tmp_path):
    night(FINISHED, **GPU)
    with (
        session.hold(tmp_path / "nights" / "first", GPU),
        session.hold(tmp_path / "nights" / "died", measures=False) as held,
    ):
        assert held.state.finished


def test_a_night_that_goes_on_holds_its_gpu(night, tmp_path):
    night(**GPU)
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
        pytest.raises(UsageError, match=r"has begun meanwhile: `\./run resume died`"),
    ):
        nightly_research.begin(held, {"tag": "died"}, "")
    assert path.read_bytes() == before


@pytest.fixture
def opened():
    """A night as far as `check_comparable` looks, and the event of its baseline."""
    profile = configs.load("laptop")
    kernel = FileRef("kernels/owner--name@0-torch2.json", "ab", 1)
    dataset = Dataset("f00d", "public", "train", "validation", 1, attention_kernels=(kernel,))
    found = SimpleNamespace(
        tag="nov21", profile=profile, base="A = 1\n", dataset=dataset, isolation="bwrap"
    )
    facts = baseline_facts(found.base, profile, dataset, "bwrap")
    began = {
        **BASELINE,
        "hardware": hardware.describe(profile.device, profile.threads),
        "dataset": "f00d",
        "facts": facts,
    }
    return found, json.loads(json.dumps(began))


def test_a_night_goes_on_where_everything_is_as_it_was(opened):
    found, began = opened
    opening.check_comparable(found, began)
    opening.check_comparable(found, None)  # a new one


@pytest.mark.parametrize(
    "fact", ["harness.py", "dataset", "owner--name@0-torch2", "train.py", "isolation"]
)
def test_a_night_does_not_go_on_where_a_fact_of_its_baseline_is_another(opened, fact):
    found, began = opened
    began["facts"][fact] = "c0ffee"
    with pytest.raises(
        UsageError, match=f"night nov21 was begun with {fact} c0ffee and would go on with "
    ):
        opening.check_comparable(found, began)


def test_a_night_does_not_go_on_without_the_kernel_that_it_began_with(opened):
    found, began = opened
    found.dataset = dataclasses.replace(found.dataset, attention_kernels=())
    with pytest.raises(UsageError, match="owner--name@0-torch2 ab and would go on with none"):
        opening.check_comparable(found, began)


def test_a_kernel_that_was_not_there_when_a_night_began_is_not_used_later(opened):
    found, began = opened
    assert opening.as_begun(found.dataset, began) == found.dataset
    del began["facts"]["owner--name@0-torch2"]
    found.dataset = opening.as_begun(found.dataset, began)
    assert found.dataset.attention_kernels == ()
    opening.check_comparable(found, began)


@pytest.mark.parametrize("changes", [{"hardware": "another machine"}, {"dataset": "another"}])
def test_a_night_from_before_facts_were_kept_is_told_by_hardware_and_data(opened, changes):
    found, began = opened
    del began["facts"]
    opening.check_comparable(found, began)
    with pytest.raises(UsageError, match=r"was begun with .* another"):
        opening.check_comparable(found, {**began, **changes})
