"""What the whole suite shares: one Prefect server, and a key that is never to be found in anything that was written."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.llm_server import FAKE_KEY
from tests.leaks import files_with


@pytest.fixture(scope="session", autouse=True)
def api_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every test runs with a key in its environment, and after the last one no file in any of their folders has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", FAKE_KEY)
        patch.delenv("OPENAI_BASE_URL", raising=False)
        yield
    assert files_with(FAKE_KEY, tmp_path_factory.getbasetemp()) == []


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real Prefect server with a database and a result store of its own, for every test that runs a flow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        patch.setenv("PREFECT_LOCAL_STORAGE_PATH", str(tmp_path_factory.mktemp("results")))
        patch.setenv("DO_NOT_TRACK", "1")
        from prefect.testing.utilities import prefect_test_harness  # after its settings are there

        with prefect_test_harness(server_startup_timeout=120):
            yield


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store of MLflow, to be copied: a new one costs seconds."""
    from tasks.views.mlflow_client import connect

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with connect(f"sqlite:///{path}") as client:
        client.search_experiments()
    return path
