"""A small disk for a running night, which can be filled and freed from outside."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

DISK_MIB = 160


def can_mount() -> bool:
    """Whether a disk of its own can be given to a process here: as root, with unshare(1)."""
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(probe, capture_output=True).returncode == 0
    )


class Disk:
    """A small disk that holds a checkout's state folder, and perhaps its .git, for processes that
    are started on it.

    A tmpfs in a mount namespace of its own, with a copy of each folder over that folder: nobody
    else sees it, and it is gone with the process that holds it.
    """

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        script = ["d=$(mktemp -d)", f'mount -t tmpfs -o size={DISK_MIB}m none "$d"']
        for i, folder in enumerate(folders):
            script += [f'cp -a "{folder}" "$d/{i}"', f'mount --bind "$d/{i}" "{folder}"']
        script += ['umount -l "$d"', 'rmdir "$d"', "echo ready", "exec sleep infinity"]
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", "\n".join(script)]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"

    def command(self, folder: Path) -> tuple[str, ...]:
        """argv in front of a command that is to run in `folder` and have the disk."""
        return ("nsenter", "--target", str(self._holder.pid), "--mount", f"--wdns={folder}")

    def inside(self, path: Path) -> Path:
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def fill(self) -> None:
        """Takes all the room there is, and leaves none for an empty file's name."""
        with (
            contextlib.suppress(OSError),
            self.inside(self.folders[0] / "fill").open("wb", buffering=0) as file,
        ):
            while True:
                file.write(bytes(2**16))

    def free(self) -> None:
        self.inside(self.folders[0] / "fill").unlink()

    def end(self) -> None:
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout:
            self._holder.stdout.close()


@contextlib.contextmanager
def on_a_small_disk(*folders: Path) -> Iterator[Disk]:
    disk = Disk(*folders)
    try:
        yield disk
    finally:
        disk.end()
