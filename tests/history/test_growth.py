"""How large a model is beside another, in words."""

import dataclasses
import json

import pytest

from tasks.history.growth import Size
from tasks.records import BaselineEvent, RunResult, Trial
from tests.synthetic_night import make_run
from tests.trials import make_baseline, make_trial

MIB = 2**20
SMALL = Size(530_000, 2 * MIB, 700 * MIB, None)


@pytest.mark.parametrize(
    ("changes", "growth"),
    [
        ({}, None),
        ({"parameters": 795_000}, None),  # 1.5 times
        ({"parameters": 800_000}, "parameters 0.53 M -> 0.8 M"),
        ({"parameters": 33_000_000}, "parameters 0.53 M -> 33 M"),
        ({"parameters": 1_900_000_000}, "parameters 0.53 M -> 1,900 M"),
        ({"checkpoint_bytes": 6 * 2**30}, "checkpoint 2 MiB -> 6 GiB"),
        ({"peak_memory_bytes": 1200 * MIB}, "host memory 700 MiB -> 1.17 GiB"),
        ({"peak_gpu_bytes": 80 * 2**30}, None),  # of before it is unknown
        ({"parameters": 1000}, None),
        (
            {"parameters": 2_000_000, "checkpoint_bytes": 8 * MIB},
            "parameters 0.53 M -> 2 M, checkpoint 2 MiB -> 8 MiB",
        ),
    ],
)
def test_what_is_much_larger_is_named(changes, growth):
    assert dataclasses.replace(SMALL, **changes).growth(SMALL) == growth


def test_nothing_has_grown_where_nothing_is_known():
    unknown = Size(None, None, None, None)
    assert SMALL.growth(unknown) is unknown.growth(SMALL) is None
    assert str(unknown) == ""
    assert str(SMALL) == "parameters 0.53 M, checkpoint 2 MiB, host memory 700 MiB"


def test_a_size_is_the_largest_of_its_runs():
    runs = [
        make_run(parameters=5, checkpoint_bytes=700, peak_memory_bytes=None, metrics={}),
        make_run(parameters=7, checkpoint_bytes=600, peak_memory_bytes=None, metrics={}),
    ]
    assert Size.of_runs(runs) == Size(7, 700, None, None)
    assert Size.of_runs([]) == Size(None, None, None, None)
    assert str(Size.of_runs(runs)) == "parameters 7, checkpoint 700 B"


def test_gpu_memory_is_the_drivers_figure_and_else_the_candidates_own():
    told = {"peak_vram_mb": 512.0}
    assert Size.of_runs([make_run(metrics=told)]).peak_gpu_bytes == 512 * MIB
    assert Size.of_runs([make_run(metrics=told, peak_gpu_bytes=2**30)]).peak_gpu_bytes == 2**30
    assert Size.of_runs([make_run(metrics={"peak_vram_mb": -1.0})]).peak_gpu_bytes is None


def test_records_of_before_have_no_size_and_are_read():
    new = ("parameters", "checkpoint_bytes", "peak_gpu_bytes")
    run, trial, event = (
        json.loads(json.dumps(dataclasses.asdict(record)))
        for record in (make_run(), make_trial(), make_baseline())
    )
    for saved in (run, trial, event):
        for name in new:
            del saved[name]
    del trial["grown"]
    assert RunResult.from_json(run) == make_run()
    assert Trial.from_json(trial) == make_trial()
    assert BaselineEvent.from_json(event) == make_baseline()
