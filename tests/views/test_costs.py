"""What a night cost, as sums: an unknown price never counts as zero."""

import dataclasses

import pytest

from tasks import text
from tasks.usage import Usage, total
from tasks.views import costs
from tests.trials import crash, keep, make_call, make_header, make_state, make_trial

SPENT = Usage(calls=3, prompt_tokens=1000, completion_tokens=200, dollars=0.5)
UNPRICED = Usage(calls=1, prompt_tokens=10, completion_tokens=2, dollars=None)


def test_nothing_costs_nothing():
    assert total([]) == costs.of_calls([]) == Usage()


def test_a_total_is_the_sum():
    assert total([SPENT, SPENT]) == Usage(
        calls=6, prompt_tokens=2000, completion_tokens=400, dollars=1.0
    )


def test_a_total_with_an_unknown_price_is_unknown():
    assert total([SPENT, UNPRICED, SPENT]) == Usage(
        calls=7, prompt_tokens=2010, completion_tokens=402, dollars=None
    )


def test_a_night_has_spent_what_its_decided_trials_cost():
    state = make_state(make_trial(1, usage=SPENT), crash(2, usage=SPENT), make_trial(3))
    assert costs.of_night(state) == total([SPENT, SPENT])
    pending = dataclasses.replace(state, pending=make_trial(4, usage=SPENT))
    assert costs.of_night(pending) == total([SPENT] * 3)


def test_a_request_without_an_answer_costs_nothing():
    refused = make_call(
        outcome="unreachable", prompt_tokens=None, completion_tokens=None, dollars=None
    )
    assert costs.of_calls([make_call(), refused]) == Usage(
        calls=2, prompt_tokens=10_000, completion_tokens=500, dollars=0.025
    )


def test_an_answer_without_a_price_leaves_the_cost_unknown():
    assert costs.of_calls([make_call(), make_call(dollars=None)]).dollars is None


@pytest.mark.parametrize(
    ("proposer", "model"), [("llm", "m1"), ("mixed", "m1"), ("tpe", None), ("command", None)]
)
def test_only_a_night_that_asks_a_model_has_one(proposer, model):
    header = make_header(proposer=proposer, settings={"llm": {"model": "m1"}})
    assert header.model == model


def test_stand_ins_are_grouped_by_reason_the_most_frequent_first():
    dry = "trials in a row without a patch that can be run"
    reasons = (
        "rate_limited: HTTP 429: a",
        "the model is left alone for 30 s more after rate_limited: HTTP 429: b",
        "the model is left alone for 2 s more after rate_limited: HTTP 429: c",
        f"the model is left alone for 600 s more after 3 {dry}",
        f"the model is left alone for 599 s more after 4 {dry}",
        "the model is left alone for 8 s more after rate_limited: HTTP 429: d",
        "",
    )
    trials = [make_trial(k, stands_in=f"{why}") for k, why in enumerate(reasons, start=1)]
    found = [
        (why, [trial.number for trial in stood])
        for why, stood in costs.stand_ins([*trials, make_trial(8)])
    ]
    assert found == [
        ("the model is left alone after rate_limited: HTTP 429: b", [2, 3, 6]),
        (f"the model is left alone after 3 {dry}", [4, 5]),
        ("rate_limited: HTTP 429: a", [1]),
        ("", [7]),
    ]


@pytest.mark.parametrize(
    "trials", [(), (make_trial(1, usage=Usage(dollars=None)),), (make_trial(1, stands_in="x"),)]
)
def test_the_cost_of_an_agents_night_is_unknown(trials):
    assert costs.of_night(make_state(*trials, header={"proposer": "command"})) == Usage(
        dollars=None
    )


def test_keeps_are_counted_by_kind_and_a_knob_is_one():
    trials = [
        keep(1),
        keep(2, kind="optimizer"),
        keep(3, kind="optimizer"),
        keep(4, proposer="llm"),
        make_trial(5, kind="schedule"),
    ]
    assert list(costs.keeps_by_kind(trials).items()) == [
        ("optimizer", 2),
        ("knobs", 1),
        ("not said", 1),
    ]


@pytest.mark.parametrize(
    ("dollars", "said"),
    [
        (None, "unknown"),
        (0.0, "$0.00"),
        (1e-9, "under $0.0001"),
        (0.00123, "$0.0012"),
        (0.5, "$0.50"),
        (12.345, "$12.35"),
        (1e6, "$1,000,000.00"),
    ],
)
def test_money_has_the_digits_that_matter(dollars, said):
    assert text.money(dollars) == said
