"""The noise of a night, from its own repeats and those of earlier nights."""

import dataclasses
import math
import random

import pytest

from tasks.noise import Noise, estimate, noise_of
from tests.trials import make_baseline, make_fresh_run, make_state

OWN = (1.64, 1.65, 1.66)  # sd 0.01, 2 degrees of freedom


def repeats(sd, count, runs=3, seed=1):
    """Groups of so many runs, of normal scores."""
    chance = random.Random(seed)
    return tuple(tuple(chance.gauss(1.6, sd) for _ in range(runs)) for _ in range(count))


def night(earlier, own=OWN, **changes):
    return make_state(
        baseline=make_baseline(earlier_repeats=earlier), champion_repeats=own, **changes
    )


def test_the_sd_is_pooled_over_groups_of_repeats():
    noise = Noise.pooled([[1.0, 1.2], [3.0, 3.0, 3.3]])
    assert noise.sd == pytest.approx(math.sqrt((0.02 + 0.06) / 3))
    assert noise.degrees_of_freedom == 3


def test_groups_of_one_run_say_nothing_about_noise():
    assert Noise.pooled([[1.0, 1.2], [9.0], []]) == Noise.pooled([[1.0, 1.2]])


@pytest.mark.parametrize(("groups", "df"), [([], 0), ([[1.6]], 0), ([[1.6, 1.6, 1.6]], 2)])
def test_the_sd_has_a_floor(groups, df):
    assert Noise.pooled(groups) == Noise(5e-4, df)
    assert Noise.pooled(groups, floor=0.1) == Noise(0.1, df)


def test_earlier_nights_are_pooled_with_this_nights_repeats():
    earlier = repeats(0.01, 4)
    found = estimate(night({"nov19": earlier[:1], "nov20": earlier[1:]}))
    assert (found.own.degrees_of_freedom, found.earlier.degrees_of_freedom) == (2, 8)
    assert found.agrees
    assert found.noise == Noise.pooled([OWN, *earlier])
    said = "10 degrees of freedom, 8 of them from 2 earlier nights"
    assert str(found) == f"sd {found.noise.sd:.2g} of one run, {said}"


def test_without_an_earlier_night_it_is_this_nights_alone():
    assert noise_of(night({})) == Noise.pooled([OWN])
    assert str(estimate(night({}))) == "sd 0.01 of one run, 2 degrees of freedom"
    empty = make_state(baseline=None, champion_repeats=(), champion_scores=())
    assert str(estimate(empty)).endswith("assumed because nothing was run twice")


def test_a_run_that_two_nights_share_counts_once():
    """The cached baseline, and what was trained again with the same seed."""
    found = estimate(night({"nov19": ((*OWN, 1.63, 1.67),), "nov20": (OWN, (1.63, 1.67))}))
    assert found.earlier == Noise.pooled([(1.63, 1.67)])
    assert found.nights == 1
    assert found.noise.degrees_of_freedom == 3


@pytest.mark.parametrize("sd", [0.5, 0.0005])
def test_earlier_nights_that_disagree_beyond_chance_do_not_count(sd):
    own = repeats(0.01, 1, runs=12)[0]
    found = estimate(night({"nov19": repeats(sd, 10, seed=2)}, own))
    assert not found.agrees
    assert found.noise == Noise.pooled([own])
    assert "from this night alone: that of 1 earlier night is" in str(found)


def test_equal_scores_disagree_with_none_that_are_equal_too():
    same = (1.6, 1.6, 1.6)
    assert estimate(night({"nov19": ((1.5, 1.5, 1.5),)}, same)).agrees


def test_fresh_runs_of_one_file_are_repeats():
    runs = tuple(
        make_fresh_run(seed=seed, left_out=left_out, val_bpb=score)
        for seed, left_out, score in [
            (11, (), 1.61),
            (12, (2,), 1.7),
            (13, (), 1.62),
            (14, (2,), 1.72),
            (15, (2,), None),
        ]
    )
    state = night({}, fresh_runs=runs)
    assert state.repeats == (OWN, (1.61, 1.62), (1.7, 1.72))
    other = dataclasses.replace(state, fresh_runs=(make_fresh_run(champion="c2"), *runs))
    assert (1.6,) in other.repeats


def test_of_estimates_of_one_sd_one_per_cent_disagree():
    chance = random.Random(3)

    def drawn(degrees):
        return Noise(math.sqrt(chance.gammavariate(degrees / 2, 2 / degrees)), degrees)

    nights = [dataclasses.replace(FOUND, own=drawn(2), earlier=drawn(12)) for _ in range(400)]
    assert sum(not night.agrees for night in nights) <= 12


FOUND = estimate(night({"nov19": repeats(0.01, 4)}))
