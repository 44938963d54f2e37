"""What a night cost and what came of it: sums over the ledger's trials, for whoever shows them."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from configs import ASK_A_MODEL, READ_CODE
from tasks.records import NightState, Trial
from tasks.usage import Call, Usage, usage_of
from tasks.usage import total as total

RESEARCHERS = ("llm", "command")  # who writes a patch for money; mixed is not the name of one


def of_night(state: NightState) -> Usage:
    """Of every trial that is decided, also while git has not got it."""
    decided = (*state.trials, *([state.pending] if state.pending else []))
    return known(state.header, total(trial.usage for trial in decided))


def known(header: dict[str, Any], usage: Usage) -> Usage:
    """An agent has an account of its own: of its night no sum is known, also where it was asked and tpe proposed."""
    return dataclasses.replace(usage, dollars=None) if asks_an_agent(header) else usage


def of_calls(calls: Iterable[Call]) -> Usage:
    """A request that got no answer has no tokens and costs nothing."""
    return total(map(usage_of, calls))


def tokens(usage: Usage) -> int:
    return usage.prompt_tokens + usage.completion_tokens


def seconds(state: NightState) -> float:
    """For which the night was alive; of a ledger of format 1, by the clock on the wall."""
    by_clock = (
        datetime.fromisoformat(state.updated) - datetime.fromisoformat(state.header["began"])
    ).total_seconds()
    return state.used_seconds or by_clock


def settings(header: dict[str, Any]) -> dict[str, Any]:
    """The night's table [llm]; empty in a ledger that was begun before there was one."""
    table: dict[str, Any] = header.get("settings", {}).get("llm", {})
    return table


def model(header: dict[str, Any]) -> str | None:
    """The model that the night asks; None when it asks none."""
    return settings(header).get("model") if header.get("proposer") in ASK_A_MODEL else None


def asks_an_agent(header: dict[str, Any]) -> bool:
    return header.get("proposer") == "command"


def is_own(trial: Trial) -> bool:
    """Whether a model or an agent has made it, and no stand-in and no tpe of a mixed night."""
    return trial.proposer in RESEARCHERS


def is_researched(header: dict[str, Any]) -> bool:
    """Whether its proposer writes patches of code."""
    return header.get("proposer") in READ_CODE


def stand_ins(trials: Iterable[Trial]) -> list[tuple[str, tuple[Trial, ...]]]:
    """Why others stood in, as the first such trial says it, with all of these trials; the most frequent reason first.

    Reasons are the same that are alike up to a colon or semicolon, numbers apart: what follows are an endpoint's words.
    """
    reasons: dict[str, tuple[str, list[Trial]]] = {}
    for trial in trials:
        if (why := trial.stands_in) is not None:
            why = re.sub(r" for \d+ s more\b", "", why)  # of a pause, each time fewer
            alike = re.sub(r"[\d.]+", "0", re.split("[:;]", why)[0])
            reasons.setdefault(alike, (why, []))[1].append(trial)
    found = [(why, tuple(stood)) for why, stood in reasons.values()]
    return sorted(found, key=lambda reason: -len(reason[1]))


def kind(trial: Trial) -> str:
    """What kind of change it is: what its proposer said, and without a word tpe turns knobs."""
    return trial.kind or ("knobs" if trial.proposer == "tpe" else "not said")


def keeps_by_kind(trials: Iterable[Trial]) -> dict[str, int]:
    """How many of each kind were kept, the most first."""
    return dict(Counter(kind(trial) for trial in trials if trial.verdict == "keep").most_common())
