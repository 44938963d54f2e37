"""Where a night is, made from its events one by one: a pure state machine, the same for a live night and for a dead one.

night -> baseline -> (started -> decided -> applied)* -> finished
at any place: stopped (the process ended in good order) and resumed (another one goes on)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from tasks.errors import NightlyError
from tasks.records import NightState, Trial
from tasks.usage import Usage

FORMAT = 3
READ = (
    1,
    2,
    3,
)  # format 1 has no `used`, `stopped` and `resumed`; format 2 no hypotheses and no costs
EVENTS = ("night", "baseline", "started", "decided", "applied", "stopped", "resumed", "finished")

Event = dict[str, Any]


def fold(events: Iterable[Event]) -> NightState:
    """Where the night is. Raises NightlyError for another format and for events that cannot follow one another."""
    state: NightState | None = None
    for event in events:
        try:
            state = after(state, event)
        except (KeyError, TypeError) as error:
            raise NightlyError(
                f"the ledger's event {event['event']!r} of {event['time']} is not whole: {error}"
            ) from error
    if state is None:
        raise NightlyError("the ledger has no event 'night': its first line is missing")
    return state


def after(state: NightState | None, event: Event) -> NightState:
    """The state once `event`, as it is read from the file, has happened. Raises NightlyError as `fold` does."""
    name = event["event"]
    if state is None:
        return _opened(event)
    state = dataclasses.replace(
        state, updated=event["time"], used_seconds=float(event.get("used", state.used_seconds))
    )
    if name == "night":
        raise NightlyError(
            "the ledger has two events 'night': two nights were written into one file"
        )
    if name == "baseline":
        scores = tuple(event["scores"])
        groups = (scores,) if len(scores) > 1 else ()
        start = event["start_commit"]
        return _going_on(
            state,
            baseline=event,
            start_commit=start,
            champion=start,
            champion_scores=scores,
            groups=groups,
        )
    if name == "started":
        _expect(
            state.pending is None, f"starts trial {event['trial']} before the last one was applied"
        )
        return _going_on(state, in_flight=event["trial"])
    if name == "decided":
        trial = _trial(event["trial"])
        _expect(
            state.pending is None, f"decides trial {trial.number} before the last one was applied"
        )
        _expect(
            trial.number == len(state.trials) + 1,
            f"decides trial {trial.number} after {len(state.trials)} trials",
        )
        return _going_on(state, pending=trial, in_flight=None)
    if name == "applied":
        return _applied(state, event)
    if name == "stopped":
        return dataclasses.replace(state, stopped=event["reason"], failed=event["failed"])
    if name == "resumed":
        bounds = {bound: event.get(bound, state.header.get(bound)) for bound in ("trials", "hours")}
        return _going_on(state, header={**state.header, **bounds}, finished=None)
    if name == "finished":
        return _going_on(state, finished=event["reason"])
    raise NightlyError(
        f"the ledger has an event {name!r}, which this version does not know: use the version that wrote it"
    )


def _opened(event: Event) -> NightState:
    if event["event"] != "night":
        raise NightlyError("the ledger has no event 'night': its first line is missing")
    if event["v"] not in READ:
        raise NightlyError(
            f"the ledger has format {event['v']}, this version reads {FORMAT}: use the version that wrote it"
        )
    return NightState(
        header=event,
        baseline=None,
        start_commit=None,
        trials=(),
        pending=None,
        in_flight=None,
        champion=None,
        champion_scores=(),
        groups=(),
        finished=None,
        updated=event["time"],
    )


def _going_on(state: NightState, **changes: Any) -> NightState:
    """Whatever happens next, the night is not stopped any more."""
    return dataclasses.replace(state, stopped=None, failed=False, **changes)


def _applied(state: NightState, event: Event) -> NightState:
    if state.pending is None or state.pending.number != event["trial"]:
        raise NightlyError(
            f"the ledger applies trial {event['trial']}, which was not decided just before"
        )
    trial = dataclasses.replace(state.pending, commit=event["commit"])
    kept = (
        {"champion": trial.commit, "champion_scores": trial.scores}
        if trial.verdict == "keep"
        else {}
    )
    groups = (*state.groups, trial.scores) if len(trial.scores) > 1 else state.groups
    return _going_on(state, trials=(*state.trials, trial), pending=None, groups=groups, **kept)


def _trial(saved: dict[str, Any]) -> Trial:
    """A Trial from its JSON, in which tuples have become lists."""
    knobs = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in saved["knobs"].items()
    }
    tuples = {name: tuple(saved.get(name, ())) for name in ("scores", "seeds", "crashed")} | {
        "knobs": knobs
    }
    return Trial(**{**saved, **tuples, "usage": Usage(**saved.get("usage", {})), "commit": None})


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise NightlyError(
            f"the ledger {what}: it was edited, or two versions wrote it. Restore it from a backup"
        )
