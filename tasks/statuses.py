"""The closed lists: how a run ends, what a verdict decides, how a model's answer turned out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Status = Literal[
    "ok",
    "rejected_patch",
    "startup_timeout",
    "startup_crashed",
    "train_timeout",
    "train_crashed",
    "bad_checkpoint",
    "protocol_error",
    "out_of_memory",
    "too_many_tasks",
    "eval_startup_timeout",
    "eval_startup_crashed",
    "eval_timeout",
    "eval_crashed",
    "bad_claims",
    "audit_startup_timeout",
    "audit_startup_crashed",
    "audit_timeout",
    "audit_crashed",
    "audit_failed",
    "dishonest_flops",
    "sandbox_error",
]
Decision = Literal["keep", "discard", "confirm"]
Purpose = Literal["certification", "end", "remeasurement"]  # of a run apart from the trials
# What the night's heartbeat calls the time of such runs.
PHASES: Mapping[Purpose, str] = {"certification": "certification", "end": "end of the night"}
Search = Literal[  # how a candidate came about
    "proposal",  # by the night's proposer, against the champion
    "stack",  # near misses merged, to be tested as one
    "archive",  # by the night's proposer, against another file than the champion
    "ablation",  # the champion without some of its hunks
    "constants",  # tpe turns the knobs of a researched champion
]
Certificate = Literal[  # of a change that was kept
    "certified",  # shown to help
    "not_shown",  # has had its runs: not shown to help
    "open",  # more runs may still show it
]
Outcome = Literal[
    "ok",  # a patch that can be run
    "no_edit",  # the answer: it has no patch
    "malformed",  # a block without an end, or two answers in one
    "not_found",  # a SEARCH that is not in the file
    "ambiguous",  # a SEARCH that is in the file more than once
    "no_change",  # the same code, as canonical_form tells it
    "already_tried",
    "unfit",  # refused by the checks of every proposal: it does not parse, breaks the contract
    "refusal",  # the model declines
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
    "cancelled",  # by us: the night ends
]
