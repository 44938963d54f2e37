"""What goes down under a running night: an MLflow server, whatever stands behind a TCP proxy, a disk of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from flows.server import free_port
from tests.checkouts import Checkout
from tests.faults.adds_up import our_pids
from tests.faults.standing import wait_for
from tests.faults.stub_checkout import PROFILE


class RunningNight:
    """`./run night` of the stub's profile in a process of its own, watched through its ledger."""

    def __init__(self, checkout: Checkout, tag: str, trials: int, disk: Disk | None = None, **changes: str) -> None:
        self.checkout, self.tag = checkout, tag
        ledger = checkout.home / "nights" / tag / "ledger.jsonl"
        self.ledger = disk.inside(ledger) if disk else ledger
        before = disk.command(checkout.folder) if disk else ()
        self.log = checkout.folder.parent / f"{tag}.log"
        argv = [
            *before,
            sys.executable,
            "-m",
            "flows.cli",
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
                argv, cwd=checkout.folder, env=checkout.environment(**changes), stdout=log, stderr=log
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def reaches(self, event: str, trial: int, seconds: float = 120.0) -> None:
        """Waits until the ledger has an event of a trial. Raises AssertionError when the night ends before."""
        wanted = f'"event": "{event}"', f'"trial": {trial},'

        def is_there() -> bool:
            with contextlib.suppress(OSError):
                return any(wanted[0] in line and wanted[1] in line for line in self.ledger.read_text().splitlines())
            return False

        wait_for(lambda: is_there() or self.process.poll() is not None, f"{event} of trial {trial}", seconds)
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
    return [_seconds(b) - _seconds(a) for a, b in itertools.pairwise(events) if a["event"] == "applied"]


def _seconds(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


class MlflowServer:
    """A real `mlflow server` over a checkout's store, at one port whenever it is up."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout, self.port = checkout, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        home = self.checkout.home
        argv = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--default-artifact-root", str(home / "mlartifacts")),
        ]
        with (self.checkout.folder.parent / "mlflow.log").open("a") as log:
            self.process = subprocess.Popen(
                argv, env=self.checkout.environment(), stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            wait_for(self.is_up, "the MLflow server")

    def is_up(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
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
                near.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops")
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


def can_mount() -> bool:
    """Whether a disk of its own can be given to a process here: as root, with unshare(1)."""
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(probe, capture_output=True).returncode == 0


class Disk:
    """A small disk that holds a checkout's state folder, and perhaps its .git, for processes that are started on it.

    A tmpfs in a mount namespace of its own: nobody else sees it, and it is gone with the process that holds it.
    """

    def __init__(self, mib: int, *folders: Path) -> None:
        self.folders = folders
        script = ["d=$(mktemp -d)", f'mount -t tmpfs -o size={mib}m none "$d"']
        for i, folder in enumerate(folders):
            script += [f'cp -a "{folder}" "$d/{i}"', f'mount --bind "$d/{i}" "{folder}"']
        script += ['umount -l "$d"', 'rmdir "$d"', "echo ready", "exec sleep infinity"]
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", "\n".join(script)]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"

    def command(self, folder: Path) -> tuple[str, ...]:
        """argv in front of a command that is to run in `folder` and have the disk."""
        return ("nsenter", "--target", str(self._holder.pid), "--mount", f"--wdns={folder}")

    def inside(self, path: Path) -> Path:
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def fill(self) -> None:
        """Takes all the room there is, and leaves none for an empty file's name."""
        with contextlib.suppress(OSError), self.inside(self.folders[0] / "fill").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))

    def free(self) -> None:
        self.inside(self.folders[0] / "fill").unlink()

    def copy_back(self) -> None:
        """Puts what is on the disk where everybody sees it; the disk's own is gone then."""
        for folder in self.folders:
            copy = folder.with_name(f"{folder.name}.copy")
            subprocess.run(["cp", "-a", str(self.inside(folder)), str(copy)], check=True)
            shutil.rmtree(folder)
            copy.rename(folder)

    def end(self) -> None:
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout:
            self._holder.stdout.close()
