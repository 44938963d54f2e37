"""How this project speaks to MLflow: settings that must be there before the import, one kind of error, text that it takes."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.records import NightlyError

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
        raise NightlyError(f"MLflow at {uri} did not take it: {first}. Ledger and git have it") from error


def plain(value: object) -> str:
    """Text that every store takes: a candidate's string may hold control characters or half a surrogate pair."""
    kept = "".join(c for c in str(value) if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs"))
    return kept if len(kept) <= LONGEST_VALUE else f"{kept[: LONGEST_VALUE - 3]}..."
