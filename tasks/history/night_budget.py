"""A night's budgets: how many trials, how many hours, and whether another trial still fits into them."""

from __future__ import annotations

from tasks.records import NightState

LATE = 20  # trials that tell how long a run takes now
MOST_RUNS = 2  # of one trial: a second seed settles it one way or the other


def over(state: NightState, used_seconds: float) -> str | None:
    """Why the night ends now, or None.

    No trial starts that may not be done in time: it may take two runs, each as long as the longest of late.
    """
    trials, hours = state.header["trials"], state.header["hours"]
    if trials and len(state.trials) >= trials:
        return f"all {trials} trials are done" if trials > 1 else "its one trial is done"
    if hours:
        left, needed = hours * 3600 - used_seconds, MOST_RUNS * longest_run(state)
        if left <= 0:
            return f"the {hours:g} hours are over"
        if left < needed:
            return f"{_minutes(left)} of the {hours:g} hours are left, and another trial may take {_minutes(needed)}"
    return None


def is_last(state: NightState) -> bool:
    """Whether the trial in flight is the last of the night's trials."""
    return state.header["trials"] is not None and len(state.trials) + 1 >= state.header["trials"]


def longest_run(state: NightState) -> float:
    """Seconds of the longest run, of the baseline's and of the last trials'; 0 when none is known."""
    per_run = [
        trial.longest_run_seconds for trial in state.trials[-LATE:] if trial.longest_run_seconds
    ]
    return max([float((state.baseline or {}).get("wall_seconds") or 0.0), *per_run])


def seconds_left(state: NightState, used_seconds: float) -> float | None:
    """How long the night goes on, by its trials so far; None before it can be told, 0 when it is over."""
    if state.finished:
        return 0.0
    trials, hours = state.header["trials"], state.header["hours"]
    took = [trial.wall_seconds for trial in state.trials[-LATE:] if trial.wall_seconds]
    usual = sum(took) / len(took) if took else longest_run(state)
    ends = [hours * 3600 - used_seconds] if hours else []
    ends += [(trials - len(state.trials)) * usual] if trials and usual else []
    return max(min(ends), 0.0) if ends else None


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
