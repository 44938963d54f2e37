"""What a candidate may take beyond a `seconds` budget follows from the baseline's own runs."""

import pytest

from configs import Budget
from tasks.records import Baseline
from tasks.trial.baseline import caps_after
from tests.boxes import make_profile
from tests.synthetic_night import make_run

SECONDS = Budget(kind="seconds", amount=300.0)


def slack(*runs, budget=SECONDS):
    """Of runs given as (seconds, hand-over seconds)."""
    profile = make_profile().model_copy(update={"budget": budget})
    made = tuple(make_run(seconds=seconds, handover_seconds=after) for seconds, after in runs)
    return caps_after(Baseline(runs=made, hardware="h"), profile).slack_seconds


def test_a_baseline_that_ends_in_time_leaves_only_a_second():
    assert slack((299.1, 0.1), (299.5, 0.2), (298.9, 0.1)) == 1.0


def test_a_large_checkpoint_gets_what_the_baselines_took_and_twice_its_way():
    assert slack((303.0, 2.0), (302.0, 3.0)) == pytest.approx(9.0)


def test_never_more_than_the_baseline_itself_was_allowed():
    small = SECONDS.model_copy(update={"slack_seconds": 4.0})
    assert slack((303.0, 2.0), budget=small) == 4.0


def test_other_budgets_and_older_baselines_have_none():
    assert slack((20.0, 0.1), budget=Budget(kind="flops", amount=1e9)) is None
    assert slack((299.0, None)) is None
