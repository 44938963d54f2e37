"""A night's budgets: how many trials and hours, and whether another trial still fits into them.

Once something is kept, a share of the runs and of the hours is for its certification.
"""

from __future__ import annotations

from tasks.records import NightState

RECENT = 20  # trials that tell how long a run takes now
RUNS = 2  # that a trial needs time for: most are decided by one
FEWEST_WHOLE_RUNS = 2  # of the champion: with fewer, nothing is certified
# Of a certification, and for each change. In the simulation (`./run bench verdict`) more are seldom
# needed.
FIRST_RUNS, RUNS_PER_CHANGE = 6, 3
END_FILES = 3  # that are run at a night's end: baseline, champion, certified champion


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
    hours, reserved = state.header.hours, reserved_seconds(state)
    if not hours:
        return None
    left = hours * 3600 - reserved - used_seconds
    needed = RUNS * longest_run(state)
    what = f"the {hours:g} hours"
    if reserved:
        what += f", less {_minutes(reserved)} to certify what was kept,"
    if left <= 0:
        return f"{what} are over"
    if left < needed:
        return f"{_minutes(left)} of {what} are left, and another trial may take {_minutes(needed)}"
    return None


def no_time_for_run(state: NightState, used_seconds: float) -> bool:
    """Whether one more run of a trial would end after the hours that trials have."""
    hours = state.header.hours
    if hours is None:
        return False
    return hours * 3600 - reserved_seconds(state) - used_seconds < longest_run(state)


def fewest_runs(state: NightState) -> int:
    """How many runs a certification needs at least: each change must be taken out once."""
    return len(state.keeps) + FEWEST_WHOLE_RUNS


def reserved_seconds(state: NightState) -> float:
    """Of the night's hours, what is kept free of trials: to certify, and for the runs after that.

    0 if that is too little to certify anything.
    """
    settings, hours = state.header.settings.night, state.header.hours
    share, longest = settings.certify_share * (hours or 0.0) * 3600, longest_run(state)
    if not (share and state.keeps) or share < fewest_runs(state) * longest:
        return 0.0
    return min(share, worthwhile_runs(len(state.keeps)) * longest) + end_seconds(state)


def end_seconds(state: NightState) -> float:
    """Seconds for the runs after a certification: one of the certified champion, and the end's."""
    runs = 1 + END_FILES * state.header.settings.night.end_runs
    return runs * longest_run(state)


def certification_runs(state: NightState) -> int:
    """How many runs the end of the night certifies with, if its hours have room for so many."""
    if state.header.hours and not trials_over(state):
        return worthwhile_runs(len(state.keeps))
    return _share_of_runs(state, _runs_of_trials(state))


def _runs_of_trials(state: NightState) -> int:
    """How many runs the finished trials have a score of, the champion's fresh ones included."""
    return sum(len(trial.scores) + len(trial.champion_scores) for trial in state.trials)


def _share_of_runs(state: NightState, runs: float) -> int:
    """How many runs certify, after a night whose trials had so many."""
    share = state.header.settings.night.certify_share
    return min(round(share / (1 - share) * runs), worthwhile_runs(len(state.keeps)))


def can_certify(state: NightState, used_seconds: float) -> bool:
    """Whether what the night has left is enough to certify the changes of its champion.

    A certification that has begun is always continued.
    """
    runs, hours, needed = certification_runs(state), state.header.hours, fewest_runs(state)
    if not state.header.settings.night.certify_share:
        return False
    if any(r.purpose == "certification" and r.champion == state.champion for r in state.fresh_runs):
        return True
    if runs < needed:
        return False
    seconds = needed * longest_run(state) + end_seconds(state)
    return hours is None or hours * 3600 - used_seconds >= seconds


def worthwhile_runs(changes: int) -> int:
    """How many runs certify so many changes; more are for those who ask for them."""
    return FIRST_RUNS + RUNS_PER_CHANGE * changes if changes else 0


def uncertified(state: NightState) -> str | None:
    """What is left to do for changes that nobody has certified, in a sentence without its dot.

    None if nothing is left. A night that is not over may certify them at its end.
    """
    count, found = len(state.keeps), state.certification
    if not count or (found and found.champion == state.champion):
        return None
    known = {number for claim in found.claims for number in claim.trials} if found else set()
    since = sum(trial.number not in known for trial in state.keeps)
    were = "1 change was kept" if since == 1 else f"{since} changes were kept"
    if found:
        were += " since the last certification"
    else:
        were += " and is not certified" if since == 1 else " and none is certified"
    took = _minutes(worthwhile_runs(count) * longest_run(state))
    return f"{were}: `./run certify {state.header.tag}` takes about {took}"


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
        ends.append((trials - len(state.trials)) * usual + _certifying_seconds(state))
    return max(min(ends), 0.0) if ends else None


def _certifying_seconds(state: NightState) -> float:
    """An estimate for a night that its trials end, of what is left of its certification."""
    done, trials = len(state.trials), state.header.trials or 0
    expected = _runs_of_trials(state) * max(trials / done, 1.0) if done else 0.0
    runs = _share_of_runs(state, expected)
    if not state.keeps or runs < fewest_runs(state):
        return 0.0
    made = sum(run.champion == state.champion for run in state.fresh_runs)
    planned = runs + 1 + END_FILES * state.header.settings.night.end_runs
    return max(planned - made, 0) * longest_run(state)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
