"""The planted changes, and what the bench makes of nights; `./run bench planted` runs them."""

import pytest

from tasks.proposers import replay, three_way_merge
from tasks.records import Candidate, Certification, Claim
from tests.benchmarks import planted_bench as bench
from tests.benchmarks.planted_bench import CHANGES, Found, Truth
from tests.trials import COMMIT, keep, make_state, make_trial

SOURCE = bench.source(1)


def test_every_change_is_one_line_of_its_own_and_another_code():
    start, digests = Candidate.parse(SOURCE), set()
    for place in range(len(CHANGES)):
        after = replay.apply(bench.patch(SOURCE, place), SOURCE)
        assert after == bench.changed(SOURCE, place)
        digests.add(Candidate.parse(after).digest)
        assert Candidate.parse(after).statements == start.statements
    assert len(digests - {start.digest}) == len(CHANGES)


def test_a_change_can_be_put_on_its_neighbour_and_taken_out_again():
    first, second = (bench.changed(SOURCE, place) for place in (0, 1))
    both = replay.apply(bench.patch(SOURCE, 1), first)
    assert both == bench.changed(first, 1)
    assert three_way_merge.three_way(first, both, SOURCE) == second


def test_two_nights_differ_in_nothing_but_their_luck():
    one, two = (bench.source(night).splitlines() for night in (1, 2))
    assert one[0] != two[0]
    assert one[1:] == two[1:]


def claim(trial, certificate):
    return Claim((trial,), certificate, 0.004, 2.0, 3, "")


def test_what_a_night_found_is_told_by_the_places_of_the_changes():
    state = make_state(keep(1), make_trial(2), keep(3))
    assert Found.of(state, order=[7, 0, 4]) == (frozenset({7, 4}), frozenset())
    claims = (claim(1, "not_shown"), claim(3, "certified"))
    certification = Certification(COMMIT, claims, 3, COMMIT)
    state = make_state(keep(1), make_trial(2), keep(3), certification=certification)
    assert Found.of(state, order=[7, 0, 4]).certified == {4}


def test_the_table_has_a_line_for_each_size_and_the_false_and_missed_of_all_nights():
    changed = [[2.5 - bench.SD * size, 2.502 - bench.SD * size] for size in CHANGES]
    truth = Truth((2.5, 2.502), changed)
    kept = Found(frozenset({0, 3, 4, 5, 10}), frozenset({3, 4}))
    lines = bench.table(truth, [kept, Found(frozenset({4}), frozenset())])
    assert len(lines) == 1 + 11 + 2
    assert lines[1].split() == ["+3.0", "sd", "+3.00", "±", "0.35", "2", "of", "2", "1", "of", "2"]
    assert lines[6].split() == [
        "+0.0",
        "sd",
        "+0.00",
        "±",
        "0.26",
        "1",
        "of",
        "20",
        "0",
        "of",
        "20",
    ]
    assert lines[-2] == (
        "kept: 6 changes, 2 of them false; 6 of 10 gains missed; worth +4.2 sd a night, of +10.0"
    )
    assert lines[-1].startswith("certified: 2 changes, 0 of them false; 8 of 10 gains missed;")


@pytest.mark.parametrize(
    ("certified", "false", "holds"),
    [(0, 0, True), (15, 0, True), (15, 2, True), (15, 3, False), (60, 6, True), (60, 7, False)],
)
def test_more_false_certificates_than_luck_makes_are_too_many(certified, false, holds):
    assert bench.holds(certified, false) is holds
