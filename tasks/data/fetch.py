"""Files of a source: a local folder, http(s)://, s3:// or hf://. Each is complete and verified.

A download is written to `<name>.part`; `<name>.origin.json` ties it to one version of the file on
the server, so that a later try continues where this one ended, and starts over when the file has
changed. Broken connections are resumed here as long as bytes arrive; `Unreachable` means that a
later try may succeed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

from tasks.data import bucket, hub, part, web
from tasks.data.progress import Report
from tasks.errors import DataError
from tasks.files import FileRef

Unreachable = part.Unreachable
SCHEMES = {"https": web.address, "http": web.address, "s3": bucket.address, "hf": hub.address}


def is_local(source: str) -> bool:
    return "://" not in source


def resolve(source: str) -> str:
    """The source to record: a revision of hf:// is replaced by its commit, any other is unchanged.

    Raises DataError, and Unreachable when a later try may succeed.
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
    report: Report = lambda done, total: None,
) -> FileRef:
    """The file `name` of `source`: a local one where it is, a remote one downloaded to `folder`.

    Without `sha256` (hex) a remote file must have the checksum that the server promises; if it
    promises none, the first download is trusted. A file that was downloaded is not requested again.

    Raises:
        DataError: there is no such file, its content is not the expected one, or the disk is full.
        Unreachable: a DataError after which a later try may succeed.
    """
    if is_local(source):
        remedy = "restore the file, or correct its checksum if it was meant to change"
        return _verified(Path(source, name), sha256, remedy)
    make = SCHEMES.get(source.partition("://")[0])
    if make is None:
        raise DataError(
            f"source {shown(source)!r} is not known: "
            "give a folder, https://, http://, s3:// or hf://datasets/"
        )
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(
            f"{name!r} is no file below {shown(source)}: "
            "write it in [data] without .. and without a / in front"
        )
    address, path = make(source, name), folder / name
    note = part.read_note(path, address.shown)
    if path.is_file() and (known := sha256 or (note and note.sha256)):
        with contextlib.suppress(DataError):  # a damaged file is downloaded again
            return _verified(path, known, "")
    return _download(address, path, sha256, report)


def checksums(path: Path) -> dict[str, str]:
    """File name -> sha256 in lower-case hex, of a SHA256SUMS file.

    Raises DataError for a line that is not as sha256sum writes it.
    """
    found = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        digest, _, name = line.partition(" ")
        is_digest = len(digest) == 64 and set(digest.lower()) <= set("0123456789abcdef")
        if not is_digest or not name.strip(" *"):
            raise DataError(
                f"{path}, line {number}: {line[:80]!r} is not `<64 hex digits>  <file name>`, "
                "as sha256sum writes it"
            )
        found[name.strip().removeprefix("*").removeprefix("./")] = digest.lower()
    return found


def _verified(path: Path, sha256: str | None, remedy: str) -> FileRef:
    try:
        found = FileRef.of(path)
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}. "
            "Correct [data] in the profile, or put the file there"
        ) from error
    if sha256 and found.sha256 != sha256.lower():
        raise DataError(
            f"{path} is not the expected file: "
            f"its sha256 is {found.sha256}, expected is {sha256.lower()}; {remedy}"
        )
    return found


def _download(address: web.Address, path: Path, sha256: str | None, report: Report) -> FileRef:
    with part.opened(path) as partial:
        try:
            web.download(address, partial, report)
            os.fsync(partial.file.fileno())
            note = partial.note(address.shown) or part.Note(address.shown, None)
            found = _verified(part.partial(path), None, "")
            expected = (sha256 or note.sha256 or found.sha256).lower()
            if found.sha256 != expected:
                partial.discard()
                raise DataError(
                    f"{address.shown} is not the expected file: its sha256 is {found.sha256}, "
                    f"expected is {expected}. The download was removed; "
                    "if the file was meant to change, correct its checksum"
                )
            part.write_note(path, dataclasses.replace(note, bytes=found.bytes, sha256=found.sha256))
            part.partial(path).chmod(0o644)
            # Still locked: another process that has opened the part sees that it was renamed.
            part.partial(path).replace(path)
        except OSError as error:
            raise DataError(
                f"cannot write {path}: {error.strerror} after {partial.length} bytes. "
                f"They are kept in {path.name}.part, and the next try continues from there: "
                "free some space, or set NIGHTLY_HOME to a larger disk"
            ) from error
        return dataclasses.replace(found, path=str(path))
