"""When a run is made again for what the machine did, and when not: conditions are made up."""

import dataclasses

import pytest

from configs import Budget
from tasks.records import Conditions
from tasks.trial import conditions
from tests.synthetic_night import make_run

SECONDS, FLOPS = Budget(kind="seconds", amount=300), Budget(kind="flops", amount=1e9)


def during(**changes) -> Conditions:
    """A quiet run of 300 s on a GPU whose trainer keeps two CPUs busy."""
    quiet = Conditions(
        seconds=300.0,
        tokens=1_000_000,
        steps=1000,
        cpu_used=600.0,
        cpu_waited=1.0,
        cpu_others=6.0,
        cpu_stolen=0.0,
        sm_clock=1755.0,
        lowest_sm_clock=1700.0,
        gpu_others=0,
    )
    return dataclasses.replace(quiet, **changes)


USUAL = (during(), during(cpu_waited=1.5, sm_clock=1753.0), during(cpu_others=8.0, tokens=999_000))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cpu_waited": 150.0, "cpu_others": 300.0}, "waited 0.50 s a second for a CPU"),
        ({"cpu_stolen": 100.0}, "the hypervisor took 14% of the CPU time"),
        ({"sm_clock": 1500.0, "held_back": {"heat": 0.6}}, "held back by heat 60% of the time"),
        ({"gpu_others": 1}, "processes of others on the GPU: 1 (usually 0)"),
    ],
)
def test_what_others_do_to_a_run_disturbs_it(changes, why):
    found = conditions.disturbance(during(**changes), USUAL)
    assert found is not None
    assert why in found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cpu_waited": 2000.0, "cpu_used": 2400.0},  # it started busy threads of its own
        {"cpu_others": 300.0},  # there were CPUs enough
        {"sm_clock": 1400.0},  # at the power cap, as its kernels are dense
        {"sm_clock": 300.0},  # it left the GPU idle
        {"tokens": 10, "steps": 1},  # its own word
        {"tokens": None, "sm_clock": None, "cpu_waited": None, "cpu_others": None},
        {"cpu_stolen": None, "gpu_others": None},
    ],
)
def test_a_candidate_cannot_buy_a_second_chance(changes):
    assert conditions.disturbance(during(**changes), USUAL) is None


def test_what_is_usual_on_this_machine_disturbs_nobody():
    busy = [
        during(cpu_waited=waited, cpu_others=6 * waited, gpu_others=2)
        for waited in (20.0, 60.0, 40.0)
    ]
    run = during(cpu_waited=90.0, cpu_others=500.0, gpu_others=2)
    assert conditions.disturbance(run, busy) is None
    assert conditions.disturbance(run, USUAL) is not None


def test_without_a_usual_run_nothing_is_off():
    assert conditions.disturbance(during(cpu_waited=150.0, cpu_others=300.0), ()) is None


@pytest.mark.parametrize("changes", [{"tokens": 950_000}, {"sm_clock": 1700.0}])
def test_a_file_is_slower_than_in_its_own_earlier_runs(changes):
    assert conditions.slower(during(**changes), USUAL) is not None
    assert conditions.slower(during(**changes), ()) is None
    assert conditions.slower(during(tokens=1_010_000, sm_clock=1754.0), USUAL) is None


def test_only_a_budget_of_seconds_makes_a_score_depend_on_conditions():
    run = make_run(conditions=during())
    assert conditions.is_repeatable(SECONDS, run)
    assert not conditions.is_repeatable(FLOPS, run)


@pytest.mark.parametrize(
    ("changes", "repeatable"),
    [
        ({"status": "train_timeout", "conditions": during()}, True),
        ({"status": "train_crashed", "conditions": during()}, False),
        ({"status": "startup_timeout", "conditions": None}, False),
    ],
)
def test_a_run_that_crashed_is_not_made_again(changes, repeatable):
    assert conditions.is_repeatable(SECONDS, make_run(**changes)) == repeatable


def test_a_champion_that_was_measured_on_a_busy_machine_is_too_easy_to_beat_on_a_quiet_one():
    busy = [during(cpu_waited=waited, cpu_others=300.0) for waited in (150.0, 160.0, 155.0)]
    found = conditions.relief(during(), busy)
    assert found == "since the champion was measured, other processes use fewer CPUs"
    assert conditions.relief(during(cpu_waited=0.0), USUAL) is None
    # A file with fewer threads waits less, which says nothing of the machine.
    assert conditions.relief(during(cpu_waited=0.0, cpu_others=300.0), busy) is None
