"""MLflow's SQLite store, made whole or not at all.

MLflow makes its tables in many migrations that no transaction holds together: killed among them, it leaves a file that it
can neither use nor mend. So a new store is made under another name, in a process of its own, and then renamed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tasks.files import locked, sync_folder
from tasks.records import NightlyError

SQLITE = "sqlite:///"
SECONDS = 300
MAKE = f"import signal, sys; signal.alarm({SECONDS}); import mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"


def make_if_missing(uri: str) -> None:
    """Makes the store of a `sqlite:///` address if there is no such file; whoever comes second waits.

    Raises NightlyError, with MLflow's own words or the system's, where it cannot be made.
    """
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock")) as lock:
            if not path.exists():
                _make(path, lock.fileno())
    except (subprocess.SubprocessError, OSError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().rpartition("\n")[2]
        raise NightlyError(f"MLflow's store {path} could not be made: {said[:300]}") from error


def _make(path: Path, lock: int) -> None:
    """MLflow's process holds the lock too: it may outlive this one, and until its end or alarm nobody touches its file."""
    part = path.with_name(f".{path.name}.part")
    for left in path.parent.glob(f"{part.name}*"):  # with SQLite's journal, of a process that was killed
        left.unlink()
    kept = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    environment = {**kept, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    argv = [sys.executable, "-c", MAKE, f"{SQLITE}{part}"]
    subprocess.run(argv, env=environment, check=True, capture_output=True, text=True, timeout=SECONDS, pass_fds=[lock])
    part.replace(path)
    sync_folder(path.parent)
