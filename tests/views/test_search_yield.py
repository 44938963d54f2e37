"""What each way of searching brought, from states as the ledger gives them."""

import dataclasses

import pytest

from tasks.history.ledger import Ledger
from tasks.records import Alternative, Certification, Claim
from tasks.views import mlflow_tags, report, search_yield, status, trial_story, trial_text
from tests.trials import baseline_event, crash, keep, make_state, make_trial, night_event

HOUR = {"wall_seconds": 1800.0}
STACK = {"search": "stack", "built_on": (2, 3), "proposer": "stack"}
TRIALS = (
    keep(1, 1.63, proposer="llm", **HOUR),
    make_trial(2, proposer="llm", **HOUR, seeds=(4, 5), champion_seeds=(6,)),
    make_trial(3, proposer="llm", search="archive", built_on=(2,), **HOUR),
    crash(4, proposer="llm", **HOUR),
    keep(5, 1.60, **STACK, **HOUR),
    keep(6, 1.59, search="ablation", built_on=(5,), proposer="ablation", **HOUR),
    make_trial(7, placebo="discard", proposer="placebo", **HOUR),
)


def claim(*trials: int, gain: float, certificate="certified") -> Claim:
    return Claim(trials, certificate, gain, 4.0, 3, "shown")


CERTIFIED = Certification("c", (claim(1, 6, gain=0.02), claim(5, gain=0.01)), 3, "tip")


def of(search, state=None):
    found = search_yield.of_night(state or make_state(*TRIALS))
    return next(row for row in found if row.search == search)


def test_each_way_is_told_with_what_it_took_and_brought():
    own = of("proposal")
    assert (own.trials, own.runs, own.hours, own.kept) == (3, 5, 1.5, 1)
    assert own.gain == pytest.approx(0.02)
    assert own.gain_per_hour == pytest.approx(0.02 / 1.5)
    assert (own.certified_gain, own.certified_per_hour) == (None, None)
    assert of("stack").gain == pytest.approx(0.03)  # against trial 1, not the baseline
    rows = search_yield.of_night(make_state(*TRIALS))
    assert [row.search for row in rows] == ["proposal", "stack", "archive", "ablation"]
    assert sum(row.trials for row in rows) == 6  # the placebo is nobody's


def test_tied_changes_share_what_is_certified_and_what_is_not_shown_counts_nothing():
    state = make_state(*TRIALS, certification=CERTIFIED)
    assert of("proposal", state).certified_gain == pytest.approx(0.01)
    assert of("ablation", state).certified_gain == pytest.approx(0.01)
    assert of("stack", state).certified_per_hour == pytest.approx(0.01 / 0.5)
    assert of("archive", state).certified_gain == 0.0
    not_shown = dataclasses.replace(
        CERTIFIED, claims=(claim(5, gain=0.03, certificate="not_shown"),)
    )
    assert of("stack", make_state(*TRIALS, certification=not_shown)).certified_gain == 0.0


def test_the_report_has_the_table_if_a_night_did_more_than_propose():
    text = report.markdown(make_state(*TRIALS, certification=CERTIFIED))
    assert "| stack of near misses | 1 | 1 | 0.50 | 1 | 0.0300 | 0.0600 | 0.0100 | 0.0200 |" in text
    assert "| llm, on trial 2 |" in text  # who proposed trial 3
    assert search_yield.section(make_state(*TRIALS[:2])) == []
    assert status.results(make_state(*TRIALS)).trials[4].built_on == (2, 3)
    assert search_yield.sentence(search_yield.of_night(make_state(*TRIALS))) == (
        "kept by way of searching: proposal 1 of 3, stack 1 of 1, archive 0 of 1, ablation 1 of 1"
    )


def test_a_choice_is_told_with_its_alternatives_number():
    options = tuple(Alternative(f"1.{n}", "b", 0.004 - n / 1000, 0.002, 1.0) for n in range(3))
    chosen = make_trial(2, proposer="llm", choice=options)
    alone = make_trial(3, proposer="llm", choice=options[:1])
    assert search_yield.choice(alone.idea) is None
    assert search_yield.choice(chosen.idea) == (
        "from 3 ideas, with an expected gain of 0.0040 bits per byte, give or take 0.0020"
    )
    text = report.markdown(make_state(TRIALS[0], chosen, alone))
    assert "1 trial had an idea that was chosen from several, 3.0 on average" in text


def test_mlflow_is_told_how_a_candidate_came_about():
    state = make_state(*TRIALS)
    tags = mlflow_tags.trial_tags(state, state.trials[4])
    assert (tags["search"], tags["built_on"]) == ("stack", "2 3")
    assert "stack of near misses (trials 2, 3)" in tags["mlflow.note.content"]
    assert not {"search", "built_on"} & mlflow_tags.trial_tags(state, state.trials[0]).keys()


def test_a_trial_tells_its_origin_in_a_terminal(tmp_path):
    with Ledger.create(tmp_path / "ledger.jsonl") as book:
        book.append("night", **night_event())
        book.append("baseline", **baseline_event())
        for trial in TRIALS[:3]:
            decided = dataclasses.replace(trial, commit=None)
            book.append("started", trial=trial.number)
            book.append("decided", trial=dataclasses.asdict(decided))
            book.append("applied", trial=trial.number, commit=f"c{trial.number}")
    text = trial_text.text(trial_story.describe(tmp_path, tmp_path, 3))
    assert "  search      built on another file than the champion (trial 2)\n" in text
    assert "search" not in trial_text.text(trial_story.describe(tmp_path, tmp_path, 1))
