"""Native code that a box may load, such as an attention kernel, checked before each run.

Its manifest comes from tasks/data/attention_kernels.py: what was fetched, from where, and the
sha256 of each file. A box sees the folder read-only; the check finds changes made outside.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path


class NativeCodeChanged(Exception):
    """A file is not what was fetched; the text names it and the remedy."""


@dataclasses.dataclass(frozen=True)
class NativeKernel:
    """A kernel of the hub, laid out as the package `kernels` reads it: folder/build/<variant>/."""

    repository: str  # owner/name, by which a candidate asks for it
    folder: Path

    @classmethod
    def checked(cls, manifest: Path, sha256: str) -> NativeKernel:
        """The kernel of a manifest. Raises NativeCodeChanged if a file differs."""
        remedy = "Delete it and run `./run prepare`"
        try:
            text = manifest.read_bytes()
        except OSError as error:
            raise NativeCodeChanged(
                f"{manifest} cannot be read: {error.strerror}. {remedy}"
            ) from error
        if hashlib.sha256(text).hexdigest() != sha256:
            raise NativeCodeChanged(
                f"{manifest} is not what `./run prepare` wrote: its sha256 differs. {remedy}"
            )
        fetched, folder = json.loads(text), manifest.with_suffix("")
        found = {
            str(path.relative_to(folder)): path
            for path in folder.rglob("*")
            if not path.is_dir() or path.is_symlink()
        }
        if odd := sorted(found.keys() ^ fetched["files"].keys()):
            state = "was not fetched with the rest" if odd[0] in found else "is missing"
            raise NativeCodeChanged(f"{folder / odd[0]} {state}. {remedy}")
        for name, path in found.items():
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != fetched["files"][name]:
                    raise NativeCodeChanged(
                        f"{path} has changed since it was fetched: sha256 differs. {remedy}"
                    )
        return cls(fetched["repository"], folder)
