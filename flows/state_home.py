"""The state folder of a checkout, and the settings of Prefect and MLflow that depend on it.

This module imports neither: both read their settings when they are imported.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from tasks import addresses, files
from tasks.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]  # the checkout


def locate() -> Path:
    """$NIGHTLY_HOME, by default .nightly in the checkout; made if needed.

    Raises UsageError when it cannot be used.
    """
    home = Path(os.environ.get("NIGHTLY_HOME") or ROOT / ".nightly").expanduser().resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
        files.make_readable(home)
    except OSError as error:
        raise UsageError(
            f"NIGHTLY_HOME = {home} cannot be used: {error.strerror}. Name a folder that you own"
        ) from error
    return home


def configure(home: Path) -> None:
    """Sets environment variables for Prefect and MLflow, except those that the user has set.

    Call it before either is imported.
    """
    defaults = {
        "NIGHTLY_HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60",  # deployments/automations.yaml relies on it
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "prefect" / "ui"),
        "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s | %(message)s",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
    _quote_database(Path(os.environ["PREFECT_HOME"]).expanduser() / "prefect.db")


def _quote_database(path: Path) -> None:
    """Gives Prefect the address of its database where its own default, which quotes nothing, fails.

    Elsewhere it is left alone: a profile of Prefect may name another database.
    """
    address = addresses.of_sqlite(path, "aiosqlite")
    if not address.endswith(str(path)) and "PREFECT_API_DATABASE_CONNECTION_URL" not in os.environ:
        os.environ.setdefault("PREFECT_SERVER_DATABASE_CONNECTION_URL", address)


def mlflow_uri(home: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or addresses.of_sqlite(home / "mlflow.db")


def is_healthy(api_url: str, seconds: float = 5.0) -> bool:
    """Whether a Prefect API answers. A hosted one may want a key, or have no such page."""
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=seconds) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403, 404)
    except (OSError, ValueError, http.client.HTTPException):
        return False
