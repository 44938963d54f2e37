"""Boxes for tests that are forks of one real box, in which torch is imported already.

Importing torch costs a box two CPU-seconds. A fork saves them where a test is about what a model
claims and not about its box. It runs the fixed harness from the candidate's own package, with a
socket, a log, an environment and a watchdog of its own, as the box's user and under its filter. But
all forks share the namespaces and scratch folders of their box, they see everything below the
folder that it was made for, and there is no data gate.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tasks.judge import bwrap
from tasks.judge.box import Box, CappedLog, open_box
from tasks.judge.processes import process_tree
from tasks.judge.watchdog import Watchdog
from tests.boxes import make_spec

INSIDE = "/dataset"  # where the box sees the folder
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid, as the receiver's namespaces number them
START_SECONDS = 300.0  # for the import of torch on a busy machine

# Each order forks a keeper, which forks the box: the keeper reports its exit code.
SERVER = """
import contextlib, json, os, socket, sys
import torch

orders = socket.socket(fileno=int(os.environ["NIGHTLY_FD"]))

def keep(box, life):
    _, status = os.waitpid(box, 0)
    life.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)

def wait_for_ended_keepers():
    with contextlib.suppress(ChildProcessError):  # there are none
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass

def serve():
    orders.sendall(b"+")
    while True:
        order, descriptors, _, _ = socket.recv_fds(orders, 1 << 16, 3)
        if not order:
            os._exit(0)
        wait_for_ended_keepers()
        if os.fork() == 0:
            if (box := os.fork()) == 0:
                return json.loads(order), descriptors
            wire, log, life = descriptors
            os.close(wire), os.close(log), orders.close()
            keep(box, socket.socket(fileno=life))
        for descriptor in descriptors:
            os.close(descriptor)
        orders.sendall(b"+")

environment, (wire, log, life) = serve()
orders.close()
os.setsid()
os.dup2(log, 1), os.dup2(log, 2), os.close(log)
with socket.socket(fileno=life) as keeper:
    keeper.sendall(b"-")
os.environ.clear()
os.environ.update(environment, NIGHTLY_FD=str(wire))
os.chdir("/scratch")
sys.path.insert(0, os.environ["PYTHONPATH"])
from trainer import harness

harness.enter()
"""


class Fork:
    """What the judge needs of subprocess.Popen, for a process that is not our child."""

    def __init__(self, life: socket.socket, log: int) -> None:
        self._life = life
        self.stdout = os.fdopen(log, "rb", buffering=0)
        self.returncode: int | None = None
        _, ancillary, _, _ = life.recvmsg(1, socket.CMSG_SPACE(CREDENTIALS.size))
        self.pid, _, _ = CREDENTIALS.unpack(ancillary[0][2])
        if self.pid <= 1:
            raise RuntimeError(f"a fork cannot be process {self.pid}")

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._life.settimeout(timeout)
            try:
                self.returncode = int(self._life.recv(16))
            except TimeoutError:
                raise subprocess.TimeoutExpired("fork", timeout or 0.0) from None
        return self.returncode


class ForkedBoxes:
    """Forks boxes whose packages, data and checkpoints all lie below `folder`."""

    def __init__(self, folder: Path, server: Box) -> None:
        self._folder, self._server, self._lock = folder, server, threading.Lock()
        self._own = process_tree(server.process.pid)

    @classmethod
    @contextlib.contextmanager
    def below(cls, folder: Path) -> Iterator[ForkedBoxes]:
        """Starts the box that forks the others; it and they are gone when the block ends."""
        own = folder / "forks"
        own.mkdir()
        own.chmod(0o755)
        size = {"memory_bytes": 8 * 2**30, "tasks": 256, "tmp_bytes": 64 * 2**20}
        with open_box(make_spec(own, public=folder, **size), ["-u", "-c", SERVER]) as server:
            server.wire.settimeout(START_SECONDS)
            if server.wire.recv(1) != b"+":
                server.kill()
                raise RuntimeError(f"no box to fork others from: {server.log.text()}")
            try:
                yield cls(folder, server)
            finally:
                (own / "gate").chmod(0o755)

    @contextlib.contextmanager
    def open_box(self, spec: bwrap.BoxSpec) -> Iterator[Box]:
        """`tasks.judge.box.open_box`, by a fork."""
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.enter_context(ours)
            life, told = socket.socketpair()
            undo.enter_context(life)
            life.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # tells the fork's pid
            reading, writing = os.pipe()
            started = time.monotonic()
            with theirs, told, os.fdopen(writing, "wb") as log, self._lock:
                descriptors = [theirs.fileno(), log.fileno(), told.fileno()]
                order = json.dumps(self._environment(spec)).encode()
                socket.send_fds(self._server.wire, [order], descriptors)
                if self._server.wire.recv(1) != b"+":
                    raise RuntimeError("the box that forks others has ended")
            fork = cast(Any, Fork(life, reading))
            guard = Watchdog(fork.pid, memory_bytes=spec.memory_bytes, tasks=spec.tasks)
            box = Box(fork, ours, CappedLog(fork), guard, started)
            undo.callback(box.kill)
            undo.callback(guard.stop)
            guard.start()
            yield box

    def alive(self) -> list[int]:
        """The processes of all forks; keepers and forks that wait to be reaped are gone."""
        forks = process_tree(self._server.process.pid) - self._own
        return [process.pid for process in forks if process.is_alive]

    def _environment(self, spec: bwrap.BoxSpec) -> dict[str, str]:
        """The environment of a real box, with the paths as this one sees them."""
        places = replace(spec, isolation="none").paths()
        inside = {name: path.replace(str(self._folder), INSIDE, 1) for name, path in places.items()}
        return bwrap.environment(spec, 0) | inside
