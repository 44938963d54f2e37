"""A model behind an OpenAI-compatible endpoint: one request, retries included, in bounded time.

Chat completions, plain text, not streamed: the part of the interface that every server has. The
retries are those of OpenAI's own client. A failure of the endpoint is an outcome
(tasks.proposers.reply), not an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import math
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from configs import Llm
from tasks.errors import UsageError
from tasks.proposers import context_length
from tasks.proposers import reply as replies
from tasks.proposers.reply import Reply
from tasks.text import one_line

if TYPE_CHECKING:
    import httpx2

DEFAULT_URL = "https://api.openai.com/v1"
NO_KEY = "not-needed"  # the client insists on one
NEAR = (".localhost", ".local", ".internal", ".lan", ".home.arpa")  # names of no public host
# Characters. Shorter keys ("ollama", "EMPTY") are words that an answer may contain.
SHORTEST_SECRET = 8
CONNECT_SECONDS = 10.0
CONTEXT_SECONDS = 10.0  # for all that the endpoint tells of the model's context
# With a known context: characters of a prompt's token, fewer than on average, so that the answer
# fits; and tokens of an answer that are asked for even so, as the endpoint then refuses.
FEWEST_A_TOKEN, LEAST_ANSWER = 3.0, 1024
MOST_ERROR = 500  # characters
UNSUPPORTED = re.compile(
    r"unsupported|not support|deprecated|only the default|not permitted|unrecognized", re.IGNORECASE
)
OUT_OF_RANGE = re.compile(
    r"range|too (large|small|big|high|low)|at (most|least)|(less|greater|more) than|exceed|between"
    r"|must be|maximum",
    re.IGNORECASE,
)
# Of a refusal that is about [llm] max_tokens; the last is vLLM's.
LIMIT = re.compile(r"max_(completion_|new_|output_)?tokens|in the completion", re.IGNORECASE)

Result = TypeVar("Result")


class Endpoint:
    """A model and its address. Threads without an event loop may call `ask`, also concurrently."""

    def __init__(self, settings: Llm, url: str, key: str | None) -> None:
        parts = urllib.parse.urlsplit(url)
        user = urllib.parse.unquote(parts.username or "")
        password = urllib.parse.unquote(parts.password or "")
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        self.model = settings.model or ""
        self.settings = settings
        self._key = key or NO_KEY
        self._login = (user, password) if user or password else None
        self._query = dict(urllib.parse.parse_qsl(parts.query))
        secrets = (key or "", password, *self._query.values())
        self._secrets = [secret for secret in secrets if len(secret) >= SHORTEST_SECRET]
        # OpenAI's reasoning models refuse this name; other servers do not know the newer one.
        self._limit = "max_tokens"
        self._temperature = settings.temperature
        self._context: int | None = None  # tokens of prompt and answer; None: unknown
        self._is_context_asked = False
        self._cancelled = False
        self._stops: set[Callable[[], object]] = set()  # one for each request in progress

    @classmethod
    def from_environment(cls, settings: Llm) -> Endpoint:
        """The endpoint of OPENAI_BASE_URL (OpenAI's if it is not set) and OPENAI_API_KEY.

        Raises UsageError for an invalid address, and if there is no model, or no key for a host
        that is not on this machine or network.
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
                "OPENAI_BASE_URL is not the address of an endpoint (it may hold a secret and is "
                "not shown): set it to a complete http:// or https:// address such as "
                "http://127.0.0.1:8080/v1, or unset it for OpenAI's"
            )
        if not key and not _near(parts.hostname or ""):
            raise UsageError(
                f"OPENAI_API_KEY is not set, and {parts.hostname} is not on this machine or "
                "network: set the key, or OPENAI_BASE_URL to an endpoint that needs none"
            )
        if not _visible(key):
            raise UsageError(
                "OPENAI_API_KEY has characters that no key has (it is not shown): copy it again"
            )
        return cls(settings, url, key)

    def ask(self, messages: Sequence[dict[str, str]], seconds: float) -> Reply:
        """Sends the messages (role and content) and waits at most `seconds`, retries included."""
        import openai as openai  # takes a second the first time, which is not the endpoint's

        began = time.monotonic()
        with asyncio.Runner(loop_factory=_Loop) as runner:
            reply = runner.run(self._bounded(messages, seconds))
        if reply.outcome == "truncated":
            reply = dataclasses.replace(reply, error=self._about_room(messages, reply.error or ""))
        return dataclasses.replace(
            reply,
            text=None if reply.text is None else self.redact(reply.text),
            error=None if reply.error is None else self._line(self._about_limit(reply)),
            request_id=None if reply.request_id is None else self._line(reply.request_id),
            seconds=time.monotonic() - began,
        )

    def learn_context(self) -> None:
        """Asks the endpoint for the length of the model's context, once. Many do not say."""
        if self._is_context_asked or self._cancelled:
            return
        self._is_context_asked = True
        with (
            contextlib.suppress(TimeoutError),
            asyncio.Runner(loop_factory=_Loop) as runner,
        ):
            self._context = runner.run(self._said_context())

    def answer_tokens(self, characters: int) -> int:
        """The most tokens of an answer to a prompt of so many characters: both fit the context."""
        most = self.settings.max_tokens
        if self._context is None:
            return most
        left = self._context - math.ceil(characters / FEWEST_A_TOKEN)
        return min(most, max(left, LEAST_ANSWER))

    def cancel(self) -> None:
        """Ends all requests, present and future. For other threads and signals: takes no lock."""
        self._cancelled = True
        for stop in tuple(self._stops):
            with contextlib.suppress(RuntimeError):  # its loop has just closed
                stop()

    def redact(self, text: str) -> str:
        """The text with [key] in place of the key and of other secrets in the address."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return text

    def _about_limit(self, reply: Reply) -> str:
        """A reply's error, with the setting that it is about where that is the limit of tokens."""
        error = reply.error or ""
        is_refused = reply.outcome in ("bad_request", "context_overflow", "error_body")
        if not (is_refused and LIMIT.search(error)):
            return error
        return f"[llm] max_tokens = {self.settings.max_tokens} is not accepted: {error}"

    def _about_room(self, messages: Sequence[dict[str, str]], error: str) -> str:
        """The error of a cut answer, which had fewer tokens than the setting allows."""
        room = self.answer_tokens(_characters(messages))
        if room == self.settings.max_tokens:
            return error
        return (
            f"the answer reached the {room:,} tokens that the model's context of {self._context:,} "
            "leaves for it, and is not complete"
        )

    def _line(self, text: str) -> str:
        return one_line(self.redact(text))[:MOST_ERROR]  # cut last: half a key is not redacted

    async def _bounded(self, messages: Sequence[dict[str, str]], seconds: float) -> Reply:
        refused: list[httpx2.Response] = []
        try:
            return await self._stoppable(self._request(messages, refused), seconds)
        except TimeoutError:
            if refused:  # it waited to try again: the refusal says more than the timeout
                return replies.read(refused[-1], 0, self.redact)
            late = f"{self.url} gave no answer within {seconds:.4g} s, retries included"
            return Reply("timeout", error=f"{late}: [llm] answer_seconds")
        except asyncio.CancelledError:
            if not self._cancelled:  # Ctrl-C
                raise
            return Reply("cancelled", error="cancelled")

    async def _stoppable(self, work: Coroutine[Any, Any, Result], seconds: float) -> Result:
        """The result of `work`. Raises TimeoutError, and CancelledError after `cancel`."""
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)

        def stop() -> None:
            loop.call_soon_threadsafe(task.cancel)

        self._stops.add(stop)
        try:
            if self._cancelled:  # read after `stop` was added, so that no cancel is missed
                task.cancel()
            return await asyncio.wait_for(task, seconds)
        finally:
            self._stops.discard(stop)

    async def _said_context(self) -> int | None:
        headers = {"Authorization": f"Bearer {self._key}"}
        async with _http_client(CONTEXT_SECONDS, self._login, []) as client:
            client.headers.update(headers)
            client.params = client.params.merge(self._query)
            asked = context_length.asked(client, self.url, self.model)
            try:
                return await self._stoppable(asked, CONTEXT_SECONDS)
            except asyncio.CancelledError:
                if not self._cancelled:  # Ctrl-C
                    raise
                return None

    async def _request(
        self, messages: Sequence[dict[str, str]], refused: list[httpx2.Response]
    ) -> Reply:
        import httpx2
        import openai

        # A lone surrogate, which a log may contain, cannot be sent.
        sent: Any = [
            {name: text.encode("utf-8", "replace").decode() for name, text in each.items()}
            for each in messages
        ]
        characters = _characters(sent)
        try:
            async with openai.AsyncOpenAI(
                base_url=self.url,
                api_key=self._key,
                default_query=self._query,
                max_retries=self.settings.retries,
                http_client=_http_client(self.settings.answer_seconds, self._login, refused),
            ) as client:
                while True:
                    room = self.answer_tokens(characters)
                    options: dict[str, Any] = {self._limit: room}
                    if self._temperature is not None:
                        options["temperature"] = self._temperature
                    try:
                        whole = await client.chat.completions.with_raw_response.create(
                            model=self.model, messages=sent, **options
                        )
                        return replies.read(whole.http_response, characters, self.redact)
                    except openai.APIStatusError as error:
                        reply = replies.read(error.response, characters, self.redact)
                        is_bad = reply.outcome == "bad_request"
                        if not (is_bad and self._learned(error.response.text, options)):
                            return reply
        except openai.APIConnectionError as error:
            return self._unreachable(error.__cause__ or error)
        except (openai.OpenAIError, httpx2.InvalidURL, OSError, ValueError, ImportError) as error:
            # Proxies, certificates and headers from the environment that the client cannot use.
            return self._unreachable(error)

    def _unreachable(self, error: BaseException) -> Reply:
        import httpx2

        late = isinstance(error, httpx2.TimeoutException)
        slow = late and not isinstance(error, httpx2.ConnectTimeout)
        return Reply(
            "timeout" if slow else "unreachable",
            error=f"{self.url}: {str(error) or 'no answer'} ({type(error).__name__})",
        )

    def _learned(self, said: str, sent: dict[str, Any]) -> bool:
        """Whether to repeat a refused request, without the option that it was refused for."""
        is_unknown = UNSUPPORTED.search(said) or not OUT_OF_RANGE.search(said)
        if "max_tokens" in sent and "max_tokens" in said and is_unknown:
            self._limit = "max_completion_tokens"
        elif "temperature" in sent and "temperature" in said and UNSUPPORTED.search(said):
            self._temperature = None
        else:
            return False
        return True


class _Loop(asyncio.SelectorEventLoop):
    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Waits for no thread: a name lookup cannot be ended and may take half a minute."""


def _http_client(
    seconds: float, login: tuple[str, str] | None, refused: list[httpx2.Response]
) -> httpx2.AsyncClient:
    """An HTTP client that ends each request whose last byte has not arrived after `seconds`.

    The timeouts of httpx are for the next byte, so a server that drips would be waited for without
    end. `refused` gets the response to the last request if that was an error: OpenAI's client does
    not show it while it waits to try again.
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
                            if len(body) > replies.MOST_BYTES:
                                break
            except TimeoutError as error:
                raise httpx2.ReadTimeout(
                    f"no whole answer in {seconds:g} s, [llm] answer_seconds", request=request
                ) from error
            # Without the headers about the body's encoding and charset: JSON is UTF-8.
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


def _characters(messages: Sequence[dict[str, str]]) -> int:
    return sum(len(each["content"]) for each in messages)


def _visible(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _near(host: str) -> bool:
    """Whether a host is this machine or in its network, where endpoints need no key."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith(NEAR)
