"""The state of a night, computed from its events: a pure state machine, for live and dead nights.

night -> baseline -> (started -> decided -> applied)* -> fresh* -> certified -> fresh* -> finished
after the baseline, between trials: fresh, certified and remeasured; a finished night may have more
anywhere: stopped (the process ended in good order) and resumed (another process continues)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from tasks.errors import NightlyError
from tasks.records import (
    BaselineEvent,
    Certification,
    FreshRun,
    NightHeader,
    NightState,
    Remeasurement,
    Trial,
)

FORMAT = 4
# Of a machine in one night. If it changes more often, that is usual: no run is repeated for it.
MOST_CHANGES = 3

Event = dict[str, Any]


def fold(events: Iterable[Event]) -> NightState:
    """The state after all events.

    Raises NightlyError for another format and for events that cannot follow one another.
    """
    state: NightState | None = None
    for event in events:
        try:
            state = after(state, event)
        except (KeyError, TypeError, ValueError) as error:
            raise NightlyError(
                f"the ledger's event {event['event']!r} of {event['time']} is incomplete: {error}"
            ) from error
    if state is None:
        raise NightlyError("the ledger has no event 'night': its first line is missing")
    return state


def after(state: NightState | None, event: Event) -> NightState:
    """The state once `event`, as read from the file, has happened. Raises like `fold`."""
    name = event["event"]
    if state is None:
        return _new(event)
    if name == "night":
        raise NightlyError("the ledger has two events 'night': two nights wrote to one file")
    if name not in STEPS:
        raise NightlyError(
            f"the ledger has an event {name!r}, which this version does not know: "
            "use the version that wrote it"
        )
    state = dataclasses.replace(state, updated=event["time"], used_seconds=float(event["used"]))
    if name != "stopped":  # whatever else happens, the night is running again
        state = dataclasses.replace(state, stopped=None, failed=False)
    return dataclasses.replace(state, **STEPS[name](state, event))


def _new(event: Event) -> NightState:
    if event["event"] != "night":
        raise NightlyError("the ledger has no event 'night': its first line is missing")
    if event["v"] != FORMAT:
        raise NightlyError(
            f"the ledger has format {event['v']}, this version reads {FORMAT}: "
            "use the version that wrote it"
        )
    return NightState(
        header=NightHeader.from_json(event),
        baseline=None,
        trials=(),
        pending=None,
        in_flight=None,
        champion=None,
        champion_scores=(),
        groups=(),
        finished=None,
        updated=event["time"],
    )


# Each step returns the fields of the state that its event changes.


def _baseline(state: NightState, event: Event) -> dict[str, Any]:
    baseline = BaselineEvent.from_json(event)
    return {
        "baseline": baseline,
        "champion": baseline.start_commit,
        "champion_scores": baseline.scores,
        "champion_seeds": baseline.seeds,
        "champion_repeats": baseline.scores,
        "champion_fresh": baseline.scores,
        "champion_conditions": baseline.conditions,
        "usual": baseline.conditions,
    }


def _started(state: NightState, event: Event) -> dict[str, Any]:
    _expect(state.pending is None, f"starts trial {event['trial']} before applying the last one")
    return {"in_flight": event["trial"]}


def _decided(state: NightState, event: Event) -> dict[str, Any]:
    trial = Trial.from_json(event["trial"])
    done = len(state.trials)
    _expect(state.pending is None, f"decides trial {trial.number} before applying the last one")
    _expect(trial.number == done + 1, f"decides trial {trial.number} after {done} trials")
    return {"pending": trial, "in_flight": None}


def _applied(state: NightState, event: Event) -> dict[str, Any]:
    decided = state.pending
    if decided is None or decided.number != event["trial"]:
        raise NightlyError(
            f"the ledger applies trial {event['trial']}, which was not decided just before"
        )
    trial = dataclasses.replace(decided, commit=event["commit"])
    changes: dict[str, Any] = {"trials": (*state.trials, trial), "pending": None}
    fresh = (*state.champion_repeats, *trial.champion_scores)
    # The first score is why there are others: it would make the noise look larger.
    repeats = trial.scores[1:]
    if trial.verdict == "keep":
        return changes | {
            "champion": trial.commit,
            "champion_scores": trial.scores,
            "champion_seeds": trial.seeds,
            "champion_repeats": repeats,
            "champion_fresh": (),
            "groups": (*state.groups, fresh),
            "champion_conditions": trial.conditions,
            "usual": (*state.usual, *trial.champion_conditions, *trial.conditions),
        }
    return changes | {
        "champion_scores": (*state.champion_scores, *trial.champion_scores),
        "champion_seeds": (*state.champion_seeds, *trial.champion_seeds),
        "champion_repeats": fresh,
        "champion_fresh": (*state.champion_fresh, *trial.champion_scores),
        "groups": (*state.groups, repeats) if repeats else state.groups,
        "champion_conditions": (*state.champion_conditions, *trial.champion_conditions),
        "usual": (*state.usual, *trial.champion_conditions),
    }


def _fresh(state: NightState, event: Event) -> dict[str, Any]:
    _expect_between_trials(state, "has a fresh run")
    return {"fresh_runs": (*state.fresh_runs, FreshRun.from_json(event["run"]))}


def _certified(state: NightState, event: Event) -> dict[str, Any]:
    _expect_between_trials(state, "certifies")
    return {"certification": Certification.from_json(event["certification"])}


def _remeasured(state: NightState, event: Event) -> dict[str, Any]:
    _expect_between_trials(state, "measures again")
    found = Remeasurement.from_json(event)
    known = state.usual if len(state.remeasurements) >= MOST_CHANGES else ()
    changes: dict[str, Any] = {
        "champion_scores": found.scores,
        "champion_seeds": found.seeds,
        "champion_repeats": found.scores,
        "champion_fresh": found.scores,
        "champion_conditions": found.conditions,
        "usual": (*known, *found.conditions),
        "fresh_runs": (),
        "earlier_fresh_runs": state.all_fresh_runs,
        "certification": None,
        "remeasurements": (*state.remeasurements, found),
    }
    if found.baseline is None:
        # A shift inside a group would look like noise.
        before, late = state.champion_repeats[:-2], state.champion_repeats[-2:]
        return changes | {"groups": (*state.groups, before, late)}
    is_baseline = state.champion == found.baseline.start_commit
    return changes | {
        "baseline": found.baseline,
        "groups": () if is_baseline else (found.baseline.scores,),
        "usual": (*found.baseline.conditions, *(() if is_baseline else found.conditions)),
    }


def _stopped(state: NightState, event: Event) -> dict[str, Any]:
    return {"stopped": event["reason"], "failed": event["failed"]}


def _resumed(state: NightState, event: Event) -> dict[str, Any]:
    limits = {name: event[name] for name in ("trials", "hours") if name in event}
    return {"header": dataclasses.replace(state.header, **limits), "finished": None}


def _finished(state: NightState, event: Event) -> dict[str, Any]:
    return {"finished": event["reason"]}


def _expect_between_trials(state: NightState, what: str) -> None:
    _expect(state.champion is not None, f"{what} before its baseline")
    _expect(state.pending is None, f"{what} before applying the last trial")


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise NightlyError(
            f"the ledger {what}: it was edited, or two versions wrote it. Restore it from a backup"
        )


STEPS: dict[str, Callable[[NightState, Event], dict[str, Any]]] = {
    "baseline": _baseline,
    "started": _started,
    "decided": _decided,
    "applied": _applied,
    "fresh": _fresh,
    "certified": _certified,
    "remeasured": _remeasured,
    "stopped": _stopped,
    "resumed": _resumed,
    "finished": _finished,
}
EVENTS = ("night", *STEPS)
