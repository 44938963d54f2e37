"""Preparations of the embedded corpus, and of a part of it, under a real Prefect server."""

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
from flows import data_steps, preparation
from tasks import cache
from tasks.data import dataset, web
from tasks.errors import DataError
from tasks.files import FileRef
from tasks.records import Dataset
from tests import damage
from tests.origin import Origin
from trainer import prepare

pytestmark = pytest.mark.slow  # a Prefect server

CORPUS = configs.FOLDER / "corpus"
STEPS = ("shards", "held out", "tokenizer", "meta", "tokens", "rows", "validation")
KINDS = {
    "held_out/*.bin": "held out",
    "tokenizers/*.json": "tokenizer",
    "*/public/meta.json": "meta",
    "*/public/tokenizer_512.json": "meta",
    "*/public/token_bytes_512.npy": "meta",
    "*/train/tokens_512_00000.bin": "tokens",
    "*/train/lengths_512_00000.npy": "tokens",
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
    names = {"name": "small", "description": "small", "device": "cpu"}
    return configs.Profile.model_validate({**names, "budget": budget, "data": data | changes})


def corpus_shard(name, folder=CORPUS):
    return dataset.Shard(FileRef(str(folder / name), "", 0))


@flow
def prepare_all(profiles, home) -> list[Dataset]:
    return [preparation.prepare_dataset(each, home) for each in profiles]


def prepare_in(home, *profiles):
    return prepare_all(profiles, home)[-1]


def contents(home):
    """sha256 of every prepared file by its path."""
    files = [path for path in (home / "data").rglob("*") if path.is_file()]
    return {
        str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory, prefect_server):
    """A state folder with the small profile prepared. Tests that damage it repair it."""
    folder = tmp_path_factory.mktemp("home")
    old = os.umask(0o077)
    prepare_in(folder, profile())
    os.umask(old)
    return folder


def test_a_second_preparation_uses_the_cache(home):
    before = {path: path.stat().st_mtime_ns for path in (home / "data").rglob("*_*")}
    assert prepare_in(home, profile()).cached == STEPS
    assert {path: path.stat().st_mtime_ns for path in (home / "data").rglob("*_*")} == before


@pytest.mark.parametrize("harm", [damage.delete, damage.truncate, damage.change])
def test_every_kind_of_file_is_made_again_when_it_is_damaged(home, harm):
    before = contents(home)
    for pattern in KINDS:
        (path,) = (home / "data").glob(pattern)
        harm(path)
    assert prepare_in(home, profile()).cached == ("shards",)
    assert contents(home) == before


@pytest.mark.parametrize("pattern", KINDS)
def test_only_the_step_that_made_the_file_is_repeated(home, pattern):
    (path,) = (home / "data").glob(pattern)
    damage.change(path)
    assert prepare_in(home, profile()).cached == tuple(
        step for step in STEPS if step != KINDS[pattern]
    )


def test_trainer_prepare_reads_the_prepared_files(home, monkeypatch):
    monkeypatch.setenv("NIGHTLY_HOME", str(home))
    monkeypatch.delenv("NIGHTLY_ROLE", raising=False)
    meta, tokenizer = prepare.meta(), prepare.Tokenizer.load(512)
    assert (meta.vocab_sizes, meta.sequence_length, meta.bos) == ((512,), 64, {512: tokenizer.bos})
    rows = prepare.train_rows(64)
    assert rows.shape[1] == 65
    assert rows[0, 0] == tokenizer.bos
    documents = list(dataset.documents(corpus_shard("train_00000.parquet")))
    assert len(np.load(Path(prepare.current()["train"]) / "lengths_512_00000.npy")) == len(
        documents
    )
    assert any(
        document.startswith(tokenizer.decode(rows[0, 1:].tolist())) for document in documents
    )


def test_the_denominator_is_the_bytes_of_the_scored_documents(home):
    prepared = prepare_in(home, profile())
    documents = dataset.scored(corpus_shard("val_00000.parquet"), 20)
    assert prepared.validation_bytes == sum(len(text.encode()) for text in documents)
    tokenizer = prepare.Tokenizer.from_dict(
        json.loads((Path(prepared.public) / "tokenizer_512.json").read_text())
    )
    stream = np.load(Path(prepared.validation) / "stream_512.npy")
    assert tokenizer.decode(stream[stream != tokenizer.bos].tolist()) == "".join(documents)


def test_current_json_has_what_a_run_outside_a_box_needs(home):
    current = json.loads((home / "data" / "current.json").read_text())
    assert current["budget"] == {"kind": "flops", "amount": 1e9}
    assert (current["profile"], current["device"], current["threads"]) == ("small", "cpu", 1)
    assert all(Path(current[name]).is_dir() for name in ("public", "train", "validation"))


def test_a_box_of_another_user_can_read_the_files_whatever_the_umask(home):
    for path in (home / "data").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_no_half_written_file_is_left(home):
    assert [path for path in (home / "data").rglob("*") if "part" in path.name] == []


def test_another_state_folder_shares_nothing(home, tmp_path):
    prepared = prepare_in(tmp_path, profile())
    assert prepared.cached == ()
    assert all(
        Path(place).is_relative_to(tmp_path)
        for place in (prepared.public, prepared.train, prepared.validation)
    )
    assert prepare_in(home, profile()).fingerprint == prepared.fingerprint


def test_another_license_is_another_meta_and_nothing_else(home):
    first, second = prepare_in(home, profile(license="CC0")), prepare_in(home, profile())
    assert first.fingerprint == second.fingerprint
    assert json.loads((Path(second.public) / "meta.json").read_text())["license"] == "public domain"


def test_an_edit_of_the_code_makes_the_files_again(home, monkeypatch):
    sources = data_steps.sources()
    monkeypatch.setattr(data_steps, "sources", lambda: sources | {"prepare.py": "edited"})
    assert prepare_in(home, profile()).cached == ("shards",)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    shutil.copytree(CORPUS, folder)
    return folder


def test_a_damaged_corpus_file_is_named(prefect_server, corpus, tmp_path):
    damage.change(corpus / "train_00000.parquet")
    with pytest.raises(DataError, match=r"train_00000\.parquet is not the expected file"):
        prepare_in(tmp_path, profile(source=str(corpus)))


def test_a_local_file_that_changed_is_noticed(prefect_server, corpus, tmp_path):
    mine = profile(source=str(corpus), checksums=None)
    before = prepare_in(tmp_path, mine)
    shutil.copy(corpus / "train_00001.parquet", corpus / "train_00000.parquet")
    after = prepare_in(tmp_path, mine)
    assert after.fingerprint != before.fingerprint
    assert after.cached == ("held out",)


def test_the_validation_shard_under_another_name_cannot_be_trained_on(
    prefect_server, corpus, tmp_path
):
    shutil.copy(corpus / "val_00000.parquet", corpus / "train_00000.parquet")
    with pytest.raises(DataError, match="share content"):
        prepare_in(tmp_path, profile(source=str(corpus), checksums=None))


def with_validation_documents(corpus, count):
    """A profile whose training shard has `count` validation documents in place of its own."""
    texts = list(dataset.documents(corpus_shard("train_00000.parquet", corpus)))[:500]
    texts[100 : 100 + count] = dataset.scored(corpus_shard("val_00000.parquet", corpus), count)
    pq.write_table(pa.table({"text": texts}), corpus / "train_00000.parquet")
    return profile(source=str(corpus), checksums=None)


def test_a_few_validation_documents_are_not_trained_on(prefect_server, corpus, tmp_path):
    prepared = prepare_in(tmp_path, with_validation_documents(corpus, 3))
    assert len(np.load(Path(prepared.train) / "lengths_512_00000.npy")) == 497
    tokenizer = prepare.Tokenizer.from_dict(
        json.loads((Path(prepared.public) / "tokenizer_512.json").read_text())
    )
    trained_on = tokenizer.decode(
        np.fromfile(Path(prepared.train) / "tokens_512_00000.bin", np.uint16).tolist()
    )
    first, kept = dataset.scored(corpus_shard("val_00000.parquet"), 4)[::3]
    assert first not in trained_on
    assert next(dataset.documents(corpus_shard("train_00000.parquet", corpus))) in trained_on
    assert kept not in trained_on


def test_a_wrong_split_is_refused(prefect_server, corpus, tmp_path):
    with pytest.raises(
        DataError, match="8 of 500 distinct training documents are held-out documents too"
    ):
        prepare_in(tmp_path, with_validation_documents(corpus, 8))
    assert not (tmp_path / "data" / "current.json").exists()


def test_an_empty_document_that_repeats_is_left_out_and_named(
    prefect_server, corpus, tmp_path, caplog
):
    texts = list(dict.fromkeys(dataset.documents(corpus_shard("train_00000.parquet", corpus))))
    pq.write_table(pa.table({"text": [*texts[:300], *[""] * 60]}), corpus / "train_00000.parquet")
    scored = dataset.scored(corpus_shard("val_00000.parquet", corpus), 20)
    pq.write_table(pa.table({"text": [*scored, ""]}), corpus / "val_00000.parquet")
    mine = profile(source=str(corpus), checksums=None)
    for cached in (False, True):
        caplog.clear()
        prepared = prepare_in(tmp_path, mine)
        assert "60 training documents, 1 of them distinct, are also held out" in caplog.text
        assert "One of them 60 times: ''" in caplog.text
        assert ("left out" in prepared.cached) is cached
    assert len(np.load(Path(prepared.train) / "lengths_512_00000.npy")) == 300


def test_one_file_is_split_by_row_groups(prefect_server, tmp_path):
    texts = list(dict.fromkeys(dataset.documents(corpus_shard("train_00000.parquet"))))[:600]
    pq.write_table(pa.table({"text": texts}), tmp_path / "all.parquet", row_group_size=100)
    mine = {
        "source": str(tmp_path),
        "checksums": None,
        "train": ["all.parquet#1:4"],
        "validation": "all.parquet#:1",
    }
    confirmed = profile(**mine, holdout="all.parquet#4:", holdout_documents=30)
    prepared = prepare_in(tmp_path / "home", confirmed)
    assert len(np.load(Path(prepared.train) / "lengths_512_00000.npy")) == 300
    for folder, documents in (
        (prepared.validation, texts[:20]),
        (prepared.holdout, texts[400:430]),
    ):
        manifest = json.loads((Path(folder) / "manifest.json").read_text())
        told = [manifest["documents"], manifest["bytes"]]
        assert told == [len(documents), sum(len(text.encode()) for text in documents)]
    assert prepared.holdout_bytes == manifest["bytes"]
    assert prepare_in(tmp_path / "home", confirmed).cached == (*STEPS, "holdout")
    without = prepare_in(tmp_path / "home", profile(**mine, holdout=""))
    assert (without.holdout, without.holdout_bytes) == (None, None)
    assert without.fingerprint != prepared.fingerprint
    with pytest.raises(
        DataError, match=r"has 200 documents, .* holdout_documents = 201: set it to"
    ):
        prepare_in(
            tmp_path / "home", profile(**mine, holdout="all.parquet#4:", holdout_documents=201)
        )
    with pytest.raises(DataError, match="share content"):
        prepare_in(tmp_path / "home", profile(**mine, holdout="all.parquet#3:"))


def test_several_vocabularies_score_the_same_bytes(prefect_server, tmp_path):
    prepared = prepare_in(
        tmp_path,
        profile(vocab_sizes=[512, 256, 300], train=["train_00000.parquet", "train_00001.parquet"]),
    )
    bytes_scored = set()
    for size in (512, 256, 300):
        table = np.load(Path(prepared.public) / f"token_bytes_{size}.npy")
        bytes_scored.add(
            int(table[np.load(Path(prepared.validation) / f"stream_{size}.npy")].sum())
        )
        assert len(np.load(Path(prepared.train) / f"rows_{size}_64.npy", mmap_mode="r")) > 1000
    assert bytes_scored == {prepared.validation_bytes}


def test_a_shard_without_a_listed_checksum_is_named(prefect_server, corpus, tmp_path):
    (corpus / "SHA256SUMS").write_text(f"{'0' * 64}  val_00000.parquet\n")
    with pytest.raises(DataError, match=r"has no checksum of train_00000\.parquet"):
        prepare_in(tmp_path, profile(source=str(corpus)))


def test_a_download_is_made_once_and_again_when_its_file_is_gone(
    prefect_server, tmp_path, monkeypatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    names = ("SHA256SUMS", "train_00000.parquet", "val_00000.parquet")
    with Origin({f"data/{name}": (CORPUS / name).read_bytes() for name in names}) as origin:
        far = profile(source=f"{origin.url}/data")
        assert prepare_in(tmp_path, far).cached == ()
        assert sorted(each["path"] for each in origin.requests) == [
            f"/data/{name}" for name in names
        ]
        (shard,) = (tmp_path / "data" / "shards").glob("*/train_00000.parquet")
        shard.unlink()
        assert prepare_in(tmp_path, far).cached == STEPS[1:]
        assert [each["path"] for each in origin.requests[3:]] == ["/data/train_00000.parquet"]
    assert prepare_in(tmp_path, far).cached == STEPS, "with the origin gone"


@flow
def fetch_once(origin, folder) -> FileRef:
    patient = data_steps.fetch_shard.with_options(retry_delay_seconds=0)
    return patient(
        cache.key("fetch-shard", 1, folder=str(folder)), origin.url, "file", folder, None
    )


@pytest.mark.parametrize(("code", "requests"), [(503, 2), (404, 1)])
def test_only_a_failure_that_may_pass_is_retried(
    prefect_server, tmp_path, monkeypatch, code, requests
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(web, "TRIES", 1)
    with Origin({"file": b"content"}) as origin:
        origin.script = [(code, {}, b"")]
        if code == 503:
            assert fetch_once(origin, tmp_path).bytes == 7
        else:
            with pytest.raises(DataError, match="HTTP 404"):
                fetch_once(origin, tmp_path)
        assert len(origin.requests) == requests


def test_the_whole_embedded_corpus_is_prepared(prefect_server, tmp_path, caplog):
    laptop = configs.load("laptop")
    prepared = prepare_in(tmp_path, laptop)
    assert prepared.fingerprint.startswith("9bf9665e00a6f64f"), (
        "scores of the laptop profile can no longer be compared"
    )
    assert (prepared.validation_bytes, prepared.holdout_bytes) == (220_883, 221_163)
    lengths = sorted(Path(prepared.train).glob("lengths_2048_*.npy"))
    assert [len(lengths), sum(len(np.load(path)) for path in lengths)] == [4, 6870]
    [rows] = prepared.rows
    assert len(np.load(rows.file.path, mmap_mode="r")) == rows.count == 19_281
    told = "19,281 rows of 128 + 1 tokens hold 99.99 % of the training text"
    assert told in caplog.text
    [place] = (tmp_path / "data").glob("*/dataset.json")
    [recorded] = json.loads(place.read_text())["rows"]
    assert (recorded["count"], recorded["share_held"]) == (rows.count, rows.share)
    assert prepare_in(tmp_path, laptop).cached == (*STEPS, "holdout")


def test_files_in_sub_folders_and_a_login_leave_no_secret_behind(
    prefect_server, tmp_path, monkeypatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    names = {"train_00000.parquet": "data/train%200.parquet", "val_00000.parquet": "val/0.parquet"}
    with Origin({name: (CORPUS / old).read_bytes() for old, name in names.items()}) as origin:
        source = f"{origin.url.replace('//', '//me:hidden@')}?sig=concealed"
        mine = {"train": ["data/train 0.parquet"], "validation": "val/0.parquet", "checksums": None}
        prepare_in(tmp_path, profile(source=source, **mine))
        (told,) = (tmp_path / "data").glob("*/dataset.json")
        assert json.loads(told.read_text())["source"] == origin.url
        assert json.loads(told.read_text())["train"][0]["file"] == "data/train 0.parquet"
    kept = b"".join(
        path.read_bytes() for path in (tmp_path / "data").rglob("*.*") if path.suffix != ".parquet"
    )
    assert b"hidden" not in kept
    assert b"concealed" not in kept
    assert not (tmp_path / "data" / "sources").exists()


def test_an_unusable_state_folder_is_named(prefect_server, tmp_path):
    (tmp_path / "data").write_text("a file in place of the folder")
    with pytest.raises(DataError, match=r"data cannot be used: File exists\. Set NIGHTLY_HOME"):
        prepare_in(tmp_path, profile())


def test_the_home_of_an_unknown_user_is_a_missing_folder(prefect_server, tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*~nobody-of-this-name/x/SHA256SUMS"):
        prepare_in(tmp_path, profile(source="~nobody-of-this-name/x"))
