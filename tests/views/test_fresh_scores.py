"""Means and intervals of a night's fresh runs, by hand, and which runs are whose."""

import dataclasses

import pytest

from tasks.views import fresh_scores
from tasks.views.fresh_scores import Estimate
from tests.certified_night import ALL, END, FOUND, certified_night, fresh
from tests.trials import make_state, make_trial

T_2, T_4 = 4.302653, 2.776445  # Student's distribution at 0.975 with 2 and 4 degrees of freedom


def test_the_interval_of_a_mean_is_students():
    found = Estimate.of([1.0, 2.0, 3.0])
    assert dataclasses.astuple(found) == pytest.approx(
        (2.0, 2 - T_2 / 3**0.5, 2 + T_2 / 3**0.5, 3), abs=1e-5
    )


def test_the_interval_of_a_gain_pools_the_spread_of_both():
    found = Estimate.gain([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    half = T_4 * (2 / 3) ** 0.5
    assert dataclasses.astuple(found) == pytest.approx((1.0, 1 - half, 1 + half, 6), abs=1e-5)


def test_one_run_has_no_interval_and_none_no_mean():
    assert str(Estimate.of([1.5])) == "1.500000"
    assert dataclasses.astuple(Estimate.gain([2.0], [1.5])) == (0.5, None, None, 2)
    assert Estimate.of([]) is None
    assert Estimate.gain([1.0], []) is None


def test_each_file_has_its_own_runs_and_a_gain_over_the_baseline():
    found = fresh_scores.of_night(certified_night())
    assert list(found.files()) == ["baseline", "champion", "certified"]
    files = found.files().values()
    assert [file.trials for file in files] == [(), ALL, (1, 4)]
    assert [file.commit for file in files] == ["c0", "c6", FOUND.tip]
    assert [file.search for file in files] == [1.65, 1.6, None]
    assert [file.fresh.mean for file in files] == pytest.approx([1.65, 1.61, 1.615])
    assert [file.holdout.mean for file in files] == pytest.approx([1.75, 1.71, 1.715])
    assert found.champion.search_gain == pytest.approx(0.05)
    assert found.champion.fresh_gain.mean == pytest.approx(0.04)
    assert found.champion.holdout_gain.mean == pytest.approx(0.04)
    assert found.champion.optimism == pytest.approx(0.01)
    assert found.certified.fresh_gain.mean == pytest.approx(0.035)
    assert found.certified.optimism is None


def test_only_runs_of_the_end_of_a_file_that_is_known_count():
    others = (
        fresh((), 1.0, 41, purpose="certification"),  # it decided what is certified
        fresh((1,), 1.0, 42),  # of another file
        fresh((), 1.0, 43, champion="elsewhere"),
        fresh((), None, 44, status="train_timeout"),
    )
    night = certified_night(fresh_runs=(*END, *others))
    assert fresh_scores.of_night(night) == fresh_scores.of_night(certified_night())


def test_the_baselines_file_is_the_same_whichever_champion_it_was_run_beside():
    again = (fresh((1, 4), 1.65, 51, champion="c4"), fresh((), 1.65, 52, champion="c0"))
    found = fresh_scores.of_night(certified_night(fresh_runs=(*END, *again)))
    assert found.baseline.fresh.runs == 5
    earlier = fresh((), 1.615, 53, champion="c4")  # the champion of then is what is certified now
    found = fresh_scores.of_night(certified_night(fresh_runs=(*END, earlier)))
    assert found.certified.fresh.runs == 4


def test_a_champion_that_is_certified_whole_has_the_same_scores_twice():
    claims = tuple(dataclasses.replace(claim, certificate="certified") for claim in FOUND.claims)
    whole = dataclasses.replace(FOUND, claims=claims)
    found = fresh_scores.of_night(certified_night(certification=whole))
    assert found.certified == dataclasses.replace(found.champion, commit=FOUND.tip)


def test_a_night_may_have_kept_nothing_certified_nothing_or_not_begun():
    nothing = fresh_scores.of_night(make_state(make_trial(1)))
    assert (nothing.champion, nothing.certified) == (None, None)
    assert fresh_scores.of_night(certified_night(certification=None)).certified is None
    assert fresh_scores.of_night(make_state(baseline=None)) is None
