"""The box's end of the judge's socket; fixed, like the harness."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

BUFFER_BYTES = 2**22


def open_link() -> Link | None:
    """The judge, or None outside a box. A second call would take bytes from the first."""
    if path := os.environ.get("NIGHTLY_SOCKET"):  # a container inherits no descriptor
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return Link(sock)
    if "NIGHTLY_FD" in os.environ:
        return Link(socket.socket(fileno=int(os.environ["NIGHTLY_FD"])))
    return None


class Link:
    """JSON objects, one per line, and raw bytes where a message announces them."""

    def __init__(self, sock: socket.socket) -> None:
        # A checkpoint takes fewer turns of the two processes. The kernel cuts it to what it allows.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._stream = sock.makefile("rwb")

    def send(self, message: dict[str, Any], payload: bytes | memoryview = b"") -> None:
        self._stream.write(json.dumps(message, allow_nan=False).encode() + b"\n")
        self.send_bytes(payload)

    def send_bytes(self, payload: bytes | memoryview) -> None:
        self._stream.write(payload)
        self._stream.flush()

    def write(self, data: bytes | memoryview) -> int:
        """Raw bytes as a file takes them, for what is written in many parts."""
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()

    def read(self, expected: str) -> dict[str, Any]:
        """The next message. EOFError if the judge hangs up, ValueError for any other message."""
        line = self._stream.readline()
        if not line:
            raise EOFError(f"the judge closed the socket where {expected!r} was due")
        message: dict[str, Any] = json.loads(line)
        if message["msg"] != expected:
            raise ValueError(f"the judge sent {message['msg']!r} where {expected!r} was due")
        return message

    def read_bytes(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            raise EOFError(f"the judge closed the socket after {len(data)} of {size} bytes")
        return data

    def wait_for_the_end(self) -> None:
        """Returns when the judge hangs up; usually it kills the box first."""
        while self._stream.read1(1 << 16):
            pass
