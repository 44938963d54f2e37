"""What a night cost and what came of it: sums over the ledger's trials, for whoever shows them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from tasks.llm_calls import Call
from tasks.records import NightState, Trial, Usage

ASK_A_MODEL = ("llm", "mixed")  # proposers that do


def total(parts: Iterable[Usage]) -> Usage:
    """Their sum; its dollars are None when a part's are."""
    usages = tuple(parts)
    dollars = [usage.dollars for usage in usages]
    return Usage(
        calls=sum(usage.calls for usage in usages),
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        dollars=None if None in dollars else math.fsum(filter(None, dollars)),
    )


def of_night(state: NightState) -> Usage:
    """Of every trial that is decided, also while git has not got it."""
    return total(trial.usage for trial in (*state.trials, *([state.pending] if state.pending else [])))


def of_calls(calls: Iterable[Call]) -> Usage:
    """A request that got no answer has no tokens and costs nothing."""
    return total(map(_of_call, calls))


def tokens(usage: Usage) -> int:
    return usage.prompt_tokens + usage.completion_tokens


def seconds(state: NightState) -> float:
    """For which the night was alive; of a ledger of format 1, by the clock on the wall."""
    by_clock = (datetime.fromisoformat(state.updated) - datetime.fromisoformat(state.header["began"])).total_seconds()
    return state.used_seconds or by_clock


def settings(header: dict[str, Any]) -> dict[str, Any]:
    """The night's table [llm]; empty in a ledger that was begun before there was one."""
    table: dict[str, Any] = header.get("settings", {}).get("llm", {})
    return table


def model(header: dict[str, Any]) -> str | None:
    """The model that the night asks; None when it asks none."""
    return settings(header).get("model") if header.get("proposer") in ASK_A_MODEL else None


def stood_in(trial: Trial) -> bool:
    """Whether its proposer proposed instead of a model that could not be asked: the note says so, and why."""
    return f"proposed by {trial.proposer}" in (trial.note or "")


def kind(trial: Trial) -> str:
    """What kind of change it is: what its proposer said, and without a word tpe turns knobs."""
    return trial.kind or ("knobs" if trial.proposer == "tpe" else "not said")


def keeps_by_kind(trials: Iterable[Trial]) -> dict[str, int]:
    """How many of each kind were kept, the most first."""
    return dict(Counter(kind(trial) for trial in trials if trial.verdict == "keep").most_common())


def money(dollars: float | None) -> str:
    """Cents matter in a sum, and their parts where a model is cheap; None, a price that is not known, is said."""
    if dollars is None:
        return "unknown"
    if 0 < dollars < 0.1:
        return f"${dollars:.4f}" if dollars >= 0.0001 else "under $0.0001"
    return f"${dollars:,.2f}"


def _of_call(call: Call) -> Usage:
    unanswered = call.prompt_tokens is None and call.completion_tokens is None and call.dollars is None
    return Usage(
        calls=1,
        prompt_tokens=call.prompt_tokens or 0,
        completion_tokens=call.completion_tokens or 0,
        dollars=0.0 if unanswered else call.dollars,
    )
