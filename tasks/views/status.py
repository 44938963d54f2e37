"""The truth about a night at this moment, from its ledger and its heartbeat: for `./run status`, and for programs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tasks.errors import NightlyError
from tasks.history import heartbeat, llm_calls, night_budget, night_folder
from tasks.history.heartbeat import Heartbeat
from tasks.records import NightState
from tasks.text import money
from tasks.usage import Usage
from tasks.views import costs

TRIAL_FIELDS = ("status", "verdict", "reason", "val_bpb", "commit")


def scores(state: NightState) -> dict[str, Any]:
    """What came out so far; baseline and champion in bits per byte."""
    return {
        "tag": state.header.tag,
        "baseline": state.baseline.val_bpb if state.baseline else None,
        "champion": state.champion_bpb,
        "trials": [
            {"k": done.number, **{name: getattr(done, name) for name in TRIAL_FIELDS}}
            for done in state.trials
        ],
    }


def describe(folder: Path) -> dict[str, Any]:
    """A night as one object: what came out, whether it is alive, what it is doing, what is left of its budgets.

    `state` is one of running, finished, stopped (somebody's wish), failed (ours, with `last_error`) and interrupted (its
    process is gone without a word). Seconds are estimates from the trials so far, of a night that is not running what
    `./run resume` would take; what cannot be told is None.
    """
    beat = heartbeat.last(folder / night_folder.PULSE)
    alive = beat is not None and beat.is_alive
    state = night_folder.read_state(
        folder
    )  # after that: a night that has ended meanwhile has put its end on record
    used = max(state.used_seconds, beat.used_seconds if beat else 0.0)
    since = time.time() - beat.time if beat else 0.0
    if alive:
        used += max(since, 0.0)
    left, caps, spent = (
        night_budget.seconds_left(state, used),
        state.header.settings.llm,
        _spent(folder, state),
    )
    return {
        **scores(state),
        "state": _word(state, alive),
        "phase": beat.phase if beat and alive else None,
        "phase_seconds": round(beat.phase_seconds + max(since, 0.0), 1) if beat and alive else None,
        "trial": (state.pending.number if state.pending else state.in_flight) or None,
        "in_flight": state.in_flight,
        "seconds_left": None if left is None else round(left, 1),
        "champion_commit": state.champion,
        "kept": sum(trial.verdict == "keep" for trial in state.trials),
        "budget": {
            "trials": {"used": len(state.trials), "of": state.header.trials},
            "hours": {"used": round(used / 3600, 4), "of": state.header.hours},
            "tokens": {"used": spent and costs.tokens(spent), "of": caps.tokens},
            "dollars": {"used": spent and spent.dollars, "of": caps.dollars},
        },
        "last_error": _last_error(state, beat, alive),
        "stopped": state.stopped,
        "finished": state.finished,
        "process": {"host": beat.host, "pid": beat.process.pid, "heartbeat_age": round(since, 1)}
        if beat
        else None,
        "updated": state.updated,
    }


def text(night: dict[str, Any]) -> str:
    """The same for a person, in a few lines."""
    trials, hours, tokens, dollars = (
        night["budget"][name] for name in ("trials", "hours", "tokens", "dollars")
    )
    planned = (
        f"{trials['used']} of {trials['of'] or 'any number of'} trials done, {night['kept']} kept"
    )
    spent = (
        f"{hours['used']:.2f} of {hours['of']:g} hours"
        if hours["of"]
        else f"{hours['used']:.2f} hours"
    )
    lines = [f"night {night['tag']}: {night['state']}: {planned}; {spent} used"]
    if tokens["used"]:
        used = f"{tokens['used']:,}" + (f" of {tokens['of']:,}" if tokens["of"] else "")
        cost = money(dollars["used"]) + (f" of {money(dollars['of'])}" if dollars["of"] else "")
        lines.append(f"language model: {used} tokens used; cost: {cost}")
    if night["phase"]:
        left = (
            ""
            if night["seconds_left"] is None
            else f"; about {night['seconds_left'] / 60:.0f} minutes to the night's end"
        )
        lines.append(
            f"now: {night['phase']}, for {night['phase_seconds']:.0f} s{left} (pid {night['process']['pid']})"
        )
    if night["finished"] or night["stopped"]:
        lines.append(f"end: {night['finished'] or night['stopped']}")
    if night["last_error"]:
        lines.append(f"last error: {night['last_error']}")
    if night["state"] in ("stopped", "failed", "interrupted"):
        lines.append(f"`./run resume {night['tag']}` goes on with it")
    if night["baseline"] is not None:
        lines.append(
            f"baseline {night['baseline']}, champion {night['champion']} ({night['champion_commit']})"
        )
    return "\n".join(lines)


def _word(state: NightState, alive: bool) -> str:
    if alive:
        return "running"
    if state.finished:
        return "finished"
    if state.stopped:
        return "failed" if state.failed else "stopped"
    return "interrupted"


def _spent(folder: Path, state: NightState) -> Usage | None:
    """On requests to language models: for the trials on record, and since then for those under way or thought ahead.

    None when the file of the requests is damaged: a person who wants to stop the night is not kept from it.
    """
    on_record = {trial.number for trial in (*state.trials, state.pending) if trial}
    try:
        others = [
            call
            for call in llm_calls.read(folder / night_folder.CALLS)
            if call.trial not in on_record
        ]
    except NightlyError:
        return None
    return costs.total([costs.of_night(state), costs.of_calls(others)])


def _last_error(state: NightState, beat: Heartbeat | None, alive: bool) -> str | None:
    if alive and beat:
        return beat.error
    if state.failed:
        return state.stopped
    if (state.finished or state.stopped) and (beat is None or beat.phase == heartbeat.OVER):
        return beat.error if beat else None
    doing = (
        f", in the middle of: {beat.phase}" if beat and beat.phase != heartbeat.OVER else ""
    )  # a finished night's report, too
    who = f"its process {beat.process.pid} on {beat.host}" if beat else "its process"
    return f"{who} ended without a word{doing}"
