"""Which trials are placebos, with which seeds, and what becomes of their verdicts."""

import itertools

import pytest

from tasks.records import Candidate, Verdict
from tasks.trial import placebo


def numbers(seed: int, share: float, count: int = 1000) -> list[int]:
    return [number for number in range(1, count + 1) if placebo.is_due(number, seed, share)]


@pytest.mark.parametrize("seed", range(5))
def test_one_trial_of_25_is_at_a_place_that_the_nights_seed_chooses(seed):
    found = numbers(seed, 0.04)
    assert [(number - 1) // 25 for number in found] == list(range(40))
    assert len({number % 25 for number in found}) > 5
    assert found != numbers(seed + 1, 0.04)


def test_a_short_night_has_none():
    assert not any(numbers(seed, 0.04, 12) for seed in range(200))


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 0), (0.001, 1), (0.1, 100), (0.3, 300), (0.4, 400), (0.5, 500)]
)
def test_any_share_is_kept_and_two_never_follow_one_another(share, expected):
    found = numbers(3, share)
    assert len(found) == expected
    assert all(later - earlier > 1 for earlier, later in itertools.pairwise(found))


def test_it_is_the_champion_and_says_so():
    proposed = placebo.proposal(Candidate.parse("A = 1\n"))
    assert proposed.candidate.source == "A = 1\n"
    assert proposed.idea.summary == "placebo: the champion unchanged"
    assert placebo.is_placebo(proposed)


@pytest.mark.parametrize(
    ("said", "end"), [("keep", ": a false keep"), ("discard", ": rightly not kept")]
)
def test_it_is_never_kept_whatever_the_rule_says(said, end):
    decided = placebo.never_kept(Verdict(said, "better by 0.1: kept", 3.1))
    reason = f"better by 0.1: kept; a placebo, the champion unchanged{end}"
    assert decided == Verdict("discard", reason, 3.1)


def test_one_without_a_score_is_neither_right_nor_wrong():
    decided = placebo.never_kept(Verdict("discard", "stopped: too slow"))
    assert decided.reason == "stopped: too slow; a placebo, the champion unchanged"
