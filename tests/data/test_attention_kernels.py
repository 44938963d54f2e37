"""A tiny kernel from a hub on the loopback to a box that has no network. FlashAttention-3 itself is not run: no GPU, no hub."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydantic
import pytest

import configs
from tasks.data import attention_kernels
from tasks.data.attention_kernels import KernelUnavailable, fetch, fetch_each
from tasks.errors import DataError
from tasks.files import FileRef
from tasks.judge.box import open_box
from tasks.judge.native_code import NativeCodeChanged, NativeKernel
from tasks.records import Candidate
from tasks.trial.experiment import run_experiment
from tests.boxes import HONEST, make_bench, make_dataset, make_spec

REPOSITORY, COMMIT = "someone/tiny-attention", "0123456789abcdef0123456789abcdef01234567"
PIN = f"{REPOSITORY}@{COMMIT}"
BUILD = "build/torch-universal"
METADATA = {
    "id": "_tiny_1",
    "name": "tiny-attention",
    "version": 1,
    "license": "MIT",
    "python-depends": [],
}
SOURCE = """
def flash_attn_func(q, k, v, causal=True, window_size=(-1, -1)):
    return "tiny", causal, window_size
"""
FILES = {
    f"{BUILD}/metadata.json": json.dumps({**METADATA, "backend": {"type": "cpu"}}).encode(),
    f"{BUILD}/__init__.py": SOURCE.encode(),
    f"{BUILD}/layers.py": b"WEIGHT = 1\n",
    "build/torch28-cxx11-cu128-x86_64-linux/__init__.py": b"raise RuntimeError('built for another machine')\n",
}
USE = """
import json, os, socket
wire = socket.socket(fileno=int(os.environ["NIGHTLY_FD"]))
import kernels
kernel = kernels.get_kernel("someone/tiny-attention", version=1)
try:
    open(kernel.__file__, "a").close()
    writable = True
except OSError:
    writable = False
wire.sendall(json.dumps([kernel.flash_attn_func(0, 0, 0), writable, kernel.__file__]).encode() + b"\\n")
"""


class Hub(BaseHTTPRequestHandler):
    """What of the Hugging Face hub's API one kernel needs: the listing of a commit, and its files by name."""

    paths: list[str]
    files: dict[str, bytes]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.paths.append(self.path)
        path = self.path.partition("?")[0]
        tree, resolve = (
            f"/api/kernels/{REPOSITORY}/tree/{COMMIT}",
            f"/kernels/{REPOSITORY}/resolve/{COMMIT}/",
        )
        if path.startswith(tree):
            self._answer(
                json.dumps(self._listing(path.removeprefix(tree).strip("/"))).encode(), "tree"
            )
        elif (
            path.startswith(resolve)
            and (content := self.files.get(path.removeprefix(resolve))) is not None
        ):
            self._answer(content, hashlib.sha1(content).hexdigest())
        else:
            self.send_error(404)

    def _listing(self, folder: str) -> list[dict[str, Any]]:
        if folder:  # not recursive: the builds
            names = {name.split("/")[1] for name in self.files}
            return [
                {"type": "directory", "path": f"{folder}/{name}", "oid": "0" * 40}
                for name in sorted(names)
            ]
        entries = self.files.items()
        return [
            {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
            for n, c in entries
        ]

    def _answer(self, content: bytes, etag: str) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("Handler", (Hub,), {"paths": [], "files": dict(FILES)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    for name in ("HTTP_PROXY", "http_proxy", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def kept(tmp_path: Path) -> FileRef:
    """A kernel as `fetch` leaves it, without a hub."""
    folder = tmp_path / "kernels" / "kept-torch2.13.0"
    for name, content in FILES.items():
        if name.startswith(BUILD):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    files = {
        name: hashlib.sha256(content).hexdigest()
        for name, content in FILES.items()
        if name.startswith(BUILD)
    }
    told = {"repository": REPOSITORY, "revision": COMMIT, "files": files}
    for path in (folder.parent, folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return FileRef.write(folder.with_name(f"{folder.name}.json"), json.dumps(told).encode())


def opened(kept: FileRef) -> NativeKernel:
    return NativeKernel.checked(Path(kept.path), kept.sha256)


@pytest.mark.slow
def test_a_kernel_goes_from_the_hub_to_a_box_that_cannot_change_it(
    hub: type[Hub], tmp_path: Path
) -> None:
    manifest = fetch(PIN, tmp_path / "kernels")
    spec = make_spec(tmp_path, native=(opened(manifest),), memory_bytes=2 << 30, tasks=128)
    asked = len(hub.paths)
    with open_box(spec, ["-c", USE]) as box:
        box.wire.settimeout(120)
        said = box.wire.makefile().readline()
        assert said, box.log.text()
        found, writable, where = json.loads(said)
    spec.gate.folder.chmod(0o755)
    assert found == ["tiny", True, [-1, -1]]
    assert not writable
    assert where == f"/kernels/0/{BUILD}/__init__.py"
    assert len(hub.paths) == asked


@pytest.mark.slow
def test_only_the_build_for_this_machine_is_kept_and_nothing_else_is_left(
    hub: type[Hub], tmp_path: Path
) -> None:
    manifest = fetch(PIN, tmp_path / "kernels")
    kernel = opened(manifest)
    assert sorted(path.name for path in kernel.folder.glob("build/*")) == ["torch-universal"]
    assert not any(path.is_symlink() for path in kernel.folder.rglob("*"))
    assert {path.name for path in (tmp_path / "kernels").iterdir()} == {
        kernel.folder.name,
        Path(manifest.path).name,
    }
    told = json.loads(Path(manifest.path).read_text())
    assert (told["repository"], told["revision"], told["variant"]) == (
        REPOSITORY,
        COMMIT,
        "torch-universal",
    )


@pytest.mark.slow
def test_a_kernel_is_fetched_where_telemetry_is_off(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    assert fetch(PIN, tmp_path)


@pytest.mark.slow
def test_no_build_for_this_machine_is_one_line_that_says_so(hub: type[Hub], tmp_path: Path) -> None:
    hub.files = {name: content for name, content in FILES.items() if not name.startswith(BUILD)}
    told: list[str] = []
    assert fetch_each([PIN], tmp_path, told.append) == ()
    assert len(told) == 1
    assert "no build for this machine: torch28-cxx11-cu128-x86_64-linux" in told[0]
    assert "\n" not in told[0]


@pytest.mark.slow
def test_two_at_once_fetch_a_kernel_once(hub: type[Hub], tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda folder: fetch(PIN, folder), [tmp_path, tmp_path])
    assert first == second
    assert (
        len([path for path in hub.paths if path.endswith(f"resolve/{COMMIT}/{BUILD}/layers.py")])
        <= 2
    )  # HEAD and GET
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        Path(first.path).stem,
        Path(first.path).name,
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_manifest_is_a_kernel_that_is_not_here(
    kept: FileRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch = importlib.metadata.version("torch")
    (tmp_path / f"someone--tiny-attention@{COMMIT}-torch{torch}.json").write_text(text)
    with pytest.raises(KernelUnavailable, match="not fetched yet"):
        fetch(PIN, tmp_path)


def test_what_was_fetched_is_found_again_without_a_network(
    kept: FileRef, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0")
    old = Path(kept.path)
    new = old.with_name(f"someone--tiny-attention@{COMMIT}-torch2.13.0.json")
    old.with_suffix("").rename(new.with_suffix(""))
    old.rename(new)
    assert fetch(PIN, old.parent) == replace(kept, path=str(new))


@pytest.mark.parametrize(
    ("endpoint", "offline", "reason"),
    [
        ("http://127.0.0.1:{port}", "", "cannot be reached"),
        ("http://hub.invalid", "", "cannot be reached"),
        ("", "1", "OFFLINE"),
    ],
)
def test_without_a_hub_there_is_one_line_and_no_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str, offline: str, reason: str
) -> None:
    with socket.socket() as shut:  # bound and not listening: it refuses
        shut.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", endpoint.format(port=shut.getsockname()[1]))
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        told: list[str] = []
        assert fetch_each([PIN], tmp_path, told.append) == ()
    assert len(told) == 1
    assert REPOSITORY in told[0]
    assert reason in told[0]
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_takes_the_connection_and_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(attention_kernels, "FETCH_SECONDS", 1)
        with pytest.raises(KernelUnavailable, match="not fetched within 1 s"):
            fetch(PIN, tmp_path)


def spoil_code(folder: Path) -> None:
    (folder / BUILD / "__init__.py").write_text("raise SystemExit")


def take_away(folder: Path) -> None:
    (folder / BUILD / "layers.py").unlink()


def put_in(folder: Path) -> None:
    (folder / BUILD / "torch.py").write_text("")


def link_out(folder: Path) -> None:
    (folder / BUILD / "more").symlink_to("/etc")


def spoil_manifest(folder: Path) -> None:
    with folder.with_name(f"{folder.name}.json").open("a") as file:
        file.write(" ")


def move(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize("change", [spoil_code, take_away, put_in, link_out, spoil_manifest, move])
def test_a_kernel_that_changed_after_the_fetch_is_refused(kept: FileRef, change: Any) -> None:
    change(Path(kept.path).with_suffix(""))
    with pytest.raises(NativeCodeChanged, match="prepare"):
        opened(kept)


def test_a_changed_kernel_stops_a_run_before_its_box(kept: FileRef, tmp_path: Path) -> None:
    spoil_code(Path(kept.path).with_suffix(""))
    (tmp_path / "data").mkdir()
    dataset = replace(make_dataset(tmp_path / "data"), attention_kernels=(kept,))
    with pytest.raises(DataError, match="has changed since it was fetched"):
        run_experiment(
            Candidate.parse(HONEST),
            make_bench(dataset, tmp_path / "home"),
            seed=1,
            worth_audit=lambda claimed: False,
        )
    assert not (tmp_path / "home").exists()


def test_every_kernel_of_a_dataset_is_in_its_training_box(kept: FileRef, tmp_path: Path) -> None:
    folder = Path(kept.path).with_suffix("")
    spec = make_spec(tmp_path, native=(opened(kept), NativeKernel("other/one", folder)))
    spec.gate.folder.chmod(0o755)
    assert spec.paths()["LOCAL_KERNELS"] == f"{REPOSITORY}=/kernels/0:other/one=/kernels/1"


def test_without_a_box_the_kernel_is_found_where_it_lies(kept: FileRef, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, native=(opened(kept),), isolation="none")
    spec.gate.folder.chmod(0o755)
    assert spec.paths()["LOCAL_KERNELS"] == f"{REPOSITORY}={Path(kept.path).with_suffix('')}"


@pytest.mark.parametrize(
    "pin", ["flash-attn3", "a/b", "a/b@main", "a/b@v1", f"../b@{COMMIT}", f"a/b@{COMMIT[:7]}"]
)
def test_a_profile_pins_publisher_name_and_commit(pin: str) -> None:
    laptop = configs.load("laptop").model_dump()
    assert configs.Profile(**{**laptop, "attention_kernels": (PIN,)}).attention_kernels == (PIN,)
    with pytest.raises(pydantic.ValidationError, match="attention_kernels"):
        configs.Profile(**{**laptop, "attention_kernels": (pin,)})
