"""What runs while nights are killed: a Prefect server and a worker of the pool `local`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.checkouts import Process, kill, our_pids
from tests.faults.prefect_server import PrefectServer
from tests.faults.stub_checkout import StubCheckout
from tests.warm_python import WarmPython

FLOW = (  # in the command line of a process that runs a night or is about to
    "flows.command_line.cli night",
    "flows.command_line.cli resume",
    "prefect.engine",
    "prefect.runner",
    "prefect flow-run retry",
)
OVER = ("CRASHED", "FAILED", "CANCELLED", "COMPLETED")  # states of a flow run


class Standing:
    """A checkout with a Prefect server of its own and a worker."""

    def __init__(self, checkout: StubCheckout, server: PrefectServer) -> None:
        self.checkout, self.server = checkout, server
        self.prefect_home = checkout.home / "prefect"
        self.prefect_home.mkdir(parents=True, exist_ok=True)
        self.milestones = checkout.home / "milestones"  # that a night has reached, one a line
        self.worker: Process | None = None

    def environment(self, **changes: str) -> dict[str, str]:
        """For the worker and plain `prefect` commands; our own commands set the same defaults."""
        settings = {
            "PREFECT_HOME": str(self.prefect_home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "DO_NOT_TRACK": "1",
            "NIGHTLY_TEST_MILESTONES": str(self.milestones),
        }
        return self.checkout.environment(**settings, **changes)

    def start_worker(self) -> None:
        changes = self.environment(PREFECT_WORKER_QUERY_SECONDS="1")
        with (self.checkout.home / "worker.log").open("a") as log:
            self.worker = self.checkout.start("worker", "local", log=log, **changes)

    def up(self) -> None:
        """Starts what does not run."""
        if self.server.pid is None:
            self.server.start()
        if self.worker is None or self.worker.poll() is not None:
            self.start_worker()

    def kill_worker(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()

    def reap(self, pid: int) -> None:
        """Waits for the end of the server or the worker, if it is the one that was killed."""
        for process in (self.server.process, self.worker):
            if process is not None and process.pid == pid:
                process.wait()

    @property
    def pids(self) -> frozenset[int]:
        """The live worker's."""
        alive = self.worker is not None and self.worker.poll() is None
        return frozenset({self.worker.pid} if self.worker and alive else ())

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
        self.kill_worker()
        for pid in our_pids(self.checkout.home):
            kill(pid)
        self.server.kill()


@contextlib.contextmanager
def standing(
    folder: Path, warm: WarmPython, deployed: Path, store: Path | None = None
) -> Iterator[Standing]:
    """A stub checkout with a server and a worker.

    `deployed` is the database of a server that has the deployments, `store` an MLflow store.
    """
    server = PrefectServer(folder / "prefect", warm, deployed)
    (folder / "checkout").mkdir(mode=0o755)  # the uid of boxes must reach the dataset
    stands = Standing(
        StubCheckout(folder / "checkout", warm=warm, api=server.api, store=store), server
    )
    try:
        stands.up()
        yield stands
    finally:
        stands.end()
