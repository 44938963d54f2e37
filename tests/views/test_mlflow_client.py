"""MLflow's store as a real file: complete or absent, whenever its maker is killed."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.errors import NightlyError
from tasks.views import mlflow_client

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
MAKER = "import sys; from tasks.views import mlflow_client as m; m.make_if_missing(sys.argv[1])"


def experiments(path: Path) -> list[str]:
    import mlflow

    return [
        experiment.name
        for experiment in mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    ]


@pytest.mark.parametrize("part", [".mlflow.db.part", ".mlflow.db.part-journal"])
def test_a_killed_maker_leaves_nothing_that_stops_the_next_one(tmp_path, part):
    path = tmp_path / "mlflow.db"
    argv = [sys.executable, "-c", MAKER, f"sqlite:///{path}"]
    with subprocess.Popen(argv, cwd=ROOT, start_new_session=True) as maker:
        # A journal exists in the middle of a migration.
        while not (tmp_path / part).exists() and maker.poll() is None:
            time.sleep(0.0005)
        os.killpg(maker.pid, signal.SIGKILL)
    assert not path.exists()
    mlflow_client.make_if_missing(f"sqlite:///{path}")
    assert experiments(path) == ["Default"]
    assert {left.name for left in tmp_path.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}


SLOW_MAKE = """import pathlib, sys, time
journal = pathlib.Path(sys.argv[1].removeprefix("sqlite:///") + "-journal")
journal.touch()
time.sleep(1)
journal.unlink()
journal.with_name("ended").touch()"""


def test_nobody_removes_the_file_of_an_mlflow_process_that_outlives_its_maker(
    tmp_path, monkeypatch
):
    path = tmp_path / "mlflow.db"
    script = f"from tasks.views import mlflow_client; mlflow_client.MAKE = {SLOW_MAKE!r}; {MAKER}"
    with subprocess.Popen([sys.executable, "-c", script, f"sqlite:///{path}"], cwd=ROOT) as maker:
        while not (tmp_path / ".mlflow.db.part-journal").exists() and maker.poll() is None:
            time.sleep(0.0005)
        maker.kill()
    monkeypatch.setattr(
        mlflow_client,
        "MAKE",
        "import pathlib, sys; pathlib.Path(sys.argv[1][len('sqlite:///'):]).touch()",
    )
    mlflow_client.make_if_missing(f"sqlite:///{path}")
    assert {left.name for left in tmp_path.iterdir()} == {"mlflow.db", ".mlflow.db.lock", "ended"}


def test_two_makers_at_once_make_one_store(tmp_path):
    path = tmp_path / "mlflow.db"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(mlflow_client.make_if_missing, [f"sqlite:///{path}"] * 2))
    before = path.stat()
    mlflow_client.make_if_missing(f"sqlite:///{path}")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_servers_address_makes_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mlflow_client.make_if_missing("http://127.0.0.1:9")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_made_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_client, "MAKE", "raise SystemExit('no table for you')")
    with pytest.raises(NightlyError, match=r"mlflow\.db could not be made: no table for you"):
        mlflow_client.make_if_missing(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_store_whose_folder_cannot_be_made_says_why(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NightlyError, match=r"mlflow\.db could not be made: .*File exists"):
        mlflow_client.make_if_missing(f"sqlite:///{tmp_path}/file/mlflow.db")
