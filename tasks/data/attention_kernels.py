"""Native attention kernels from the Hugging Face hub, fetched by the preparation, never by a box.

A profile names each as owner/name@commit, and thereby trusts its publisher: a kernel is native
code. Of its builds, the one for this torch and this GPU's toolkit is kept, with a manifest that has
the sha256 of each file. tasks/judge/native_code.py reads the manifest before a box opens and
refuses a changed file; the box sees the folder read-only and has no network.

    data/kernels/<owner>--<name>@<commit>-torch<version>/build/<variant>/    LOCAL_KERNELS of a box
    data/kernels/<owner>--<name>@<commit>-torch<version>.json                its manifest

A kernel that is unavailable costs speed, not the night: train.py uses the next backend instead.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx2

from tasks.data import hub, web
from tasks.files import FileRef, locked

PROBE_SECONDS = 3.0  # for the hub to answer at all; its own client would retry for 23 s
FETCH_SECONDS = 1800  # for one build; FlashAttention-3 has about 0.8 GB


class KernelUnavailable(Exception):
    """This kernel is not here and cannot be fetched now; the text is one line with the reason."""


def fetch_each(
    pins: Sequence[str], folder: Path, log: Callable[[str], None]
) -> tuple[FileRef, ...]:
    """The manifests of the available ones of `pins` (owner/name@commit), in the same order.

    `log` is called with one line for each that is left out.
    """
    manifests: list[FileRef] = []
    for pin in pins:
        try:
            manifests.append(fetch(pin, folder))
        except KernelUnavailable as reason:
            log(f"attention kernel {pin}: {reason}. Training continues without it")
    return tuple(manifests)


def fetched(pins: Sequence[str], folder: Path) -> tuple[FileRef, ...]:
    """The manifests of those of `pins` that an earlier preparation has left in `folder`."""
    manifests = [_manifest(_kept(pin, folder)) for pin in pins]
    return tuple(FileRef.of(manifest) for manifest in manifests if manifest.is_file())


def _kept(pin: str, folder: Path) -> Path:
    return folder / f"{pin.replace('/', '--')}-torch{importlib.metadata.version('torch')}"


def fetch(pin: str, folder: Path) -> FileRef:
    """The manifest of one kernel, owner/name@commit, fetched into `folder` unless it is there.

    Raises KernelUnavailable.
    """
    torch = importlib.metadata.version("torch")
    kept = _kept(pin, folder)
    try:
        if not _is_whole(kept):
            _probe()
            folder.mkdir(parents=True, exist_ok=True)
            _run("-m", __name__, pin, str(kept.resolve()), torch)
        return FileRef.of(_manifest(kept))
    except OSError as error:
        raise KernelUnavailable(f"cannot be kept in {folder}: {error.strerror}") from error


def _probe() -> None:
    """Raises KernelUnavailable unless the hub answers within PROBE_SECONDS."""
    if hub.offline():
        raise KernelUnavailable("not fetched yet, and HF_HUB_OFFLINE is set")
    try:
        httpx2.head(hub.endpoint(), timeout=PROBE_SECONDS)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise KernelUnavailable(
            f"not fetched yet, and {web.safe(hub.endpoint())} cannot be reached ({web.safe(error)})"
        ) from error


def _run(*arguments: str) -> None:
    """Python in a process of its own: the package `kernels` imports torch, and it can be killed."""
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **quiet},
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise KernelUnavailable(
            f"not fetched within {FETCH_SECONDS} s; the next preparation tries again"
        ) from None
    if done.returncode != 0:
        *_, reason = ["", *done.stderr.strip().splitlines()]
        raise KernelUnavailable(f"not fetched: {reason or f'exit code {done.returncode}'}")


def main() -> None:
    """The process that fetches a kernel: argv[1:] is its pin, its folder and torch's version.

    It may outlive its parent, by FETCH_SECONDS at most; then it completes what it has begun. The
    lock is for the workers of several GPUs, which begin at once.
    """
    signal.alarm(FETCH_SECONDS)
    pin, folder, torch = sys.argv[1:]
    repository, _, revision = pin.partition("@")
    kept = Path(folder)
    part = kept.with_name(f".{kept.name}.part")
    with locked(lock := kept.with_name(f".{kept.name}.lock")):
        try:
            if _is_whole(kept):
                return
            facts = {"repository": repository, "revision": revision, "torch": torch}
            facts["variant"] = _download(repository, revision, part)
            shutil.rmtree(part / ".cache")  # the hub client's own notes
            _manifest(kept).unlink(missing_ok=True)
            shutil.rmtree(kept, ignore_errors=True)
            part.replace(kept)
            _make_readable(kept)
            manifest = json.dumps({**facts, "files": _files(kept)}, indent=1)
            FileRef.write(_manifest(kept), manifest.encode())
        # Whatever the hub or its client finds wrong ends as one line of the parent.
        except Exception as error:
            sys.exit(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        finally:
            lock.unlink()


def _download(repository: str, revision: str, part: Path) -> str:
    """Downloads the build for this machine into part/build and returns its name.

    Nothing that it downloads is imported. `kernels.install_kernel` is not used: version 0.17.2
    sends an illegal header where telemetry is off (HF_HUB_DISABLE_TELEMETRY, DO_NOT_TRACK), and
    its result is links into a shared store.
    """
    from huggingface_hub import HfApi
    from kernels.variants import get_variants, resolve_variant, variants_trace_str

    api = HfApi(library_name="kernels")
    variant, trace = resolve_variant(get_variants(api, repo_id=repository, revision=revision))
    if variant is None:
        reasons = "; ".join(variants_trace_str(trace).splitlines())
        sys.exit(f"no build for this machine: {reasons or 'it has none at all'}")
    name = str(variant.variant_str)
    api.snapshot_download(
        repository,
        repo_type="kernel",
        revision=revision,
        allow_patterns=[f"build/{name}/*"],
        local_dir=part,
    )
    return name


def _manifest(kept: Path) -> Path:
    return kept.with_name(f"{kept.name}.json")


def _is_whole(kept: Path) -> bool:
    """Whether an earlier fetch has left this kernel, with no file missing or changed since."""
    try:
        manifest = json.loads(_manifest(kept).read_bytes())
        return bool(manifest["files"] == _files(kept))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False  # not fetched, or the manifest is damaged


def _files(kept: Path) -> dict[str, str]:
    """sha256 of each file below a folder, by its path in it."""
    paths = sorted(path for path in kept.rglob("*") if path.is_file())
    return {str(path.relative_to(kept)): FileRef.of(path).sha256 for path in paths}


def _make_readable(kept: Path) -> None:
    """For every user: a box runs under another uid."""
    kept.parent.chmod(0o755)
    for path in (kept, *kept.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    main()
