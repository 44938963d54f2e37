"""Requests to language models, and what they cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from tasks.statuses import Outcome

if TYPE_CHECKING:
    from configs import Llm

KINDS = (
    "architecture",
    "optimizer",
    "schedule",
    "data order",
    "systems",
    "simplification",
    "combination",
)
CHARACTERS_A_TOKEN = 3.5  # of English and of code, roughly, for every tokenizer in use
# "ask": for any of the others, and the answer was a question.
Purpose = Literal["propose", "ask", "repair", "fix", "ping"]


@dataclasses.dataclass(frozen=True)
class Call:
    """One request with its retries, and the outcome of its answer. Holds no key."""

    id: str  # unique in the night: "7.2" is the second one for trial 7
    trial: int  # 0 for a ping
    purpose: Purpose
    time: str  # UTC, of its beginning
    seconds: float
    endpoint: str  # base URL
    model: str
    messages: tuple[dict[str, str], ...]  # role and content, as sent
    answer: str | None
    outcome: Outcome
    error: str | None  # one line; None for ok
    prompt_tokens: int | None  # None without an answer
    cached_tokens: int | None  # of the prompt_tokens; None if the endpoint does not report it
    completion_tokens: int | None
    estimated: bool  # from characters, as the endpoint reported no usage
    dollars: float | None  # None while a price is unknown
    request_id: str | None = None
    retry_after: float | None = None  # seconds that the endpoint asks us to wait
    # A line: what of a good answer is not used, and what the answers in its messages have cost.
    remark: str | None = None


@dataclasses.dataclass(frozen=True)
class Usage:
    """What requests cost: sums over Calls."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float | None = 0.0  # None if a part of it is unknown


def total(parts: Iterable[Usage]) -> Usage:
    """The sum; its dollars are None if those of any part are."""
    usages = tuple(parts)
    prices = [usage.dollars for usage in usages]
    return Usage(
        calls=sum(usage.calls for usage in usages),
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        dollars=None if None in prices else math.fsum(filter(None, prices)),
    )


def usage_of(call: Call) -> Usage:
    """One request. Without an answer it has no tokens and costs nothing."""
    unanswered = (
        call.prompt_tokens is None and call.completion_tokens is None and call.dollars is None
    )
    return Usage(
        calls=1,
        prompt_tokens=call.prompt_tokens or 0,
        completion_tokens=call.completion_tokens or 0,
        dollars=0.0 if unanswered else call.dollars,
    )


def estimate_tokens(characters: int) -> int:
    return math.ceil(characters / CHARACTERS_A_TOKEN)


def dollars(
    prices: Llm, prompt: int | None, cached: int | None, completion: int | None
) -> float | None:
    """The price of an answer with so many tokens; None while a price is unknown."""
    if prices.prompt_price is None or prices.completion_price is None:
        return None
    cached_price = prices.prompt_price if prices.cached_price is None else prices.cached_price
    fresh = (prompt or 0) - (cached or 0)
    return (
        fresh * prices.prompt_price
        + (cached or 0) * cached_price
        + (completion or 0) * prices.completion_price
    ) / 1e6
