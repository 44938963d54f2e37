"""What an audit asks about, and how much: that lies are met, by whoever tells them."""

import numpy as np
import pytest

from tasks.judge.audit import LAX, STRICT, Finding, Tolerance, draw
from tasks.judge.effort import FROM_ABOVE, HEAVIEST, MOST_TIMES, Effort

EFFORT = Effort(1024, STRICT.hits)


def losses(scatter=0.2):
    """Of 400 rows of 50: what is expected of the scored ones, and what a candidate predicts."""
    random = np.random.default_rng(2)
    scored = random.random((400, 50)) < 0.99
    expected = random.gamma(1.2, 2.5, (400, 50))
    honest = np.maximum(expected + random.laplace(0, scatter, (400, 50)), 0)
    return scored, expected[scored].astype(np.float32), honest.astype(np.float32)


def share_caught(
    claims, honest, scored, expected, effort: Effort, tolerance: Tolerance = STRICT, audits=60
):
    """The share of the audits that do not believe the claims."""
    caught = []
    odds = effort.odds(scored, claims, expected)
    for seed in range(audits):
        random = np.random.default_rng(seed)
        questions = draw(odds, effort.questions(odds), 16, random)
        nats = honest[questions.rows, questions.positions].astype(float)
        caught.append(Finding.of(questions, claims, nats, tolerance).problem(tolerance) is not None)
    return np.mean(caught)


def test_without_a_reference_the_odds_are_equal_and_all_positions_are_asked():
    scored, _, honest = losses()
    odds = EFFORT.odds(scored, honest, None)
    assert len(np.unique(odds[scored])) == 1
    assert (odds[~scored] == 0).all()
    assert EFFORT.questions(odds) == EFFORT.positions


def test_claims_exactly_as_expected_need_no_more_questions():
    scored, expected, honest = losses()
    honest[scored] = expected
    odds = EFFORT.odds(scored, honest, expected)
    assert (odds[scored] > 0).all()
    assert EFFORT.questions(odds) == EFFORT.positions


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.7, -0.1), (1.3, 0.4)])
def test_odds_are_how_far_a_claim_is_below_what_is_expected(scale, shift):
    """Also for a model that is better or worse on the whole."""
    scored, expected, honest = losses()
    claims = scale * honest + shift
    lies = tuple(np.argwhere(scored & (honest > 8))[:9].T)
    for lie in (2.0, 4.0):
        lied = claims.copy()
        lied[lies] -= scale * lie
        odds = EFFORT.odds(scored, lied.astype(np.float32), expected)
        assert odds[lies].mean() == pytest.approx(scale * lie, rel=0.25)


@pytest.mark.parametrize("scatter", [0.05, 0.2, 0.8])
@pytest.mark.parametrize("positions", [256, 1024, 4096])
def test_no_answer_stands_for_more_than_its_share_allows(scatter, positions):
    scored, expected, honest = losses(scatter)
    odds = Effort(positions, STRICT.hits).odds(scored, honest, expected)[scored]
    assert odds.mean(dtype=float) / odds.min() <= HEAVIEST * 1.001


@pytest.mark.parametrize("wild", [0.0, 1e-30, 3e38])
def test_wild_claims_have_finite_odds(wild):
    scored, expected, honest = losses()
    for claims in (np.full_like(honest, wild), np.where(honest > 9, np.float32(wild), honest)):
        odds = EFFORT.odds(scored, claims, expected)
        assert np.isfinite(odds).all()
        assert (odds[scored] > 0).all()
        assert EFFORT.questions(odds) <= MOST_TIMES * EFFORT.positions
        assert len(draw(odds, 100, 4, np.random.default_rng(0)).rows) == 100


def test_a_model_unlike_the_baseline_is_asked_more_and_only_so_much_more():
    """As many as meet the same number of lies as with a model that is like it."""
    asked = []
    for scatter in (0.05, 0.2, 0.8, 20.0):
        scored, expected, honest = losses(scatter)
        asked.append(EFFORT.questions(EFFORT.odds(scored, honest, expected)))
    assert asked[0] == EFFORT.positions
    assert asked[1] <= 1.1 * EFFORT.positions
    assert 1.5 * EFFORT.positions < asked[2] <= asked[3] == MOST_TIMES * EFFORT.positions


def test_where_some_answers_may_be_off_more_lies_are_met():
    scored, expected, honest = losses(0.8)
    strict, lax = (Effort(4096, tolerance.hits) for tolerance in (STRICT, LAX))
    asked = [effort.questions(effort.odds(scored, honest, expected)) for effort in (strict, lax)]
    assert asked[1] > 1.3 * asked[0]


@pytest.mark.parametrize("scatter", [0.2, 0.8])
@pytest.mark.parametrize("where", ["at random", "where it costs most"])
def test_few_large_lies_are_met(where, scatter):
    """A debt of 0.002 nats that equal odds miss in most audits of 1024 positions."""
    scored, expected, honest = losses(scatter)
    told = round(0.002 * scored.sum() / 6)
    order = np.argsort(-np.where(scored, honest, 0), axis=None)
    if where == "at random":
        possible = int((scored & (honest > 6)).sum())
        order = np.random.default_rng(0).permutation(order[:possible])
    claims = honest.copy()
    claims.reshape(-1)[order[:told]] -= 6
    assert share_caught(claims, honest, scored, expected, EFFORT) >= 0.95


@pytest.mark.parametrize("scatter", [0.2, 0.8])
def test_lies_down_to_what_is_expected_are_met_too(scatter):
    """By a cheat that knows the reference to the last digit, where its own model is worse."""
    scored, expected, honest = losses(scatter)
    effort = Effort(2304, STRICT.hits)
    worse = honest[scored] - expected
    order = np.argsort(-worse)
    told = order[: int(np.searchsorted(worse[order].cumsum(), 0.002 * len(order))) + 1]
    claimed, claims = honest[scored], honest.copy()
    claimed[told] = expected[told]
    claims[scored] = claimed
    assert share_caught(claims, honest, scored, expected, effort) >= 0.9
    odds = effort.odds(scored, claims, expected)[scored]
    assert odds[told].mean() > 1.2 * odds.mean() * FROM_ABOVE
