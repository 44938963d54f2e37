"""How a container reaches the judge: a unix socket for one caller, as it inherits no descriptor.

Beside the socket is what docker has no option for: the link that makes the container's interpreter
that of a virtual environment, and open folders above the interpreter's own.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tasks.judge import seccomp


class Door:
    """One box's socket, in a folder that no other user of this machine can enter.

    `seccomp` is the system-call filter's file, None on a machine without one.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.folder = folder
        self.wire, self.venv = folder / "wire", folder / "bin"
        for path in (self.wire, self.venv):
            path.mkdir()
            path.chmod(0o755)
        (self.venv / "python").symlink_to(os.path.realpath(sys.executable))
        # For the place of /root, say: the image's is closed to the user of the box, and the mode
        # that is asked for a tmpfs gives way to that of the folder which it covers.
        self.above_base = folder / "base"
        base = Path(sys.base_prefix).resolve()
        for path in (self.above_base, *_below(self.above_base, base.parts[2:])):
            path.mkdir()
            path.chmod(0o755)
        self.seccomp: Path | None = None
        if profile := seccomp.docker_profile(platform.machine(), device):
            self.seccomp = folder / "seccomp.json"
            self.seccomp.write_text(profile)

    def admit(self, client: subprocess.Popen[bytes], deadline: float) -> socket.socket | None:
        """Lets one caller in and closes; None if `client` ends or the deadline passes first.

        The socket appears only now, and listens already: the box waits for it before it starts its
        interpreter.
        """
        wire, part = None, self.wire / "part"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            handle = os.open(self.wire, os.O_PATH | os.O_DIRECTORY)
            try:
                # The path of the folder may exceed the limit of a socket's address, 107 bytes.
                listener.bind(f"/proc/self/fd/{handle}/part")
            finally:
                os.close(handle)
            part.chmod(0o666)  # the box is another user
            listener.listen(1)
            part.rename(self.wire / "socket")
            listener.settimeout(0.05)
            ended = False
            while wire is None and not ended and time.monotonic() < deadline:
                ended = client.poll() is not None  # asked first: it may call and end in between
                with contextlib.suppress(TimeoutError):
                    wire, _ = listener.accept()
        (self.wire / "socket").unlink()
        return wire


def _below(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The nested folders of these names, the outermost first."""
    return [folder.joinpath(*names[: i + 1]) for i in range(len(names))]


@contextlib.contextmanager
def open_door(work: Path, device: str = "cpu") -> Iterator[Door]:
    """A door in a new folder below `work`, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="door-", dir=work))
    try:
        yield Door(folder, device)
    finally:
        shutil.rmtree(folder)
