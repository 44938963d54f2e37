"""The Hugging Face hub and its store of large files, each a server on the loopback."""

import hashlib
import json
import os
import random

import pytest

from tasks.data import fetch
from tasks.errors import DataError
from tests.origin import Cutter, Origin

NAME = "shard_00000.parquet"
COMMIT = "0397e27157956705a0260709da3095bb9c43d6a7"
SOURCE = f"hf://datasets/owner/some-data@{COMMIT}"
PATH = f"datasets/owner/some-data/resolve/{COMMIT}/{NAME}"
REVISION = "api/datasets/owner/some-data/revision/main"
CHUNK = 64 * 1024
CONTENT = b"PAR1" + random.Random(0).randbytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hub(monkeypatch):
    with Origin({}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
        yield server


@pytest.fixture
def store(hub):
    """Where the hub redirects for a large file; it promises the sha256."""
    with Origin({"blob": CONTENT}) as server:
        hub.answers[PATH] = (
            302,
            {"Location": f"{server.url}/blob?sig=1", "X-Linked-ETag": f'"{SHA256}"'},
            b"",
        )
        yield server


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "shards"


def test_a_file_comes_from_the_store_which_does_not_get_the_login(hub, store, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch.fetch(SOURCE, NAME, folder, None).sha256 == SHA256
    assert hub.requests[0]["Authorization"] == "Bearer hf_secret"
    assert "Authorization" not in store.requests[0]


def test_a_saved_login_is_used(hub, store, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "token").write_text("hf_saved\n")
    fetch.fetch(SOURCE, NAME, folder, None)
    assert hub.requests[0]["Authorization"] == "Bearer hf_saved"


def test_a_public_dataset_needs_no_login(hub, store, folder):
    fetch.fetch(SOURCE, NAME, folder, None)
    assert "Authorization" not in hub.requests[0]


def test_a_cut_download_is_resumed_through_the_redirect(hub, store, folder):
    with Cutter(int(store.url.rpartition(":")[2]), cuts=3, after=4 * CHUNK) as cutter:
        code, headers, body = hub.answers[PATH]
        hub.answers[PATH] = (code, {**headers, "Location": f"{cutter.url}/blob"}, body)
        assert fetch.fetch(SOURCE, NAME, folder, None).sha256 == SHA256
    assert len(store.requests) == 4
    assert store.requests[-1]["If-Range"] == '"one"'


def test_a_file_without_the_promised_checksum_is_removed(hub, store, folder):
    store.files["blob"] = CONTENT[::-1]
    with pytest.raises(DataError, match=f"expected is {SHA256}"):
        fetch.fetch(SOURCE, NAME, folder, None)
    assert list(folder.iterdir()) == []


def test_a_folder_of_the_dataset_and_a_branch_with_a_slash(hub, folder):
    path = f"datasets/owner/some-data/resolve/refs%2Fpr%2F1/some/folder/{NAME}"
    hub.answers[path] = (200, {}, CONTENT)
    source = "hf://datasets/owner/some-data@refs%2Fpr%2F1/some/folder/"
    assert fetch.fetch(source, NAME, folder, None).sha256 == SHA256


def test_a_branch_is_resolved_to_its_commit(hub):
    hub.answers[REVISION] = (200, {}, json.dumps({"sha": COMMIT}).encode())
    assert fetch.resolve("hf://datasets/owner/some-data/some/folder") == f"{SOURCE}/some/folder"


def test_a_commit_needs_no_request(hub):
    assert fetch.resolve(SOURCE) == SOURCE
    assert hub.requests == []


@pytest.mark.parametrize("answer", [b"{}", b"[]", b"nonsense"])
def test_a_hub_that_names_no_commit_is_reported(hub, answer):
    hub.answers[REVISION] = (200, {}, answer)
    with pytest.raises(DataError, match="write the one you want behind an @"):
        fetch.resolve("hf://datasets/owner/some-data@main")


def test_a_busy_hub_is_waited_for(hub):
    hub.script = [(429, {"Retry-After": "1"}, b"")]
    hub.answers[REVISION] = (200, {}, json.dumps({"sha": COMMIT}).encode())
    assert fetch.resolve("hf://datasets/owner/some-data") == SOURCE


@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (401, "RepoNotFound", "there is no such dataset, or it is private"),
        (404, "RevisionNotFound", "no such revision: correct what follows the @"),
        (404, "EntryNotFound", "the dataset has no such file"),
        (401, "", "it needs a login: set HF_TOKEN; accept the licence at https://huggingface.co/"),
    ],
)
def test_a_refusal_has_a_remedy(hub, folder, status, code, remedy):
    hub.answers[PATH] = (status, {"X-Error-Code": code}, b"")
    with pytest.raises(DataError, match=f"^{SOURCE}/{NAME}: HTTP {status}.*{remedy}"):
        fetch.fetch(SOURCE, NAME, folder, None)
    assert list(folder.iterdir()) == []


def test_a_login_without_access_is_reported(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.answers[PATH] = (403, {"X-Error-Code": "GatedRepo"}, b"")
    with pytest.raises(
        DataError, match="this HF_TOKEN has no access; accept the licence"
    ) as caught:
        fetch.fetch(SOURCE, NAME, folder, None)
    assert "hf_secret" not in str(caught.value)


def test_a_malformed_login_is_not_shown(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret\nhf_secret")
    with pytest.raises(DataError, match="HF_TOKEN is not a token") as caught:
        fetch.fetch(SOURCE, NAME, folder, None)
    assert "hf_secret" not in str(caught.value)


def test_offline_a_missing_file_has_a_remedy(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"HF_HUB_OFFLINE=1 forbids .*: unset it"):
        fetch.fetch(SOURCE, NAME, folder, None)
    assert hub.requests == []


def test_offline_a_downloaded_file_is_used(hub, store, folder, monkeypatch):
    fetch.fetch(SOURCE, NAME, folder, None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch.fetch(SOURCE, NAME, folder, None).sha256 == SHA256


def test_offline_a_branch_cannot_be_resolved(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="name the commit"):
        fetch.resolve("hf://datasets/owner/some-data@main")


@pytest.mark.parametrize(
    "source",
    ["hf://owner/name", "hf://datasets/name", "hf://datasets/owner/name@", "hf://models/a/b"],
)
def test_an_address_of_another_form_shows_the_form(folder, source):
    with pytest.raises(DataError, match=r"form hf://datasets/OWNER/NAME"):
        fetch.fetch(source, NAME, folder, None)
