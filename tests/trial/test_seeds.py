"""That no run has the seed of another one of the same file."""

from tasks.trial import seeds
from tests.certified_night import certified_night, fresh
from tests.trials import make_state


def test_no_two_placebos_have_a_seed_in_common_nor_one_with_the_champion():
    found = [seeds.of_placebo(1, number) + run for number in range(13, 100) for run in range(8)]
    assert len(set(found)) == len(found)
    assert min(found) > 100


def test_a_fresh_run_has_one_above_those_of_every_trial_and_of_every_fresh_run_before():
    state = make_state(header={"seed": 7})
    first = seeds.fresh(state)
    assert first > seeds.of_placebo(7, 9999) + 100
    runs = (fresh((), 1.6, first), fresh((), 1.6, first + 1), fresh((), 1.6, 4))
    made = certified_night(header={"seed": 7}, fresh_runs=runs)
    assert seeds.fresh(made) == first + 2


def test_a_seed_from_before_a_new_measurement_is_not_used_again():
    first = seeds.fresh(make_state())
    assert seeds.fresh(make_state(earlier_fresh_runs=(fresh((), 1.6, first),))) == first + 1
