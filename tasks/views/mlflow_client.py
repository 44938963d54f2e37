"""MLflow's client and store: settings made before the import, one kind of error, text it accepts.

A new SQLite store is made under another name and then renamed: a process that is killed meanwhile
leaves no half-made store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import addresses
from tasks.errors import NightlyError
from tasks.files import locked, sync_folder
from tasks.text import shortened

if TYPE_CHECKING:
    from mlflow import MlflowClient

LONGEST_VALUE = 5000  # characters of a parameter or tag; MLflow accepts 6000
LONGEST_ERROR = 300  # characters
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
SETTINGS = {
    **QUIET,
    # With MLflow's default, a call to a server that is down blocks for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # stdout is for the command's result.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
MAKE_SECONDS = 300  # for the tables of a new store
MAKE = (
    f"import signal, sys; signal.alarm({MAKE_SECONDS}); import mlflow; "
    "mlflow.MlflowClient(sys.argv[1]).search_experiments()"
)


@dataclasses.dataclass(frozen=True)
class Store:
    """Where MLflow keeps a night's runs."""

    uri: str
    artifacts: Path  # folder for the files of a SQLite store's runs; a server has its own place


@contextlib.contextmanager
def connect(uri: str) -> Iterator[MlflowClient]:
    """A client of MLflow at `uri`.

    Raises NightlyError for any exception in the block: MLflow raises SQLAlchemy's and requests'
    errors as well as its own, and anything at all where it or a run was changed.
    """
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    try:
        import mlflow  # takes two seconds: not for a command that only reads the ledger

        yield mlflow.MlflowClient(uri)
    except NightlyError:
        raise
    except Exception as error:
        first_line = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        what = shortened(first_line, LONGEST_ERROR)
        raise NightlyError(
            f"MLflow at {uri} failed: {what}. Ledger and git have the data"
        ) from error


def plain(value: object) -> str:
    """Text that every store accepts: cut, without control characters and halves of surrogates."""
    kept = (c for c in str(value) if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs"))
    return shortened("".join(kept), LONGEST_VALUE)


def make_if_missing(uri: str) -> None:
    """Makes the store of a `sqlite:///` address if its file does not exist.

    If another process is making it, waits for that. Raises NightlyError, with the reason, if it
    cannot be made.
    """
    if not addresses.is_sqlite(uri) or (path := addresses.sqlite_path(uri)).exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock")) as lock:
            if not path.exists():
                _make(path, lock.fileno())
    except (subprocess.SubprocessError, OSError) as error:
        output = str(getattr(error, "stderr", None) or error)
        last_line = output.strip().rpartition("\n")[2][:LONGEST_ERROR]
        raise NightlyError(f"MLflow's store {path} could not be made: {last_line}") from error


def _make(path: Path, lock: int) -> None:
    """Makes the store in a process of its own, which inherits the lock.

    If this process dies first, that one holds the lock until it ends, at the latest at its alarm:
    nobody removes the file it is writing.
    """
    part = path.with_name(f".{path.name}.part")
    for left in path.parent.glob(f"{part.name}*"):  # and SQLite's journal, of a killed process
        left.unlink()
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    subprocess.run(
        [sys.executable, "-c", MAKE, addresses.of_sqlite(part)],
        env={**environment, **QUIET},
        check=True,
        capture_output=True,
        text=True,
        timeout=MAKE_SECONDS,
        pass_fds=[lock],
    )
    part.replace(path)
    sync_folder(path.parent)
