"""What goes down while a night runs: an MLflow server, or whatever is behind a TCP proxy."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Literal

from flows.command_line.server import free_port
from tests.checkouts import CLI, ROOT, Checkout, Process, our_pids
from tests.faults.adds_up import UserTree
from tests.faults.small_disk import Disk
from tests.faults.stub_checkout import PROFILE
from tests.waiting import wait_for

COMPLAIN = """
import json, pickle, sys
from tests.faults import adds_up
with open(sys.argv[1], "rb") as file:
    print(json.dumps(adds_up.complaints(*pickle.load(file))))
"""


class RunningNight:
    """`./run night` of the stub's profile in a process of its own, watched through its ledger."""

    def __init__(
        self, checkout: Checkout, tag: str, trials: int, disk: Disk | None = None, **changes: str
    ) -> None:
        self.checkout, self.tag = checkout, tag
        ledger = checkout.home / "nights" / tag / "ledger.jsonl"
        self.ledger = disk.inside(ledger) if disk else ledger
        self.log = checkout.folder.parent / f"{tag}.log"
        night = ("night", "--profile", PROFILE, "--tag", tag, "--trials", str(trials))
        with self.log.open("w") as log:
            if disk is None:
                self.process: Process = checkout.start(*night, log=log, **changes)
                return
            self.process = subprocess.Popen(
                [*disk.command(checkout.folder), sys.executable, *CLI, *night],
                env=checkout.environment(**changes),
                stdout=log,
                stderr=log,
            )

    @property
    def said(self) -> str:
        """All that it has printed."""
        return self.log.read_text()

    def reaches(self, event: str, trial: int) -> None:
        """Waits for an event of a trial in the ledger.

        Raises AssertionError when the night ends before it.
        """
        wanted = f'"event": "{event}"', f'"trial": {trial},'

        def is_there() -> bool:
            with contextlib.suppress(OSError):
                lines = self.ledger.read_text().splitlines()
                return any(wanted[0] in line and wanted[1] in line for line in lines)
            return False

        wait_for(lambda: is_there() or self.process.poll() is not None, f"{event} of trial {trial}")
        assert is_there(), self.said

    def end(self) -> int:
        """Waits for the night; its exit code."""
        return self.process.wait()


def delays(events: list[dict[str, Any]]) -> list[float]:
    """Seconds from each trial's `applied` to what the night did next."""
    return [
        _seconds(b) - _seconds(a) for a, b in itertools.pairwise(events) if a["event"] == "applied"
    ]


def _seconds(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def complaints(
    checkout: Checkout,
    tag: str,
    planned: int,
    before: UserTree,
    standing: frozenset[int],
    disk: Disk | None = None,
) -> list[str]:
    """Those of `adds_up`, in a process of its own.

    It sees the disk, and MLflow's client keeps no store open there that a test has removed.
    """
    path, cold = checkout.folder.parent / f"{tag}.pickle", copy.copy(checkout)
    cold.warm = None
    path.write_bytes(pickle.dumps((cold, tag, planned, before, standing)))
    argv = ["-c", COMPLAIN, str(path)]
    if disk or not checkout.warm:
        command = [*(disk.command(ROOT) if disk else ()), sys.executable, *argv]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    else:
        done = checkout.warm.run(argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return [str(complaint) for complaint in json.loads(done.stdout)]


class MlflowServer:
    """A real `mlflow server` over a checkout's store, at the same port whenever it is up."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout, self.port = checkout, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: Process | None = None

    def start(self, wait: bool = True) -> None:
        home = self.checkout.home
        argv = [
            *("-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{home}/mlflow.db"),
            *("--default-artifact-root", str(home / "mlartifacts")),
        ]
        # Without this it starts seven processes for jobs that no night has.
        environment = self.checkout.environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        with (self.checkout.folder.parent / "mlflow.log").open("a") as log:
            self.process = self.checkout.start_python(
                argv, log, environment, start_new_session=True
            )
        if wait:
            wait_for(self.is_up, "the MLflow server")

    def is_up(self) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{self.url}/health", timeout=60) as answer,
        ):
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    @property
    def pids(self) -> frozenset[int]:
        """Its processes and those that they started."""
        found = set()
        for pid in our_pids(self.checkout.home) if self.process else ():
            with contextlib.suppress(ProcessLookupError):
                if self.process and os.getpgid(pid) == self.process.pid:
                    found.add(pid)
        return frozenset(found)


FAILURE = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops"
)


class Proxy:
    """A port of 127.0.0.1 in front of another one.

    It forwards, or takes every call and never answers, or answers 500.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.does: Literal["forward", "hang", "fail"] = "forward"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def turn(self, does: Literal["forward", "hang", "fail"]) -> None:
        """What it does from now on. Open connections are dropped, unless they are to hang."""
        self.does = does
        if does != "hang":
            self._drop()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._drop()

    def _drop(self) -> None:
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._open.append(near)
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            if self.does == "fail":
                near.recv(65536)
                near.sendall(FAILURE)
            elif self.does == "hang":
                self._pump(near, lambda data: None)
            else:
                with socket.create_connection(("127.0.0.1", self.target)) as far:
                    self._open.append(far)
                    back = threading.Thread(target=self._back, args=(far, near), daemon=True)
                    back.start()
                    self._pump(near, far.sendall)
                    far.shutdown(socket.SHUT_WR)
                    back.join()

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._pump(far, near.sendall)
            near.shutdown(socket.SHUT_WR)

    def _pump(self, source: socket.socket, take: Callable[[bytes], object]) -> None:
        while data := source.recv(65536):
            if self.does != "hang":
                take(data)


@contextlib.contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    made = Proxy(target)
    try:
        yield made
    finally:
        made.close()
