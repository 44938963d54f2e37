"""The test that a score is reproduced: how often it errs, what it sees, and where it is strict."""

import itertools
import math

import numpy as np
import pytest

from tasks.noise import SD_FLOOR, Noise
from tasks.trial.reproduction import compare, identical

KINDS = list(itertools.product((2, 20), (1, 4), (1, 3)))


@pytest.mark.parametrize(("freedom", "runs", "replays"), KINDS)
def test_one_of_a_hundred_equal_means_is_called_different(freedom, runs, replays):
    chance, nights = np.random.default_rng(freedom * 100 + runs * 10 + replays), 1500
    wrong = seen = 0
    for _ in range(nights):
        noise = Noise(math.sqrt(chance.chisquare(freedom) / freedom), freedom)
        recorded = chance.normal() / math.sqrt(runs)
        scores = chance.normal(size=replays)
        found = compare(recorded, runs, noise, scores.tolist())
        wrong += not found.holds
        seen += not compare(recorded, runs, noise, (scores + found.visible).tolist()).holds
    assert 0.002 < wrong / nights < 0.02
    assert 0.8 < seen / nights < 0.94


def test_a_replay_that_scatters_more_has_noise_of_its_own():
    calm, wild = (1.0, 1.01, 0.99, 1.0), (0.7, 1.3, 0.6, 1.4)
    noise = Noise(0.01, 20)
    assert compare(1.1, 3, noise, calm).holds is False
    assert compare(1.1, 3, noise, wild).holds is True
    assert compare(1.1, 3, noise, wild).visible > 10 * compare(1.1, 3, noise, calm).visible


def test_one_run_has_the_noise_of_the_recording():
    found = compare(1.6, 1, Noise(0.005, 8), [1.61])
    assert found.noise is None
    assert found.z == pytest.approx(0.01 / (0.005 * math.sqrt(2)), rel=0.2)
    assert compare(1.6, 1, Noise(0.005, 8), [1.63]).holds is False


def test_noise_that_is_nobodys_estimate_gives_way_to_the_replays_own():
    scores = (1.6, 1.62, 1.58)
    assert compare(1.62, 1, Noise(SD_FLOOR, 0), scores).holds
    assert not compare(1.62, 1, Noise(SD_FLOOR, 0), [1.6]).holds


def test_a_better_score_than_recorded_is_not_reproduced_either():
    one, other = (compare(1.6, 3, Noise(0.005, 8), [1.6 + d] * 3) for d in (0.03, -0.03))
    assert (one.holds, other.holds) == (False, False)
    assert one.z == pytest.approx(-(other.z or 0))


def test_the_same_seeds_on_a_cpu_are_held_to_the_last_digit():
    scores = (1.6123454, 1.6123456)
    assert identical(1.612345, scores).holds
    assert identical(1.612348, scores).holds is False
