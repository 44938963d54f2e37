"""What a night cost, as sums: an unknown price is never taken for nothing."""

import dataclasses

import pytest

from tasks import costs
from tasks.records import Usage
from tests.trials import crash, keep, make_call, make_state, make_trial

SPENT = Usage(calls=3, prompt_tokens=1000, completion_tokens=200, dollars=0.5)
UNPRICED = Usage(calls=1, prompt_tokens=10, completion_tokens=2, dollars=None)


def test_nothing_costs_nothing():
    assert costs.total([]) == costs.of_calls([]) == Usage()


def test_a_total_is_the_sum():
    assert costs.total([SPENT, SPENT]) == Usage(calls=6, prompt_tokens=2000, completion_tokens=400, dollars=1.0)


def test_a_total_with_an_unknown_price_is_unknown():
    assert costs.total([SPENT, UNPRICED, SPENT]) == Usage(calls=7, prompt_tokens=2010, completion_tokens=402, dollars=None)


def test_a_night_has_spent_what_its_decided_trials_cost():
    state = make_state(make_trial(1, usage=SPENT), crash(2, usage=SPENT), make_trial(3))
    assert costs.of_night(state) == costs.total([SPENT, SPENT])
    pending = dataclasses.replace(state, pending=make_trial(4, usage=SPENT))
    assert costs.of_night(pending) == costs.total([SPENT] * 3)


def test_a_request_without_an_answer_costs_nothing():
    refused = make_call(outcome="unreachable", prompt_tokens=None, completion_tokens=None, dollars=None)
    assert costs.of_calls([make_call(), refused]) == Usage(calls=2, prompt_tokens=10_000, completion_tokens=500, dollars=0.025)


def test_an_answer_without_a_price_leaves_the_cost_unknown():
    assert costs.of_calls([make_call(), make_call(dollars=None)]).dollars is None


@pytest.mark.parametrize(("proposer", "model"), [("llm", "m1"), ("mixed", "m1"), ("tpe", None), ("command", None)])
def test_only_a_night_that_asks_a_model_has_one(proposer, model):
    assert costs.model({"proposer": proposer, "settings": {"llm": {"model": "m1"}}}) == model


def test_an_old_ledger_knows_no_model():
    assert costs.model({"proposer": "llm"}) is None
    assert costs.settings({"proposer": "llm"}) == {}


@pytest.mark.parametrize(
    ("note", "stood_in"),
    [
        (None, False),
        ("proposed by tpe: the night has used 9 of 8 tokens", True),
        ("asked again: it did not fit; proposed by tpe: timeout", True),
        ("made against champion 0123456 and carried over to 89abcde", False),
    ],
)
def test_a_stand_in_is_told_by_its_note(note, stood_in):
    assert costs.stood_in(make_trial(note=note)) is stood_in


def test_keeps_are_counted_by_kind_and_a_knob_is_one():
    trials = [
        keep(1),
        keep(2, kind="optimizer"),
        keep(3, kind="optimizer"),
        keep(4, proposer="llm"),
        make_trial(5, kind="schedule"),
    ]
    assert list(costs.keeps_by_kind(trials).items()) == [("optimizer", 2), ("knobs", 1), ("not said", 1)]


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
def test_money_is_said_as_it_matters(dollars, said):
    assert costs.money(dollars) == said
