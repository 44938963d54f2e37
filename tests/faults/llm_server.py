"""A scripted OpenAI-compatible endpoint on the loopback, with the answers and the faults of real
ones.

A step answers one request to /v1/chat/completions. Steps come from a list or from a function of the
request's body:

    with LlmServer([status(429, "slow down", {"retry-after": "1"}), ok("hello")]) as server: ...  # OPENAI_BASE_URL=server.url
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# in no file as it is: whoever finds it has a leak
FAKE_KEY = "-".join(("sk", "made", "up", "for", "tests", "0123456789" * 2))
USAGE: dict[str, Any] = {
    "prompt_tokens": 1000,
    "completion_tokens": 100,
    "total_tokens": 1100,
    "prompt_tokens_details": {"cached_tokens": 400},
}
COUNTS = ("prompt_tokens", "completion_tokens")
NO_RETRY = {"x-should-retry": "false"}  # obeyed by OpenAI's client
Body = dict[str, Any]
Step = Callable[["Exchange"], None]


class LlmServer:
    """Answers with one step after the other, and with 500 when there is none left."""

    def __init__(
        self, steps: Iterable[Step] | Callable[[Body], Step], transcript: Path | None = None
    ) -> None:
        self.requests: list[Body] = []
        self.authorizations: list[str | None] = []  # one for each request
        self.looked_up: list[str] = []  # paths of GET requests
        self.about: Body = {}  # what /v1/models says of the model, besides its name
        self.props: Body | None = None  # what /props says; None: it is not there
        self.answered: list[int] = []  # status of each answer to such a request that was begun
        self.arrived = threading.Event()  # set by each request
        self.closing = threading.Event()
        self._steps = steps if callable(steps) else iter(steps)
        self._transcript = transcript  # gets the bodies of requests, one a line
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (Exchange,), {"llm": self})
        )
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self.closing.set()  # ends every answer that is still held back
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> LlmServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def step(self, body: Body, authorization: str | None) -> Step:
        with self._lock:
            self.requests.append(body)
            self.authorizations.append(authorization)
            if self._transcript:
                with self._transcript.open("a") as file:
                    file.write(json.dumps(body) + "\n")
            self.arrived.set()
            if callable(self._steps):
                return self._steps(body)
            return next(
                self._steps,
                status(500, f"the script has no answer to request {len(self.requests)}", NO_RETRY),
            )


class Exchange(BaseHTTPRequestHandler):
    """One request and its answer: what a step is given."""

    llm: LlmServer

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.partition("?")[0] != "/v1/chat/completions":
            return status(404, f"there is no {self.path}")(self)
        return self.llm.step(self.body, self.headers["Authorization"])(self)

    def do_GET(self) -> None:
        """The list of models, and llama.cpp's properties."""
        self.llm.looked_up.append(self.path.partition("?")[0])
        models = [{"id": "scripted", "object": "model", **self.llm.about}]
        if self.llm.looked_up[-1] != "/props":
            self.send(200, {"object": "list", "data": models})
        elif self.llm.props is None:
            self.send(404, {"error": "there is no /props"})
        else:
            self.send(200, self.llm.props)

    def send(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.begin(code, {"Content-Length": str(len(content)), **(headers or {})})
        self.push(content)

    def begin(self, code: int, headers: dict[str, str]) -> None:
        if self.command == "POST":
            self.llm.answered.append(code)
        self.send_response(code)
        said = {
            "Content-Type": "application/json",
            "x-request-id": f"request-{len(self.llm.requests)}",
            **headers,
        }
        for name, value in said.items():
            self.send_header(name, value)
        with contextlib.suppress(ConnectionError):
            self.end_headers()

    def push(self, content: bytes) -> bool:
        with contextlib.suppress(ConnectionError):
            return bool(self.wfile.write(content))
        return False  # nobody wants it any more

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def message(fields: Body, reason: str | None = "stop", usage: Any = USAGE) -> Step:
    """A completion with this message, and no usage at all for None."""

    def step(exchange: Exchange) -> None:
        choice = {"index": 0, "message": {"role": "assistant", **fields}, "finish_reason": reason}
        body = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": "scripted",
            "choices": [choice],
        }
        exchange.send(200, body if usage is None else {**body, "usage": usage})

    return step


def ok(text: Any, usage: Any = USAGE) -> Step:
    return message({"content": text}, usage=usage)


def no_usage(text: str) -> Step:
    return ok(text, usage=None)


def finish(reason: str | None, text: Any) -> Step:
    return message({"content": text}, reason)


def refusal(text: str = "I cannot help with that.") -> Step:
    return message({"content": None, "refusal": text})


def status(code: int, body: Any, headers: dict[str, str] | None = None) -> Step:
    """Any status and body; a string is the message of an error as OpenAI sends it."""
    content = (
        {"error": {"message": body, "type": "scripted", "param": None, "code": None}}
        if isinstance(body, str)
        else body
    )
    return lambda exchange: exchange.send(code, content, headers)


def error_body(text: str = "upstream failed") -> Step:
    return status(200, text)


def html(code: int = 200) -> Step:
    page = b"<html><head><title>Sign in</title></head><body>to the hotel's network</body></html>"
    return status(code, page, {"Content-Type": "text/html"})


def after(seconds: float, step: Step) -> Step:
    """A step that thinks first; a server that closes ends its thinking."""

    def wait(exchange: Exchange) -> None:
        if not exchange.llm.closing.wait(seconds):
            step(exchange)

    return wait


def stall(seconds: float = 3600.0) -> Step:
    return after(seconds, lambda exchange: None)  # then the end of the connection


def drip(part: bytes = b" ", every: float = 0.02) -> Step:
    """An answer that comes byte by byte and never ends."""

    def step(exchange: Exchange) -> None:
        exchange.begin(200, {})
        while exchange.push(part) and not exchange.llm.closing.wait(every):
            pass

    return step


def reset_mid_body() -> Step:
    def step(exchange: Exchange) -> None:
        exchange.begin(200, {"Content-Length": "1000"})
        exchange.push(b'{"id": "chatcmpl-1", "choices": [{"mess')
        exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        exchange.rfile.close()  # which holds the socket open
        exchange.connection.close()

    return step


def replay(path: Path) -> list[Step]:
    """What the requests of a night's llm_calls.jsonl were answered; failures without the client's
    retries."""
    codes = {"unauthorized": 401, "bad_request": 400, "rate_limited": 429, "context_overflow": 413}
    reasons = {"truncated": "length", "content_filter": "content_filter"}
    return [
        status(codes.get(call["outcome"], 500), call["error"], NO_RETRY)
        if call["prompt_tokens"] is None
        else message(
            {"content": call["answer"]},
            reasons.get(call["outcome"], "stop"),
            {name: call[name] for name in COUNTS},
        )
        for call in map(json.loads, path.read_text().splitlines())
    ]
