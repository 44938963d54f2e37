"""What stands while nights are killed: a Prefect server at one port, and a worker of the pool `local`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flows.command_line.server import free_port
from flows.state_home import is_healthy
from tests.faults.adds_up import our_pids
from tests.faults.stub_checkout import StubCheckout

SERVER = (
    "-m",
    "uvicorn",
    "--factory",
    "prefect.server.api.server:create_app",
    "--host",
    "127.0.0.1",
    "--log-level",
    "error",
)
FLOW = (
    "flows.command_line.cli night",
    "flows.command_line.cli resume",
    "prefect.engine",
    "prefect.runner",
    "prefect flow-run retry",
)  # in a command line
OVER = ("CRASHED", "FAILED", "CANCELLED", "COMPLETED")  # states of a flow run
WAIT_SECONDS = (
    300.0  # a process of Prefect takes a minute to start on a machine that is busy enough
)


class Standing:
    """The server and the worker of one checkout, started again at the same port and over the same database."""

    def __init__(self, checkout: StubCheckout) -> None:
        self.checkout = checkout
        self.port = free_port()
        checkout.api = f"http://127.0.0.1:{self.port}/api"
        self.prefect_home = checkout.home / "prefect"
        self.prefect_home.mkdir(parents=True, exist_ok=True)
        self.milestones = checkout.home / "milestones"  # that a night has reached, a line each
        self.log = (checkout.home / "standing.log").open("a")
        self.server: subprocess.Popen[bytes] | None = None
        self.worker: subprocess.Popen[bytes] | None = None

    def environment(self, **changes: str) -> dict[str, str]:
        """For the server, the worker and plain `prefect` commands; our own commands set the same defaults."""
        settings = {
            "PREFECT_HOME": str(self.prefect_home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "DO_NOT_TRACK": "1",
            "NIGHTLY_TEST_MILESTONES": str(self.milestones),
        }
        return self.checkout.environment(**settings, **changes)

    def start_server(self) -> None:
        argv = [sys.executable, *SERVER, "--port", str(self.port)]
        environment = self.environment(PREFECT_API_URL="", PREFECT_SERVER_LOGGING_LEVEL="ERROR")
        self.server = self._spawn(argv, environment)
        wait_for(lambda: is_healthy(str(self.checkout.api)), "the Prefect server")

    def start_worker(self) -> None:
        argv = [sys.executable, "-m", "flows.command_line.cli", "worker", "local"]
        self.worker = self._spawn(argv, self.environment(PREFECT_WORKER_QUERY_SECONDS="1"))

    def up(self) -> None:
        """Starts what does not run."""
        if self.server is None or self.server.poll() is not None:
            self.start_server()
        if self.worker is None or self.worker.poll() is not None:
            self.start_worker()

    def reap(self, pid: int) -> None:
        """Waits for the end of the server or the worker, if it is the one that was killed."""
        for child in (self.server, self.worker):
            if child is not None and child.pid == pid:
                child.wait()

    def _spawn(self, argv: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv,
            cwd=self.checkout.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )

    @property
    def pids(self) -> frozenset[int]:
        """The live ones."""
        both = (self.server, self.worker)
        return frozenset(child.pid for child in both if child is not None and child.poll() is None)

    def flows(self) -> list[int]:
        """Processes that run a night or are about to, whoever started them."""
        found = our_pids(self.checkout.home)
        return [
            pid
            for pid, argv in found.items()
            if pid not in self.pids and any(part in argv for part in FLOW)
        ]

    def end(self) -> None:
        """Ends all that names the state folder; every one of them was started here."""
        for child in (self.worker, self.server):
            if child is not None and child.poll() is None:
                child.kill()
                child.wait()
        for pid in our_pids(self.checkout.home):
            kill(pid)
        self.log.close()


@contextlib.contextmanager
def standing(folder: Path) -> Iterator[Standing]:
    """A stub checkout in `folder` with a server, a worker and the deployments."""
    stands = Standing(StubCheckout(folder))
    try:
        stands.start_server()
        done = stands.checkout.run("deploy")
        if done.returncode:
            raise RuntimeError(f"./run deploy failed: {done.stdout}{done.stderr}")
        stands.start_worker()
        yield stands
    finally:
        stands.end()


def wait_for(what: Callable[[], bool], name: str, seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name}: not within {seconds:.0f} s")
        time.sleep(0.05)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
