"""Requests to language models: each is one line of nights/<tag>/llm_calls.jsonl, and what a night has spent is their sum.

A line is appended and fsynced when the answer is there, before anything is made of it: money is never spent unseen.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

KINDS = ("architecture", "optimizer", "schedule", "data order", "systems", "simplification", "combination")
Outcome = Literal[
    "ok",  # a patch that can be run
    "no_edit",  # the answer's patch: there is none
    "malformed",  # a block without its end, or two answers in one
    "not_found",  # a SEARCH that is not in the file
    "ambiguous",  # a SEARCH that is there more than once
    "no_change",  # the same code, comments and layout apart
    "already_tried",
    "unfit",  # refused by the checks that every proposal passes: it does not parse, breaks the contract
    "refusal",  # the answer: the model declines
    "truncated",  # it reached max_tokens
    "content_filter",
    "empty",
    "no_completion",  # status 200 and no completion in it: HTML, no choices
    "error_body",  # status 200 and an error in it
    "context_overflow",  # the endpoint: the prompt is too long for the model
    "bad_request",
    "unauthorized",  # 401, 403
    "rate_limited",
    "server_error",
    "unreachable",
    "timeout",
    "cancelled",  # by us: the night ends, or no longer needs it
]


@dataclasses.dataclass(frozen=True)
class Call:
    """One request with its retries, and what became of its answer. Holds no key."""

    id: str  # unique in the night: "7.2" is the second one made for trial 7
    trial: int  # that it was made for
    purpose: Literal["propose", "repair", "fix"]
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
