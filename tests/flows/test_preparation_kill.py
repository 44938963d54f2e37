"""kill -9 throughout a preparation: the files are the same, and no shard is downloaded twice."""

import contextlib
import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

import configs
from tests.origin import Origin
from tests.warm_python import WarmProcess, WarmPython

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
def origin() -> Iterator[Origin]:
    names = [*SHARDS, "val_00000.parquet"]
    with (
        pytest.MonkeyPatch.context() as patch,
        Origin({f"data/{name}": (CORPUS / name).read_bytes() for name in names}) as served,
    ):
        patch.setenv("NO_PROXY", "127.0.0.1")
        served.pace = 0.03
        yield served


def begin(warm: WarmPython, home: Path, profile: Path) -> WarmProcess:
    """A preparation in a process of its own, whose flow has begun."""
    environment = {
        **os.environ,
        "NIGHTLY_HOME": str(home),
        "PREFECT_API_URL": PREFECT_API_URL.value(),
    }
    command = ["-m", "flows.command_line.cli", "prepare", "--profile", str(profile)]
    log = home.with_suffix(".log")
    with log.open("wb") as file:
        process = warm.start(
            command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    while "data: public domain" not in (text := log.read_text()):
        assert process.poll() is None, f"the preparation ended before its flow began: {text}"
        time.sleep(0.01)
    return process


def size(home: Path) -> int:
    """Bytes of all prepared and downloaded files so far."""
    total = 0
    for folder, _, names in os.walk(home / "data"):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def prepared(home: Path) -> dict[str, str]:
    """sha256 of the files of a dataset, by path.

    Names in some folders depend on the state folder; there the content is a part of the key.
    """
    found = {}
    for path in (home / "data").rglob("*"):
        if not path.is_file() or path.name in ("current.json", "dataset.json"):
            continue
        if "shards" in path.parts:
            continue
        digest, place = hashlib.sha256(path.read_bytes()).hexdigest(), path.parent.name
        by_content = place in ("tokenizers", "held_out", "sources")
        found[f"{place}:{digest}" if by_content else str(path.relative_to(home))] = digest
    return found


def complete_shards(home: Path, origin: Origin) -> set[str]:
    """The names of the shards in the state folder that are as they were served."""
    served = {name.removeprefix("data/"): content for name, content in origin.files.items()}
    paths = (home / "data").glob("shards/*/*.parquet")
    return {path.name for path in paths if path.read_bytes() == served[path.name]}


def test_a_preparation_that_is_killed_ten_times_ends_like_an_undisturbed_one(
    prefect_server: None, warm: WarmPython, origin: Origin, tmp_path: Path
) -> None:
    profile = tmp_path / "killed.toml"
    profile.write_text(PROFILE.format(url=origin.url, shards=json.dumps(SHARDS)))
    calm = tmp_path / "calm"
    assert begin(warm, calm, profile).wait() == 0

    # Each run is killed as soon as it has written so many bytes: at any speed in the middle.
    generator = random.Random(4)
    moments = sorted(generator.uniform(0.02, 0.95) * size(calm) for _ in range(KILLS))
    home, ended = tmp_path / "home", 0
    downloaded: set[str] = set()
    for moment in moments:
        requests = len(origin.requests)
        process = begin(warm, home, profile)
        while process.poll() is None and size(home) < moment:
            time.sleep(0.001)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        ended += process.wait() == 0
        asked = {request["path"].rpartition("/")[2] for request in origin.requests[requests:]}
        assert not asked & downloaded, "downloaded again"
        downloaded = complete_shards(home, origin)
    assert ended <= KILLS // 4, "too few were killed in the middle"
    assert begin(warm, home, profile).wait() == 0
    assert prepared(home) == prepared(calm)
    assert list((home / "data").rglob("*.part")) == []
