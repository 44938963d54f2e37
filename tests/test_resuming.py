"""Which night a start means: a retried flow run its own, a deployment the one that died, everything else a new one."""

import dataclasses
import json
import os
import platform
import time

import pytest

from flows import night_folder, resuming, session
from flows.opening import Request
from tasks import heartbeat, ledger, night_state
from tasks.judge import watchdog
from tasks.records import NightlyError, UsageError

REQUEST = Request("laptop", None, None, None, None, 1, False)
HEADER = {"profile": "laptop", "proposer": "tpe", "patches": None, "seed": 1, "trials": 4, "hours": None}
HEADER |= {"deployment": "local", "flow_run": "run-1", "began": "2026-11-21T22:00:00+00:00"}
BASELINE = {"val_bpb": 1.65, "scores": [1.64, 1.65, 1.66], "sd": 0.01, "start_commit": "c0", "wall_seconds": 30.0}
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
            for name, fields in [("night", {**HEADER, "tag": tag, **header}), ("baseline", BASELINE), *events]:
                book.append(name, **fields)
        born = watchdog.started_at(os.getpid()) if alive else 1
        last = time.time() - (0.0 if alive else hours * HOUR)
        beat = heartbeat.Heartbeat(platform.node(), watchdog.boot_id(), os.getpid(), born, last, 9.0, "training", 1.0, None)
        (folder / night_folder.PULSE).write_text(json.dumps(dataclasses.asdict(beat)))

    return make


def test_a_night_that_died_goes_on(night):
    night()
    assert resuming.choose_tag(REQUEST) == "died"


def test_a_night_that_failed_goes_on(night):
    night(FAILED)
    assert resuming.choose_tag(REQUEST) == "died"


@pytest.mark.parametrize("end", [STOPPED, FINISHED])
def test_a_night_that_somebody_stopped_or_that_is_over_does_not(night, end):
    night(end)
    assert resuming.choose_tag(REQUEST) != "died"


def test_a_night_that_died_long_ago_does_not(night):
    night(hours=resuming.RESTART_HOURS + 1)
    assert resuming.choose_tag(REQUEST) != "died"


@pytest.mark.parametrize("other", [{"deployment": "nightly-research"}, {"deployment": None}, {"profile": "h100"}, {"seed": 2}])
def test_a_night_of_another_kind_does_not(night, other):
    night(**other)
    assert resuming.choose_tag(REQUEST) != "died"


def test_a_start_from_a_shell_is_a_new_night(night, monkeypatch):
    night(deployment=None)
    monkeypatch.delenv("PREFECT__RUNTIME__DEPLOYMENT__NAME")
    assert resuming.choose_tag(REQUEST) != "died"


def test_a_second_start_while_the_night_lives_is_refused_with_who_it_is(night):
    night(alive=True)
    with pytest.raises(UsageError, match=rf"night died of the deployment 'local' is running \(pid {os.getpid()}.*training"):
        resuming.choose_tag(REQUEST)


@pytest.mark.parametrize("end", [STOPPED, FAILED, FINISHED])
def test_a_retried_flow_run_goes_on_with_its_own_night_however_that_ended(night, end, monkeypatch):
    night(end)
    night(tag="later", flow_run="run-3")
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", "run-1")
    assert resuming.choose_tag(REQUEST) == "died"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 2}, "was begun with seed 1, not 2: `./run resume died`"),
        ({"profile": "h100"}, "was begun with profile 'laptop', not 'h100'"),
        ({"proposer": "replay"}, "was begun with proposer 'tpe', not 'replay'"),
    ],
)
def test_a_night_does_not_go_on_as_another_one(changes, said):
    state = night_state.fold([{"event": "night", "time": "t", "v": night_state.FORMAT, **HEADER, "tag": "died"}])
    with pytest.raises(UsageError, match=said):
        resuming.check_request(state, dataclasses.replace(REQUEST, **changes))


def test_a_night_that_is_refused_to_go_on_stays_as_it_was(night, tmp_path):
    night(STOPPED)
    folder = tmp_path / "nights" / "died"
    before = (folder / night_folder.LEDGER).read_bytes()
    with pytest.raises(UsageError, match="with seed 2"), session.hold(folder):
        raise UsageError("begun with seed 1, not with seed 2")
    assert (folder / night_folder.LEDGER).read_bytes() == before


def test_a_night_that_fails_after_it_went_on_says_why(night, tmp_path):
    night(STOPPED)
    with pytest.raises(NightlyError, match="cannot follow"), session.hold(tmp_path / "nights" / "died") as held:
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
        with pytest.raises(UsageError, match="on which night first is running"), session.hold(second, GPU):
            pass
        assert not second.exists()


def test_two_nights_on_a_cpu_with_a_budget_of_flops_do_not_disturb_each_other(tmp_path):
    with session.hold(tmp_path / "nights" / "first", CPU), session.hold(tmp_path / "nights" / "second", CPU):
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
