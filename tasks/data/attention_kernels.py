"""Native attention kernels from the Hugging Face hub: fetched by the trusted preparation, never by a box.

A profile names each as owner/name@commit, and naming it is trusting its publisher: it is native code. One build, that for
this torch and this GPU's toolkit, is kept beside a manifest with the sha256 of each file. tasks/judge/native_code.py reads
the manifest before a box opens and refuses a changed file; the box sees the folder read-only and has no network.

    data/kernels/<owner>--<name>@<commit>-torch<version>/build/<variant>/...     what LOCAL_KERNELS names in a box
    data/kernels/<owner>--<name>@<commit>-torch<version>.json                    its manifest

A kernel that cannot be had costs speed, not the night: train.py falls through to the next backend.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from tasks.data import hub
from tasks.files import FileRef, locked

PROBE_SECONDS = 3.0  # to the hub's first answer; the hub's own client would retry for 23 s
FETCH_SECONDS = 1800  # for one build, about 0.8 GB of FlashAttention-3
INSTALL = f"import signal; signal.alarm({FETCH_SECONDS}); from tasks.data import attention_kernels; attention_kernels.install_and_tell()"


class KernelUnavailable(Exception):
    """This kernel is not here and cannot be fetched now; the text is one line that says why."""


def fetch_each(
    pins: Sequence[str], folder: Path, tell: Callable[[str], None]
) -> tuple[FileRef, ...]:
    """The manifests of those `pins` (owner/name@commit) that are here or can be fetched into `folder`, in their order.

    `tell` is given one line for each that is left out.
    """
    manifests: list[FileRef] = []
    for pin in pins:
        try:
            manifests.append(fetch(pin, folder))
        except KernelUnavailable as reason:
            tell(f"attention kernel {pin}: {reason}. Training does without it")
    return tuple(manifests)


def fetch(pin: str, folder: Path) -> FileRef:
    """The manifest of one kernel, owner/name@commit, fetched into `folder` unless it lies there as it was fetched.

    A download that was cut short goes on where it was. Raises KernelUnavailable.
    """
    repository, _, revision = pin.partition("@")
    torch = importlib.metadata.version("torch")
    kept = folder / f"{repository.replace('/', '--')}@{revision}-torch{torch}"
    manifest = kept.with_name(f"{kept.name}.json")
    part = kept.with_name(f".{kept.name}.part")
    try:
        if found := _found(manifest, kept):
            return found
        if problem := _unreachable():
            raise KernelUnavailable(problem)
        part.parent.mkdir(parents=True, exist_ok=True)
        with locked(
            lock := part.with_suffix(".lock")
        ) as held:  # the workers of several GPUs begin at once
            try:
                return _found(manifest, kept) or _fetch(
                    repository, revision, torch, part, kept, held.fileno()
                )
            finally:
                lock.unlink()
    except OSError as error:
        raise KernelUnavailable(f"cannot be kept in {folder}: {error.strerror}") from error


def _fetch(
    repository: str, revision: str, torch: str, part: Path, kept: Path, lock: int
) -> FileRef:
    part.mkdir(exist_ok=True)
    variant = _install(repository, revision, part, lock)
    shutil.rmtree(part / ".cache")  # where the hub's client notes how far it is
    manifest = kept.with_name(f"{kept.name}.json")
    manifest.unlink(missing_ok=True)
    shutil.rmtree(kept, ignore_errors=True)
    part.replace(kept)
    _make_readable(kept)
    told = {
        "repository": repository,
        "revision": revision,
        "variant": variant,
        "torch": torch,
        "files": _files(kept),
    }
    return FileRef.write(manifest, json.dumps(told, indent=1).encode())


def _found(manifest: Path, kept: Path) -> FileRef | None:
    """What an earlier fetch has left, unless a file of it is gone or changed."""
    if not manifest.is_file():
        return None
    text = manifest.read_bytes()
    try:
        if json.loads(text)["files"] != _files(kept):
            return None
    except (ValueError, KeyError, TypeError):
        return None  # the manifest itself is damaged
    return FileRef(str(manifest), hashlib.sha256(text).hexdigest(), len(text))


def _files(kept: Path) -> dict[str, str]:
    """sha256 of each file below a folder, by its path in it."""
    found = {}
    for path in sorted(path for path in kept.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found[str(path.relative_to(kept))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _make_readable(kept: Path) -> None:
    """For everybody: a box runs under another uid."""
    kept.parent.chmod(0o755)
    for path in (kept, *kept.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _install(repository: str, revision: str, part: Path, lock: int) -> str:
    """Downloads the build that fits this machine into part/build and returns its name. Raises KernelUnavailable.

    In a process of its own: the package `kernels` imports torch, and a process can be ended when it takes too long. It
    holds the lock too: it may outlive this one, and until its end, or its alarm, nobody touches its files.
    """
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", INSTALL, repository, revision, str(part.resolve())],
            env={**os.environ, **quiet},
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
            pass_fds=[lock],
        )
    except subprocess.TimeoutExpired:
        raise KernelUnavailable(
            f"not fetched within {FETCH_SECONDS} s; the next preparation goes on with it"
        ) from None
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode != 0:
        raise KernelUnavailable(
            f"not fetched: {lines[-1] if lines else f'exit code {done.returncode}'}"
        )
    return lines[-1]


def install_and_tell() -> None:
    """The process of `_install`: argv[1:] is repository, commit and folder. Nothing that it downloads is imported.

    Not `kernels.install_kernel`: version 0.17.2 cannot speak to the hub at all where telemetry is switched off
    (HF_HUB_DISABLE_TELEMETRY, DO_NOT_TRACK: it sends an empty part in a header), and its cache is links into a store.
    """
    from huggingface_hub import HfApi
    from kernels.variants import get_variants, resolve_variant, variants_trace_str

    repository, revision, folder = sys.argv[1:]
    api = HfApi(library_name="kernels")
    try:
        variant, trace = resolve_variant(get_variants(api, repo_id=repository, revision=revision))
        if variant is None:
            reasons = "; ".join(variants_trace_str(trace).splitlines())
            sys.exit(f"no build for this machine: {reasons or 'it has none at all'}")
        wanted = [f"build/{variant.variant_str}/*"]
        api.snapshot_download(
            repository,
            repo_type="kernel",
            revision=revision,
            allow_patterns=wanted,
            local_dir=folder,
        )
        print(variant.variant_str)
    except (
        Exception
    ) as error:  # whatever the hub or its client finds wrong, told in its own first line
        sys.exit(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def _unreachable() -> str | None:
    """Why the hub cannot be asked, found out in PROBE_SECONDS; None when it can."""
    if hub.offline():
        return "not fetched yet, and HF_HUB_OFFLINE is set"
    address = urllib.parse.urlsplit(hub.endpoint())
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    if address.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return None  # a name that only the proxy can look up
    failed = [f"no answer within {PROBE_SECONDS:.0f} s"]

    def knock() -> None:
        try:
            socket.create_connection((host, port), PROBE_SECONDS).close()
            failed.clear()
        except OSError as error:
            failed[:] = [str(error)]

    thread = threading.Thread(
        target=knock, name="hub-probe", daemon=True
    )  # looking up a name has no time limit of its own
    thread.start()
    thread.join(PROBE_SECONDS)
    return f"not fetched yet, and {host}:{port} cannot be reached ({failed[0]})" if failed else None
