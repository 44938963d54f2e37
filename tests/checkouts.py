"""A checkout of this project in a temporary folder, for tests that run the real command line in it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Checkout:
    """The working tree's files, committed once by somebody in a new repository, with a state folder of its own."""

    def __init__(self, folder: Path, api: str | None = None) -> None:
        self.folder = folder
        self.home = folder / ".nightly"
        self.api = api  # a standing Prefect server; without it every command starts its own, as a user's does
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = (
            subprocess.run(listed, cwd=ROOT, capture_output=True, check=True)
            .stdout.decode()
            .split("\0")
        )
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        self.git("init", "-q", "-b", "main")
        self.git("add", "-A")
        self.git("-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qm", "start")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self.folder, capture_output=True, text=True, check=True
        )
        return done.stdout

    def environment(self, **changes: str) -> dict[str, str]:
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("PREFECT_", "MLFLOW_", "NIGHTLY_"))
        }
        ours = {
            "NIGHTLY_HOME": str(self.home),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "PYTHONDONTWRITEBYTECODE": "",
        }
        return {**kept, **ours, **({"PREFECT_API_URL": self.api} if self.api else {}), **changes}

    def run(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """`./run ARGUMENTS` but for the set-up."""
        argv = [sys.executable, "-m", "flows.command_line.cli", *arguments]
        return subprocess.run(
            argv, cwd=self.folder, env=self.environment(**changes), capture_output=True, text=True
        )

    def ledger(self, tag: str) -> list[dict]:
        return [
            json.loads(line)
            for line in (self.home / "nights" / tag / "ledger.jsonl").read_text().splitlines()
        ]


def our_processes(home: Path) -> list[str]:
    """Command lines of live processes that name this state folder, in their arguments or environment, but not ours."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            if int(entry.name) == os.getpid() or state == "Z":
                continue
            argv, environ = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(home).encode() in argv + environ:
            found.append(argv.replace(b"\0", b" ").decode(errors="replace"))
    return found
