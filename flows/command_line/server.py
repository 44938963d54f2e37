"""The servers that a command starts: Prefect's API, and the pages of Prefect and MLflow.

Without PREFECT_API_URL a command uses the `./run server` of the same state folder if one is up.
Otherwise it starts a private server, which loads while the command imports Prefect and which ends
with the command, even after kill -9. (Prefect's own ephemeral server would be orphaned by that,
and gives up after 20 s on a slow machine.) This module imports neither Prefect nor MLflow when it
is loaded: their settings must be in the environment first.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from flows import state_home
from flows.command_line import api_outage
from flows.night import interruption
from tasks import addresses
from tasks.errors import NightlyError, UsageError
from tasks.judge import processes
from tasks.views import mlflow_page

START_SECONDS = 120.0
LOCALHOST = "127.0.0.1"
DRAIN_SECONDS = 2.0  # a grandchild may hold the pipe open
ADDRESS = "server.json"  # in the state folder, while `./run server` is up


def free_port(wanted: int = 0) -> int:
    """`wanted` if nobody listens there, else any free port of 127.0.0.1."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOCALHOST, port))
            return int(probe.getsockname()[1])
    raise NightlyError(f"no free port on {LOCALHOST}")


class Server(subprocess.Popen[bytes]):
    """A server; what it prints appears on our stderr, but not after `end`.

    A request that is still open when a server ends makes it print pages of traceback.
    """

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        super().__init__(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is for the night, which needs it
        )
        self._is_ending = False
        self._relay = threading.Thread(target=self._pass_on, name="server-log", daemon=True)
        self._relay.start()

    def _pass_on(self) -> None:
        assert self.stdout is not None
        with self.stdout:
            for line in self.stdout:
                # With nobody to read our stderr, the server must not wait for its pipe to be read.
                with contextlib.suppress(OSError, ValueError):
                    if not self._is_ending:
                        sys.stderr.write(line.decode(errors="replace"))
                        sys.stderr.flush()

    def has_exited(self) -> bool:
        """Whether it ended by itself; its last words have then appeared."""
        if self.poll() is None:
            return False
        self._relay.join(timeout=DRAIN_SECONDS)
        return True

    def end(self) -> None:
        """Ends it, by SIGKILL if need be, and silently."""
        self._is_ending = True
        self.terminate()
        try:
            self.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()
        self._relay.join(timeout=DRAIN_SECONDS)
        processes.forget(state_home.locate(), self.pid)


def spawn(argv: list[str], **environment: str) -> Server:
    """A server that gets SIGTERM when this thread ends, even by kill -9. For the main thread."""
    if setpriv := shutil.which("setpriv"):  # macOS has none: there a kill -9 leaves the child
        argv = [setpriv, "--pdeathsig", "TERM", *argv]
    child = Server(argv, {**_environment_without_key(), **environment})
    with contextlib.suppress(OSError):  # no /proc, or a full disk
        processes.record(state_home.locate(), child.pid)
    return child


def _environment_without_key() -> dict[str, str]:
    """A server of pages or records never asks a language model."""
    return {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}


def start_prefect(port: int, *, ui: bool) -> Server:
    """Starts a Prefect server on 127.0.0.1; `wait_for_prefect` waits until it answers."""
    options = {
        "--host": LOCALHOST,
        "--port": str(port),
        "--log-level": "error",
        "--lifespan": "on",
        "--timeout-graceful-shutdown": "3",
    }
    environment = {
        "PREFECT_SERVER_UI_ENABLED": "true" if ui else "false",
        "PREFECT_API_URL": "",
        "PREFECT_UI_API_URL": f"http://{LOCALHOST}:{port}/api",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        "PREFECT_LOGGING_LEVEL": "ERROR",
    }
    if ui:
        environment["PREFECT_UI_URL"] = f"http://{LOCALHOST}:{port}"  # for links in notices
    return spawn(
        [
            *(sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
            *_flat(options),
        ],
        **environment,
    )


def start_mlflow(port: int, home: Path) -> Server:
    """Starts MLflow's pages on 127.0.0.1 over the state folder's store."""
    options = {
        "--host": LOCALHOST,
        "--port": str(port),
        "--workers": "1",
        "--backend-store-uri": state_home.mlflow_uri(home),
        "--default-artifact-root": addresses.of_file(home / "mlartifacts"),
    }
    return spawn(
        [sys.executable, "-m", "mlflow", "server", *_flat(options)],
        MLFLOW_LOGGING_LEVEL="WARNING",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",  # seven processes for jobs we never run
    )


def _flat(options: dict[str, str]) -> list[str]:
    return [part for option in options.items() for part in option]


def wait_for_prefect(api_url: str, server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not state_home.is_healthy(api_url):
        if server.has_exited():
            raise NightlyError(
                f"the Prefect server exited at start-up (exit code {server.returncode}); "
                "its own message is above"
            )
        if time.monotonic() > deadline:
            raise NightlyError(
                f"the Prefect server did not answer at {api_url} within {START_SECONDS:.0f} s"
            )
        time.sleep(0.1)


def mlflow_pages(url: str, server: Server) -> list[str]:
    """Waits for MLflow; returns one address per experiment of ours: its runs, by score."""
    deadline = time.monotonic() + START_SECONDS
    search = f"{url}/api/2.0/mlflow/experiments/search?max_results=100"
    while time.monotonic() < deadline and not server.has_exited():
        with contextlib.suppress(OSError), urllib.request.urlopen(search, timeout=5) as answer:
            found = json.load(answer).get("experiments", [])
            ours = [e for e in found if e["name"].startswith("nightly-research/")]
            return [mlflow_page.address(url, experiment) for experiment in ours]
        time.sleep(0.2)
    raise NightlyError(f"the MLflow server did not answer at {url}; its own message is above")


def write_address(home: Path, **addresses: str) -> None:
    """Records in the state folder which addresses this process serves."""
    process = str(processes.ProcessId.current())
    (home / ADDRESS).write_text(json.dumps({**addresses, "process": process}))


def running_server(home: Path) -> str | None:
    """The API address of the live `./run server` of this state folder, or None.

    A dead server's port may belong to another one by now, so the process is checked too.
    """
    try:
        found = json.loads((home / ADDRESS).read_text())
        alive = processes.ProcessId.parse(found["process"]).is_alive
        return found["prefect"] if alive and state_home.is_healthy(found["prefect"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def prefect_api(home: Path) -> Iterator[None]:
    """Sets PREFECT_API_URL for the block: to the user's server, `./run server`, or a private one.

    A private server ends with the block.

    Raises:
        UsageError: the user's server does not answer.
        NightlyError: the private server does not start, or an API went away during the block.
    """
    signal.signal(signal.SIGTERM, interruption.terminate)
    known = os.environ.get("PREFECT_API_URL") or running_server(home)
    if known and not state_home.is_healthy(known):
        raise UsageError(
            f"PREFECT_API_URL = {known} does not answer: start that server, or unset the variable"
        )
    if known:
        with _connection(known):
            yield
        return
    port = free_port()
    server = start_prefect(port, ui=False)
    try:
        with _connection(f"http://{LOCALHOST}:{port}/api", server):
            yield
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        server.end()


@contextlib.contextmanager
def _connection(api_url: str, starting: Server | None = None) -> Iterator[None]:
    """Prefect imported with this API; waits for a server that is still `starting`."""
    os.environ["PREFECT_API_URL"] = api_url
    import prefect  # noqa: F401  # takes about as long as the server takes to start

    api_outage.filter_logs()
    try:
        if starting:
            wait_for_prefect(api_url, starting)
        with api_outage.reported(api_url):
            yield
    finally:
        api_outage.flush()
