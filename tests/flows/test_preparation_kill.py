"""kill -9 at any moment of a preparation, then again: the same files, and nothing that was whole is downloaded twice."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

import configs
from tests.origin import Origin

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CORPUS = configs.FOLDER / "corpus"
SHARDS = [f"train_{i:05d}.parquet" for i in range(3)]
KILLS = int(os.environ.get("NIGHTLY_KILL_REPEATS", "10"))
PROFILE = """
description = "killed"
device = "cpu"
[data]
source = "{url}/data"
train = {shards}
validation = "val_00000.parquet"
license = "public domain"
validation_documents = 20
vocab_sizes = [512, 300]
sequence_length = 64
[budget]
kind = "flops"
amount = 1e9
"""


@pytest.fixture(scope="module")
def origin():
    names = [*SHARDS, "val_00000.parquet"]
    with (
        pytest.MonkeyPatch.context() as patch,
        Origin({f"data/{name}": (CORPUS / name).read_bytes() for name in names}) as served,
    ):
        patch.setenv("NO_PROXY", "127.0.0.1")
        served.pace = 0.03
        yield served


def begin(home, profile):
    """A preparation in a process of its own, whose flow has begun."""
    environment = {
        **os.environ,
        "NIGHTLY_HOME": str(home),
        "PREFECT_API_URL": PREFECT_API_URL.value(),
    }
    command = [sys.executable, "-m", "flows.command_line.cli", "prepare", "--profile", str(profile)]
    log = home.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    while "data: public domain" not in log.read_text():
        assert process.poll() is None, (
            f"the preparation ended before its flow began: {log.read_text()}"
        )
        time.sleep(0.01)
    return process


def prepared(home):
    """sha256 of what a dataset consists of, by path; what is named by its folder, by content alone."""
    found = {}
    for path in (home / "data").rglob("*"):
        if (
            path.is_file()
            and path.name not in ("current.json", "dataset.json")
            and "shards" not in path.parts
        ):
            name = (
                path.parent.name
                if path.parent.name in ("tokenizers", "held_out", "sources")
                else path.relative_to(home)
            )
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[f"{name}:{digest}" if isinstance(name, str) else str(name)] = digest
    return found


def whole(home, origin):
    """The shards that lie in the state folder as they were served."""
    served = {name.removeprefix("data/"): content for name, content in origin.files.items()}
    found = [
        path
        for path in (home / "data").glob("shards/*/*.parquet")
        if path.read_bytes() == served[path.name]
    ]
    return {path.name for path in found}


def test_a_preparation_that_is_killed_ten_times_ends_as_one_that_was_not(
    prefect_server, origin, tmp_path
):
    profile = tmp_path / "killed.toml"
    profile.write_text(PROFILE.format(url=origin.url, shards=json.dumps(SHARDS)))
    calm, began = begin(tmp_path / "calm", profile), time.monotonic()
    assert calm.wait() == 0
    lasts, moments = time.monotonic() - began, random.Random(4)

    home, ended = tmp_path / "home", 0
    downloaded: set[str] = set()
    for _ in range(KILLS):
        requests = len(origin.requests)
        process = begin(home, profile)
        time.sleep(
            moments.random() ** 2 * lasts
        )  # early ones more often: what was done is not done again
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        ended += process.wait() == 0
        asked = {request["path"].rpartition("/")[2] for request in origin.requests[requests:]}
        assert not asked & downloaded, "downloaded again"
        downloaded = whole(home, origin)
    assert ended <= 0.7 * KILLS, "too few were killed in the middle"
    assert begin(home, profile).wait() == 0
    assert prepared(home) == prepared(tmp_path / "calm")
    assert [path for path in (home / "data").rglob("*.part")] == []
