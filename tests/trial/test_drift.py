"""When a champion's fresh runs say that its earlier scores hold no more."""

import dataclasses

import pytest

from tasks.records import NightState, Remeasurement
from tasks.trial import drift
from tests.trials import keep, make_state, make_trial

EARLY = (1.650, 1.651, 1.652)
OTHERS = ((1.60, 1.601, 1.602), (1.7, 1.701, 1.702))  # what the noise is known from


def night(*fresh: tuple[float, ...], kept=False, **changes) -> NightState:
    """A night whose trials made these fresh runs of the champion; the first trial may be it."""
    first = [keep(1, scores=(1.6, *EARLY))] if kept else []
    number = len(first)
    trials = [
        make_trial(number + each, champion_scores=scores) for each, scores in enumerate(fresh, 1)
    ]
    made = tuple(score for scores in fresh for score in scores)
    state = make_state(*first, *trials, champion_repeats=(*EARLY, *made), groups=OTHERS)
    return dataclasses.replace(state, **changes)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    ("fresh", "way"), [((1.66, 1.661), "worse"), ((1.64, 1.641), "better"), ((1.652, 1.65), None)]
)
def test_a_shift_beyond_chance_is_seen_after_two_fresh_runs(fresh, way, kept):
    for state in (night(fresh, kept=kept), night(fresh[:1], fresh[1:], kept=kept)):
        found = drift.of_champion(state)
        assert (found is not None) == (way is not None)
        assert way is None or f"the champion's last 2 fresh runs are {way}" in str(found)


def test_one_fresh_run_shows_nothing():
    assert drift.of_champion(night((1.66,))) is None


def test_luck_by_which_a_champion_was_kept_is_no_shift():
    lucky = make_state(
        keep(1, scores=(1.5,)),
        make_trial(2, champion_scores=(1.65, 1.651)),
        champion_repeats=(1.65, 1.651),
        groups=OTHERS,
    )
    assert drift.of_champion(lucky) is None


def test_what_has_changed_the_machine_counts_until_the_champion_is_measured_again():
    state = make_state(make_trial(1, machine_change="the hypervisor took 30% of the CPU time"))
    assert drift.of_champion(state) == "the hypervisor took 30% of the CPU time"
    again = Remeasurement("", 1, "a CPU", EARLY, EARLY, None, EARLY, (4, 5, 6), ())
    assert drift.of_champion(dataclasses.replace(state, remeasurements=(again,))) is None
