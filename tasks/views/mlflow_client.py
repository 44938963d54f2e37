"""How this project speaks to MLflow: settings that must be there before the import, one kind of error, text that it takes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import NightlyError
from tasks.files import locked, sync_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

LONGEST_VALUE = 5000  # ours; MLflow takes 6000
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default blocks four minutes a call when the server is down
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # what is printed there is the command's result
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


@contextlib.contextmanager
def speaking_to(uri: str) -> Iterator[MlflowClient]:
    """A client; whatever MLflow raises becomes a NightlyError."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    import mlflow  # takes two seconds: not for a command that only reads the ledger
    import sqlalchemy.exc

    try:
        yield mlflow.MlflowClient(uri)
    except (mlflow.MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        first = str(error).strip().partition("\n")[0][:300]
        raise NightlyError(
            f"MLflow at {uri} did not take it: {first}. Ledger and git have it"
        ) from error


def plain(value: object) -> str:
    """Text that every store takes: a candidate's string may hold control characters or half a surrogate pair."""
    kept = "".join(
        c for c in str(value) if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs")
    )
    return kept if len(kept) <= LONGEST_VALUE else f"{kept[: LONGEST_VALUE - 3]}..."


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
    for left in path.parent.glob(
        f"{part.name}*"
    ):  # with SQLite's journal, of a process that was killed
        left.unlink()
    kept = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    environment = {**kept, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    argv = [sys.executable, "-c", MAKE, f"{SQLITE}{part}"]
    subprocess.run(
        argv,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        pass_fds=[lock],
    )
    part.replace(path)
    sync_folder(path.parent)
