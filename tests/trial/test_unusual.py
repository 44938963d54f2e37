"""What a human should look at: how a run differs from the baseline where no budget pays."""

import pytest

from tasks.records import Baseline, Cost
from tasks.trial.baseline import unusual
from tests.synthetic_night import make_run

COSTS = {
    "eval_startup": Cost(0.4, 0.03, None, 1000),
    "eval": Cost(1.5, 1.4, None, 61_184, 128),
    "audit_startup": Cost(0.3, 0.02, None, 1000),
    "audit": Cost(3.0, 2.8, None, 122_368, 128),
}
BASELINE = Baseline(
    (make_run(startup_seconds=10.0, startup_cpu_seconds=8.0, costs=COSTS),), "a CPU"
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"startup_seconds": 30.0}, "start-up took 30 s, the baseline's 10 s"),
        ({"startup_seconds": 30.0, "started_early": True}, None),
        (
            {"startup_seconds": 36.0, "started_early": True},
            "start-up took 36 s, the baseline's 10 s",
        ),
        (
            {"startup_cpu_seconds": 30.0, "started_early": True},
            "start-up's CPU time was 30 s, the baseline's 8 s",
        ),
        ({"costs": {"eval": Cost(1.5, 1.5, None, 61_184, 128)}}, None),
        (
            {"costs": {"eval": Cost(1.5, 4.0, None, 61_184, 128)}},
            "used 4.0 CPU-seconds while scoring, a model like the baseline 2.6",
        ),
        ({"checkpoint_bytes": 1_010_000, "state_bytes": 1_000_000}, None),
        (
            {"checkpoint_bytes": 4_010_000, "state_bytes": 1_000_000},
            "its checkpoint has 4,010,000 bytes, its parameters and buffers need 1,000,000",
        ),
        ({"flops_per_token": 1.4e6, "counted_flops_per_token": 1e6}, None),
        (
            {"flops_per_token": 2e6, "counted_flops_per_token": 0.0},
            "said 2e+06 FLOPs a token, where only 0 could be counted",
        ),
        (
            {"unread": ("rows", "notes")},
            "no forward pass reads rows, notes of its checkpoint",
        ),
        (
            {"startup_seconds": 30.0, "unread": ("rows",)},
            "start-up took 30 s, the baseline's 10 s; no forward pass reads rows of its checkpoint",
        ),
    ],
)
def test_what_is_unusual_is_named(changes, said):
    assert unusual(BASELINE, make_run(**{"startup_seconds": 2.0, **changes}), "cpu") == said


def test_a_baseline_without_figures_of_its_scoring_calls_none_unusual():
    run = make_run(costs={"eval": Cost(99.0, 99.0, None, 1, 1)})
    assert unusual(Baseline((make_run(),), "a CPU"), run, "cpu") is None
