import dataclasses

import pytest

from tasks.records import Estimate, NightSoFar, Proposal
from tasks.search import expectation, stacking
from tasks.search.expectation import Measured
from tasks.search.stacking import Stacking
from tests.small_night import BASE, SD, after, changed, resumed, start, taken

LOSS = ("return x * DECAY", "return abs(x) * DECAY")
ATTEND = ("return q * DEPTH", "return (q + 1) * DEPTH")
FASTER = ("LR = 0.1", "LR = 0.3")
MAIN = ("    return LR\n", "    return LR + 1\n")
LOAD = ("def load_model(path, device):\n", "def load_model(path, device):\n    print(path)\n")


def with_misses(folder) -> NightSoFar:
    """A record of bad ideas, of which nothing is expected."""
    night = start(folder)
    for n, gain in enumerate((-2, -3, -9, -1)):
        bad = changed(BASE, ("def main():\n    step_0 = 0\n", f"def main():\n    bad = {n}\n"))
        night = after(night, bad, gain)
    return night


@pytest.fixture
def near(tmp_path) -> NightSoFar:
    """Trial 5 is a near miss, 6 a keep, 7 and 8 near misses against that."""
    night = after(with_misses(tmp_path), changed(BASE, LOSS), 1.0)
    champion = changed(BASE, MAIN)
    night = after(night, champion, 1.5, keep=True)
    night = after(night, changed(champion, ATTEND), 1.1)
    return after(night, changed(champion, FASTER), 0.9)


def propose(night: NightSoFar) -> Proposal:
    proposed = Stacking().propose(night)
    assert proposed is not None
    return proposed


def test_near_misses_are_merged_onto_todays_champion(near):
    proposed = propose(near)
    assert proposed.candidate.source == changed(BASE, LOSS, MAIN, ATTEND, FASTER)
    assert proposed.idea.built_on == (5, 7, 8)
    assert (proposed.idea.search, proposed.idea.kind) == ("stack", "combination")
    assert proposed == propose(resumed(near))


def test_a_stack_that_failed_is_halved_and_never_repeated(near):
    night, tried = near, list[set[int]]()
    while proposed := Stacking().propose(night):
        group = set(proposed.idea.built_on)
        assert not [other for other in tried if 2 * len(group & other) > len(other) + 1]
        tried.append(group)
        night = taken(night, proposed, 1.0)  # not kept, though no worse either
    assert tried[0] == {5, 7, 8}
    assert len(tried) > 1
    night = taken(near, propose(near), 1.0)
    night = after(night, changed(night.champion.source, LOAD), 2.5)
    again = set(propose(night).idea.built_on)  # with a new near miss
    assert 10 in again
    assert len(again) == 3


def test_a_bad_stack_speaks_against_its_parts_and_a_crash_only_against_the_whole(near):
    assert Stacking().propose(taken(near, propose(near), -4.0)) is None
    assert len(propose(taken(near, propose(near), None)).idea.built_on) == 2


def test_what_a_kept_stack_brought_is_no_near_miss_any_more(near):
    night = taken(near, propose(near), 1.0, keep=True)
    assert Stacking().propose(night) is None
    without = changed(BASE, MAIN)  # nor when it was taken out again
    night = after(night, without, 0.1, keep=True, search="ablation", built_on=(9,), runs=4)
    assert Stacking().propose(night) is None


def test_what_the_champion_has_got_by_another_trial_is_not_stacked(near):
    night = after(near, changed(near.champion.source, ATTEND, LOAD), 0.2, keep=True)
    assert propose(night).idea.built_on == (5, 8)


def test_no_stack_is_made_while_one_trains(near):
    waiting = dataclasses.replace(near, in_flight=propose(near))
    assert Stacking().propose(waiting) is None


def test_changes_that_conflict_or_contain_one_another_are_not_stacked(near):
    same_place = changed(near.champion.source, ("return q * DEPTH", "return (q - 1) * DEPTH"))
    night = after(near, same_place, 2.0)
    assert propose(night).idea.built_on == (5, 8, 9)  # for 7, which expects less
    both = changed(near.champion.source, FASTER, LOAD)
    night = after(near, both, 2.0, search="archive", built_on=(8,))
    assert propose(night).idea.built_on == (5, 7, 9)


def test_scores_from_before_a_change_of_the_machine_count_for_nothing(near):
    assert Stacking().propose(dataclasses.replace(near, first_comparable=7)) is None


def test_a_stack_that_was_tried_under_another_name_gives_way_to_a_smaller_one(near):
    night = taken(near, dataclasses.replace(propose(near), idea=near.trials[0].idea), -1.0)
    assert len(propose(night).idea.built_on) == 2


def test_while_proposals_bring_more_no_run_is_spent_on_a_stack(near):
    night = near
    for n in range(6):
        better = changed(night.champion.source, (f"DEPTH = {n + 3}", f"DEPTH = {n + 4}"))
        night = after(night, better, 8.0, keep=True)
    assert Stacking().propose(night) is None


def test_what_is_expected_of_a_change_lies_between_the_record_and_its_score():
    before = Estimate(0.0, 1.0)
    alone = expectation.posterior([Measured((1,), 1.0, 1.0)], before)
    assert alone[1].gain == pytest.approx(0.5)
    assert alone[1].sd == pytest.approx(0.5**0.5)
    # A sum of two with noise as large as it: each gets a third of what is left to explain.
    both = expectation.posterior([Measured((1, 2), -3.0, 1.0)], before)
    assert both[1] == both[2]
    assert both[2].gain == pytest.approx(-1.0)


def test_a_few_disasters_do_not_make_small_gains_likely():
    def found(*gains: float) -> float:
        measured = [Measured((n,), gain * SD, SD) for n, gain in enumerate(gains, 1)]
        before = expectation.prior(measured, SD)
        assert before is not None
        return expectation.posterior(measured, before)[1].gain

    assert found(1.0, -1, -0.5, -1, 0.2, -2) == pytest.approx(found(1.0, -1, -0.5, -1, 0.2, -900))
    assert expectation.prior([Measured((1,), SD, SD)] * 3, SD) is None


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ({1: 0.5, 2: 0.6, 3: -0.1}, (1, 2)),
        ({1: 0.5, 3: -0.1}, None),  # one alone is no stack
        ({1: 0.01, 2: 0.01}, None),  # not worth a run
        ({n: 1.0 - n / 100 for n in range(1, 8)}, (1, 2, 3, 4, 5)),
    ],
)
def test_a_stack_is_of_the_most_promising_and_has_a_limit(gains, chosen):
    expected = {number: Estimate(gain * SD, 0.1 * SD) for number, gain in gains.items()}
    assert stacking.choose(expected, lambda group: False, [], SD) == chosen


def test_statements_that_a_stack_adds_must_pay():
    gain = Estimate(SD, SD / 2)
    assert stacking.value(gain, SD, 60) < stacking.value(gain, SD) < gain.gain
