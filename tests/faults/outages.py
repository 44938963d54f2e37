"""What goes down under a running night: an MLflow server, whatever stands behind a TCP proxy."""

from __future__ import annotations

import contextlib
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
from tests.checkouts import ROOT, Checkout
from tests.faults.adds_up import UserTree, our_pids
from tests.faults.small_disk import Disk
from tests.faults.standing import wait_for
from tests.faults.stub_checkout import PROFILE

COMPLAIN = """
import json, pickle, sys
from tests.faults import adds_up
found = adds_up.complaints(*pickle.load(sys.stdin.buffer))
print(json.dumps(found))
"""


class RunningNight:
    """`./run night` of the stub's profile in a process of its own, watched through its ledger."""

    def __init__(
        self, checkout: Checkout, tag: str, trials: int, disk: Disk | None = None, **changes: str
    ) -> None:
        self.checkout, self.tag = checkout, tag
        ledger = checkout.home / "nights" / tag / "ledger.jsonl"
        self.ledger = disk.inside(ledger) if disk else ledger
        before = disk.command(checkout.folder) if disk else ()
        self.log = checkout.folder.parent / f"{tag}.log"
        argv = [
            *before,
            sys.executable,
            "-m",
            "flows.command_line.cli",
            "night",
            "--profile",
            PROFILE,
            "--tag",
            tag,
            "--trials",
            str(trials),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                argv,
                cwd=checkout.folder,
                env=checkout.environment(**changes),
                stdout=log,
                stderr=log,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def reaches(self, event: str, trial: int, seconds: float = 120.0) -> None:
        """Waits until the ledger has an event of a trial. Raises AssertionError when the night ends before."""
        wanted = f'"event": "{event}"', f'"trial": {trial},'

        def is_there() -> bool:
            with contextlib.suppress(OSError):
                return any(
                    wanted[0] in line and wanted[1] in line
                    for line in self.ledger.read_text().splitlines()
                )
            return False

        wait_for(
            lambda: is_there() or self.process.poll() is not None,
            f"{event} of trial {trial}",
            seconds,
        )
        assert is_there(), self.said

    def end(self, seconds: float = 180.0) -> int:
        """The exit code of the night."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


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
    """Those of `adds_up`, by a process of its own: it sees the disk, and its MLflow client has no other store open."""
    argv = [*(disk.command(ROOT) if disk else ()), sys.executable, "-c", COMPLAIN]
    given = pickle.dumps((checkout, tag, planned, before, standing))
    done = subprocess.run(argv, input=given, capture_output=True, check=True, cwd=ROOT)
    return [str(complaint) for complaint in json.loads(done.stdout)]


class MlflowServer:
    """A real `mlflow server` over a checkout's store, at one port whenever it is up."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout, self.port = checkout, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        home = self.checkout.home
        argv = [
            *(
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
                "--workers",
                "1",
            ),
            *(
                "--backend-store-uri",
                f"sqlite:///{home}/mlflow.db",
                "--default-artifact-root",
                str(home / "mlartifacts"),
            ),
        ]
        with (self.checkout.folder.parent / "mlflow.log").open("a") as log:
            self.process = subprocess.Popen(
                argv,
                env=self.checkout.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            wait_for(self.is_up, "the MLflow server")

    def is_up(self) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer,
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
                found |= {pid} if self.process and os.getpgid(pid) == self.process.pid else set()
        return frozenset(found)


class Proxy:
    """A port of 127.0.0.1 in front of another one: it forwards, or takes every call and never answers, or answers 500."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.does: Literal["forward", "hang", "fail"] = "forward"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def turn(self, does: Literal["forward", "hang", "fail"]) -> None:
        """What it does from now on; connections that stand are dropped, but for those that are to hang."""
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
                near.sendall(
                    b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops"
                )
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
            if self.does != "hang":  # then what is said stays unheard
                take(data)


@contextlib.contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    made = Proxy(target)
    try:
        yield made
    finally:
        made.close()
