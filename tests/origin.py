"""A web server on the loopback with the faults of the internet, for tests of downloads."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]  # status, headers, body


class Origin:
    """Serves `files` with Range, If-Range and ETag (RFC 9110).

    Its attributes set the faults, at any time.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.etag: str | None = '"one"'
        self.ranges = True
        self.cut: int | None = None  # bytes of a body after which the connection breaks
        self.script: list[Answer] = []  # sent first, before any file
        self.answers: dict[str, Answer] = {}  # sent whenever a path is requested
        self.requests: list[dict[str, str]] = []  # headers of each, and its path as "path"
        self.sent = 0  # bytes of bodies
        self.pace = 0.0  # seconds between two pieces of a body
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"origin": self})
        )
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Origin:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    origin: Origin

    def do_GET(self) -> None:
        origin = self.origin
        origin.requests.append({**self.headers, "path": self.path})
        name = self.path.partition("?")[0].lstrip("/")
        content = origin.files.get(name)
        if origin.script:
            self._answer(*origin.script.pop(0))
        elif name in origin.answers:
            self._answer(*origin.answers[name])
        elif content is None:
            self._answer(404, {}, b"nothing here")
        else:
            self._send_file(content)

    def do_CONNECT(self) -> None:
        """The request that a proxy gets for https."""
        self.origin.requests.append({**self.headers, "path": self.path})
        self._answer(407, {}, b"")

    def _send_file(self, content: bytes) -> None:
        origin, start, code = self.origin, 0, 200
        headers = {
            "Content-Type": "application/octet-stream",
            **({"ETag": origin.etag} if origin.etag else {}),
        }
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if wanted and origin.ranges and condition in (None, origin.etag):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self._answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
            code, headers["Content-Range"] = 206, f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._answer(code, headers, content[start:])

    def _answer(self, code: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.origin.cut is not None and code < 300:
            body = body[: self.origin.cut]
        with contextlib.suppress(ConnectionError):  # the client has gone
            for first in range(0, len(body), 65536):
                self.origin.sent += len(piece := body[first : first + 65536])
                self.wfile.write(piece)
                time.sleep(self.origin.pace)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the tests read `requests`."""


class Cutter:
    """A TCP proxy of the server at `port` of the loopback.

    It ends each of the first `cuts` connections after `after` bytes of the server.
    """

    def __init__(self, port: int, cuts: int, after: int) -> None:
        self.port = port
        self.cuts = cuts
        self.after = after
        self.done = 0  # connections that were cut
        self.sent = 0  # bytes of the server that were passed on
        self.on_cut: Callable[[int], None] = lambda number: None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Cutter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        """Serves one connection at a time: a download has no more."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self.port)) as server:
                upward = threading.Thread(target=_pump, args=(client, server))
                upward.start()
                self._downward(server, client)
                for end in (client, server):
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                upward.join()

    def _downward(self, server: socket.socket, client: socket.socket) -> None:
        left = self.after if self.done < self.cuts else None
        with contextlib.suppress(OSError):
            while data := server.recv(65536 if left is None else min(left, 65536)):
                client.sendall(data)
                self.sent += len(data)
                if left is not None and not (left := left - len(data)):
                    self.done += 1
                    return self.on_cut(self.done)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
