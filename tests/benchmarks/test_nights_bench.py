"""What the table of nights reads from their ledgers; `./run bench nights` runs them."""

import dataclasses

import pytest

from tasks.records import Certification, Claim, FreshRun
from tests.benchmarks import nights_bench
from tests.benchmarks.night_gains import Gains
from tests.trials import COMMIT, keep, make_state, make_trial

CHAMPION = "c" * 40


def fresh(score, *left_out, holdout=None, **changes):
    fields = {
        "purpose": "end",
        "champion": CHAMPION,
        "left_out": left_out,
        "seed": 9,
        "status": "ok",
        "reason": "",
        "val_bpb": score,
        "holdout_bpb": holdout,
    }
    return FreshRun(**{**fields, **changes})


RUNS = (
    fresh(1.64, 1, 3, holdout=1.74),
    fresh(1.66, 1, 3, holdout=1.76),
    fresh(1.61, holdout=1.72),
    fresh(1.62, 3, holdout=1.71),
    fresh(None, 3, status="train_timeout"),
    fresh(1.0, purpose="certification"),
    fresh(1.0, champion="d" * 40),
)
CLAIMS = (Claim((1,), "certified", 0.03, 2.0, 3, ""), Claim((3,), "not_shown", 0.0, 0.1, 3, ""))


def night(**changes):
    trials = (keep(1, 1.61), make_trial(2), keep(3, 1.6))
    return make_state(*trials, champion=CHAMPION, **changes)


def test_each_score_says_by_how_much_its_champion_is_better_than_the_baseline():
    certification = Certification(CHAMPION, CLAIMS, 1, COMMIT)
    gains = Gains.of(night(fresh_runs=RUNS, certification=certification))
    assert gains.search == pytest.approx(0.05)
    assert gains.fresh == pytest.approx(0.04)
    assert gains.certified == pytest.approx(0.03)
    assert gains.holdout == pytest.approx(0.03)
    assert gains.certified_holdout == pytest.approx(0.04)
    assert gains.optimism == pytest.approx(0.01)


def test_a_night_without_fresh_runs_has_its_search_score_alone():
    gains = dataclasses.asdict(Gains.of(night()))
    assert gains.pop("search") == pytest.approx(0.05)
    assert set(gains.values()) == {None}


def test_the_certification_of_an_earlier_champion_is_no_longer_one():
    certification = Certification("d" * 40, CLAIMS, 1, COMMIT)
    assert Gains.of(night(fresh_runs=RUNS, certification=certification)).certified is None


def test_the_table_has_a_row_a_night_and_their_mean():
    certification = Certification(CHAMPION, CLAIMS, 1, COMMIT)
    states = [night(fresh_runs=RUNS, certification=certification), night()]
    heads, one, two, mean = nights_bench.table(states)
    assert heads.split()[-1] == "optimism"
    assert one.split()[1:5] == ["3", "2", "1", "0.0005"]
    assert one.split()[-1] == "+0.0100"
    assert two.split()[1:4] == ["3", "2", "-"]
    assert two.split()[-5:] == ["-"] * 5
    assert mean.split()[:3] == ["mean", "+0.0500", "+0.0400"]
