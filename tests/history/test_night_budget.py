"""A night's budgets: pure functions of the ledger's state and of the seconds used."""

import dataclasses
import json
import time
from datetime import datetime, timedelta

import pytest

from tasks.history import night_budget
from tasks.history.ledger import Ledger
from tests.trials import keep, make_baseline, make_state, make_trial, night_event


def trial(number, wall_seconds=100.0, seeds=(1,)):
    return make_trial(
        number,
        status="ok" if seeds else "rejected_patch",
        seeds=seeds,
        wall_seconds=wall_seconds,
        longest_run_seconds=wall_seconds / len(seeds) if seeds else None,
    )


def state(*trials, has_baseline=True, **header):
    limits = {"trials": None, "hours": None, **header}
    baseline = make_baseline(wall_seconds=100.0) if has_baseline else None
    return make_state(*trials, header=limits, baseline=baseline, finished=None)


@pytest.mark.parametrize("used", [0.0, 1e6])
def test_a_night_without_budgets_goes_on(used):
    assert night_budget.over(state(), used) is None


def test_the_last_trial_of_the_plan_ends_it():
    assert night_budget.over(state(trial(1), trials=2), 0.0) is None
    assert night_budget.over(state(trial(1), trial(2), trials=2), 0.0) == "all 2 trials are done"


def test_hours_that_are_used_up_end_it():
    assert night_budget.over(state(hours=1.0), 3600.0) == "the 1 hours are over"


@pytest.mark.parametrize(("used", "starts"), [(3600.0 - 200.0, True), (3600.0 - 199.0, False)])
def test_no_trial_starts_that_may_not_be_done_in_time(used, starts):
    assert (night_budget.over(state(hours=1.0), used) is None) is starts


def test_the_reason_has_what_is_left_and_what_is_needed():
    assert (
        night_budget.over(state(hours=1.0), 3450.0)
        == "2.5 minutes of the 1 hours are left, and another trial may take 3.3 minutes"
    )


def test_whichever_budget_is_used_up_first_ends_it():
    assert night_budget.over(state(trial(1), trials=1, hours=8.0), 10.0) == "its one trial is done"
    assert night_budget.over(state(trial(1), trials=9, hours=1.0), 3600.0) == "the 1 hours are over"


def test_the_longest_run_is_the_baselines_until_a_trial_takes_longer():
    assert night_budget.longest_run(state(trial(1, 50.0))) == 100.0
    assert night_budget.longest_run(state(trial(1, 150.0))) == 150.0


def test_a_trial_of_two_runs_counts_half_for_each():
    assert night_budget.longest_run(state(trial(1, 300.0, seeds=(1, 2)))) == 150.0


def test_only_late_trials_tell_how_long_a_run_takes_now():
    early = [trial(number + 1, 10.0) for number in range(night_budget.RECENT)]
    assert night_budget.longest_run(state(trial(0, 9000.0), *early)) == 100.0


def test_a_patch_that_was_not_run_says_nothing_of_runs():
    assert night_budget.longest_run(state(trial(1, None, seeds=()))) == 100.0


def test_nothing_is_known_of_runs_before_the_baseline():
    assert night_budget.longest_run(state(has_baseline=False)) == 0.0
    assert night_budget.seconds_left(state(has_baseline=False, trials=3), 0.0) is None


def test_seconds_left_are_those_of_the_trials_to_come():
    assert night_budget.seconds_left(state(trial(1, 60.0), trials=4), 0.0) == 180.0


def test_seconds_left_are_at_most_those_of_the_hours():
    assert night_budget.seconds_left(state(trial(1, 60.0), trials=400, hours=1.0), 3000.0) == 600.0


def test_seconds_left_are_never_negative_and_none_after_the_end():
    assert night_budget.seconds_left(state(hours=1.0), 4000.0) == 0.0
    assert (
        night_budget.seconds_left(dataclasses.replace(state(trials=9), finished="all"), 0.0) == 0.0
    )


def kept(*changes, runs=40, **header):
    """A night of one keep, `runs` scored runs of 100 s each, and a night's usual settings."""
    others = [trial(number, 100.0) for number in range(2, runs + 1)]
    return state(keep(1, scores=(1.6,), longest_run_seconds=100.0), *others, *changes, **header)


def test_a_night_of_trials_certifies_with_a_share_of_its_runs():
    assert night_budget.certification_runs(kept(runs=40, trials=40)) == 7  # 15 % of 47
    assert night_budget.can_certify(kept(runs=40, trials=40), 0.0)
    assert not night_budget.can_certify(kept(runs=4, trials=4), 0.0)


def test_a_share_of_the_hours_and_time_for_the_end_are_kept_free_of_trials():
    late = 3600 * 1.0 * 0.85 - (3 * 3 + 1) * 100.0
    for used, is_over in ((late - 250.0, False), (late - 150.0, True)):
        found = night_budget.over(kept(hours=1.0), used)
        assert (found is not None) is is_over
    assert "the 1 hours, less 25.7 minutes to certify what was kept, are left" in str(found)
    assert night_budget.can_certify(kept(hours=1.0), late)


def test_a_certification_never_takes_more_than_is_worthwhile():
    assert night_budget.reserved_seconds(kept(hours=100.0)) == (9 + 10) * 100.0
    assert night_budget.certification_runs(kept(hours=100.0)) == 9
    assert night_budget.certification_runs(kept(runs=400, trials=400)) == 9
    assert [night_budget.worthwhile_runs(changes) for changes in range(5)] == [0, 9, 12, 15, 18]


@pytest.mark.parametrize(
    "night",
    [
        state(trial(1), hours=10.0),  # nothing is kept
        kept(hours=0.5, runs=1),  # three runs would take longer than 15 % of the half hour
        make_state(keep(1), header={"hours": 10.0, "settings": {"night": {"certify_share": 0.0}}}),
    ],
    ids=["nothing kept", "too short", "switched off"],
)
def test_hours_that_certify_nothing_are_all_for_trials(night):
    assert night_budget.reserved_seconds(night) == 0.0


def test_a_night_says_what_is_left_to_certify_and_how_long_that_takes():
    said = night_budget.uncertified(kept(trials=1, runs=1))
    assert said == (
        "1 change was kept and is not certified: `./run certify nov21` takes about 15.0 minutes"
    )
    assert night_budget.uncertified(state(trial(1))) is None


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_jumps_neither_ends_a_night_nor_prolongs_it(tmp_path, monkeypatch, days):
    with Ledger.create(tmp_path / "night" / "ledger.jsonl") as book:
        book.append("night", **night_event(tag="night", trials=None, hours=1.0))
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + days * 86400)
        assert 0.0 <= book.used_seconds() < 600.0
        assert night_budget.over(book.state, book.used_seconds()) is None


@pytest.mark.parametrize("days", [-1, 1])
def test_a_ledger_whose_times_run_backwards_counts_the_same_hours(tmp_path, days):
    path = tmp_path / "night" / "ledger.jsonl"
    with Ledger.create(path) as book:
        book.append("night", **night_event(tag="night", trials=None, hours=1.0))
        book.count_used(3000.0)
        book.append("stopped", reason="Ctrl-C", failed=False)
    first, last = path.read_text().splitlines()
    event = json.loads(last)
    event["time"] = (datetime.fromisoformat(event["time"]) + timedelta(days=days)).isoformat()
    path.write_text(f"{first}\n{json.dumps(event)}\n")
    with Ledger.open(path) as book:
        assert 3000.0 <= book.used_seconds() < 3600.0
