"""A checkout of this project in a temporary folder, for tests that run its command line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from tests.warm_python import WarmPython

ROOT = Path(__file__).resolve().parent.parent
CLI = ("-m", "flows.command_line.cli")
AUTHOR = ("-c", "user.name=A", "-c", "user.email=a@example.org")


class Process(Protocol):
    """What a `subprocess.Popen` and a `WarmProcess` have in common."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...
    def kill(self) -> None: ...


class Checkout:
    """The working tree's files, committed in a new repository, with a state folder of its own.

    Its commands are forks of `warm`; without one each is a new Python. They talk to the Prefect
    server at `api`; without one each that needs a server starts its own, as a user's does.
    """

    def __init__(
        self, folder: Path, *, warm: WarmPython | None = None, api: str | None = None
    ) -> None:
        self.folder = folder
        self.home = folder / ".nightly"
        self.warm = warm
        self.api = api
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        done = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True)
        for name in filter(None, done.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        self.git("init", "-q", "-b", "main")
        self.git("add", "-A")
        self.git(*AUTHOR, "commit", "-qm", "start")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self.folder, capture_output=True, text=True, check=True
        )
        return done.stdout

    def environment(self, **changes: str) -> dict[str, str]:
        ours = ("PREFECT_", "MLFLOW_", "NIGHTLY_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return {
            **kept,
            "NIGHTLY_HOME": str(self.home),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "PYTHONDONTWRITEBYTECODE": "",
            **({"PREFECT_API_URL": self.api} if self.api else {}),
            **changes,
        }

    def run(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """`./run ARGUMENTS` but for the set-up, in this environment with `changes`."""
        argv, environment = [*CLI, *arguments], self.environment(**changes)
        if self.warm:
            return self.warm.run(argv, cwd=self.folder, env=environment)
        return subprocess.run(
            [sys.executable, *argv],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )

    def start(self, *arguments: str, log: IO[Any], **changes: str) -> Process:
        """`./run ARGUMENTS` in the background; what it prints goes to `log`."""
        return self.start_python([*CLI, *arguments], log, self.environment(**changes))

    def start_python(
        self, arguments: Sequence[str], log: IO[Any], environment: dict[str, str], **how: Any
    ) -> Process:
        """`python ARGUMENTS` in the background; `how`: see WarmPython.start."""
        if self.warm:
            return self.warm.start(
                arguments, cwd=self.folder, env=environment, stdout=log, stderr=log, **how
            )
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            **how,
        )

    def ledger(self, tag: str) -> list[dict[str, Any]]:
        path = self.home / "nights" / tag / "ledger.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


def our_pids(home: Path) -> dict[int, str]:
    """Live processes, but this one, that name a state folder: pid -> command line.

    They name it in their arguments or in their environment.
    """
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0]
            argv, environ = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        ours = str(home).encode() in argv + environ
        if ours and state not in b"ZX" and int(entry.name) != os.getpid():
            words = argv.replace(b"\0", b" ").decode(errors="replace")
            found[int(entry.name)] = words.strip()[:300]
    return found


def kill(pid: int) -> None:
    """Kills a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
