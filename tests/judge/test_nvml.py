"""The GPU's busy clock on a made-up driver: there is no GPU where the tests run."""

import ctypes
import time

from tasks.judge.nvml import busy_clock, lost


class Driver:
    """The five functions that are used, of a GPU that is half busy."""

    def __init__(self, found: int = 0, memory: int = 0) -> None:
        self.found = found
        self.memory = memory
        self.nvmlErrorString = lambda code: b"GPU is lost" if code == 15 else b"Unknown Error"
        self.calls: list[object] = []

    def nvmlInit_v2(self):
        return 0

    def nvmlShutdown(self):
        self.calls.append("shutdown")

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        self.calls.append(index)
        return self.found

    def nvmlDeviceGetHandleByUUID(self, name, handle):
        self.calls.append(name)
        return self.found

    def nvmlDeviceGetMemoryInfo(self, device, info):
        return self.memory

    def nvmlDeviceGetUtilizationRates(self, device, rates):
        percent = ctypes.cast(rates, ctypes.POINTER(ctypes.c_uint))
        percent[0] = 50
        self.calls.append("rates")
        return 0


def test_busy_seconds_are_the_share_of_the_time_by_a_made_up_driver(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver, began = Driver(), time.monotonic()
    with busy_clock(driver) as clock:
        assert clock is not None
        while driver.calls.count("rates") < 3:
            time.sleep(0.01)
    assert 0 < clock.seconds <= 0.5 * (time.monotonic() - began)
    assert driver.calls[0] == 0
    assert driver.calls[-1] == "shutdown"


def test_the_first_visible_gpu_is_asked_by_a_made_up_driver(monkeypatch):
    for visible, asked in (("3,1", 3), ("GPU-0a1b", b"GPU-0a1b")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        driver = Driver(found=1)
        with busy_clock(driver) as clock:
            assert clock is None
        assert driver.calls == [asked, "shutdown"]


def test_without_a_driver_there_is_no_clock(monkeypatch):
    monkeypatch.setattr("tasks.judge.nvml.LIBRARY", "libnothing-like-that.so.1")
    with busy_clock() as clock:
        assert clock is None


def test_a_gpu_that_answers_is_not_lost_by_a_made_up_driver():
    assert lost(Driver()) is None


def test_a_gpu_that_fell_off_is_told_in_the_words_of_a_made_up_driver():
    assert "GPU is lost" in str(lost(Driver(found=15)))
    assert "Unknown Error" in str(lost(Driver(memory=999)))


def test_without_a_driver_no_gpu_is_lost(monkeypatch):
    monkeypatch.setattr("tasks.judge.nvml.LIBRARY", "libnothing-like-that.so.1")
    assert lost() is None
