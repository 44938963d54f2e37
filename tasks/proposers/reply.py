"""What an endpoint sent back, as one of the outcomes. Nothing of it is trusted: not its types, not its size, not its counts.

Bodies are read as plain JSON, because the models of OpenAI's client take any type for any field. The errors looked for are
those of OpenAI, llama.cpp, vLLM, Ollama, OpenRouter and FastAPI, and the pages that proxies put in an answer's place.
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

from tasks.statuses import Outcome

if TYPE_CHECKING:
    import httpx2

MOST_BYTES = 8 * 2**20  # of a body that are read
MOST_TEXT = 400_000  # characters of an answer that are kept; a whole train.py has at most 64 KiB
MOST_WORDS = 4000  # characters of an error that are looked at
MOST_TOKENS = 10**9  # of one answer; more is no count
CHARACTERS_A_TOKEN = 3.5  # of English and code, for an endpoint that does not count
OVERFLOW = re.compile(  # as OpenAI, llama.cpp, vLLM and LM Studio say it; then Anthropic, Google, xAI, Groq and TGI
    r"context.{0,9}(length|size|window)|(prompt|input) is too long|input token count|maximum prompt length"
    r"|reduce the length of the messages|inputs?`? tokens \+|too many (input |prompt )?tokens",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came of one request, its retries included."""

    outcome: Outcome  # "ok": there is text to use
    text: str | None = None  # the answer without its thinking; kept for ok and truncated
    error: str | None = None  # one line; None for ok
    prompt_tokens: int | None = None  # None when there was no answer
    cached_tokens: int | None = None  # of the prompt_tokens; None when the endpoint does not say
    completion_tokens: int | None = None
    estimated: bool = False  # the endpoint gave no usage, so tokens are estimated from characters
    seconds: float = 0.0
    request_id: str | None = None
    retry_after: float | None = None  # seconds for which the endpoint wants to be left alone


def read(response: httpx2.Response, sent: int, redact: Callable[[str], str]) -> Reply:
    """The reply that a response is. `sent` is the number of the prompt's characters.

    `redact` takes secrets out of the body before any of it is cut: half a key is not found any more.
    """
    text = redact(response.content.decode("utf-8-sig", "replace"))
    try:
        return _read(response, json.loads(text), sent)
    except (ValueError, RecursionError):  # no JSON, or nested too deep for it
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
    if status == 413 or OVERFLOW.search(words):  # llama.cpp says it with 500 too
        return "context_overflow"
    if status >= 500:
        return "server_error"
    return "timeout" if status == 408 else "bad_request"


def _words(body: Any) -> str:
    """What an error says: its message, with its code and type, or all of it."""
    error = (body.get("error") or body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return (error if isinstance(error, str) else json.dumps(error)).strip()[:MOST_WORDS]
    message = error.get("message") or error.get("detail") or error
    words = message if isinstance(message, str) else json.dumps(message)
    named = [error[name] for name in ("code", "type") if isinstance(error.get(name), str)]
    return words[:MOST_WORDS] + (f" ({', '.join(named)})"[:200] if named else "")


def _completion(body: Any, sent: int) -> Reply:
    """The reply that a body of status 200 is."""
    given = body if isinstance(body, dict) else {}
    choices = given.get("choices")
    choice = (
        choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    )
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
    thinking = [
        message.get(name) for name in ("reasoning_content", "reasoning")
    ]  # DeepSeek's and OpenRouter's
    written = len(content) + sum(len(value) for value in thinking if isinstance(value, str))
    counts = _counts(given.get("usage"), sent, written)
    return dataclasses.replace(counts, outcome=outcome, text=text, error=error)


def _answer(
    message: dict[str, Any], content: str, finish: Any
) -> tuple[Outcome, str | None, str | None]:
    """Outcome, text and error of a message that ended for the reason `finish`."""
    text = _without_thinking(content).strip()
    if finish == "content_filter":
        return "content_filter", None, "the endpoint's content filter held the answer back"
    if finish == "length":
        return (
            "truncated",
            text[:MOST_TEXT] or None,
            "the answer reached [llm] max_tokens and is not whole",
        )
    if len(text) > MOST_TEXT:
        return (
            "truncated",
            text[:MOST_TEXT],
            f"the answer has {len(text)} characters, the limit is {MOST_TEXT}",
        )
    if text:
        return "ok", text, None
    if refusal := message.get("refusal"):
        return "refusal", None, f"the model declines: {str(refusal)[:MOST_WORDS]}"
    return "empty", None, f"the answer has no text; it ended with {str(finish)[:99]!r}"


def _content(content: Any) -> str:
    """A message's text: a string, or a list of parts of which those that are text count."""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    return content.encode("utf-8", "replace").decode() if isinstance(content, str) else ""


def _without_thinking(text: str) -> str:
    """Without <think>...</think>, wherever it is; the first may lack its beginning, which some templates put into the prompt.

    By splitting: a regular expression would take time that grows with the square of a hostile answer.
    """
    *closed, rest = text.split("</think>")
    said = [
        before for before, begun, _ in (piece.partition("<think>") for piece in closed) if begun
    ]
    return "".join(said) + ("" if rest.lstrip().startswith("<think>") else rest)


def _counts(usage: Any, sent: int, written: int) -> Reply:
    """A reply with the tokens of the usage; what it does not say is estimated from characters sent and written."""
    given = usage if isinstance(usage, dict) else {}
    details = given.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    said, answered = _count(given.get("prompt_tokens")), _count(given.get("completion_tokens"))
    prompt = math.ceil(sent / CHARACTERS_A_TOKEN) if said is None else said
    return Reply(
        "ok",
        prompt_tokens=prompt,
        cached_tokens=None if cached is None else min(cached, prompt),
        completion_tokens=math.ceil(written / CHARACTERS_A_TOKEN) if answered is None else answered,
        estimated=said is None or answered is None,
    )


def _count(value: Any) -> int | None:
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
        else None
    )


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds, of Retry-After in seconds or as a date (RFC 9110), or of OpenAI's own header in milliseconds."""
    given = response.headers.get("retry-after", "")
    for value, unit in ((response.headers.get("retry-after-ms", ""), 1000.0), (given, 1.0)):
        try:
            seconds = float(value) / unit
        except ValueError:
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        return max(
            0.0, (email.utils.parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds()
        )
    except (TypeError, ValueError, OverflowError):
        return None
