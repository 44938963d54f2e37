"""The audit's arithmetic: what is asked, that no answer is given away, what a difference costs."""

import dataclasses
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.judge.audit import LAX, STRICT, Finding, Questions, calibrate, cross_entropy, draw
from tasks.judge.protocol import Stopped


def every(questions: Questions) -> int:
    return int(questions.counted.sum())


@given(
    R=st.integers(1, 40),
    T=st.integers(1, 12),
    count=st.integers(1, 200),
    batch_rows=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_no_counted_target_was_shown_before_it_was_asked(R, T, count, batch_rows, seed):
    random = np.random.default_rng(seed)
    questions = draw(random.random((R, T)) < 0.8, count, batch_rows, random)
    shown: set[int] = set()  # places in the stream: row r holds r*T ... r*T+T
    assert questions.batch_rows <= batch_rows
    for first in range(0, len(questions.rows), questions.batch_rows):
        members = range(first, min(first + questions.batch_rows, len(questions.rows)))
        for k in range(questions.positions.shape[1]):
            starts = [int(questions.rows[i]) * T for i in members]
            ends = [
                start + int(questions.positions[i, k])
                for start, i in zip(starts, members, strict=True)
            ]
            for start, end in zip(starts, ends, strict=True):
                shown.update(range(start, end + 1))
            for end, i in zip(ends, members, strict=True):
                assert end + 1 not in shown or not questions.counted[i, k]


@given(
    R=st.integers(1, 40),
    T=st.integers(1, 12),
    count=st.integers(1, 200),
    seed=st.integers(0, 2**32),
)
def test_rows_and_positions_are_drawn_without_replacement(R, T, count, seed):
    random = np.random.default_rng(seed)
    scored = random.random((R, T)) < 0.8
    questions = draw(scored, count, 4, random)
    assert len(set(questions.rows)) == len(questions.rows) == min(R, count)
    assert (np.diff(questions.positions, axis=1) > 0).all()
    assert every(questions) <= count
    asked = questions.counted.nonzero()
    assert scored[questions.rows[asked[0]], questions.positions[asked]].all()


def test_every_scored_target_is_asked_about_equally_often():
    random, hits, scored = np.random.default_rng(0), np.zeros((30, 8)), np.ones((30, 8), bool)
    scored[:, 3] = False
    for _ in range(2000):
        questions = draw(scored, 60, 4, random)
        np.add.at(hits, (questions.rows[:, None], questions.positions), questions.counted)
    assert (hits[:, 3] == 0).all()
    usual = hits[:, [0, 1, 2, 4, 5, 6]]
    assert usual.min() > 0.8 * usual.mean()
    # The next row begins with it, so it counts only if that row is asked later.
    assert hits[:, 7].min() > 0.3 * usual.mean()


@pytest.mark.parametrize(("R", "T", "count"), [(30, 8, 60), (200, 3, 60), (2, 16, 20), (9, 1, 9)])
def test_the_answers_stand_for_each_scored_target_alike(R, T, count):
    """On average for one, wherever it is and whatever else its row has, as in the score."""
    random, stood_for = np.random.default_rng(0), np.zeros((R, T))
    scored = random.random((R, T)) < 0.9
    scored[0, 2:] = scored[-1, T // 2 + 1 :] = False
    for _ in range(3000):
        questions = draw(scored, count, 4, random)
        np.add.at(stood_for, (questions.rows[:, None], questions.positions), questions.weights)
    assert (stood_for[~scored] == 0).all()
    assert stood_for[scored] / 3000 == pytest.approx(1.0, abs=0.25)
    assert stood_for[scored].mean() / 3000 == pytest.approx(1.0, abs=0.02)


def test_the_last_target_of_a_row_counts_though_a_batch_could_hold_all_rows():
    random, last = np.random.default_rng(0), np.zeros(30)
    for _ in range(400):
        questions = draw(np.ones((30, 4), bool), 120, 1000, random)
        last[questions.rows] += questions.counted[:, 3]
    assert last.min() > 0.25 * 400


def test_the_order_of_the_questions_is_random():
    orders = {
        tuple(draw(np.ones((8, 4), bool), 8, 2, np.random.default_rng(seed)).rows)
        for seed in range(50)
    }
    assert len(orders) > 45


def test_losses_are_those_of_the_logits():
    logits = np.array([[0, 0], [0, np.log(3)], [3e38, -3e38]], np.float32)
    assert cross_entropy(logits, np.array([0, 1, 0])) == pytest.approx(
        [np.log(2), np.log(4 / 3), 0.0]
    )


@pytest.mark.parametrize(
    "logits", [[0, np.nan], [0, np.inf], [np.nan, 0], [np.inf, 0], [-np.inf, 0], [-np.inf] * 2]
)
def test_logits_without_a_finite_loss_fail_the_audit(logits):
    with pytest.raises(Stopped, match="not finite") as stopped:
        cross_entropy(np.array([[0, 1], logits], np.float32), np.array([0, 0]))
    assert stopped.value.status == "audit_failed"


def test_a_logit_of_minus_infinity_rules_a_token_out():
    logits = np.array([[0, -np.inf, np.log(3)], [-np.inf, 7, -np.inf]], np.float32)
    assert cross_entropy(logits, np.array([0, 1])) == pytest.approx([np.log(4), 0.0])


@pytest.fixture
def asked():
    """Questions about all 4000 targets of some rows, and honest losses."""
    random = np.random.default_rng(1)
    questions = draw(np.ones((100, 40), bool), 4000, 8, random)
    nats = random.gamma(2.0, 1.5, size=(100, 40))
    return questions, nats


def found(asked, thefts, tolerance=STRICT):
    questions, nats = asked
    claims = (nats - thefts).astype(np.float32)
    ordered = np.take_along_axis(nats[questions.rows], questions.positions, axis=1)
    return Finding.of(questions, claims, ordered, tolerance)


def test_an_honest_claim_has_no_gap(asked):
    finding = found(asked, 0.0)
    assert finding.problem(STRICT) is None
    assert finding.gap == 0.0
    assert abs(finding.worst) < 1e-6
    assert finding.asked == every(asked[0]) > 3900


def test_one_stolen_position_fails_on_a_cpu(asked):
    theft = np.zeros((100, 40))
    theft[17, 5] = 0.3
    finding = found(asked, theft)
    assert finding.off == 1
    assert "1 of" in finding.problem(STRICT)


def test_a_mean_above_the_tolerance_fails_though_no_position_does(asked):
    assert found(asked, 0.0009).problem(STRICT) is not None
    assert found(asked, 0.0009, LAX).problem(LAX) is None
    assert found(asked, 0.0009, LAX).gap == pytest.approx(0.0009, abs=1e-6)  # added to the score


def test_a_model_that_learns_from_the_questions_is_judged_by_the_early_ones(asked):
    questions, nats = asked
    # In the order of asking: worse early, better late.
    learnt = np.linspace(-0.004, 0.004, len(questions.rows))[:, None]
    ordered = np.take_along_axis(nats[questions.rows], questions.positions, axis=1) - learnt
    finding = Finding.of(questions, nats.astype(np.float32), ordered, STRICT)
    assert finding.gap == pytest.approx(0.003, rel=0.1)
    assert finding.problem(STRICT) is not None


def test_claims_that_are_too_high_pass(asked):
    assert found(asked, -0.5).problem(STRICT) is None


@pytest.mark.parametrize(("tolerance", "theft"), [(STRICT, 0.00995), (LAX, 0.249)])
@pytest.mark.parametrize("R", [2, 40])
def test_a_debt_is_not_repaid_on_a_short_row_that_is_asked_whole(R, tolerance, theft):
    scored = np.ones((R, 4096), bool)
    scored[-1, 40:] = False
    thefts = np.full(scored.shape, theft)
    # As much as makes the unweighted mean of all answers 0.
    asked_whole, others = min(40, 4096 // R), (R - 1) * (4096 // R)
    thefts[-1] = -theft * others / asked_whole
    claims = (25.0 - thefts).astype(np.float32)
    for seed in range(20):
        questions = draw(scored, 4096, 16, np.random.default_rng(seed))
        nats = np.full(questions.positions.shape, 25.0)
        assert Finding.of(questions, claims, nats, tolerance).problem(tolerance) is not None


@pytest.mark.parametrize("tolerance", [STRICT, LAX])
def test_a_claim_that_is_too_high_pays_for_no_more_than_rounding(asked, tolerance):
    debt = 0.9 * tolerance.position
    repaid = np.random.default_rng(3).random((100, 40)) < 0.01
    finding = found(asked, np.where(repaid, -200 * debt, debt), tolerance)
    assert finding.gap == pytest.approx(debt, rel=0.1)
    assert finding.problem(tolerance) is not None


def test_claims_that_scatter_so_that_chance_could_hide_a_debt_are_not_believed(asked):
    """Their mean is 0 here; with other questions it would not be."""
    questions, nats = asked
    sampled = dataclasses.replace(questions, weights=20 * questions.weights)
    for scatter, problem in ((0.005, None), (0.045, "chance could hide")):
        thefts = np.resize([scatter, -scatter], (100, 40))
        finding = found((sampled, nats), thefts, LAX)
        assert finding.off == 0
        assert finding.gap <= LAX.gap
        assert problem in (finding.problem(LAX) or (None,))


def test_the_reason_names_what_was_claimed_and_what_is_allowed(asked):
    reason = found(asked, 0.02).problem(STRICT)
    assert "claimed 0.02 nats per token less" in reason
    assert "allowed 0.0001" in reason


def test_a_baseline_without_noise_gives_the_strictest_tolerance():
    assert calibrate([1e-8, -3e-8, 0.0], [8e-7, 2e-7, 5e-7]) == STRICT
    assert STRICT.allowed(4096) == 0


def test_a_noisy_baseline_gives_a_wider_tolerance_up_to_a_limit():
    assert astuple(calibrate([2e-5, -3e-5], [0.004, 0.002])) == pytest.approx((3e-4, 0.04))
    assert calibrate([0.1], [3.0]) == LAX
    assert LAX.allowed(4096) == 16


def test_rows_without_a_target_to_score_are_our_failure():
    questions = draw(np.zeros((3, 4), bool), 8, 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no position"):
        Finding.of(questions, np.zeros((3, 4), np.float32), np.zeros((3, 2)), STRICT)
