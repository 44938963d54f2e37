"""What the surrogate learns from made-up records whose truth is known."""

import math

import numpy as np
import pytest

from tasks.records import Estimate
from tasks.search.surrogate import (
    LEAST_SCORED,
    MOST_SCORED,
    Features,
    Surrogate,
    Tried,
    expected_improvement,
)

SD = 0.004


def record(count: int, seed: int = 0, *, kinds=(0.01, -0.01), slope=0.0) -> list[Tried]:
    """Two kinds, a and b, with these mean gains; and estimates that tell the rest by `slope`."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(count):
        kind, own = i % 2, random.normal(0, 0.01)
        gain = kinds[kind] + slope * own + random.normal(0, SD)
        estimate = Estimate(0.05 + 5 * own, 0.05)
        parts = frozenset({f"part{random.integers(5)}"})
        found.append(Tried(Features("ab"[kind], 10, parts, estimate), float(gain)))
    return found


def best(surrogate: Surrogate, *candidates: Features) -> int:
    scores = [each.score for each in surrogate.expect(candidates)]
    return scores.index(max(scores))


def test_before_there_is_a_record_the_estimates_decide_and_then_the_order():
    surrogate = Surrogate(record(LEAST_SCORED - 1), SD)
    assert best(surrogate, Features(), Features(estimate=Estimate(0.02, 0.004))) == 1
    assert best(surrogate, Features("a"), Features("a"), Features("a")) == 0


def test_the_better_kind_is_run_next_and_its_gain_is_about_right():
    surrogate = Surrogate(record(30), SD)
    a, b = surrogate.expect([Features("a", 10), Features("b", 10)])
    assert a.score > b.score
    assert a.gain == pytest.approx(0.01, abs=0.004)
    assert b.gain < 0


def test_a_part_that_pays_is_touched_again():
    found = [
        Tried(Features("a", 10, frozenset({part})), 0.01 if part == "attention" else -0.01)
        for part in ("attention", "mlp") * 8
    ]
    surrogate = Surrogate(found, SD)
    mlp, attention = (Features("a", 10, frozenset({part})) for part in ("mlp", "attention"))
    assert best(surrogate, mlp, attention) == 1


def test_estimates_are_believed_as_far_as_they_came_true():
    high, low = (Features("a", 10, estimate=Estimate(gain, 0.05)) for gain in (0.15, -0.05))

    def between(slope: float) -> float:
        above, below = Surrogate(record(100, slope=slope, kinds=(0, 0)), SD).expect([high, low])
        return above.gain - below.gain

    told, useless = between(1.0), between(0.0)
    assert told == pytest.approx(0.2 / 5, rel=0.35)  # they are five times too high
    assert abs(useless) < 0.3 * told


def test_candidates_that_fail_cost_their_kind_its_turn():
    failing = [Tried(Features("broken"), None) for _ in range(8)]
    surrogate = Surrogate([*record(10, kinds=(0, 0)), *failing], SD)
    assert best(surrogate, Features("broken", 10), Features("new", 10)) == 1


def test_a_trial_that_fails_early_is_cheap():
    scored = [Tried(one.features, one.gain, seconds=100.0) for one in record(10)]
    dear, cheap = (
        Surrogate([*scored, *(Tried(Features("x"), None, seconds=s) for _ in range(5))], SD)
        for s in (1000.0, 1.0)
    )
    assert cheap.expect([Features("x")])[0].score > dear.expect([Features("x")])[0].score


def test_it_is_the_same_each_time_and_does_not_depend_on_what_else_waits():
    candidates = [Features("a", 3), Features("b", 40), Features(None, 0)]
    first = Surrogate(record(20), SD).expect(candidates)
    assert first == Surrogate(record(20), SD).expect(candidates)
    alone = [Surrogate(record(20), SD).expect([one])[0] for one in candidates]
    assert [one.score for one in alone] == pytest.approx([one.score for one in first], rel=1e-9)


def test_of_a_long_record_the_latest_count():
    early = record(50, kinds=(-0.02, 0.02))
    late = record(MOST_SCORED, kinds=(0.02, -0.02))
    candidates = [Features("a", 10), Features("b", 10)]
    long, short = (Surrogate(found, SD).expect(candidates) for found in ([*early, *late], late))
    assert [each.gain for each in long] == [each.gain for each in short]


@pytest.mark.parametrize("scores", [[0.0] * 5, [1e-9, -1e-9] * 3, [1e6, -1e6, 1.0, 0.0]])
def test_no_record_makes_it_say_what_is_no_number(scores):
    found = [Tried(Features("a", estimate=Estimate(0.1, 0.1)), gain) for gain in scores]
    for each in Surrogate(found, SD).expect([Features("a"), Features("b", 10**6)]):
        assert all(map(math.isfinite, (each.gain, each.sd, each.score)))
        assert each.sd > 0


def test_expected_improvement_is_that_of_a_normal_number():
    random = np.random.default_rng(0).normal(0.3, 0.7, 400_000)
    assert expected_improvement(0.3, 0.7) == pytest.approx(np.maximum(random, 0).mean(), rel=0.01)
