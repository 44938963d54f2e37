"""Native code that a box may load though no candidate wrote it, such as an attention kernel: checked before each run.

The manifest is the preparation's (tasks/data/attention_kernels.py): what was fetched, from where, and the sha256 of each file.
A box sees the folder read-only; the check is for what happens to it outside.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path


class NativeCodeChanged(Exception):
    """The files are not those that were fetched; the text names the first one and the remedy."""


@dataclasses.dataclass(frozen=True)
class NativeKernel:
    """One kernel of the hub, in the layout that the package `kernels` reads: folder/build/<variant>/."""

    repository: str  # owner/name, the name under which a candidate asks for it
    folder: Path

    @classmethod
    def checked(cls, manifest: Path, sha256: str) -> NativeKernel:
        """The kernel of this manifest. Raises NativeCodeChanged when it or any file is not what was fetched."""
        remedy = "Delete it and run `./run prepare`"
        try:
            text = manifest.read_bytes()
        except OSError as error:
            raise NativeCodeChanged(
                f"{manifest} cannot be read: {error.strerror}. {remedy}"
            ) from error
        if hashlib.sha256(text).hexdigest() != sha256:
            raise NativeCodeChanged(
                f"{manifest} is not what the preparation wrote: sha256 differs from {sha256}. {remedy}"
            )
        told, folder = json.loads(text), manifest.with_suffix("")
        there = {
            str(path.relative_to(folder)): path
            for path in folder.rglob("*")
            if not path.is_dir() or path.is_symlink()
        }
        if odd := sorted(there.keys() ^ told["files"].keys()):
            state = "was not fetched with the rest" if odd[0] in there else "is gone"
            raise NativeCodeChanged(f"{folder / odd[0]} {state}. {remedy}")
        for name, path in there.items():
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != told["files"][name]:
                    raise NativeCodeChanged(
                        f"{path} has changed since it was fetched: sha256 differs. {remedy}"
                    )
        return cls(told["repository"], folder)
