"""A Prefect server in a process of its own, which tests start, kill and start again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
from pathlib import Path

from flows.command_line.server import free_port
from flows.state_home import is_healthy
from tests.checkouts import Checkout, Process
from tests.waiting import wait_for
from tests.warm_python import WarmPython

SERVER = (
    *("-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
    *("--host", "127.0.0.1", "--log-level", "error"),
)


class PrefectServer:
    """A server at one port, up or down, with its database and log in `home`.

    `template` is the database that it begins with; without one it makes its tables, which takes
    seven times as long as its start. `settings` are variables of its environment.
    """

    def __init__(
        self, home: Path, warm: WarmPython, template: Path | None = None, **settings: str
    ) -> None:
        self.home, self.warm = home, warm
        self.port = free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.database = home / "prefect.db"
        self.settings = settings
        self.process: Process | None = None
        home.mkdir(parents=True, exist_ok=True)
        if template:
            shutil.copy(template, self.database)

    def start(self) -> None:
        """Returns when it answers."""
        ours = ("PREFECT_", "MLFLOW_", "NIGHTLY_", "OPENAI_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        environment = {
            **kept,
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
            "DO_NOT_TRACK": "1",
            **self.settings,
        }
        with (self.home / "server.log").open("a") as log:
            self.process = self.warm.start(
                [*SERVER, "--port", str(self.port)],
                cwd=self.home,
                env=environment,
                stdout=log,
                stderr=log,
            )
        wait_for(self._is_up, "the Prefect server")

    def _is_up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError((self.home / "server.log").read_text()[-5000:])
        return is_healthy(self.api)

    @property
    def pid(self) -> int | None:
        """None when it does not run."""
        running = self.process is not None and self.process.poll() is None
        return self.process.pid if self.process and running else None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """Ends it as a user does, and makes its database one file."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
        with contextlib.closing(sqlite3.connect(self.database)) as database:
            database.execute("pragma wal_checkpoint(truncate)")


def make_deployed(path: Path, folder: Path, warm: WarmPython, empty: Path | None = None) -> None:
    """Makes the database of a server that has the project's pools and deployments."""
    server = PrefectServer(folder / "prefect", warm, empty)
    server.start()
    (folder / "checkout").mkdir()
    done = Checkout(folder / "checkout", warm=warm, api=server.api).run("deploy")
    if done.returncode:
        raise RuntimeError(f"./run deploy failed: {done.stdout}{done.stderr}")
    server.stop()
    server.database.rename(path)
