"""How a night ends before its time, and that it goes on from there: Ctrl-C, SIGTERM, `./run stop`,
Prefect's cancel, kill -9.

Real command line, boxes, judge, git, MLflow, Prefect server and worker; train.py is the stub of
tests/faults.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows.night import mlflow_view
from tasks.history import heartbeat
from tasks.judge.processes import ProcessId
from tests.boxes import live_boxes
from tests.checkouts import kill, our_pids
from tests.faults import adds_up
from tests.faults.standing import OVER, Standing, standing
from tests.faults.stub_checkout import PROFILE, StubCheckout
from tests.judge.test_processes import ALONE, OWNER
from tests.waiting import wait_for
from tests.warm_python import WarmPython

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TRIALS = 2
DEPLOYED = "nightly-research/local"


@pytest.fixture(scope="module")
def stands(
    tmp_path_factory: pytest.TempPathFactory,
    warm: WarmPython,
    deployed_prefect: Path,
    empty_store: Path,
) -> Iterator[Standing]:
    """A checkout with everything prepared, a server and a worker."""
    folder = tmp_path_factory.mktemp("stops")
    with standing(folder, warm, deployed_prefect, empty_store) as stands:
        yield stands


@pytest.fixture(scope="module")
def checkout(stands: Standing) -> StubCheckout:
    return stands.checkout


@pytest.fixture(scope="module")
def before(checkout: StubCheckout) -> adds_up.UserTree:
    return adds_up.UserTree.of(checkout)


class Commands:
    """`./run` commands, in the background too; signals go to the night's own process."""

    def __init__(self, checkout: StubCheckout) -> None:
        self.checkout = checkout
        self.pool = ThreadPoolExecutor(1)

    def run(self, *arguments: str) -> tuple[int, str]:
        """The exit code, and everything that the command printed."""
        done = self.checkout.run(*arguments)
        return done.returncode, done.stdout + done.stderr

    def start(self, *arguments: str) -> Future[tuple[int, str]]:
        return self.pool.submit(self.run, *arguments)

    def night(self, tag: str, trials: int = TRIALS) -> tuple[str, ...]:
        return ("night", "--profile", PROFILE, "--tag", tag, "--trials", str(trials))


@pytest.fixture(scope="module")
def commands(checkout: StubCheckout, before: adds_up.UserTree) -> Iterator[Commands]:
    commands = Commands(checkout)
    code, said = commands.run(*commands.night("first", 1))  # the baseline is measured once for all
    assert code == 0, said
    yield commands
    commands.pool.shutdown()


def events(checkout: StubCheckout, tag: str) -> list[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        return checkout.ledger(tag)
    return []


def names(checkout: StubCheckout, tag: str) -> list[str]:
    return [event["event"] for event in events(checkout, tag)]


def await_trial(checkout: StubCheckout, tag: str, number: int = 1) -> int:
    """The pid of the night, once that trial runs."""

    def runs() -> bool:
        last = events(checkout, tag)[-1:]
        return bool(last) and last[0]["event"] == "started" and last[0]["trial"] >= number

    wait_for(runs, f"trial {number} of {tag}")
    return pid_of(checkout, tag)


def pid_of(checkout: StubCheckout, tag: str) -> int:
    beat = heartbeat.last(checkout.home / "nights" / tag / "heartbeat.json")
    assert beat is not None
    return beat.process.pid


def end_of(checkout: StubCheckout, tag: str) -> tuple[str, bool, str]:
    last = events(checkout, tag)[-1]
    return last["event"], last.get("failed", False), last["reason"]


def status(checkout: StubCheckout, tag: str) -> dict[str, Any]:
    """What `./run status TAG --json` prints, without four seconds of imports."""
    argv = [sys.executable, "-m", "flows.command_line.cli", "status", tag, "--json"]
    done = subprocess.run(
        argv,
        cwd=checkout.folder,
        env=checkout.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


def nothing_left(stands: Standing) -> None:
    assert live_boxes(stands.checkout.home) == set()
    assert stands.flows() == []
    assert list((stands.checkout.home / "boxes").iterdir()) == []


def goes_on_to_its_end(
    stands: Standing, commands: Commands, before: adds_up.UserTree, tag: str, trials: int = TRIALS
) -> None:
    # Prefect's process of a run that has ended sends its last logs first
    wait_for(lambda: not stands.flows(), f"the end of {tag}'s processes")
    code, said = commands.run("resume", tag)
    assert code == 0, said
    assert adds_up.complaints(stands.checkout, tag, trials, before, stands.pids) == []


def mlflow_statuses(checkout: StubCheckout, tag: str) -> list[str]:
    """Of the night's own run, once it is there."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{checkout.home / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments)
    return [str(run.info.status) for run in runs if run.info.run_name == tag]


# Ctrl-C and SIGTERM


def test_ctrl_c_once_ends_the_night_after_its_trial(stands, checkout, commands, before):
    night = commands.start(*commands.night("once"))
    os.kill(await_trial(checkout, "once"), signal.SIGINT)
    code, said = night.result()
    assert code == 0, said
    assert names(checkout, "once") == [
        "night",
        "baseline",
        "started",
        "decided",
        "applied",
        "stopped",
    ]
    assert end_of(checkout, "once") == ("stopped", False, "stopped by Ctrl-C")
    assert "`./run resume once` then runs this trial again." in said
    assert "night once has stopped (stopped by Ctrl-C): `./run resume once` resumes it" in said
    assert "stopped by Ctrl-C" in (checkout.home / "nights" / "once" / "report.md").read_text()
    assert mlflow_statuses(checkout, "once") == ["KILLED"]
    nothing_left(stands)
    goes_on_to_its_end(stands, commands, before, "once")


def test_ctrl_c_twice_ends_the_night_at_once_and_the_trial_runs_again(
    stands, checkout, commands, before
):
    night = commands.start(*commands.night("twice"))
    pid = await_trial(checkout, "twice")
    os.kill(pid, signal.SIGINT)
    wait_for((checkout.home / "nights" / "twice" / "stop").exists, "the first Ctrl-C")
    os.kill(pid, signal.SIGINT)
    code, said = night.result()
    assert code == 130, said
    assert names(checkout, "twice") == ["night", "baseline", "started", "stopped"]
    assert end_of(checkout, "twice") == ("stopped", False, "interrupted (Ctrl-C)")
    nothing_left(stands)
    goes_on_to_its_end(stands, commands, before, "twice")
    assert names(checkout, "twice")[4:7] == ["resumed", "started", "decided"]


def test_ctrl_c_in_a_terminal_reaches_every_process_of_the_night_and_it_still_ends_well(
    checkout, commands, stands
):
    """Without a standing server: the private one and git are below the night, in the terminal's
    process group."""
    environment = checkout.environment()
    del environment["PREFECT_API_URL"]
    argv = [sys.executable, "-m", "flows.command_line.cli", *commands.night("terminal"), "--json"]
    with subprocess.Popen(
        argv,
        cwd=checkout.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as night:
        await_trial(checkout, "terminal")
        os.killpg(night.pid, signal.SIGINT)
        out, said = night.communicate()
    assert night.returncode == 0, said
    assert [trial["k"] for trial in json.loads(out)["trials"]] == [1]
    assert end_of(checkout, "terminal") == ("stopped", False, "stopped by Ctrl-C")
    nothing_left(stands)
    assert [argv for argv in our_pids(checkout.home).values() if "uvicorn" in argv] == []


def test_ctrl_c_before_the_first_trial_ends_the_night_at_once(stands, checkout, commands, tmp_path):
    other = (
        (checkout.folder / PROFILE)
        .read_text()
        .replace("validation_documents = 4", "validation_documents = 5")
    )
    (tmp_path / "other.toml").write_text(other)  # its baseline is not there yet, and takes seconds
    night = commands.start(
        "night", "--profile", str(tmp_path / "other.toml"), "--tag", "early", "--trials", "1"
    )
    pulse = checkout.home / "nights" / "early" / "heartbeat.json"
    wait_for(
        lambda: (beat := heartbeat.last(pulse)) is not None and beat.phase.startswith("baseline"),
        "its baseline",
    )
    os.kill(pid_of(checkout, "early"), signal.SIGINT)
    code, said = night.result()
    assert code == 130, said
    assert "started" not in names(checkout, "early")
    assert end_of(checkout, "early") == ("stopped", False, "interrupted (Ctrl-C)")
    nothing_left(stands)


def test_sigterm_ends_the_night_at_once(stands, checkout, commands):
    night = commands.start(*commands.night("term", 50))
    pid = await_trial(checkout, "term")
    wait_for(lambda: mlflow_statuses(checkout, "term"), "the night's run in MLflow")
    os.kill(pid, signal.SIGTERM)
    code, said = night.result()
    assert code == 143, said
    assert end_of(checkout, "term") == ("stopped", False, "interrupted (SIGTERM)")
    assert "has stopped (interrupted (SIGTERM)): `./run resume term` resumes it" in said
    late = f"did not record the night's end within {mlflow_view.STOP_SECONDS:.0f} s"
    assert late in said or mlflow_statuses(checkout, "term") == ["KILLED"]
    nothing_left(stands)


# ./run stop


def test_run_stop_ends_the_night_after_its_trial(stands, checkout, commands, before):
    night = commands.start(*commands.night("asked"))
    await_trial(checkout, "asked")
    done = checkout.run("stop", "asked")
    code, said = night.result()
    assert (done.returncode, code) == (0, 0), said
    assert end_of(checkout, "asked") == ("stopped", False, "stopped by ./run stop")
    assert names(checkout, "asked")[-2] == "applied"
    refused = commands.run("stop", "asked")
    assert refused[0] == 2
    assert "night asked is not running: it is stopped" in refused[1]
    goes_on_to_its_end(stands, commands, before, "asked")  # the old file does not stop it


# kill -9 of the night's process


def test_a_night_that_was_killed_is_interrupted_at_once_and_goes_on(
    stands, checkout, commands, before
):
    night = commands.start(*commands.night("zombie"))
    pid = await_trial(checkout, "zombie")
    kill(pid)
    assert night.result()[0] == -signal.SIGKILL
    told = status(checkout, "zombie")
    assert (told["state"], told["trial"], told["phase"]) == ("interrupted", 1, None)
    assert str(pid) in told["last_error"]
    goes_on_to_its_end(stands, commands, before, "zombie")


def test_the_next_start_ends_what_a_killed_process_left_behind(checkout, commands):
    script = OWNER.format(home=str(checkout.home), child=ALONE)
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=checkout.folder, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        orphan = ProcessId.of(int(owner.stdout.readline()))
        owner.kill()
    try:
        code, said = commands.run("resume", "first")
        assert code == 0, said
        assert f"ended process {orphan.pid}, left behind by a command that was killed" in said
        wait_for(lambda: not orphan.is_alive, "the orphan's end")
    finally:
        orphan.kill()


def test_a_night_is_not_continued_as_another_one(checkout, commands):
    changed = [*commands.night("first"), "--seed", "2"]
    code, said = commands.run(*changed)
    assert code == 2
    assert (
        "night first exists and was started with seed 1, not 2: `./run resume first` resumes it"
        in said
    )


def test_a_night_goes_on_with_the_baseline_it_began_with_and_no_other_harness(checkout, commands):
    harness = checkout.folder / "trainer" / "harness.py"
    source = harness.read_text()
    shutil.rmtree(checkout.home / "data" / "baselines")
    harness.write_text(f"{source}# edited\n")
    code, said = commands.run("resume", "first", "--trials", "2")
    harness.write_text(source)
    assert code == 2, said
    assert "night first started with harness.py " in said
    assert "baseline: measured" not in said


def test_a_finished_night_gets_more_trials_by_resume(checkout, commands):
    refused, why = commands.run("resume", "first", "--trials", "1")
    assert (refused, "--trials 1: night first has finished 1" in why) == (2, True), why
    code, said = commands.run("resume", "first", "--trials", "2", "--json")
    assert code == 0, said
    assert "baseline: measured" not in said
    assert '"k": 2' in said
    assert names(checkout, "first")[-5:] == ["resumed", "started", "decided", "applied", "finished"]


# Prefect and its worker


class Prefect:
    """The server's own API, for what `prefect` does in five seconds more."""

    def __init__(self, stands: Standing) -> None:
        self.api = stands.checkout.api
        self.checkout = stands.checkout

    def ask(self, path: str, **body: Any) -> Any:
        content = json.dumps(body).encode() if body else None
        request = urllib.request.Request(
            f"{self.api}{path}", content, {"Content-Type": "application/json"}
        )
        for _ in range(100):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 503:  # its database is busy
                    raise
        raise TimeoutError(f"{path}: the database of the Prefect server stays busy")

    def run_deployment(self, **parameters: Any) -> str:
        given = {"profile": str(self.checkout.folder / PROFILE), "trials": TRIALS, **parameters}
        deployment = self.ask(f"/deployments/name/{DEPLOYED}")["id"]
        run = self.ask(
            f"/deployments/{deployment}/create_flow_run",
            parameters=given,
            state={"type": "SCHEDULED"},
        )
        return str(run["id"])

    def state(self, run: str) -> tuple[str, str]:
        found = self.ask(f"/flow_runs/{run}")["state"]
        return found["type"], found["message"] or ""

    def await_state(self, run: str, kind: str) -> str:
        wait_for(lambda: self.state(run)[0] in (kind, *OVER), f"{kind} of {run}")
        state = self.state(run)
        assert state[0] == kind, state
        return state[1]

    def name(self, run: str) -> str:
        return str(self.ask(f"/flow_runs/{run}")["name"])


@pytest.fixture(scope="module")
def prefect(stands: Standing) -> Prefect:
    return Prefect(stands)


def await_night_of(prefect: Prefect, run: str, what: Callable[[str], bool]) -> str:
    """The tag of the night that a flow run began, once it is there."""
    nights: Path = prefect.checkout.home / "nights"

    def tags() -> list[str]:
        return [
            folder.name
            for folder in nights.iterdir()
            if any(e.get("flow_run") == run for e in events(prefect.checkout, folder.name))
        ]

    wait_for(lambda: bool(tags()) and what(tags()[0]), f"the night of {run}")
    return tags()[0]


def test_prefects_cancel_ends_the_night_and_it_goes_on_later(
    stands, checkout, commands, before, prefect
):
    run = prefect.run_deployment(tag="cancelled")
    await_trial(checkout, "cancelled")
    second = prefect.run_deployment(tag="second")
    assert "concurrency limit" in prefect.await_state(second, "CANCELLED").lower()
    prefect.ask(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    prefect.await_state(run, "CANCELLED")
    assert end_of(checkout, "cancelled") == ("stopped", False, "the flow run was cancelled")
    nothing_left(stands)
    goes_on_to_its_end(stands, commands, before, "cancelled")


def test_a_night_outlives_its_worker(stands, checkout, commands, before, prefect):
    run = prefect.run_deployment(tag="outlives")
    await_trial(checkout, "outlives")
    stands.kill_worker()
    prefect.await_state(run, "COMPLETED")
    stands.up()
    goes_on_to_its_end(stands, commands, before, "outlives")


def test_a_retry_after_the_death_of_night_and_worker_completes_the_same_night(
    stands, checkout, commands, before, prefect
):
    """Without a tag: the flow run that is retried finds its own night."""
    run = prefect.run_deployment()
    tag = await_night_of(prefect, run, lambda tag: "started" in names(checkout, tag))
    pid = pid_of(checkout, tag)
    stands.kill_worker()
    kill(pid)
    # nobody is there to say so
    prefect.ask(f"/flow_runs/{run}/set_state", state={"type": "CRASHED"}, force=True)
    retried = subprocess.run(
        [sys.executable, "-m", "prefect", "flow-run", "retry", run],
        cwd=checkout.folder,
        env=stands.environment(),
        capture_output=True,
        text=True,
    )
    assert retried.returncode == 0, retried.stdout + retried.stderr
    stands.up()
    prefect.await_state(run, "COMPLETED")
    assert names(checkout, tag).count("night") == 1
    goes_on_to_its_end(stands, commands, before, tag)
