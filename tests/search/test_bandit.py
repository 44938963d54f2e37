"""What the bandit says of contenders whose true worth is known: simulated nights, seeded."""

import dataclasses
import functools

import numpy as np
import pytest

from tasks.search import bandit
from tasks.search.bandit import Pull
from tasks.usage import Usage
from tests.trials import crash, keep, make_trial

NAMES = ("a", "b")


@dataclasses.dataclass(frozen=True)
class Arm:
    """How often a contender's idea is kept, and what such an idea gains."""

    rate: float
    size: float = 0.01  # bits per byte, mean

    def pull(self, chance: np.random.Generator, share: float) -> Pull:
        """A trial; `share` of its gain is left. Gains have a long tail, keeps take more runs."""
        cost = 0.1 * chance.uniform(0.9, 1.1)
        if chance.random() >= self.rate:
            return Pull(0.0, cost * (1.4 if chance.random() < 0.3 else 1.0))
        return Pull(share * self.size * chance.lognormal(-0.5, 1.0), cost * chance.integers(2, 5))

    @property
    def worth(self) -> float:
        return self.rate * self.size / (0.1 * (self.rate * 3 + (1 - self.rate) * 1.12))


@functools.cache
def night(arms: tuple[Arm, ...], trials: int, seed: int) -> dict[str, list[Pull]]:
    """The record of a night: each keep leaves a little less to gain for those after it."""
    chance, left = np.random.default_rng(seed), 1.0
    record: dict[str, list[Pull]] = {name: [] for name in "abcdefgh"[: len(arms)]}
    of = dict(zip(record, arms, strict=True))
    for turn in range(trials):
        turns = {name: len(pulls) for name, pulls in record.items()}
        name = bandit.order(record, turns, f"{seed}/{turn}")[0]
        pull = of[name].pull(chance, left)
        left *= 0.97 if pull.gain else 1.0
        record[name].append(pull)
    return record


def nights(arms: tuple[Arm, ...], trials: int, count: int) -> list[dict[str, list[Pull]]]:
    return [night(arms, trials, seed) for seed in range(count)]


def test_the_better_one_gets_more_trials_and_nobody_less_than_its_floor():
    found = nights((Arm(0.3), Arm(0.1)), 60, 60)
    shares = [len(record["a"]) / 60 for record in found]
    assert np.mean(shares) > 0.58
    floor = 60 * bandit.FLOOR / 2
    assert min(len(pulls) for record in found for pulls in record.values()) >= floor - 1
    said = [bandit.chances(record)["a"] for record in found]
    assert np.mean(said) > 0.7
    assert min(said) > 0.05  # none is decided for the worse one


def test_each_contender_has_its_first_rounds_before_any_is_preferred():
    for record in nights((Arm(0.3), Arm(0.1), Arm(0.1)), 6, 10):
        assert [len(pulls) for pulls in record.values()] == [2, 2, 2]


def test_equal_contenders_are_seldom_told_apart():
    said = np.array(
        [bandit.chances(record)["a"] for record in nights((Arm(0.2), Arm(0.2)), 120, 100)]
    )
    assert abs(said.mean() - 0.5) < 0.1
    assert np.mean(np.maximum(said, 1 - said) >= bandit.DECIDED) <= 0.1


@pytest.mark.parametrize("trials", [24, 80])
def test_what_is_said_with_a_probability_is_as_often_true(trials):
    """Contenders as they may be: rates from a beta distribution, sizes from a lognormal one."""
    said, true = [], []
    for seed in range(400):
        made = np.random.default_rng(10_000 + seed)
        arms = tuple(Arm(made.beta(2, 10), 0.01 * made.lognormal(0, 0.5)) for _ in NAMES)
        chances = bandit.chances(night(arms, trials, seed))
        best = max(chances, key=lambda name: chances[name])
        said.append(chances[best])
        true.append(arms[NAMES.index(best)].worth == max(arm.worth for arm in arms))
    for low, high in ((0.5, 0.7), (0.7, 0.85), (0.85, 1.0)):
        those = [(p, is_true) for p, is_true in zip(said, true, strict=True) if low <= p < high]
        if len(those) >= 50:
            claimed, found = np.mean(those, axis=0)
            assert abs(claimed - found) < 0.08, (low, len(those), claimed, found)
    assert abs(np.mean(said) - np.mean(true)) < 0.04


def test_a_difference_that_is_large_and_seen_often_is_decided():
    record = {
        "a": [Pull(0.01 if i % 3 == 0 else 0.0, 0.1) for i in range(150)],
        "b": [Pull(0.01 if i % 30 == 0 else 0.0, 0.1) for i in range(150)],
    }
    assert bandit.chances(record)["a"] >= bandit.DECIDED
    few = {name: pulls[:6] for name, pulls in record.items()}
    assert 0.5 < bandit.chances(few)["a"] < 0.8


def test_a_contender_that_costs_more_for_the_same_gain_is_worse():
    record = {"a": [Pull(0.01, 0.1)] * 9, "b": [Pull(0.01, 0.3)] * 9}
    assert bandit.chances(record)["a"] > 0.9


@pytest.mark.parametrize("record", [{"a": [], "b": []}, {"a": [Pull(0, 0)], "b": [Pull(0, 0)]}])
def test_nothing_known_is_nothing_said(record):
    assert bandit.chances(record)["a"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("chance", "trials", "more"),
    [(0.96, 40, 0), (0.9, 40, 26), (0.71, 40, 314), (0.68, 40, None), (0.5, 40, None)],
)
def test_how_many_trials_more_would_decide(chance, trials, more):
    assert bandit.more_trials(chance, trials) == more


KEPT = {"contender": "a", "wall_seconds": 3600.0}


def gain(trial, to_beat=1.65, **more):
    return bandit.gain(trial, {trial.number: to_beat}, **more)


def test_the_searchs_gain_counts_less_the_luck_that_is_expected_in_it():
    assert gain(keep(1, 1.6, z=2.0)) == pytest.approx(0.05 * 0.75)
    assert gain(keep(1, 1.6, z=0.8)) == gain(keep(1, 1.66, z=3.0)) == 0.0
    assert gain(make_trial(1, val_bpb=1.6)) == gain(crash(1)) == 0.0
    assert gain(keep(1, 1.6), shown={1: 0.01}) == 0.01
    assert gain(keep(1, 1.6), shown={1: -0.01}) == 0.0
    assert gain(keep(1, 1.6, z=2.0), shown={2: 0.01}) == pytest.approx(0.0375)


def test_costs_are_hours_and_dollars_and_a_stand_ins_trial_is_nobodys():
    trials = (
        keep(1, 1.6, z=2.0, **KEPT, usage=Usage(1, 0, 0, 0.5)),
        make_trial(2, **KEPT | {"wall_seconds": 1800.0}),
        make_trial(3, **KEPT, stands_in="the model is down"),
        make_trial(4, status="rejected_patch", contender="b", val_bpb=None, z=None),
        make_trial(5, wall_seconds=60.0),  # nobody's: a search of the night's own
    )
    beaten = {1: 1.65}
    record = bandit.record_of(("a", "b"), trials, beaten)
    costs = {name: [pull.cost for pull in pulls] for name, pulls in record.items()}
    assert costs == {"a": [1.0, 0.5], "b": [0.5]}
    assert record["a"][0].gain == pytest.approx(0.0375)
    priced = bandit.record_of(("a", "b"), trials, beaten, machine_price=2.0)
    assert priced["a"][0].cost == pytest.approx(1.25)
