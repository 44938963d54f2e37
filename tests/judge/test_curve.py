"""When a curve foretells a training's end, by message and clock."""

import pytest

from tasks.judge import curve
from tasks.judge.curve import Curve

GOOD = 3.0
# A champion of 1000 tokens a tenth whose loss falls.
CHAMPION = tuple((1000 * (tenth + 1), 4.0 - 0.1 * tenth) for tenth in range(10))


def say(step=1, tokens=1, loss=GOOD):
    return {"msg": "log", "step": step, "tokens": tokens, "loss": loss}


def first_problem(losses):
    """(number of the point at which it is stopped, status, reason); None if it never is."""
    found = Curve()
    for number, loss in enumerate(losses, 1):
        if problem := found.add(say(number, number, loss), 0.0):
            return number, *problem
    return None


@pytest.mark.parametrize(
    "fields",
    [
        {"step": 1.0},
        {"step": -1},
        {"step": 2**53},
        {"tokens": -1},
        {"tokens": 2**53},
        {"loss": None},
        {"loss": float("nan")},
        {"loss": -1e18},
        {"loss": "3"},
    ],
)
def test_an_invalid_point_is_left_out(fields):
    found = Curve()
    assert found.add(say(**fields), 0.0) is None
    assert found.points == []


def test_a_long_curve_is_cut_after_its_first_points(monkeypatch):
    monkeypatch.setattr(curve, "MOST_POINTS", 2)
    found = Curve()
    for step in range(4):
        found.add(say(step, 2 * step, 1), 0.0)
    assert found.points == [(0, 0, 1.0), (1, 2, 1.0)]


@pytest.mark.parametrize("lost", [None, float("nan"), float("inf")])
def test_a_loss_that_is_no_number_any_more_is_an_end(lost):
    number, status, reason = first_problem([GOOD] * 5 + [lost] * 50)
    assert (number, status) == (25, "train_crashed")
    assert reason == (
        "its loss was not finite at 20 points in a row since step 5, where it was 3: "
        "it has diverged"
    )
    assert first_problem([lost] * 50)[0] == 20


def test_single_steps_without_a_loss_are_none():
    assert first_problem(([None] * 19 + [GOOD]) * 5) is None


def test_a_point_without_a_step_says_nothing_about_the_loss():
    found = Curve()
    assert not any(found.add(say(step=None), 0.0) for _ in range(50))


def test_a_loss_that_stays_far_above_its_beginning_is_an_end():
    number, status, reason = first_problem([9.0] + [8.0] * 59 + [13.6] * 50)
    assert (number, status) == (80, "train_crashed")
    assert "was 13.6 or more" in reason
    assert "the largest of its first 20 points, 9" in reason


@pytest.mark.parametrize(
    "losses",
    [
        [9.0] * 20 + [13.4] * 100,
        [9.0] * 20 + ([50.0] * 19 + [9.0]) * 5,
        [30.0] * 20 + [9.0] * 100,
        [0.0] * 20 + [1.0] * 100,
        [-1.0] * 20 + [1.0] * 100,
    ],
    ids=["a little above", "spikes", "a bad beginning", "a loss of 0", "a negative loss"],
)
def test_another_high_loss_is_none(losses):
    assert first_problem(losses) is None


def race(tokens_a_tenth, loss, champion=CHAMPION, seconds=100.0):
    """The tenth of its budget in which a training is stopped; None if it never is.

    `loss` is by how much it is above CHAMPION's.
    """
    found = Curve(seconds, champion)
    for moment in range(100):
        tenth = moment // 10
        point = say(moment, tokens_a_tenth * (moment + 1) // 10, CHAMPION[tenth][1] + loss(tenth))
        if problem := found.add(point, float(moment)):
            assert problem[0] == "train_timeout"
            return tenth
    return None


def test_a_training_far_behind_the_champion_is_stopped_at_half_its_time():
    assert race(499, lambda tenth: 0.5) == 5


@pytest.mark.parametrize(
    ("tokens", "loss"),
    [
        (499, lambda tenth: 0.1),
        (501, lambda tenth: 0.5),
        (499, lambda tenth: 0.5 if tenth < 4 else 0.0),
        (499, lambda tenth: 0.5 * (tenth % 2)),
    ],
    ids=["slow and as good", "worse and not slow", "it catches up", "now and then"],
)
def test_one_that_may_still_win_is_not(tokens, loss):
    assert race(tokens, loss) is None


def test_without_a_champion_or_a_budget_of_seconds_nothing_is_compared():
    assert race(1, lambda tenth: 5.0, champion=()) is None
    assert race(1, lambda tenth: 5.0, champion=CHAMPION[:4]) is None
    assert race(1, lambda tenth: 5.0, seconds=None) is None


def test_a_tenth_without_a_point_ends_the_comparison():
    found = Curve(100.0, CHAMPION)
    for moment in (1.0, 11.0, *range(30, 100)):
        assert found.add(say(loss=9.0), moment) is None
    assert found.tenths == ((1, 9.0), (1, 9.0))


def test_tenths_have_the_tokens_at_their_end_and_the_mean_loss():
    found = Curve(10.0)
    for moment, loss in ((0.0, 4.0), (0.9, 2.0), (1.0, 2.5), (10.5, 9.0)):
        found.add(say(tokens=int(100 * moment), loss=loss), moment)
    assert found.tenths == ((90, 3.0), (100, 2.5))


def test_the_champion_is_as_slow_as_its_slowest_run():
    assert curve.slowest([((5, 3.0), (9, 2.0)), ((4, 2.5), (10, 2.5), (12, 2.0))]) == (
        (4, 3.0),
        (9, 2.5),
    )
    assert curve.slowest([]) == ()
