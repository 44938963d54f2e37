"""Files of a source, each whole and verified or not there at all: a local folder, http(s)://, s3:// or hf://.

A download goes to `<name>.part`; `<name>.origin.json` ties it to one version of the file on the server, so that a later
try goes on where this one ended, and starts anew when the file has changed. A broken connection is mended here while
bytes still arrive; `Unreachable` says that a later try may succeed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path

from tasks.data import bucket, hub, part, web
from tasks.errors import DataError
from tasks.files import FileRef

Progress = web.Progress
Unreachable = part.Unreachable
SCHEMES = {"https": web.address, "http": web.address, "s3": bucket.address, "hf": hub.address}


def is_local(source: str) -> bool:
    return "://" not in source


def resolve(source: str) -> str:
    """The source as it is to be recorded: hf:// with the commit that its revision is now, any other one as it is.

    Only a revision that is no commit is asked for. Raises DataError; Unreachable when a later try may succeed.
    """
    return hub.resolve(source) if source.startswith("hf://") else source


def shown(source: str) -> str:
    """The source for people to read: without the password or the signature of an address."""
    return source if is_local(source) else web.safe(source)


def fetch(
    source: str,
    name: str,
    folder: Path,
    sha256: str | None,
    progress: Progress = lambda done, total: None,
) -> FileRef:
    """The file `name` of `source`: a local one where it lies, a remote one downloaded to `folder`.

    Without `sha256` (hex) a remote file must be what the server promises, if it does, and is else trusted on its first
    download; from then on it is not asked for again. Raises DataError when there is no such file, its content is not what
    it should be, or the disk is full; Unreachable, a DataError, when a later try may succeed.
    """
    if is_local(source):
        return _verified(
            Path(source, name),
            sha256,
            "restore the file, or correct its checksum if it was meant to change",
        )
    make = SCHEMES.get(source.partition("://")[0])
    if make is None:
        raise DataError(
            f"source {shown(source)!r} is not known: give a folder, https://, http://, s3:// or hf://datasets/"
        )
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(
            f"{name!r} is no file below {shown(source)}: write it in [data] without .. and without a / in front"
        )
    address, path = make(source, name), folder / name
    note = part.read_note(path, address.shown)
    if path.is_file() and (known := sha256 or (note and note.sha256)):
        with contextlib.suppress(DataError):  # a damaged one is fetched again
            return _verified(path, known, "")
    return _download(address, path, sha256, progress)


def checksums(path: Path) -> dict[str, str]:
    """File name -> sha256 in lower-case hex, of a SHA256SUMS file. Raises DataError for a line that is not of its form."""
    found = {}
    for number, line in enumerate(
        path.read_text(encoding="utf-8", errors="replace").splitlines(), 1
    ):
        digest, _, name = line.partition(" ")
        if (
            len(digest) != 64
            or not set(digest.lower()) <= set("0123456789abcdef")
            or not name.strip(" *")
        ):
            raise DataError(
                f"{path}, line {number}: {line[:80]!r} is not `<64 hex digits>  <file name>`, as sha256sum writes it"
            )
        found[name.strip().removeprefix("*").removeprefix("./")] = digest.lower()
    return found


def _verified(path: Path, sha256: str | None, remedy: str) -> FileRef:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}. Correct [data] in the profile, or put the file there"
        ) from error
    if sha256 and found != sha256.lower():
        raise DataError(
            f"{path} is not the expected file: its sha256 is {found}, expected is {sha256.lower()}; {remedy}"
        )
    return FileRef(str(path), found, size)


def _download(address: web.Address, path: Path, sha256: str | None, progress: Progress) -> FileRef:
    with part.opened(path) as partial:
        try:
            web.download(address, partial, progress)
            os.fsync(partial.file.fileno())
            note = partial.note(address.shown) or part.Note(address.shown, None)
            found = _verified(part.partial(path), None, "")
            expected = (sha256 or note.sha256 or found.sha256).lower()
            if found.sha256 != expected:
                partial.discard()
                raise DataError(
                    f"{address.shown} is not the expected file: its sha256 is {found.sha256}, expected is {expected}. The "
                    "download was removed; if the file was meant to change, correct its checksum"
                )
            part.write_note(path, dataclasses.replace(note, bytes=found.bytes, sha256=found.sha256))
            part.partial(path).chmod(0o644)
            part.partial(path).replace(
                path
            )  # still locked: whoever opened it meanwhile sees that it is another or gone
        except OSError as error:
            raise DataError(
                f"cannot write {path}: {error.strerror} after {partial.length} bytes. They are kept in {path.name}.part and "
                "the next try goes on from there: free some space, or set NIGHTLY_HOME to a larger disk"
            ) from error
        return FileRef(str(path), found.sha256, found.bytes)
