"""An unfinished download: the bytes so far, and a note that ties them to one version of the file.

The note stays beside the finished file and then holds its sha256, so that a later call knows the
file without a request. A crash at any moment leaves a part that the next try continues, or throws
away when its note does not fit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from tasks.errors import DataError
from tasks.files import FileRef

LOCKED_WAIT = 60.0  # seconds to wait while another process writes the same part
MOST_CHANGES = 4  # versions of one file on the server that a download starts over for


class Unreachable(DataError):
    """The source does not answer now; `wait` is the number of seconds that it asked for."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


@dataclasses.dataclass(frozen=True)
class Note:
    """What is known of the file on the server.

    `version` is what If-Range accepts: a strong ETag, else the date of the last change. Without
    it, a download cannot be resumed. `sha256` is what the server promises, and the one found once
    the download is complete.
    """

    address: str  # without a password or a signature
    version: str | None
    bytes: int | None = None
    sha256: str | None = None


class Part:
    """The partial file of `path`: unbuffered, readable, writable and locked. See `opened`."""

    def __init__(self, file: FileIO, path: Path) -> None:
        self.file = file
        self.path = path
        self._longest = self.length
        self._version: str | None = None
        self._changes = 0

    @property
    def length(self) -> int:
        """Bytes on disk."""
        return os.fstat(self.file.fileno()).st_size

    def note(self, address: str) -> Note | None:
        return read_note(self.path, address)

    def restart(self, note: Note | None) -> None:
        """Throws the bytes away, for the version in `note`; None while it is not known."""
        self.file.truncate(0)
        if note:
            if note.version != self._version and self._changes < MOST_CHANGES:
                self._version, self._changes, self._longest = note.version, self._changes + 1, 0
            write_note(self.path, note)

    def append(self, piece: bytes) -> None:
        """Writes all of it: on a nearly full disk an unbuffered write may be a short one."""
        self.file.seek(0, os.SEEK_END)
        rest = memoryview(piece)
        while rest:
            rest = rest[self.file.write(rest) :]

    def has_grown(self) -> bool:
        """Whether there are more bytes than at any earlier call, of the same version."""
        grown = self.length > self._longest
        self._longest = max(self._longest, self.length)
        return grown

    def discard(self) -> None:
        partial(self.path).unlink(missing_ok=True)
        note_path(self.path).unlink(missing_ok=True)


def partial(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def note_path(path: Path) -> Path:
    return path.with_name(path.name + ".origin.json")


def read_note(path: Path, address: str) -> Note | None:
    """The note beside `path`, None when it is of another address, missing or damaged."""
    try:
        note = Note(**json.loads(note_path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # the download starts over
    return note if note.address == address else None


def write_note(path: Path, note: Note) -> None:
    FileRef.write(note_path(path), json.dumps(dataclasses.asdict(note)).encode())


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Part]:
    """The part of `path`, locked; removed at the end if it is empty.

    Raises DataError, and Unreachable when another process holds the lock.
    """
    name = partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise DataError(
            f"cannot write {name}: {error.strerror}. "
            "Free some space, or set NIGHTLY_HOME to a larger disk"
        ) from error
    with FileIO(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(file.fileno()), name.stat())
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            raise Unreachable(
                f"another process is writing {name}: wait until it has finished", LOCKED_WAIT
            )
        part = Part(file, path)
        try:
            yield part
        except BaseException:
            if not part.length:
                part.discard()
            raise
