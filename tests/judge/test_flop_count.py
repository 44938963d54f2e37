"""The judge's comparison of a candidate's word with the count."""

import dataclasses

import pytest

from tasks.judge.flop_count import FlopCount, number, other_word

HONEST = FlopCount(word=100.0, flops=100_000.0, step=1000, late=0.0, tokens=9000, traffic=5e6)
AMOUNT = 900_000.0


@pytest.mark.parametrize("factor", [1 / 1.01, 1 / 1.03, 1.0, 2.0])
def test_a_word_of_at_most_3_percent_less_passes(factor):
    assert dataclasses.replace(HONEST, word=100 * factor).problem(1e9) is None


@pytest.mark.parametrize("times", [1.05, 1.2, 3.0])
def test_a_lower_word_does_not_and_the_reason_has_both_numbers(times):
    low = dataclasses.replace(HONEST, word=100 / times)
    assert low.problem(1e9) == f"said {100 / times:.4g} FLOPs a token, the counted step takes 100"


@pytest.mark.parametrize(("late", "passes"), [(100_000, True), (103_000, True), (104_000, False)])
def test_one_step_after_the_last_report_of_tokens_passes_and_no_more(late, passes):
    problem = dataclasses.replace(HONEST, late=late).problem(AMOUNT)
    assert problem is None if passes else "reported no tokens" in str(problem)


def test_training_without_any_report_does_not_pass():
    silent = FlopCount(word=100.0, flops=0.0, step=0, late=1.0, tokens=0, traffic=0.0)
    assert "reported no tokens" in str(silent.problem(AMOUNT))


@pytest.mark.parametrize(("tokens", "passes"), [(10, True), (10_270, True), (10_271, False)])
def test_the_last_step_may_exceed_the_budget(tokens, passes):
    problem = dataclasses.replace(HONEST, tokens=tokens).problem(AMOUNT)
    assert problem is None if passes else "its budget is for 10,270" in str(problem)


def test_a_message_is_read_if_all_of_it_is_there():
    message = {
        "counted_flops": 3e5,
        "counted_tokens": 1000,
        "counted_traffic": 7e6,
        "late_flops": 0,
        "tokens": 2000,
    }
    found = FlopCount.read(100.0, message)
    assert found == FlopCount(100.0, 3e5, 1000, 0.0, 2000, 7e6)
    assert (found.flops_per_token, found.traffic_per_token) == (300.0, 7000.0)
    assert FlopCount.read(None, message) is None
    assert FlopCount.read(0.0, message) is None
    for name in message:
        assert FlopCount.read(100.0, {**message, name: "many"}) is None


@pytest.mark.parametrize("step", [0, 0.5])
def test_a_made_up_step_without_tokens_breaks_nothing(step):
    made_up = {"counted_flops": 3e5, "counted_traffic": 1, "late_flops": 0, "tokens": 9}
    found = FlopCount.read(100.0, {**made_up, "counted_tokens": step})
    assert found is not None
    assert (found.flops_per_token, found.traffic_per_token) == (None, None)
    assert found.problem(AMOUNT) is None


@pytest.mark.parametrize("value", [None, True, "1", -1, float("nan"), float("inf"), 10**400, [1]])
def test_what_is_no_figure_is_none(value):
    assert number(value) is None


@pytest.mark.parametrize(
    ("before", "now"), [(None, 5.0), (5.0, None), (100.0, 103.0), (100.0, 97.0)]
)
def test_the_same_word_in_both_boxes_passes(before, now):
    assert other_word(before, now) is None


@pytest.mark.parametrize("now", [50.0, 96.0, 104.0])
def test_another_word_than_in_the_smoke_step_does_not(now):
    assert other_word(100.0, now) == f"said {now:.4g} FLOPs a token, and 100 in its smoke step"
