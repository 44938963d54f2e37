"""A real web server on the loopback with one file and the faults of the internet, for tests of downloads."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class Origin:
    """Serves `files` with Range, If-Range and ETag (RFC 9110). Faults are set by its attributes, at any time."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.etag: str | None = '"one"'
        self.ranges = True
        self.cut: int | None = None  # bytes of a body after which the connection breaks
        self.script: list[tuple[int, dict[str, str], bytes]] = []  # answers that come first, before any file
        self.requests: list[dict[str, str]] = []  # headers of each, with its path as "path"
        self.sent = 0  # bytes of bodies
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"origin": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Origin:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    origin: Origin

    def do_GET(self) -> None:
        origin = self.origin
        origin.requests.append({**self.headers, "path": self.path})
        content = origin.files.get(self.path.lstrip("/"))
        if origin.script:
            self._answer(*origin.script.pop(0))
        elif content is None:
            self._answer(404, {}, b"nothing here")
        else:
            self._send_file(content)

    def _send_file(self, content: bytes) -> None:
        origin, start, code = self.origin, 0, 200
        headers = {"Content-Type": "application/octet-stream", **({"ETag": origin.etag} if origin.etag else {})}
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
        self.origin.sent += len(body)
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silence: the tests look at `requests`."""
