"""A model behind an OpenAI-compatible endpoint: asked once, with the retries of OpenAI's own client, and with an end to it.

Chat completions, plain text, not streamed: the part of the interface that every server has. What an endpoint does is an
outcome (tasks.proposers.reply) and no exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from configs import Llm
from tasks.errors import UsageError
from tasks.proposers import reply as answers
from tasks.proposers.reply import Reply as Reply
from tasks.text import one_line

if TYPE_CHECKING:
    import httpx2

DEFAULT_URL = "https://api.openai.com/v1"
NO_KEY = "not-needed"  # the client insists on one
NEAR = (".localhost", ".local", ".internal", ".lan", ".home.arpa")  # names that no public host has
SHORTEST_SECRET = (
    8  # characters; shorter keys ("ollama", "EMPTY") are words that an answer may well have
)
CONNECT_SECONDS = 10.0
MOST_ERROR = 500  # characters
UNSUPPORTED = re.compile(
    r"unsupported|not support|deprecated|only the default|not permitted|unrecognized", re.IGNORECASE
)


class Endpoint:
    """A model and where it is. Threads that run no event loop may call `ask`, several at the same time too."""

    def __init__(self, settings: Llm, url: str, key: str | None) -> None:
        parts = urllib.parse.urlsplit(url)
        user, password = (
            urllib.parse.unquote(part or "") for part in (parts.username, parts.password)
        )
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        self.model = settings.model or ""
        self._settings = settings
        self._key = key or NO_KEY
        self._login = (user, password) if user or password else None
        self._query = dict(urllib.parse.parse_qsl(parts.query))
        self._secrets = [
            secret
            for secret in (key or "", password, *self._query.values())
            if len(secret) >= SHORTEST_SECRET
        ]
        self._limit = "max_tokens"  # what reasoning models of OpenAI refuse, and the newer name is unknown to other servers
        self._temperature = settings.temperature
        self._cancelled = False
        self._stops: set[Callable[[], object]] = set()  # one for each request on its way

    @classmethod
    def from_environment(cls, settings: Llm) -> Endpoint:
        """The endpoint of OPENAI_BASE_URL, which is OpenAI's if unset, and OPENAI_API_KEY.

        Raises UsageError for an address that is none, and without a model, or a key for a host that is not near.
        """
        url = os.environ.get("OPENAI_BASE_URL", "").strip() or DEFAULT_URL
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not settings.model:
            raise UsageError(
                "no model to ask: set `model` in the profile's [llm] table, or give --model"
            )
        try:
            parts = urllib.parse.urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good or not _visible(url):
            raise UsageError(
                "OPENAI_BASE_URL is no address of an endpoint (it may hold a secret and is not shown): "
                "set it to a whole http:// or https:// address such as http://127.0.0.1:8080/v1, or unset it for OpenAI's"
            )
        if not key and not _near(parts.hostname or ""):
            raise UsageError(
                f"OPENAI_API_KEY is not set, and {parts.hostname} is not on this machine or network: "
                "set the key, or OPENAI_BASE_URL to an endpoint that needs none"
            )
        if not _visible(key):
            raise UsageError(
                "OPENAI_API_KEY has characters that no key has (it is not shown): copy it again"
            )
        return cls(settings, url, key)

    def ask(self, messages: Sequence[dict[str, str]], seconds: float) -> Reply:
        """Sends the messages (role and content) and waits for the answer, with all retries at most `seconds`."""
        import openai as openai  # takes a second, the first time, which is not the endpoint's

        began = time.monotonic()
        with asyncio.Runner(loop_factory=_Loop) as runner:
            reply = runner.run(self._bounded(messages, seconds))
        return dataclasses.replace(
            reply,
            text=None if reply.text is None else self.redact(reply.text),
            error=None if reply.error is None else self._line(reply.error),
            request_id=None if reply.request_id is None else self._line(reply.request_id),
            seconds=time.monotonic() - began,
        )

    def cancel(self) -> None:
        """Ends what is being asked and all that will be. For other threads and signal handlers: it takes no lock."""
        self._cancelled = True
        for stop in tuple(self._stops):
            with contextlib.suppress(RuntimeError):  # its loop has just closed
                stop()

    def redact(self, text: str) -> str:
        """The text with [key] for the key and for what else is secret in the address."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return text

    def _line(self, text: str) -> str:
        return one_line(self.redact(text))[:MOST_ERROR]  # cut last: half a key is not found

    async def _bounded(self, messages: Sequence[dict[str, str]], seconds: float) -> Reply:
        refused: list[httpx2.Response] = []
        loop, request = (
            asyncio.get_running_loop(),
            asyncio.ensure_future(self._request(messages, refused)),
        )

        def stop() -> None:
            loop.call_soon_threadsafe(request.cancel)

        self._stops.add(stop)
        try:
            if (
                self._cancelled
            ):  # looked at once `stop` is known, or a cancel in between would be missed
                request.cancel()
            return await asyncio.wait_for(request, seconds)
        except TimeoutError:
            if refused:  # it waited to try again, and why is worth more than that it waited
                return answers.read(refused[-1], 0, self.redact)
            late = f"{self.url} gave no answer within {seconds:.4g} s, retries included: [llm] answer_seconds"
            return Reply("timeout", error=late)
        except asyncio.CancelledError:
            if not self._cancelled:  # Ctrl-C
                raise
            return Reply("cancelled", error="cancelled")
        finally:
            self._stops.discard(stop)

    async def _request(
        self, messages: Sequence[dict[str, str]], refused: list[httpx2.Response]
    ) -> Reply:
        import httpx2
        import openai

        # Half of a surrogate pair, as a log may have it, cannot be sent.
        sent: Any = [
            {name: text.encode("utf-8", "replace").decode() for name, text in each.items()}
            for each in messages
        ]
        characters = sum(len(each["content"]) for each in sent)
        try:
            async with openai.AsyncOpenAI(
                base_url=self.url,
                api_key=self._key,
                default_query=self._query,
                max_retries=self._settings.retries,
                http_client=_http_client(self._settings.answer_seconds, self._login, refused),
            ) as client:
                while True:
                    options: dict[str, Any] = {self._limit: self._settings.max_tokens}
                    if self._temperature is not None:
                        options["temperature"] = self._temperature
                    try:
                        whole = await client.chat.completions.with_raw_response.create(
                            model=self.model, messages=sent, **options
                        )
                        return answers.read(whole.http_response, characters, self.redact)
                    except openai.APIStatusError as error:
                        reply = answers.read(error.response, characters, self.redact)
                        if not (
                            reply.outcome == "bad_request"
                            and self._learned(error.response.text, options)
                        ):
                            return reply
        except openai.APIConnectionError as error:
            return self._unreachable(error.__cause__ or error)
        except (openai.OpenAIError, httpx2.InvalidURL, OSError, ValueError, ImportError) as error:
            # Proxies, certificates, headers of the environment that the client can make nothing of.
            return self._unreachable(error)

    def _unreachable(self, error: BaseException) -> Reply:
        import httpx2

        slow = isinstance(error, httpx2.TimeoutException) and not isinstance(
            error, httpx2.ConnectTimeout
        )
        return Reply(
            "timeout" if slow else "unreachable",
            error=f"{self.url}: {str(error) or 'no answer'} ({type(error).__name__})",
        )

    def _learned(self, said: str, sent: dict[str, Any]) -> bool:
        """Whether a refused request is worth another, as what it was refused for is not sent from now on."""
        if "max_tokens" in sent and "max_tokens" in said:
            self._limit = "max_completion_tokens"
        elif "temperature" in sent and "temperature" in said and UNSUPPORTED.search(said):
            self._temperature = None
        else:
            return False
        return True


class _Loop(asyncio.SelectorEventLoop):
    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Waits for no thread: they look up names, which cannot be ended and takes up to half a minute without a network."""


def _http_client(
    seconds: float, login: tuple[str, str] | None, refused: list[httpx2.Response]
) -> httpx2.AsyncClient:
    """What the requests of a client go through: it ends each that has not its last byte after `seconds`.

    The timeouts of httpx are for the next byte, so that a server which drips would be waited for without end. `refused` has
    the answer to the last request if that was an error: the client keeps it to itself while it waits to try again.
    """
    import httpx2
    import openai

    class Bounded(openai.DefaultAsyncHttpxClient):
        async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            refused.clear()
            body = bytearray()
            try:
                async with asyncio.timeout(seconds):
                    response = await super().send(request, **{**options, "stream": True})
                    async with (
                        contextlib.aclosing(response),
                        contextlib.aclosing(response.aiter_bytes()) as pieces,
                    ):
                        async for piece in pieces:
                            body += piece
                            if len(body) > answers.MOST_BYTES:
                                break
            except TimeoutError as error:
                raise httpx2.ReadTimeout(
                    f"no whole answer in {seconds:g} s, [llm] answer_seconds", request=request
                ) from error
            # Without the headers that say how the body was sent, and in which charset: JSON is UTF-8.
            headers = [
                (name, value)
                for name, value in response.headers.items()
                if not name.startswith(("content-", "transfer-"))
            ]
            whole = httpx2.Response(
                response.status_code, headers=headers, content=bytes(body), request=request
            )
            refused.extend([whole] if whole.is_error else [])
            return whole

    return Bounded(
        timeout=httpx2.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds)), auth=login
    )


def _visible(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _near(host: str) -> bool:
    """Whether a host is this machine or in its network, where endpoints ask for no key."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith(NEAR)
