"""The state folder, the settings of Prefect and MLflow that follow from it, and the servers that we start.

Without PREFECT_API_URL a command talks to the `./run server` of the same state folder if one is up, else to a private
server that it starts while it imports and that dies with it, also after kill -9. (Prefect's own ephemeral server would be
orphaned then, and gives up on a slow machine after 20 s.) This module imports neither: settings must be there first.
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
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from flows import state_home
from flows.command_line import api_outage
from flows.night import interruption
from tasks.errors import NightlyError, UsageError
from tasks.judge import processes

START_SECONDS = 120.0


def free_port(wanted: int = 0) -> int:
    """`wanted` if nobody listens there, else any free port of 127.0.0.1."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise NightlyError("no free port on 127.0.0.1")


def spawn(argv: list[str], **environment: str) -> subprocess.Popen[bytes]:
    """A child that gets SIGTERM when this thread ends, however it ends. Call it from the main thread."""
    if setpriv := shutil.which("setpriv"):  # not on macOS: there a kill -9 leaves the child
        argv = [setpriv, "--pdeathsig", "TERM", *argv]
    child = subprocess.Popen(
        argv,
        env={**_without_key(), **environment},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,  # a Ctrl-C in the terminal is the night's, which still needs its server
    )
    with contextlib.suppress(OSError):  # no /proc, or a full disk
        processes.record(state_home.locate(), child.pid)
    return child


def _without_key() -> dict[str, str]:
    """Pages and stores ask no language model."""
    return {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}


def end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    processes.forget(state_home.locate(), child.pid)


def start_prefect(port: int, *, ui: bool) -> subprocess.Popen[bytes]:
    """Starts a Prefect server on 127.0.0.1; `await_prefect` waits for it."""
    return spawn(
        [
            *(sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
            *(
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--log-level",
                "error",
                "--lifespan",
                "on",
            ),
            *("--timeout-graceful-shutdown", "3"),
        ],
        PREFECT_SERVER_UI_ENABLED="true" if ui else "false",
        PREFECT_API_URL="",
        PREFECT_UI_API_URL=f"http://127.0.0.1:{port}/api",
        **({"PREFECT_UI_URL": f"http://127.0.0.1:{port}"} if ui else {}),  # for links in notices
        PREFECT_SERVER_LOGGING_LEVEL="ERROR",
        PREFECT_LOGGING_LEVEL="ERROR",
    )


def start_mlflow(port: int, home: Path) -> subprocess.Popen[bytes]:
    """Starts MLflow's pages on 127.0.0.1 over the state folder's store."""
    return spawn(
        [
            *(
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--workers",
                "1",
            ),
            *(
                "--backend-store-uri",
                state_home.mlflow_uri(home),
                "--default-artifact-root",
                str(home / "mlartifacts"),
            ),
        ],
        MLFLOW_LOGGING_LEVEL="WARNING",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",  # seven processes for jobs that no night has
    )


def await_prefect(api_url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not state_home.is_healthy(api_url):
        if server.poll() is not None:
            raise NightlyError(
                f"the Prefect server ended at its start (exit {server.returncode}); its message is above"
            )
        if time.monotonic() > deadline:
            raise NightlyError(
                f"the Prefect server did not answer at {api_url} within {START_SECONDS:.0f} s"
            )
        time.sleep(0.1)


def mlflow_pages(url: str, server: subprocess.Popen[bytes]) -> list[str]:
    """Waits for MLflow; an address for each of our experiments that opens its runs (the plain one opens traces of LLMs)."""
    deadline, search = (
        time.monotonic() + START_SECONDS,
        f"{url}/api/2.0/mlflow/experiments/search?max_results=100",
    )
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(search, timeout=5) as answer:
            found = json.load(answer).get("experiments", [])
            ids = [e["experiment_id"] for e in found if e["name"].startswith("nightly-research/")]
            return [f"{url}/#/experiments/{i}/runs?workflowType=machine_learning" for i in ids]
        time.sleep(0.2)
    raise NightlyError(f"the MLflow server did not answer at {url}; its message is above")


def tell_where(home: Path, **addresses: str) -> None:
    """Leaves word in the state folder of where this process serves it."""
    process = str(processes.ProcessId.current())
    (home / "server.json").write_text(json.dumps({**addresses, "process": process}))


def running_server(home: Path) -> str | None:
    """The API address of a live `./run server` of this state folder: not of another one's, that has its port by now."""
    try:
        told = json.loads((home / "server.json").read_text())
        ours = processes.ProcessId.parse(told["process"]).is_alive
        return told["prefect"] if ours and state_home.is_healthy(told["prefect"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def prefect_api(home: Path) -> Iterator[None]:
    """PREFECT_API_URL for the block: the user's, a running `./run server`'s, or a private server's that ends with it."""
    signal.signal(signal.SIGTERM, interruption.terminate)
    known = os.environ.get("PREFECT_API_URL") or running_server(home)
    if known and not state_home.is_healthy(known):
        raise UsageError(
            f"PREFECT_API_URL = {known} does not answer: start that server, or unset the variable"
        )
    if known:
        os.environ["PREFECT_API_URL"] = known
        import prefect

        api_outage.quiet()
        try:
            with api_outage.said_plainly(known):
                yield
        finally:
            api_outage.hand_over()
        return
    port = free_port()
    server = start_prefect(port, ui=False)
    try:
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        import prefect  # noqa: F401  # both start at once: this takes about as long as the server

        api_outage.quiet()
        await_prefect(os.environ["PREFECT_API_URL"], server)
        with api_outage.said_plainly(os.environ["PREFECT_API_URL"]):
            yield
    finally:
        api_outage.hand_over()
        del os.environ["PREFECT_API_URL"]
        end(server)
