"""An endpoint's response as one of the outcomes. Its types, sizes and counts are not trusted.

Bodies are read as plain JSON, because the models of OpenAI's client take any type for any field.
The errors looked for are those of OpenAI, llama.cpp, vLLM, Ollama, OpenRouter and FastAPI, and the
pages that proxies send in place of an answer.
"""

from __future__ import annotations

import dataclasses
import email.utils
import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tasks.proposers.thinking import at_the_end, edits, without_thinking
from tasks.statuses import Outcome
from tasks.usage import estimate_tokens

if TYPE_CHECKING:
    import httpx2

MOST_BYTES = 8 * 2**20  # read of a body
MOST_TEXT = 700_000  # characters kept of an answer, which may be a whole train.py
MOST_WORDS = 4000  # characters read of an error
# Where DeepSeek's and OpenRouter's interfaces put the thinking.
THINKING = ("reasoning_content", "reasoning")
MOST_TOKENS = 10**9  # of one answer; a larger number is not a count
# The words of OpenAI, llama.cpp, vLLM and LM Studio; then Anthropic, Google, xAI, Groq and TGI.
OVERFLOW = re.compile(
    r"context.{0,9}(length|size|window)|(prompt|input) is too long|input token count"
    r"|maximum prompt length|reduce the length of the messages|inputs?`? tokens \+"
    r"|too many (input |prompt )?tokens",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Reply:
    """The result of one request, its retries included."""

    outcome: Outcome  # "ok": there is text to use
    # The answer without its thinking; kept for ok and truncated, and for what goes back.
    text: str | None = None
    error: str | None = None  # one line; None for ok
    prompt_tokens: int | None = None  # None without an answer
    # Of the prompt_tokens; None if the endpoint does not report it.
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    estimated: bool = False  # from characters, as the endpoint reported no usage
    seconds: float = 0.0
    request_id: str | None = None
    retry_after: float | None = None  # seconds that the endpoint asks us to wait


def read(response: httpx2.Response, sent: int, redact: Callable[[str], str]) -> Reply:
    """The reply in a response. `sent` is the number of characters in the prompt.

    `redact` removes secrets from the body before any of it is cut, as it would not find half a key.
    """
    text = redact(response.content.decode("utf-8-sig", "replace"))
    try:
        return _read(response, json.loads(text), sent)
    except (ValueError, RecursionError):  # no JSON, or nested too deeply
        return _read(response, re.sub(r"<[^>]*>", " ", text[:MOST_WORDS]), sent)


def _read(response: httpx2.Response, body: Any, sent: int) -> Reply:
    status, request_id = response.status_code, response.headers.get("x-request-id")
    if status < 300:
        return dataclasses.replace(_completion(body, sent), request_id=request_id)
    words = _words(body) or response.reason_phrase
    error = f"status {status}: {words}"
    return Reply(
        _refused(status, words),
        error=error,
        request_id=request_id,
        retry_after=_retry_after(response),
    )


def _refused(status: int, words: str) -> Outcome:
    if status in (401, 403):
        return "unauthorized"
    if status == 429:
        return "rate_limited"
    if status == 413 or OVERFLOW.search(words):  # llama.cpp uses 500 too
        return "context_overflow"
    if status >= 500:
        return "server_error"
    return "timeout" if status == 408 else "bad_request"


def _words(body: Any) -> str:
    """The words of an error: its message with its code and type, or all of it."""
    error = (body.get("error") or body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return (error if isinstance(error, str) else json.dumps(error)).strip()[:MOST_WORDS]
    message = error.get("message") or error.get("detail") or error
    words = message if isinstance(message, str) else json.dumps(message)
    named = [error[name] for name in ("code", "type") if isinstance(error.get(name), str)]
    return words[:MOST_WORDS] + (f" ({', '.join(named)})"[:200] if named else "")


def _completion(body: Any, sent: int) -> Reply:
    """The reply in a body of status 200."""
    given = body if isinstance(body, dict) else {}
    choices = given.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    choice = first if isinstance(first, dict) else {}
    if fault := given.get("error") or choice.get("error"):
        words = _words({"error": fault})
        return Reply(
            "context_overflow" if OVERFLOW.search(words) else "error_body",
            error=f"status 200 with an error: {words}",
        )
    message = choice.get("message")
    if not isinstance(message, dict):
        return Reply("no_completion", error=f"status 200 with no completion: {_words(body)}")
    content = _content(message.get("content"))
    outcome, text, error = _answer(message, content, choice.get("finish_reason"))
    written = len(content) + sum(len(_content(message.get(name))) for name in THINKING)
    counts = _counts(given.get("usage"), sent, written)
    return dataclasses.replace(counts, outcome=outcome, text=text, error=error)


def _answer(
    message: dict[str, Any], content: str, finish: Any
) -> tuple[Outcome, str | None, str | None]:
    """Outcome, text and error of a message that ended for the reason `finish`."""
    text = without_thinking(content).strip()
    if finish == "content_filter":
        return "content_filter", None, "the endpoint's content filter withheld the answer"
    if finish == "length":
        error = "the answer reached [llm] max_tokens and is not complete"
        return "truncated", text[:MOST_TEXT] or None, error
    if len(text) > MOST_TEXT:
        error = f"the answer has {len(text)} characters, the limit is {MOST_TEXT}"
        return "truncated", text[:MOST_TEXT], error
    if text:
        return "ok", text, None
    if refusal := message.get("refusal"):
        return "refusal", None, f"the model declines: {str(refusal)[:MOST_WORDS]}"
    return _from_thinking(message, f"the answer has no text; it ended with {str(finish)[:99]!r}")


def _from_thinking(message: dict[str, Any], empty: str) -> tuple[Outcome, str | None, str | None]:
    """The answer of a message whose text is all in a field for thinking, if it has one."""
    for name in THINKING:
        thinking = without_thinking(_content(message.get(name))).strip()
        if len(thinking) > MOST_TEXT or not edits(thinking.split("\n")):
            continue
        if answer := at_the_end(thinking):
            return "ok", answer, None
        error = f"The message has no text, only thinking ({name}), and that does not end with an "
        return "malformed", thinking, f"{error}answer. Answer after the thinking."
    for name in THINKING:
        if found := len(_content(message.get(name)).strip()):
            remedy = "turn off the model's thinking, or the server's option that sets it apart"
            return "empty", None, f"{empty}, and {found} characters are in {name}: {remedy}"
    return "empty", None, empty


def _content(content: Any) -> str:
    """A message's text: a string, or the text parts of a list."""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    return content.encode("utf-8", "replace").decode() if isinstance(content, str) else ""


def _counts(usage: Any, sent: int, written: int) -> Reply:
    """A reply with the reported tokens; the others are estimated from characters."""
    given = usage if isinstance(usage, dict) else {}
    details = given.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    said, answered = _count(given.get("prompt_tokens")), _count(given.get("completion_tokens"))
    prompt = estimate_tokens(sent) if said is None else said
    return Reply(
        "ok",
        prompt_tokens=prompt,
        cached_tokens=None if cached is None else min(cached, prompt),
        completion_tokens=estimate_tokens(written) if answered is None else answered,
        estimated=said is None or answered is None,
    )


def _count(value: Any) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= MOST_TOKENS else None


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds: from OpenAI's own header in milliseconds, or Retry-After (RFC 9110)."""
    given = response.headers.get("retry-after", "")
    for value, unit in ((response.headers.get("retry-after-ms", ""), 1000.0), (given, 1.0)):
        try:
            seconds = float(value) / unit
        except ValueError:
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        left = email.utils.parsedate_to_datetime(given) - datetime.now(UTC)
        return max(0.0, left.total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None
