"""Requests to language models and what they cost."""

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
Purpose = Literal["propose", "repair", "fix", "ping"]


@dataclasses.dataclass(frozen=True)
class Call:
    """One request with its retries, and what became of its answer. Holds no key."""

    id: str  # unique in the night: "7.2" is the second one made for trial 7
    trial: int  # that it was made for; 0 for a ping
    purpose: Purpose
    time: str  # UTC, when it began
    seconds: float
    endpoint: str  # base URL
    model: str
    messages: tuple[dict[str, str], ...]  # role and content, as sent
    answer: str | None
    outcome: Outcome
    error: str | None  # what was wrong, one line; None for ok
    prompt_tokens: int | None  # None when there was no answer
    cached_tokens: int | None  # of the prompt_tokens; None when the endpoint does not say
    completion_tokens: int | None
    estimated: bool  # the endpoint gave no usage, so tokens were estimated from characters
    dollars: float | None  # None while a price is unknown
    request_id: str | None = None
    retry_after: float | None = None  # seconds for which the endpoint wants to be left alone


@dataclasses.dataclass(frozen=True)
class Usage:
    """What requests cost: sums over Calls."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float | None = 0.0  # None when a part of it is unknown


def total(parts: Iterable[Usage]) -> Usage:
    """Their sum; its dollars are None when a part's are."""
    usages = tuple(parts)
    prices = [usage.dollars for usage in usages]
    return Usage(
        calls=sum(usage.calls for usage in usages),
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        dollars=None if None in prices else math.fsum(filter(None, prices)),
    )


def usage_of(call: Call) -> Usage:
    """What one request adds: without an answer it has no tokens and costs nothing."""
    unanswered = (
        call.prompt_tokens is None and call.completion_tokens is None and call.dollars is None
    )
    return Usage(
        calls=1,
        prompt_tokens=call.prompt_tokens or 0,
        completion_tokens=call.completion_tokens or 0,
        dollars=0.0 if unanswered else call.dollars,
    )


def dollars(
    prices: Llm, prompt: int | None, cached: int | None, completion: int | None
) -> float | None:
    """What an answer with these numbers of tokens costs; None while a price is unknown."""
    if prices.prompt_price is None or prices.completion_price is None:
        return None
    cached_price = prices.prompt_price if prices.cached_price is None else prices.cached_price
    fresh = (prompt or 0) - (cached or 0)
    return (
        fresh * prices.prompt_price
        + (cached or 0) * cached_price
        + (completion or 0) * prices.completion_price
    ) / 1e6
