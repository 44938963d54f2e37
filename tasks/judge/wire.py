"""Our end of a box's socket: JSON lines and announced raw bytes, every call with a deadline.

A message is one JSON object on one line, at most 64 KiB, with a string `msg`. What arrives is not
trusted: we never hold more of it than a line may have and the caller asked for.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

MESSAGE_BYTES = 64 * 1024


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

    def _receive(self, size: int, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Silent
        self._sock.settimeout(left)
        try:
            chunk = self._sock.recv(size)
        except TimeoutError:
            raise Silent from None
        except ConnectionError:
            raise Closed from None
        if not chunk:
            raise Closed
        return chunk

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
        data, filled = bytearray(size), min(size, len(self._buffer))
        data[:filled] = self._buffer[:filled]
        del self._buffer[:filled]
        while filled < size:
            chunk = self._receive(min(size - filled, 1 << 20), deadline)
            data[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        return data

    def read_to_file(self, size: int, path: Path, deadline: float) -> None:
        with path.open("wb") as file:
            while size:
                chunk = self.read_bytes(min(size, 1 << 22), deadline)
                file.write(chunk)
                size -= len(chunk)

    def send(self, message: dict[str, Any], deadline: float, payload: bytes = b"") -> None:
        data = memoryview(json.dumps(message).encode() + b"\n" + payload)
        while data:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Silent
            self._sock.settimeout(left)
            try:
                data = data[self._sock.send(data) :]
            except TimeoutError:
                raise Silent from None
            except ConnectionError:
                raise Closed from None
