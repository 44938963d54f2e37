"""Our end of a box's socket: JSON lines and announced raw bytes, every call with a deadline.

A message is one JSON object on one line, at most 64 KiB, with a string `msg`. What arrives is not
trusted: we never hold more of it than a line may have and the caller asked for.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MESSAGE_BYTES = 64 * 1024
# Of a file in memory at a time. Each piece of some MiB may make Linux compact its memory first.
PIECE_BYTES = 2**18


class Silent(Exception):
    """The deadline passed."""


class Closed(Exception):
    """The other end closed the socket: its process has ended."""


class Malformed(Exception):
    """What arrived is not a message of the protocol."""


class Wire:
    """Messages over a box's socket. Deadlines are by time.monotonic.

    Any call may raise Silent or Closed, and one that reads a message Malformed.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()

    @contextlib.contextmanager
    def _until(self, deadline: float) -> Iterator[socket.socket]:
        """The socket, for one call."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise Silent
        self._sock.settimeout(left)
        try:
            yield self._sock
        except TimeoutError:
            raise Silent from None
        except ConnectionError:
            raise Closed from None

    def _receive(self, size: int, deadline: float) -> bytes:
        with self._until(deadline) as sock:
            chunk = sock.recv(size)
        if not chunk:
            raise Closed
        return chunk

    def _fill(self, space: memoryview, deadline: float) -> None:
        """Reads exactly as many raw bytes as there is space for."""
        filled = min(len(space), len(self._buffer))
        space[:filled] = self._buffer[:filled]
        del self._buffer[:filled]
        while filled < len(space):
            with self._until(deadline) as sock:
                count = sock.recv_into(space[filled:])
            if not count:
                raise Closed
            filled += count

    def read(self, deadline: float) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MESSAGE_BYTES:
                raise Malformed(f"a message of more than {MESSAGE_BYTES} bytes")
            self._buffer += self._receive(MESSAGE_BYTES, deadline)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise Malformed("a message that is not JSON") from None
        if not isinstance(message, dict) or not isinstance(message.get("msg"), str):
            raise Malformed("a message without `msg`")
        return message

    def read_bytes(self, size: int, deadline: float) -> bytearray:
        """Exactly `size` raw bytes. The caller has checked that we want to hold that many."""
        data = bytearray(size)
        self._fill(memoryview(data), deadline)
        return data

    def read_to_file(self, size: int, path: Path, deadline: float) -> None:
        """Exactly `size` raw bytes, which may be more than there is memory for."""
        space = memoryview(bytearray(min(size, PIECE_BYTES)))
        with path.open("wb") as file:
            while size:
                piece = space[:size]
                self._fill(piece, deadline)
                file.write(piece)
                size -= len(piece)

    def send(self, message: dict[str, Any], deadline: float, payload: bytes = b"") -> None:
        data = memoryview(json.dumps(message).encode() + b"\n" + payload)
        while data:
            with self._until(deadline) as sock:
                data = data[sock.send(data) :]
