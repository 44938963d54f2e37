"""What a night cost and what it bought: sums over the ledger's trials."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable

from configs import traits
from tasks.records import NightHeader, NightState, Trial
from tasks.usage import Call, Usage, total, usage_of


def of_night(state: NightState) -> Usage:
    """Of all decided trials, also of one that is not in git yet."""
    decided = (*state.trials, *([state.pending] if state.pending else []))
    return known(state.header, total(trial.usage for trial in decided))


def known(header: NightHeader, usage: Usage) -> Usage:
    """Without dollars where an agent was asked, even once: it uses an account of its own."""
    return dataclasses.replace(usage, dollars=None) if header.asks_an_agent else usage


def of_calls(calls: Iterable[Call]) -> Usage:
    """A request without an answer has no tokens and costs nothing."""
    return total(map(usage_of, calls))


def tokens(usage: Usage) -> int:
    return usage.prompt_tokens + usage.completion_tokens


def is_own(trial: Trial) -> bool:
    """Whether a model or an agent proposed it: no stand-in, and not tpe in a mixed night."""
    return traits(trial.idea.proposer).writes_code


def stand_ins(trials: Iterable[Trial]) -> list[tuple[str, tuple[Trial, ...]]]:
    """The reasons for stand-ins with their trials, the most frequent reason first.

    Two reasons count as one if they are equal up to the first colon or semicolon, numbers aside:
    what follows is an endpoint's own text. The first trial's wording is returned.
    """
    reasons: dict[str, tuple[str, list[Trial]]] = {}
    for trial in trials:
        if (why := trial.idea.stands_in) is not None:
            why = re.sub(r" for \d+ s more\b", "", why)  # a pause counts down
            alike = re.sub(r"[\d.]+", "0", re.split("[:;]", why)[0])
            reasons.setdefault(alike, (why, []))[1].append(trial)
    found = [(why, tuple(those)) for why, those in reasons.values()]
    return sorted(found, key=lambda reason: -len(reason[1]))


def keeps_by_kind(trials: Iterable[Trial]) -> dict[str, int]:
    """How many of each kind were kept, the most frequent first."""
    return dict(Counter(_kind(trial) for trial in trials if trial.verdict == "keep").most_common())


def _kind(trial: Trial) -> str:
    """The kind of change that its proposer named; tpe names none and turns knobs."""
    return trial.idea.kind or ("knobs" if traits(trial.idea.proposer).turns_knobs else "not said")
