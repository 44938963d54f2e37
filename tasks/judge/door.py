"""How a container reaches the judge: a unix socket for one caller, as it inherits no descriptor.

Beside the socket is the link that makes the container's interpreter that of a virtual environment:
docker has no option for a link.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


class Door:
    """One box's socket, in a folder that no other user of this machine can enter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wire, self.venv = folder / "wire", folder / "bin"
        for path in (self.wire, self.venv):
            path.mkdir()
            path.chmod(0o755)
        (self.venv / "python").symlink_to(os.path.realpath(sys.executable))

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


@contextlib.contextmanager
def open_door(work: Path) -> Iterator[Door]:
    """A door in a new folder below `work`, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="door-", dir=work))
    try:
        yield Door(folder)
    finally:
        shutil.rmtree(folder)
