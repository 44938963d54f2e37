"""The whole preparation under a real Prefect server, of a part of the embedded corpus and of all of it."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect import flow

import configs
from flows import preparation
from tasks import cache, dataset, fetch
from tasks.records import DataError, Dataset, FileRef
from tests.origin import Origin
from trainer import prepare

pytestmark = pytest.mark.slow  # a Prefect server

CORPUS = configs.FOLDER / "corpus"
STEPS = ("shards", "tokenizer", "meta", "tokens", "rows", "validation")
KINDS = {
    "tokenizers/*.json": "tokenizer",
    "*/public/meta.json": "meta",
    "*/public/tokenizer_512.json": "meta",
    "*/public/token_bytes_512.npy": "meta",
    "*/train/tokens_512.bin": "tokens",
    "*/train/lengths_512.npy": "tokens",
    "*/train/rows_512_64.npy": "rows",
    "*/validation/stream_512.npy": "validation",
    "*/validation/manifest.json": "validation",
}


def profile(**changes):
    data = {
        "source": "corpus",
        "train": ["train_00000.parquet"],
        "validation": "val_00000.parquet",
        "checksums": "SHA256SUMS",
        "license": "public domain",
        "validation_documents": 20,
        "vocab_sizes": [512],
        "sequence_length": 64,
        "tokenizer_characters": 200_000,
    }
    budget = {"kind": "flops", "amount": 1e9}
    whole = {"name": "small", "description": "small", "device": "cpu", "budget": budget, "data": data | changes}
    return configs.Profile.model_validate(whole)


@flow
def prepare_all(profiles, home) -> list[Dataset]:
    return [preparation.prepare_dataset(each, home) for each in profiles]


def prepare_in(home, *profiles):
    return prepare_all(profiles, home)[-1]


def contents(home):
    """sha256 of every prepared file by its path."""
    files = [path for path in (home / "data").rglob("*") if path.is_file()]
    return {str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def home(tmp_path_factory, prefect_server):
    """A state folder with the small profile prepared. Tests that harm it mend it."""
    folder = tmp_path_factory.mktemp("home")
    old = os.umask(0o077)
    prepare_in(folder, profile())
    os.umask(old)
    return folder


def test_a_second_preparation_does_nothing_again(home):
    before = {path: path.stat().st_mtime_ns for path in (home / "data").rglob("*_*")}
    assert prepare_in(home, profile()).cached == STEPS
    assert {path: path.stat().st_mtime_ns for path in (home / "data").rglob("*_*")} == before


def _delete(path):
    path.unlink()


def _truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def _change(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [_delete, _truncate, _change])
def test_every_kind_of_file_is_made_anew_when_it_is_not_as_it_was(home, harm):
    before = contents(home)
    for pattern in KINDS:
        (path,) = (home / "data").glob(pattern)
        harm(path)
    assert prepare_in(home, profile()).cached == ("shards",)
    assert contents(home) == before


@pytest.mark.parametrize("pattern", KINDS)
def test_only_the_step_that_made_the_file_is_done_again(home, pattern):
    (path,) = (home / "data").glob(pattern)
    _change(path)
    assert prepare_in(home, profile()).cached == tuple(step for step in STEPS if step != KINDS[pattern])


def test_what_was_prepared_is_what_trainer_prepare_reads(home, monkeypatch):
    monkeypatch.setenv("NIGHTLY_HOME", str(home))
    monkeypatch.delenv("NIGHTLY_ROLE", raising=False)
    meta, tokenizer = prepare.meta(), prepare.Tokenizer.load(512)
    assert (meta.vocab_sizes, meta.sequence_length, meta.bos) == ((512,), 64, {512: tokenizer.bos})
    rows = prepare.train_rows(64)
    assert rows.shape[1] == 65
    assert (rows[:, 0] == tokenizer.bos).all()
    documents = list(dataset.documents(CORPUS / "train_00000.parquet"))
    assert len(np.load(Path(prepare.current()["train"]) / "lengths_512.npy")) == len(documents)
    assert any(document.startswith(tokenizer.decode(rows[0, 1:].tolist())) for document in documents)


def test_the_denominator_is_the_bytes_of_the_scored_documents(home):
    prepared = prepare_in(home, profile())
    documents = dataset.scored(CORPUS / "val_00000.parquet", 20)
    assert prepared.validation_bytes == sum(len(text.encode()) for text in documents)
    tokenizer = prepare.Tokenizer.from_dict(json.loads((Path(prepared.public) / "tokenizer_512.json").read_text()))
    stream = np.load(Path(prepared.validation) / "stream_512.npy")
    assert tokenizer.decode(stream[stream != tokenizer.bos].tolist()) == "".join(documents)


def test_current_json_is_what_a_run_outside_a_box_needs(home):
    current = json.loads((home / "data" / "current.json").read_text())
    assert current["budget"] == {"kind": "flops", "amount": 1e9}
    assert (current["profile"], current["device"], current["threads"]) == ("small", "cpu", 1)
    assert all(Path(current[name]).is_dir() for name in ("public", "train", "validation"))


def test_a_box_of_another_user_can_read_it_whatever_the_umask(home):
    for path in (home / "data").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_no_half_written_file_is_left(home):
    assert [path for path in (home / "data").rglob("*") if "part" in path.name] == []


def test_another_state_folder_shares_nothing(home, tmp_path):
    prepared = prepare_in(tmp_path, profile())
    assert prepared.cached == ()
    assert all(Path(place).is_relative_to(tmp_path) for place in (prepared.public, prepared.train, prepared.validation))
    assert prepare_in(home, profile()).fingerprint == prepared.fingerprint


def test_another_license_is_another_meta_and_nothing_else(home):
    first, second = prepare_in(home, profile(license="CC0")), prepare_in(home, profile())
    assert first.fingerprint == second.fingerprint
    assert json.loads((Path(second.public) / "meta.json").read_text())["license"] == "public domain"


def test_an_edit_of_the_code_that_prepares_makes_it_anew(home, monkeypatch):
    sources = preparation._sources()
    monkeypatch.setattr(preparation, "_sources", lambda: sources | {"prepare.py": "edited"})
    assert prepare_in(home, profile()).cached == ("shards",)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    shutil.copytree(CORPUS, folder)
    return folder


def test_a_corrupt_corpus_file_ends_it_with_its_name(prefect_server, corpus, tmp_path):
    _change(corpus / "train_00000.parquet")
    with pytest.raises(DataError, match=r"train_00000\.parquet is not the expected file"):
        prepare_in(tmp_path, profile(source=str(corpus)))


def test_a_local_file_that_changed_is_noticed(prefect_server, corpus, tmp_path):
    mine = profile(source=str(corpus), checksums=None)
    before = prepare_in(tmp_path, mine)
    shutil.copy(corpus / "train_00001.parquet", corpus / "train_00000.parquet")
    after = prepare_in(tmp_path, mine)
    assert after.fingerprint != before.fingerprint
    assert after.cached == ()


def test_the_validation_shard_under_another_name_is_no_training_shard(prefect_server, corpus, tmp_path):
    shutil.copy(corpus / "val_00000.parquet", corpus / "train_00000.parquet")
    with pytest.raises(DataError, match="is the validation shard"):
        prepare_in(tmp_path, profile(source=str(corpus), checksums=None))


def test_validation_documents_in_a_training_shard_are_counted(prefect_server, corpus, tmp_path):
    texts = list(dataset.documents(corpus / "train_00000.parquet"))[:500]
    texts[100:103] = dataset.scored(corpus / "val_00000.parquet", 3)
    pq.write_table(pa.table({"text": texts}), corpus / "train_00000.parquet")
    with pytest.raises(DataError, match="3 of 20 validation documents are also in the training shards"):
        prepare_in(tmp_path, profile(source=str(corpus), checksums=None))


def test_a_shard_without_a_checksum_in_the_list_is_named(prefect_server, corpus, tmp_path):
    (corpus / "SHA256SUMS").write_text(f"{'0' * 64}  val_00000.parquet\n")
    with pytest.raises(DataError, match=r"has no checksum of train_00000\.parquet"):
        prepare_in(tmp_path, profile(source=str(corpus)))


def test_a_download_is_made_once_and_again_when_its_file_is_gone(prefect_server, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    names = ("SHA256SUMS", "train_00000.parquet", "val_00000.parquet")
    with Origin({f"data/{name}": (CORPUS / name).read_bytes() for name in names}) as origin:
        far = profile(source=f"{origin.url}/data")
        assert prepare_in(tmp_path, far).cached == ()
        assert sorted(each["path"] for each in origin.requests) == [f"/data/{name}" for name in names]
        (shard,) = (tmp_path / "data" / "shards").glob("*/train_00000.parquet")
        shard.unlink()
        assert prepare_in(tmp_path, far).cached == STEPS[1:]
        assert [each["path"] for each in origin.requests[3:]] == ["/data/train_00000.parquet"]
    assert prepare_in(tmp_path, far).cached == STEPS, "with the origin gone"


@flow
def fetch_once(origin, folder) -> FileRef:
    patient = preparation.fetch_shard.with_options(retry_delay_seconds=0)
    return patient(cache.key("fetch-shard", 1, folder=str(folder)), origin.url, "file", folder, None)


@pytest.mark.parametrize(("code", "requests"), [(503, 2), (404, 1)])
def test_only_a_failure_that_may_pass_is_tried_again(prefect_server, tmp_path, monkeypatch, code, requests):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "TRIES", 1)
    with Origin({"file": b"content"}) as origin:
        origin.script = [(code, {}, b"")]
        if code == 503:
            assert fetch_once(origin, tmp_path).bytes == 7
        else:
            with pytest.raises(DataError, match="HTTP 404"):
                fetch_once(origin, tmp_path)
        assert len(origin.requests) == requests


@pytest.mark.slow
def test_the_embedded_corpus_is_prepared_whole(prefect_server, tmp_path):
    laptop = configs.load("laptop")
    prepared = prepare_in(tmp_path, laptop)
    assert prepared.validation_bytes == 220_883
    lengths = np.load(Path(prepared.train) / "lengths_2048.npy")
    assert len(lengths) == 6870
    assert len(np.load(Path(prepared.train) / "rows_2048_128.npy", mmap_mode="r")) > 5000
    assert prepare_in(tmp_path, laptop).cached == STEPS
