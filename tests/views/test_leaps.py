"""Which keeps a person should read first."""

import math
import statistics

import numpy as np
import pytest

from tasks.views.leaps import leaps, plausible
from tests.trials import crash, keep, make_trial


def test_two_trials_say_nothing_of_a_third():
    assert plausible([]) == plausible([1.0]) == math.inf
    assert leaps((keep(1, z=90.0), make_trial(2, z=0.1))) == {}


def test_a_short_night_finds_only_a_great_leap_implausible():
    others = (make_trial(1, z=-0.5), make_trial(2, z=0.3), make_trial(3, z=-1.0))
    assert leaps((*others, keep(4, z=20.0))) == {}
    assert list(leaps((*others, keep(4, z=40.0)))) == [4]


def test_noise_alone_is_exceeded_once_in_1000_times():
    random = np.random.default_rng(0)
    over = [random.normal() > plausible(list(random.normal(size=40))) for _ in range(4000)]
    assert statistics.fmean(over) <= 0.001


def test_what_is_plausible_grows_with_the_spread_of_the_others():
    quiet = [0.1 * k for k in range(-5, 6)]
    assert plausible(quiet) == pytest.approx(4.33, abs=0.01)
    assert plausible([20 * z for z in quiet]) > 15


def test_one_leap_does_not_hide_another():
    others = [make_trial(k, z=0.3 * (-1) ** k) for k in range(1, 9)]
    assert list(leaps((*others, keep(9, z=30.0), keep(10, z=28.0)))) == [9, 10]


def test_only_what_is_kept_is_marked():
    others = [make_trial(k, z=0.0) for k in range(1, 9)]
    assert leaps((*others, make_trial(9, z=50.0), crash(10, z=None))) == {}
