"""What scoring may cost: from the baseline's own figures, for honest models of many kinds."""

import dataclasses

import pytest

import configs
from tasks.judge.meter import Spent, excess
from tasks.records import Baseline, Cost
from tasks.trial.allowance import (
    DEAREST,
    MIN_SLACK_CPU_SECONDS,
    TIMES,
    Passes,
    dearness,
    limit,
    limit_of_claims,
    most_of_training,
    overspent,
    usual_costs,
    usual_training,
)
from tasks.trial.baseline import caps_after
from tests.synthetic_night import make_run

# The laptop's baseline: 18 CPU-seconds of training, 285 steps of 1024 tokens.
COSTS = {
    "eval_startup": Cost(0.4, 0.03, None, 2_692_293),
    "eval": Cost(1.5, 1.4, None, 61_184, 128),
    "audit_startup": Cost(0.3, 0.02, None, 2_692_293),
    "audit": Cost(3.0, 2.8, None, 122_368, 128),
}
RUN = make_run(seconds=20.0, cpu_seconds=18.0, tokens=291_840, costs=COSTS)
USUAL = usual_costs([RUN, RUN, RUN])
ROWS = Passes(rows=478, row=128, batches=60, batch_rows=8)


def gpu_usual() -> dict[str, Cost]:
    costs = {
        phase: dataclasses.replace(cost, seconds=6.0, gpu_seconds=5.0)
        for phase, cost in COSTS.items()
    }
    return usual_costs([make_run(seconds=300.0, cpu_seconds=320.0, costs=costs)])


def test_what_is_usual_is_the_dearest_of_each_phase_and_the_median_training():
    cheaper = make_run(seconds=9.0, cpu_seconds=9.0, tokens=291_840, costs=COSTS)
    dearer = {**COSTS, "eval": Cost(9.0, 2.0, None, 61_184, 128)}
    found = usual_costs([RUN, cheaper, dataclasses.replace(RUN, costs=dearer)])
    assert (found["eval"].cpu_seconds, found["eval"].seconds) == (2.0, 9.0)
    assert (found["train"].cpu_seconds, found["train"].work) == (18.0, 291_840)


@pytest.mark.parametrize(
    "run", [make_run(), make_run(costs={"eval": COSTS["eval"]}), make_run(tokens=None, costs=COSTS)]
)
def test_a_baseline_without_all_figures_says_nothing(run):
    assert usual_costs([RUN, run]) == {}


def test_a_model_like_the_baseline_may_cost_as_much_and_a_little_more():
    most = limit_of_claims(USUAL, RUN, ROWS, "cpu")
    assert most.cpu_seconds == pytest.approx(1.5 * 1.4 + MIN_SLACK_CPU_SECONDS, rel=0.01)
    assert limit(USUAL, "eval_startup", 2_692_293, "cpu").cpu_seconds < 0.6


def test_a_busy_machine_stops_nobody():
    """However long a box waits for its turn; CPU-seconds grow by half, as caches are shared."""
    for phase, cost in COSTS.items():
        busy = Spent(1000 * cost.seconds, 1.5 * cost.cpu_seconds, None)
        assert excess(busy, limit(USUAL, phase, cost.work, "cpu")) is None


def test_400_more_steps_are_beyond_every_limit():
    more_training = 400 / 285 * 18.0
    assert limit(USUAL, "eval_startup", 2_692_293, "cpu").cpu_seconds < more_training
    assert limit_of_claims(USUAL, RUN, ROWS, "cpu").cpu_seconds < more_training
    dearest = make_run(cpu_seconds=18.0, tokens=1, costs=COSTS)
    assert limit_of_claims(USUAL, dearest, ROWS, "cpu").cpu_seconds < more_training


@pytest.mark.parametrize(
    ("changes", "passes", "expected"),
    [
        ({}, ROWS, 1.0),
        # a quarter of the tokens at the same cost: a model of four times the FLOPs
        ({"tokens": 72_960}, ROWS, 4.0),
        ({"tokens": 583_680}, ROWS, 1.0),  # a cheaper model has the baseline's share
        ({"tokens": None}, ROWS, 1.0),
        ({"tokens": 1}, ROWS, DEAREST),
        ({}, Passes(rows=120, row=512, batches=15, batch_rows=8), 4.0),
        ({}, Passes(rows=478, row=128, batches=1, batch_rows=956), 2.0),
        ({}, Passes(rows=478, row=128, batches=1, batch_rows=2**16), DEAREST),
    ],
    ids=["same", "large", "small", "no count", "false", "long rows", "filling", "all filling"],
)
def test_how_much_dearer_a_model_is(changes, passes, expected):
    run = dataclasses.replace(RUN, **changes)
    assert dearness(USUAL, run, passes, "cpu") == pytest.approx(expected, rel=0.01)


def test_a_large_honest_model_fits_into_its_limit():
    large = dataclasses.replace(RUN, tokens=72_960)
    assert limit_of_claims(USUAL, large, ROWS, "cpu").cpu_seconds > 4 * 1.4


def test_what_a_dear_model_may_spend_more_is_what_its_run_has_left():
    whole = TIMES * (18.0 + 0.03 + 1.4)
    costs = {"eval_startup": COSTS["eval_startup"]}
    for trained in (10.0, 26.0, 27.0):
        run = make_run(cpu_seconds=trained, tokens=1, costs=costs)
        most = limit_of_claims(USUAL, run, ROWS, "cpu").cpu_seconds
        plain = limit(USUAL, "eval", ROWS.work, "cpu").cpu_seconds
        assert trained + 0.03 + most <= max(whole, trained + 0.03 + plain) + 1e-9
        assert most >= plain


def test_on_a_gpu_the_clock_and_the_gpus_busy_seconds_are_limited_too():
    usual = gpu_usual()
    run = make_run(seconds=300.0, cpu_seconds=320.0, costs=COSTS)
    most = limit_of_claims(usual, run, ROWS, "cuda")
    assert most.seconds == pytest.approx(1.5 * 6.0 + 10.0, rel=0.01)
    assert most.gpu_seconds == pytest.approx(1.5 * 5.0 + 10.0, rel=0.01)


def test_a_longer_training_allows_a_larger_share_of_itself():
    long = {**USUAL, "train": dataclasses.replace(USUAL["train"], cpu_seconds=100.0)}
    most = limit(long, "eval", 61_184, "cpu").cpu_seconds
    assert most == pytest.approx(1.5 * 1.4 + 0.025 * 100.0)


def test_a_larger_checkpoint_may_take_longer_to_load_but_not_for_ever():
    double, huge = (
        limit(USUAL, "eval_startup", size, "cpu").cpu_seconds for size in (5_384_586, 10**12)
    )
    assert double == pytest.approx(2 * 1.5 * 0.03 + MIN_SLACK_CPU_SECONDS)
    assert huge == pytest.approx(DEAREST * 1.5 * 0.03 + MIN_SLACK_CPU_SECONDS)


# --------------------------------------------------------------------------------------------------
# CPU-seconds of a training


def trained(cpu_seconds: float, **changes):
    """A run with a counted step; the baseline's writes 205 KB a token, 0.1 bytes a FLOP."""
    counted = {"flops_per_token": 2e6, "counted_flops_per_token": 2e6, "traffic_per_token": 2e5}
    return make_run(cpu_seconds=cpu_seconds, **{**counted, **changes})


CAPS = caps_after(
    Baseline((trained(13.8), trained(13.9), trained(13.8)), "a CPU"), configs.load("laptop")
)


def test_seeds_that_agree_leave_what_a_busy_machine_needs():
    """On the machine that this was measured on: 13.8 CPU-seconds idle, 16.1 and 17.8 busy."""
    assert CAPS.usual_cpu_seconds == pytest.approx(1.4 * 13.83, rel=0.01)
    assert CAPS.cpu_seconds == pytest.approx(1.5 * 13.83, rel=0.01)
    assert overspent(CAPS, trained(17.8)) is None


def test_seeds_that_differ_leave_more_but_never_half_as_much_again():
    restless = [trained(20.0), trained(22.0), trained(18.0)]
    assert usual_training(restless) == pytest.approx(28.0)
    wild = [trained(10.0), trained(20.0), trained(30.0)]
    assert usual_training(wild) == most_of_training(wild) == pytest.approx(30.0)


def test_a_training_of_a_second_has_room_for_the_noise_of_one():
    assert usual_training([trained(1.2)] * 3) == pytest.approx(1.7)


def test_more_cpu_time_than_its_operations_need_is_told():
    assert overspent(CAPS, trained(19.5)) == (
        "used 19.50 CPU-seconds while training, the limit for its operations is 19.37, from what "
        "the baseline used"
    )


@pytest.mark.parametrize(
    ("changes", "limit_"),
    [
        ({"traffic_per_token": 2.1e5}, 1.05 * 19.37),
        ({"traffic_per_token": 2e5, "flops_per_token": 1.9e6}, 2 / 1.9 * 19.37),
        ({"traffic_per_token": 1e5}, 19.37),
        ({"traffic_per_token": 9e5}, 1.5 * 13.83),
        ({"traffic_per_token": None}, 19.37),
    ],
    ids=["small batches", "a cheaper word", "wide model", "beyond all bounds", "no count"],
)
def test_who_moves_more_bytes_a_flop_may_use_more_up_to_the_hard_limit(changes, limit_):
    assert overspent(CAPS, trained(0.995 * limit_, **changes)) is None
    assert overspent(CAPS, trained(1.005 * limit_, **changes)) is not None


def test_without_a_baseline_there_is_no_such_limit():
    assert overspent(dataclasses.replace(CAPS, usual_cpu_seconds=None), trained(1e6)) is None
