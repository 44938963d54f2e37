"""What a night cost and what came of it: sums over the ledger's trials, for whoever shows them."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable

from configs import traits
from tasks.records import NightHeader, NightState, Trial
from tasks.usage import Call, Usage, usage_of
from tasks.usage import total as total


def of_night(state: NightState) -> Usage:
    """Of every trial that is decided, also while git has not got it."""
    decided = (*state.trials, *([state.pending] if state.pending else []))
    return known(state.header, total(trial.usage for trial in decided))


def known(header: NightHeader, usage: Usage) -> Usage:
    """An agent has an account of its own: of its night no sum is known, also where it was asked and tpe proposed."""
    return dataclasses.replace(usage, dollars=None) if header.asks_an_agent else usage


def of_calls(calls: Iterable[Call]) -> Usage:
    """A request that got no answer has no tokens and costs nothing."""
    return total(map(usage_of, calls))


def tokens(usage: Usage) -> int:
    return usage.prompt_tokens + usage.completion_tokens


def is_own(trial: Trial) -> bool:
    """Whether a model or an agent has made it, and no stand-in and no tpe of a mixed night."""
    return traits(trial.idea.proposer).writes_code


def stand_ins(trials: Iterable[Trial]) -> list[tuple[str, tuple[Trial, ...]]]:
    """Why others stood in, as the first such trial says it, with all of these trials; the most frequent reason first.

    Reasons are the same that are alike up to a colon or semicolon, numbers apart: what follows are an endpoint's words.
    """
    reasons: dict[str, tuple[str, list[Trial]]] = {}
    for trial in trials:
        if (why := trial.idea.stands_in) is not None:
            why = re.sub(r" for \d+ s more\b", "", why)  # of a pause, each time fewer
            alike = re.sub(r"[\d.]+", "0", re.split("[:;]", why)[0])
            reasons.setdefault(alike, (why, []))[1].append(trial)
    found = [(why, tuple(stood)) for why, stood in reasons.values()]
    return sorted(found, key=lambda reason: -len(reason[1]))


def kind(trial: Trial) -> str:
    """What kind of change it is: what its proposer said, and without a word tpe turns knobs."""
    return trial.idea.kind or ("knobs" if traits(trial.idea.proposer).turns_knobs else "not said")


def keeps_by_kind(trials: Iterable[Trial]) -> dict[str, int]:
    """How many of each kind were kept, the most first."""
    return dict(Counter(kind(trial) for trial in trials if trial.verdict == "keep").most_common())
