"""Nights during which something goes down: MLflow, the disk, Prefect's API.

Each ends with exit code 0 and adds up. Real command line, servers, boxes, judge and git; train.py
is the stub of tests/faults.
"""

import json
import subprocess
import sys

import pytest

from flows.command_line.server import free_port
from tasks.history import heartbeat
from tests.checkouts import CLI
from tests.faults import adds_up
from tests.faults.outages import MlflowServer, RunningNight, complaints, delays, proxy
from tests.faults.prefect_server import PrefectServer
from tests.faults.small_disk import can_mount, on_a_small_disk
from tests.faults.stub_checkout import PROFILE, StubCheckout
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LONGEST_DELAY = 120.0  # seconds, of a trial by a view that is down; MLflow's own default is 246

needs_a_disk = pytest.mark.skipif(
    not can_mount(), reason="no small disk: needs root and unshare(1) with mount"
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm, prefect_api, empty_store):
    """A checkout with data and baseline, and a Prefect server."""
    folder = tmp_path_factory.mktemp("outages") / "checkout"
    folder.mkdir()
    checkout = StubCheckout(folder, warm=warm, api=prefect_api, store=empty_store)
    done = checkout.run("night", "--profile", PROFILE, "--tag", "first", "--trials", "1")
    assert done.returncode == 0, done.stderr
    return checkout


@pytest.fixture(scope="module")
def before(checkout):
    return adds_up.UserTree.of(checkout)


@pytest.fixture(scope="module")
def mlflow_server(checkout):
    server = MlflowServer(checkout)
    yield server
    server.kill()


@pytest.fixture
def up(mlflow_server):
    if mlflow_server.process is None:
        mlflow_server.start()
    return mlflow_server


def error_of(checkout, tag):
    beat = heartbeat.last(checkout.home / "nights" / tag / "heartbeat.json")
    assert beat
    return beat.error


def test_mlflow_that_is_down_for_three_trials_holds_none_up_and_is_complete_afterwards(
    checkout, before, up
):
    night = RunningNight(checkout, "down", 6, MLFLOW_TRACKING_URI=up.url)
    night.reaches("started", 2)
    up.kill()
    night.reaches("applied", 5)
    assert "MLflow" in (error_of(checkout, "down") or "")
    up.start(wait=False)

    assert night.end() == 0, night.said
    assert error_of(checkout, "down") is None  # it is over
    assert max(delays(checkout.ledger("down"))) < LONGEST_DELAY
    assert complaints(checkout, "down", 6, before, up.pids) == []


@pytest.mark.parametrize("does", ["hang", "fail"])
def test_mlflow_that_answers_nothing_or_500_holds_no_trial_up_and_is_complete_afterwards(
    checkout, before, up, does
):
    with proxy(up.port) as between:
        url = f"http://127.0.0.1:{between.port}"
        night = RunningNight(checkout, does, 4, MLFLOW_TRACKING_URI=url)
        night.reaches("started", 2)
        between.turn(does)
        night.reaches("applied", 4)
        between.turn("forward")
        assert night.end() == 0, night.said

    assert max(delays(checkout.ledger(does))) < LONGEST_DELAY
    assert complaints(checkout, does, 4, before, up.pids) == []


def test_a_prefect_api_that_is_killed_costs_its_pages_and_nothing_else(
    checkout, before, mlflow_server, warm, empty_prefect, tmp_path
):
    server = PrefectServer(tmp_path / "prefect", warm, empty_prefect)
    server.start()
    night = RunningNight(checkout, "unserved", 4, PREFECT_API_URL=server.api)
    night.reaches("started", 2)
    server.kill()

    assert night.end() == 0, night.said
    assert "# Night unserved" in night.said
    assert "Traceback" not in night.said
    assert night.said.count("its pages miss what happens meanwhile") == 1
    assert max(delays(checkout.ledger("unserved"))) < LONGEST_DELAY
    assert complaints(checkout, "unserved", 4, before, mlflow_server.pids) == []


@needs_a_disk
def test_a_night_whose_disk_fills_waits_and_ends_complete(checkout, before, mlflow_server):
    with on_a_small_disk(checkout.home) as disk:
        # Its own Prefect server is on that disk, too.
        night = RunningNight(checkout, "full", 5, disk, PREFECT_API_URL="")
        night.reaches("started", 3)
        disk.fill()

        def status():
            argv = [*disk.command(checkout.folder), sys.executable, *CLI, "status", "full"]
            done = subprocess.run(
                [*argv, "--json"],
                env=checkout.environment(),
                capture_output=True,
                text=True,
                check=True,
            )
            return json.loads(done.stdout)

        wait_for(lambda: "paused: " in night.said, "a night that is paused")
        wait_for(lambda: (status()["phase"] or "").startswith("paused"), "a status that says so")
        found = status()
        assert (found["state"], found["trial"]) == ("running", 3)
        assert f"the disk of {checkout.home} is full" in found["phase"]
        disk.free()

        assert night.end() == 0, night.said
        assert night.said.count("paused: ") == 1
        assert complaints(checkout, "full", 5, before, mlflow_server.pids, disk) == []


@needs_a_disk
def test_a_night_whose_git_finds_no_room_waits_and_ends_complete(checkout, before, mlflow_server):
    with on_a_small_disk(checkout.folder / ".git") as disk:
        night = RunningNight(checkout, "gitless", 4, disk)
        night.reaches("started", 2)
        disk.fill()
        wait_for(lambda: "paused: " in night.said, "a night that is paused")
        disk.free()

        assert night.end() == 0, night.said
        assert complaints(checkout, "gitless", 4, before, mlflow_server.pids, disk) == []


def test_rebuild_completes_an_mlflow_that_was_down_to_the_end_and_whose_store_is_gone(
    checkout, before, mlflow_server
):
    nowhere = f"http://127.0.0.1:{free_port()}"
    night = RunningNight(checkout, "rebuilt", 2, MLFLOW_TRACKING_URI=nowhere)
    assert night.end() == 0, night.said
    assert f"MLflow at {nowhere} failed" in night.said
    mlflow_server.kill()
    for store in checkout.home.glob("mlflow.db*"):
        store.unlink()
    done = checkout.run("rebuild", "rebuilt")
    assert done.returncode == 0, done.stderr
    assert complaints(checkout, "rebuilt", 2, before, frozenset()) == []
