"""Files that are there whole or not at all, known by their content: what cached tasks return instead of data."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk or a quota without room


@dataclasses.dataclass(frozen=True)
class FileRef:
    """A file by content. `sha256` is lower-case hex."""

    path: str
    sha256: str
    bytes: int

    @classmethod
    def write(cls, path: Path, content: builtins.bytes | Callable[[BinaryIO], object]) -> FileRef:
        """Writes `content`, or what it writes into the file that it is given, readable by everybody: a box's uid too.

        Temporary name, fsync, rename. What a killed process left under that name is written over; of two processes that
        write the same file, one waits.
        """
        part = path.with_name(f".{path.name}.part")
        with locked(part) as file:
            try:
                file.truncate(0)
                file.write(content) if isinstance(content, builtins.bytes) else content(file)
                file.flush()
                os.fsync(file.fileno())
                part.chmod(0o644)
                with part.open("rb") as written:
                    ref = cls(
                        str(path),
                        hashlib.file_digest(written, "sha256").hexdigest(),
                        os.fstat(file.fileno()).st_size,
                    )
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            sync_folder(path.parent)
        return ref


def sign(lock: IO[str], whose: str) -> None:
    """Says in the file of a lock whose it is. On a full disk the next one is not told."""
    with contextlib.suppress(OSError):
        os.ftruncate(lock.fileno(), 0)
        os.write(
            lock.fileno(), whose.encode()
        )  # unbuffered: or closing the file would try again and fail


def let_everybody_in(folder: Path) -> None:
    """A box runs under another uid and must reach what is below. Takes nothing from anybody: it may be /tmp."""
    mode = folder.stat().st_mode
    if mode & 0o055 != 0o055:
        folder.chmod(mode | 0o055)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on disk: or a power cut forgets a file that was synced itself."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[BinaryIO]:
    """A file opened to be appended to, made if need be, once no other process has it. Whoever has it may move it."""
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(path.open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(
                FileNotFoundError
            ):  # whoever had it has removed or renamed it meanwhile
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
            file.close()
        yield file
