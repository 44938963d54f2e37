"""Files that are complete or absent, known by their content: what cached tasks return."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

from tasks.errors import DataError

FULL = (errno.ENOSPC, errno.EDQUOT)  # a full disk, or an exceeded quota


@dataclasses.dataclass(frozen=True)
class FileRef:
    """A file by content. `sha256` is lower-case hex."""

    path: str
    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> FileRef:
        """The file as it is now. Raises OSError when it cannot be read."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(str(path), digest, os.fstat(file.fileno()).st_size)

    @classmethod
    def write(cls, path: Path, content: builtins.bytes | Callable[[BinaryIO], object]) -> FileRef:
        """Writes a file that every user can read, as a box runs under another uid.

        `content` is bytes, or a function that writes them into the file that it is given. The file
        is written under a temporary name, synced and renamed. What a killed process left under that
        name is overwritten; of two processes that write the same file, one waits.
        """
        part = path.with_name(f".{path.name}.part")
        with locked(part) as file:
            try:
                file.truncate(0)
                file.write(content) if isinstance(content, builtins.bytes) else content(file)
                file.flush()
                os.fsync(file.fileno())
                part.chmod(0o644)
                ref = dataclasses.replace(cls.of(part), path=str(path))
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            sync_folder(path.parent)
        return ref


def write_data(path: Path, content: bytes | Callable[[BinaryIO], object]) -> FileRef:
    """FileRef.write, in a folder that is made if needed and that every user can enter.

    Raises DataError when the disk refuses it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        make_readable(path.parent)
        return FileRef.write(path, content)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free >> 20 if path.parent.is_dir() else 0
        raise DataError(
            f"cannot write {path}: {error.strerror or error} ({free} MiB are free). "
            "Nothing was left behind: free some space, or set NIGHTLY_HOME to a larger disk"
        ) from error


def sign(lock: IO[str], owner: str) -> None:
    """Writes into a lock file who holds the lock. On a full disk the file stays empty."""
    with contextlib.suppress(OSError):
        os.ftruncate(lock.fileno(), 0)
        # Unbuffered: a buffer that could not be written would make closing the file fail.
        os.write(lock.fileno(), owner.encode())


def make_readable(folder: Path) -> None:
    """Lets every user list and enter a folder, as a box runs under another uid.

    No permission is taken away: the folder may be /tmp.
    """
    mode = folder.stat().st_mode
    if mode & 0o055 != 0o055:
        folder.chmod(mode | 0o055)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on disk; without it a power cut loses synced files."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for appending, creating it if needed, once no other process has it locked.

    Whoever holds the lock may rename or remove the file.
    """
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(path.open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):  # its last holder renamed or removed it
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
            file.close()
        yield file
