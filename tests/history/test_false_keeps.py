"""How often placebos would have been kept: of a night, and of all nights like it."""

import dataclasses

import pytest

from tasks.history import false_keeps
from tasks.history.false_keeps import FalseKeeps
from tasks.history.ledger import Ledger
from tests.trials import baseline_event, crash, keep, make_baseline, make_state, make_trial
from tests.trials import night_event as header_event

PLACEBOS = (
    make_trial(1, placebo="discard"),
    make_trial(2),
    make_trial(3, placebo="keep"),
    crash(4, placebo="discard"),
    keep(5),
)


def test_only_placebos_with_a_score_count():
    found = false_keeps.of_night(make_state(*PLACEBOS))
    assert (found.placebos, found.kept, found.rate) == (2, 1, 0.5)


def test_the_interval_is_wilsons():
    nothing, one, all_ = FalseKeeps.of(10, 0), FalseKeeps.of(12, 1), FalseKeeps.of(10, 10)
    assert (nothing.low, nothing.high) == pytest.approx((0, 0.2775), abs=1e-4)
    assert (all_.low, all_.high) == pytest.approx((0.7225, 1), abs=1e-4)
    # Solves |rate - p| = 1.96 sqrt(p (1 - p) / n) for p.
    for end in (one.low, one.high):
        assert (1 / 12 - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / 12)


def test_without_a_placebo_nothing_is_known_and_nothing_said():
    nothing = FalseKeeps.of(0, 0)
    assert (nothing.rate, nothing.low, nothing.high) == (None, None, None)
    assert false_keeps.sentence(nothing, nothing) == ""


def test_the_rates_in_words():
    few, more = FalseKeeps.of(12, 1), FalseKeeps.of(1, 0)
    assert false_keeps.sentence(few, few) == (
        "Of 12 placebo trials (the champion unchanged) 1 would have been kept: 8%, 95% interval "
        "1% to 35%."
    )
    assert false_keeps.sentence(more, few) == (
        "Of 1 placebo trial (the champion unchanged) none would have been kept: 0%, 95% interval "
        "0% to 79%. Of 12 placebo trials of all comparable nights 1 would have been kept: 8%, 95% "
        "interval 1% to 35%."
    )
    assert false_keeps.sentence(FalseKeeps.of(0, 0), few).startswith("Of 12 placebo trials of all")


def state(tag="nov21", settings=None, **baseline):
    header = {"tag": tag, "settings": settings or {}}
    return make_state(*PLACEBOS, header=header, baseline=make_baseline(**baseline))


@pytest.mark.parametrize(
    ("other", "counts"),
    [
        (state("other"), True),
        (state("other", {"night": {"trials": 9}, "train": {"DEPTH": 2}}), True),
        (state("nov21"), False),
        (state("other", {"budget": {"amount": 1e9}}), False),
        (state("other", hardware="a GPU"), False),
        (state("other", dataset="d6"), False),
        (state("other", facts={"metric": "2"}), False),
        (make_state(header={"tag": "other"}, baseline=None), False),
    ],
)
def test_of_other_nights_those_count_whose_scores_could_be_compared(other, counts):
    found = false_keeps.of_all(state(), [other])
    assert (found.placebos, found.kept) == ((4, 2) if counts else (2, 1))


def test_nights_are_read_but_for_damaged_ones(tmp_path):
    for tag in ("good", "damaged"):
        with Ledger.create(tmp_path / tag / "ledger.jsonl") as book:
            book.append("night", **header_event(tag=tag))
            book.append("baseline", **baseline_event())
            book.append("started", trial=1)
            book.append("decided", trial=dataclasses.asdict(PLACEBOS[0]))
            book.append("applied", trial=1, commit="c1")
    path = tmp_path / "damaged" / "ledger.jsonl"
    path.write_text(path.read_text().replace('"scores"', '"points"'))
    (found,) = false_keeps.nights(tmp_path)
    assert (found.header.tag, false_keeps.of_night(found).placebos) == ("good", 1)
    assert false_keeps.nights(tmp_path / "nowhere") == []
