"""What the table of nights reads from their ledgers; `./run bench nights` runs them."""

import pytest

from tasks.records import Certification, Claim
from tests.benchmarks import nights_bench
from tests.benchmarks.nights_bench import Gains
from tests.trials import COMMIT, keep, make_fresh_run, make_state, make_trial

CHAMPION = "c" * 40


def fresh(score, *left_out, holdout=None):
    fields = {"purpose": "end", "champion": CHAMPION, "left_out": left_out}
    return make_fresh_run(**fields, val_bpb=score, holdout_bpb=holdout)


RUNS = (
    fresh(1.64, 1, 3, holdout=1.74),
    fresh(1.66, 1, 3, holdout=1.76),
    fresh(1.61, holdout=1.72),
    fresh(1.62, 3, holdout=1.71),
)
CLAIMS = (Claim((1,), "certified", 0.03, 2.0, 3, ""), Claim((3,), "not_shown", 0.0, 0.1, 3, ""))


def night(**changes):
    trials = (keep(1, 1.61), make_trial(2), keep(3, 1.6, commit=CHAMPION))
    return make_state(*trials, champion=CHAMPION, **changes)


CERTIFIED = night(fresh_runs=RUNS, certification=Certification(CHAMPION, CLAIMS, 1, COMMIT))


def test_each_score_says_by_how_much_its_champion_is_better_than_the_baseline():
    gains = Gains.of(CERTIFIED)
    estimates = (gains.fresh, gains.certified, gains.holdout, gains.certified_holdout)
    assert [each.mean for each in estimates if each] == pytest.approx([0.04, 0.03, 0.03, 0.04])
    assert (gains.search, gains.optimism) == pytest.approx((0.05, 0.01))


def test_the_table_has_a_row_a_night_and_their_mean():
    heads, one, two, mean = nights_bench.table([CERTIFIED, night()])
    assert heads.split()[-1] == "optimism"
    assert one.split()[1:6] == ["3", "2", "1", "+0.0500", "+0.0400"]
    assert one.split()[-1] == "+0.0100"
    assert two.split()[1:] == ["3", "2", "-", "+0.0500", "-", "-", "-", "-", "-"]
    assert mean.split() == [
        "mean",
        "+0.0500",
        "+0.0400",
        "+0.0300",
        "+0.0300",
        "+0.0400",
        "+0.0100",
    ]


def test_a_night_that_kept_nothing_has_no_gain():
    assert set(vars(Gains.of(make_state(make_trial(1)))).values()) == {None}
