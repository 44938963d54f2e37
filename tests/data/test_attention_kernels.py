"""A tiny kernel on its way from a hub on the loopback to a box that has no network.

FlashAttention-3 itself is not fetched here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
    "build/torch28-cxx11-cu128-x86_64-linux/__init__.py": b"raise RuntimeError('other machine')\n",
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
found = [kernel.flash_attn_func(0, 0, 0), writable, kernel.__file__]
wire.sendall(json.dumps(found).encode() + b"\\n")
"""


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's API that a kernel needs: the files of a commit, listed and by name."""

    paths: list[str]
    files: dict[str, bytes]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.paths.append(self.path)
        path = self.path.partition("?")[0]
        tree = f"/api/kernels/{REPOSITORY}/tree/{COMMIT}"
        resolve = f"/kernels/{REPOSITORY}/resolve/{COMMIT}/"
        if path.startswith(tree):
            listing = self._listing(path.removeprefix(tree).strip("/"))
            self._answer(json.dumps(listing).encode(), "tree")
        elif path.startswith(resolve) and path.removeprefix(resolve) in self.files:
            content = self.files[path.removeprefix(resolve)]
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


@contextlib.contextmanager
def running_hub() -> Iterator[type[Hub]]:
    """A hub on the loopback, to which HF_ENDPOINT points; telemetry is off, as every night has it.

    With telemetry off, `kernels.install_kernel` itself fails: its version 0.17.2 sends an illegal
    header.
    """
    handler = type("Handler", (Hub,), {"paths": [], "files": dict(FILES)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "http_proxy", "HF_HUB_OFFLINE", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("DO_NOT_TRACK", "1")
        yield handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub() -> Iterator[type[Hub]]:
    with running_hub() as handler:
        yield handler


@dataclass(frozen=True)
class Fetched:
    manifests: list[FileRef]
    folder: Path
    paths: list[str]  # requests that the hub got


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Fetched:
    """One kernel as two workers fetch it at the same time. The tests leave it as it is."""
    folder = tmp_path_factory.mktemp("kernels")
    with running_hub() as hub, ThreadPoolExecutor(2) as pool:
        manifests = list(pool.map(lambda _: fetch(PIN, folder), range(2)))
    return Fetched(manifests, folder, hub.paths)


@pytest.fixture
def kept(tmp_path: Path) -> FileRef:
    """A kernel as `fetch` leaves it, made without a hub."""
    folder = tmp_path / "kernels" / "kept-torch2.13.0"
    files = {name: content for name, content in FILES.items() if name.startswith(BUILD)}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = {"repository": REPOSITORY, "revision": COMMIT, "files": hashes}
    for path in (folder.parent, folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return FileRef.write(folder.with_name(f"{folder.name}.json"), json.dumps(manifest).encode())


def opened(kept: FileRef) -> NativeKernel:
    return NativeKernel.checked(Path(kept.path), kept.sha256)


@pytest.mark.slow
def test_a_kernel_goes_from_the_hub_to_a_box_that_cannot_change_it(
    fetched: Fetched, tmp_path: Path
) -> None:
    kernel = opened(fetched.manifests[0])
    spec = make_spec(tmp_path, native=(kernel,), memory_bytes=2 << 30, tasks=128)
    asked = len(fetched.paths)
    with open_box(spec, ["-c", USE]) as box:
        box.wire.settimeout(120)
        line = box.wire.makefile().readline()
        assert line, box.log.text()
        found, writable, where = json.loads(line)
    spec.gate.folder.chmod(0o755)
    assert found == ["tiny", True, [-1, -1]]
    assert not writable
    assert where == f"/kernels/0/{BUILD}/__init__.py"
    assert len(fetched.paths) == asked


@pytest.mark.slow
def test_only_the_build_for_this_machine_is_kept_and_nothing_else_is_left(fetched: Fetched) -> None:
    manifest = Path(fetched.manifests[0].path)
    kernel = opened(fetched.manifests[0])
    assert [path.name for path in kernel.folder.glob("build/*")] == ["torch-universal"]
    assert not any(path.is_symlink() for path in kernel.folder.rglob("*"))
    names = {path.name for path in fetched.folder.iterdir()}
    assert names == {kernel.folder.name, manifest.name}
    facts = json.loads(manifest.read_text())
    assert (facts["repository"], facts["revision"]) == (REPOSITORY, COMMIT)
    assert facts["variant"] == "torch-universal"


@pytest.mark.slow
def test_two_workers_fetch_a_kernel_once(fetched: Fetched) -> None:
    first, second = fetched.manifests
    assert first == second
    file = f"resolve/{COMMIT}/{BUILD}/layers.py"
    assert len([path for path in fetched.paths if path.endswith(file)]) <= 2  # HEAD and GET


@pytest.mark.slow
def test_a_kernel_without_a_build_for_this_machine_is_reported_in_one_line(
    hub: type[Hub], tmp_path: Path
) -> None:
    hub.files = {name: content for name, content in FILES.items() if not name.startswith(BUILD)}
    logged: list[str] = []
    assert fetch_each([PIN], tmp_path, logged.append) == ()
    assert len(logged) == 1
    assert "no build for this machine: torch28-cxx11-cu128-x86_64-linux" in logged[0]
    assert "\n" not in logged[0]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_kernel_with_a_damaged_manifest_counts_as_not_fetched(
    kept: FileRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch = importlib.metadata.version("torch")
    (tmp_path / f"someone--tiny-attention@{COMMIT}-torch{torch}.json").write_text(text)
    with pytest.raises(KernelUnavailable, match="not fetched yet"):
        fetch(PIN, tmp_path)


def test_a_fetched_kernel_is_found_without_a_network(
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
        ("hub.invalid", "", "cannot be reached"),
        ("", "1", "OFFLINE"),
    ],
)
def test_without_a_hub_there_is_one_line_and_no_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str, offline: str, reason: str
) -> None:
    with socket.socket() as shut:  # bound but not listening: it refuses
        shut.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", endpoint.format(port=shut.getsockname()[1]))
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        logged: list[str] = []
        assert fetch_each([PIN], tmp_path, logged.append) == ()
    assert len(logged) == 1
    assert REPOSITORY in logged[0]
    assert reason in logged[0]
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_accepts_a_connection_and_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(attention_kernels, "PROBE_SECONDS", 0.1)
        with pytest.raises(KernelUnavailable, match=r"cannot be reached .*timed out"):
            fetch(PIN, tmp_path)


def test_a_fetch_that_takes_too_long_is_ended(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_kernels, "FETCH_SECONDS", 0.01)  # Python itself takes longer
    with pytest.raises(KernelUnavailable, match=r"not fetched within 0\.01 s"):
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
