"""What is asked of NVIDIA's driver, by a made-up one: there is no GPU where the tests run."""

import os
import time

import pytest

from tasks.judge.gpu import Gpu
from tasks.judge.nvml import Pace, busy_clock, first_gpu, lost, pace, peak_memory
from tests.made_up_gpu import GIB, GONE, Driver
from tests.waiting import wait_for

SMALL = ("GPU-0a1b-22", "small", 24, 450)
LARGE = ("GPU-0a1c-33", "large", 80, 700)
SLICE = ("MIG-77", "slice", 10, None)


@pytest.fixture(autouse=True)
def _all_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.setattr("tasks.judge.nvml.LIBRARY", "libnothing-like-that.so.1")


def test_busy_seconds_are_the_busy_share_of_the_time_by_a_made_up_driver():
    driver, began = Driver(), time.monotonic()
    with busy_clock(driver) as clock:
        assert clock is not None
        while driver.calls.count("rates") < 3:
            time.sleep(0.01)
    assert 0 < clock.seconds <= 0.5 * (time.monotonic() - began)
    assert driver.calls[0] == 0
    assert driver.calls[-1] == "shutdown"


@pytest.mark.parametrize(
    ("processes", "peak"),
    [
        ({11: 3 * GIB, 12: GIB, 99: 40 * GIB}, 4 * GIB),  # 99 is somebody else's
        ({99: 40 * GIB}, None),
        ({11: 2**64 - 1}, None),  # "not available"
        ({}, None),
    ],
)
def test_the_memory_is_that_of_the_boxs_processes_by_a_made_up_driver(processes, peak):
    driver = Driver()
    driver.processes = processes
    with peak_memory(lambda: {11, 12}, driver) as watch:
        assert watch is not None
        wait_for(lambda: driver.calls.count("processes") > 1, "a look at the processes")
        driver.processes = {11: GIB} if peak else {}
        wait_for(lambda: driver.calls.count("processes") > 3, "a later look")
    assert watch.bytes == peak


def test_an_old_driver_that_is_made_up_knows_no_processes(monkeypatch):
    monkeypatch.delattr(Driver, "nvmlDeviceGetComputeRunningProcesses_v3")
    with peak_memory(lambda: {11}, Driver()) as watch:
        assert watch is not None
        watch._look()
    assert watch.bytes is None


def test_without_a_driver_no_memory_is_watched(no_driver):
    with peak_memory(set) as watch:
        assert watch is None


def looked_at(driver: Driver, looks: int, change=None) -> Pace:
    """What a box with the processes 11 and 12 met, halfway through which something may change."""
    with pace(lambda: {11, 12}, driver) as watch:
        assert watch is not None
        for each in range(looks):
            if each == looks // 2 and change:
                change(driver)
            watch._look()
        return watch.pace()


def test_the_pace_is_of_the_whole_span_by_a_made_up_driver(monkeypatch):
    monkeypatch.setattr("tasks.judge.nvml.INTERVAL_SECONDS", 60)

    def heat(driver):
        driver.sm_clock, driver.reasons = 1000, 0x4 | 0x20

    found = looked_at(Driver(), 4, heat)
    assert found == Pace(1490.0, 1000, {"heat": 0.5}, None)


def test_a_gpu_at_its_power_cap_is_not_held_back_by_a_made_up_driver(monkeypatch):
    monkeypatch.setattr("tasks.judge.nvml.INTERVAL_SECONDS", 60)
    driver = Driver()
    driver.sm_clock, driver.reasons = None, 0x1 | 0x4
    assert looked_at(driver, 2) == Pace(None, None, {}, None)


@pytest.mark.parametrize(
    ("processes", "looks", "others"),
    [
        ({11: GIB, 99: GIB}, 5, 1),
        ({11: GIB, 99: GIB}, 4, 0),  # it may be new, and ours
        ({11: GIB, 12: GIB}, 5, 0),
        ({11: GIB, os.getpid(): GIB}, 5, 0),
        ({98: GIB, 99: GIB}, 5, None),  # in a container, where the driver's pids are others
    ],
)
def test_other_processes_on_a_gpu_are_counted_by_a_made_up_driver(
    monkeypatch, processes, looks, others
):
    monkeypatch.setattr("tasks.judge.nvml.INTERVAL_SECONDS", 60)
    driver = Driver()
    driver.processes = processes
    assert looked_at(driver, looks).gpu_others == others


@pytest.mark.parametrize(
    ("visible", "name"),
    [
        (None, "small"),
        ("0", "small"),
        ("1,0", "large"),
        (" 1 ", "large"),
        ("GPU-0a1c-33,GPU-0a1b-22", "large"),
        ("GPU-0a1c", "large"),  # CUDA takes the beginning of an id
        ("MIG-77", "slice"),
    ],
)
def test_the_gpu_is_the_first_visible_one_by_a_made_up_driver(monkeypatch, visible, name):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    driver = Driver(SMALL, LARGE, SLICE)
    found = first_gpu(driver)
    assert found is not None
    assert found.name == name
    assert driver.calls[-1] == "shutdown"


@pytest.mark.parametrize("visible", ["", "-1", "-1,0", "7", "GPU-ff", "MIG-88", "none"])
def test_there_is_no_gpu_where_none_is_visible_by_a_made_up_driver(monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert first_gpu(Driver(SMALL, LARGE)) is None
    with busy_clock(Driver(SMALL, LARGE)) as clock:
        assert clock is None


def test_a_gpu_is_described_by_a_made_up_driver():
    assert first_gpu(Driver(LARGE)) == Gpu("large", 80 * GIB, 700.0, "580.1")


def test_a_gpu_without_a_power_limit_is_described_by_a_made_up_driver():
    assert str(first_gpu(Driver(SLICE))) == "slice 10 GiB, driver 580.1"


def test_without_a_driver_there_is_no_gpu_and_no_clock(no_driver):
    assert first_gpu() is None
    with busy_clock() as clock:
        assert clock is None


def test_a_gpu_that_answers_is_not_lost_by_a_made_up_driver():
    assert lost(Driver()) is None


def test_a_lost_gpu_is_reported_in_the_words_of_a_made_up_driver():
    assert "GPU is lost" in str(lost(Driver(answer=GONE)))
    assert "Unknown Error" in str(lost(Driver(memory=999)))


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_hidden_gpu_is_not_lost_by_a_made_up_driver(monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert lost(Driver()) is None


def test_without_a_driver_no_gpu_is_lost(no_driver):
    assert lost() is None
