"""What tests share: a warm Python, a Prefect server, an MLflow store, and a key that must not leak.

A fixture that is dear to make is made once in a test process; its files once for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.files import locked
from tests import fake_docker
from tests.faults.llm_server import FAKE_KEY
from tests.faults.prefect_server import PrefectServer, make_deployed
from tests.leaks import files_with
from tests.warm_python import WarmPython, warm_python

Once = Callable[[str, Callable[[Path], None]], Path]


def pytest_configure() -> None:
    os.environ.setdefault("DO_NOT_TRACK", "1")  # before anything imports Prefect


@pytest.fixture(scope="session", autouse=True)
def api_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A key in every test's environment. At the end no file in their folders may hold it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", FAKE_KEY)
        patch.delenv("OPENAI_BASE_URL", raising=False)
        yield
    assert files_with(FAKE_KEY, tmp_path_factory.getbasetemp()) == []


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the fake docker first on the PATH; its state folder."""
    state = fake_docker.install(tmp_path / "commands")
    monkeypatch.setenv("PATH", f"{state.parent}:{os.environ['PATH']}")
    return state


@pytest.fixture
def no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a docker first on the PATH that reaches no engine."""
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.fixture
def without_bwrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no bubblewrap box starts."""
    monkeypatch.setattr("tasks.judge.bwrap.find_bwrap", lambda: Path("/bin/false"))


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmPython]:
    """Forks commands that need Prefect or MLflow without importing them anew."""
    with warm_python() as made:
        yield made


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, make)`: a file that `make(path)` made in the first test process to ask for it."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent

    def made(name: str, make: Callable[[Path], None]) -> Path:
        path = shared / name
        with locked(shared / f"{name}.lock"):
            if not path.exists():
                make(shared / f"{name}.part")
                (shared / f"{name}.part").rename(path)
        return path

    return made


@pytest.fixture(scope="session")
def empty_store(once: Once) -> Path:
    """A SQLite store of MLflow, to be copied."""
    from tasks.views.mlflow_client import connect

    def make(path: Path) -> None:
        with connect(f"sqlite:///{path}") as client:
            client.search_experiments()

    return once("mlflow.db", make)


@pytest.fixture(scope="session")
def empty_prefect(warm: WarmPython, once: Once, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a new Prefect server, to be copied."""

    def make(path: Path) -> None:
        server = PrefectServer(tmp_path_factory.mktemp("new-prefect"), warm)
        server.start()
        server.stop()
        server.database.rename(path)

    return once("prefect.db", make)


@pytest.fixture(scope="session")
def deployed_prefect(
    warm: WarmPython, empty_prefect: Path, once: Once, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The database of a server that has the project's deployments, to be copied."""

    def make(path: Path) -> None:
        make_deployed(path, tmp_path_factory.mktemp("deployed"), warm, empty_prefect)

    return once("deployed.db", make)


@pytest.fixture(scope="session")
def prefect_api(
    warm: WarmPython, empty_prefect: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a Prefect server for every test that does not need one of its own."""
    server = PrefectServer(tmp_path_factory.mktemp("prefect"), warm, empty_prefect)
    server.start()
    yield server.api
    server.stop()


@pytest.fixture(scope="module")
def prefect_server(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Flows in this process run on that server, with a result store of the module's own."""
    from prefect.context import _temporary_global_settings_context, get_settings_context
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_LOCAL_STORAGE_PATH,
        temporary_settings,
    )

    from flows.command_line import api_outage

    results = tmp_path_factory.mktemp("results")
    with (
        temporary_settings({PREFECT_API_URL: prefect_api, PREFECT_LOCAL_STORAGE_PATH: results}),
        _temporary_global_settings_context(get_settings_context()),
    ):
        yield
        api_outage.flush()
