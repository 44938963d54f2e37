"""A night's budgets: how many trials and hours, and whether another trial still fits into them."""

from __future__ import annotations

from tasks.records import NightState

RECENT = 20  # trials that tell how long a run takes now
RUNS = 2  # that a trial needs time for: most are decided by one


def over(state: NightState, used_seconds: float) -> str | None:
    """Why the night ends now, or None."""
    return trials_over(state) or hours_over(state, used_seconds)


def trials_over(state: NightState) -> str | None:
    """Why no trial is left, or None."""
    trials = state.header.trials
    if trials and len(state.trials) >= trials:
        return f"all {trials} trials are done" if trials > 1 else "its one trial is done"
    return None


def hours_over(state: NightState, used_seconds: float) -> str | None:
    """Why no time is left, or None.

    A trial starts only if RUNS runs fit, each as long as the longest recent one. Should it need
    more, `no_time_for_run` ends it.
    """
    hours = state.header.hours
    if not hours:
        return None
    left = hours * 3600 - used_seconds
    needed = RUNS * longest_run(state)
    if left <= 0:
        return f"the {hours:g} hours are over"
    if left < needed:
        return (
            f"{_minutes(left)} of the {hours:g} hours are left, "
            f"and another trial may take {_minutes(needed)}"
        )
    return None


def no_time_for_run(state: NightState, used_seconds: float) -> bool:
    """Whether one more run would end after the night's hours."""
    hours = state.header.hours
    return hours is not None and hours * 3600 - used_seconds < longest_run(state)


def is_last(state: NightState) -> bool:
    """Whether the trial in flight is the last of the night's trials."""
    return state.header.trials is not None and len(state.trials) + 1 >= state.header.trials


def longest_run(state: NightState) -> float:
    """Seconds of the longest run of the baseline and the recent trials; 0 if none is known."""
    runs = [t.longest_run_seconds for t in state.trials[-RECENT:] if t.longest_run_seconds]
    return max([state.baseline.wall_seconds if state.baseline else 0.0, *runs])


def seconds_left(state: NightState, used_seconds: float) -> float | None:
    """An estimate of how long the night will go on: None while unknown, 0 once it is over."""
    if state.finished:
        return 0.0
    trials, hours = state.header.trials, state.header.hours
    took = [trial.wall_seconds for trial in state.trials[-RECENT:] if trial.wall_seconds]
    usual = sum(took) / len(took) if took else longest_run(state)
    ends = [hours * 3600 - used_seconds] if hours else []
    if trials and usual:
        ends.append((trials - len(state.trials)) * usual)
    return max(min(ends), 0.0) if ends else None


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
