"""Nights around which things go down: MLflow, the disk, Prefect's API. Each ends in time, with exit 0, and adds up.

Real command line, servers, boxes, judge and git; train.py is the stub of tests/faults.
"""

import json
import subprocess
import sys

import pytest

from flows.command_line.server import free_port
from tasks.history import heartbeat
from tests.faults import adds_up
from tests.faults.outages import MlflowServer, RunningNight, complaints, delays, proxy
from tests.faults.prefect_server import PrefectServer
from tests.faults.small_disk import can_mount, on_a_small_disk
from tests.faults.standing import Standing
from tests.faults.stub_checkout import PROFILE, StubCheckout
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
LONGEST_DELAY = 15.0  # seconds, of a trial by a view that is down

needs_a_disk = pytest.mark.skipif(
    not can_mount(), reason="no small disk: needs root and unshare(1) with mount"
)


@pytest.fixture(scope="module")
def stands(tmp_path_factory, warm, empty_prefect):
    """A checkout with data and baseline, and a Prefect server."""
    folder = tmp_path_factory.mktemp("outages")
    server = PrefectServer(folder / "prefect", warm, empty_prefect)
    (folder / "checkout").mkdir(mode=0o755)  # the uid of boxes must reach the dataset
    stands = Standing(StubCheckout(folder / "checkout", warm=warm, api=server.api), server)
    try:
        server.start()
        done = stands.checkout.run("night", "--profile", PROFILE, "--tag", "first", "--trials", "1")
        assert done.returncode == 0, done.stderr
        yield stands
    finally:
        stands.end()


@pytest.fixture
def checkout(stands):
    """That checkout, its Prefect server up."""
    if stands.server.pid is None:
        stands.server.start()
    return stands.checkout


@pytest.fixture(scope="module")
def before(stands):
    return adds_up.UserTree.of(stands.checkout)


@pytest.fixture(scope="module")
def mlflow_server(stands):
    server = MlflowServer(stands.checkout)
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


def test_mlflow_that_is_down_for_three_trials_delays_none_and_is_complete_afterwards(
    stands, checkout, before, up
):
    night = RunningNight(checkout, "down", 8, MLFLOW_TRACKING_URI=up.url)
    night.reaches("started", 3)
    up.kill()
    night.reaches("applied", 6)
    assert "MLflow" in (error_of(checkout, "down") or "")
    up.start(wait=False)

    assert night.end() == 0, night.said
    assert error_of(checkout, "down") is None  # it is over
    assert max(delays(checkout.ledger("down"))) < LONGEST_DELAY
    assert complaints(checkout, "down", 8, before, stands.pids | up.pids) == []


@pytest.mark.parametrize("does", ["hang", "fail"])
def test_mlflow_that_answers_nothing_or_500_delays_no_trial_and_is_complete_afterwards(
    stands, checkout, before, up, does
):
    with proxy(up.port) as between:
        night = RunningNight(
            checkout, does, 5, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{between.port}"
        )
        night.reaches("started", 2)
        between.turn(does)
        night.reaches("applied", 4)
        between.turn("forward")
        assert night.end() == 0, night.said

    assert max(delays(checkout.ledger(does))) < LONGEST_DELAY
    assert complaints(checkout, does, 5, before, stands.pids | up.pids) == []


def test_prefects_api_that_is_killed_costs_its_pages_and_nothing_else(
    stands, checkout, before, mlflow_server
):
    night = RunningNight(checkout, "unserved", 4)
    night.reaches("started", 2)
    stands.server.kill()

    assert night.end() == 0, night.said
    assert "# Night unserved" in night.said
    assert "Traceback" not in night.said
    assert night.said.count("its pages miss what happens meanwhile") == 1
    assert max(delays(checkout.ledger("unserved"))) < LONGEST_DELAY
    assert complaints(checkout, "unserved", 4, before, stands.pids | mlflow_server.pids) == []


@needs_a_disk
def test_a_night_whose_disk_fills_at_trial_10_of_40_waits_and_ends_complete(
    stands, checkout, before, mlflow_server
):
    with on_a_small_disk(checkout.home) as disk:
        night = RunningNight(
            checkout, "full", 40, disk, PREFECT_API_URL=""
        )  # its own server is on that disk, too
        night.reaches("started", 10)
        disk.fill()

        def status():
            argv = [
                *disk.command(checkout.folder),
                sys.executable,
                "-m",
                "flows.command_line.cli",
                "status",
                "full",
                "--json",
            ]
            done = subprocess.run(
                argv, env=checkout.environment(), capture_output=True, text=True, check=True
            )
            return json.loads(done.stdout)

        wait_for(
            lambda: (status()["phase"] or "").startswith("paused"), "a night that says it is paused"
        )
        told = status()
        assert (told["state"], told["trial"]) == ("running", 10)
        assert f"the disk of {checkout.home} is full" in told["phase"]
        disk.free()

        assert night.end() == 0, night.said
        assert night.said.count("paused: ") == 1
        assert (
            complaints(checkout, "full", 40, before, stands.pids | mlflow_server.pids, disk) == []
        )


@needs_a_disk
def test_a_night_whose_git_finds_no_room_waits_and_ends_complete(
    stands, checkout, before, mlflow_server
):
    with on_a_small_disk(checkout.folder / ".git") as disk:
        night = RunningNight(checkout, "gitless", 4, disk)
        night.reaches("started", 2)
        disk.fill()
        wait_for(lambda: "paused: " in night.said, "a night that is paused")
        disk.free()

        assert night.end() == 0, night.said
        assert (
            complaints(checkout, "gitless", 4, before, stands.pids | mlflow_server.pids, disk) == []
        )


def test_rebuild_completes_an_mlflow_that_was_down_to_the_end_and_whose_store_is_gone(
    stands, checkout, before, mlflow_server
):
    night = RunningNight(
        checkout, "rebuilt", 2, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}"
    )
    assert night.end() == 0, night.said
    assert "Ledger and git have the data" in night.said
    mlflow_server.kill()
    for store in checkout.home.glob("mlflow.db*"):
        store.unlink()
    done = checkout.run("rebuild", "rebuilt")
    assert done.returncode == 0, done.stderr
    assert complaints(checkout, "rebuilt", 2, before, stands.pids) == []
