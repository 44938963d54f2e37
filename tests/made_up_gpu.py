"""A made-up NVIDIA driver: there is no GPU where the tests run."""

import ctypes
from typing import Any

GONE, NOT_SUPPORTED, NOT_FOUND = 15, 3, 6  # nvmlReturn_t
ERRORS = {GONE: b"GPU is lost", 18: b"Driver/library version mismatch"}
GIB = 2**30


class Driver:
    """The functions of the management library that are used, for these GPUs, half busy.

    `gpus` are their (id, name, GiB, watts). `answer` is every GPU's answer when it is asked for,
    `memory` its answer when it is asked for its memory, `init` the library's own. `driver` is its
    version. `calls` is what was asked for. `processes` has the bytes that each pid uses, `reasons`
    what holds the clock back.
    """

    def __init__(
        self,
        *gpus: tuple[str, str, int, int | None],
        answer: int = 0,
        memory: int = 0,
        init: int = 0,
        driver: str = "580.1",
    ) -> None:
        self.gpus = gpus or (("GPU-0a1b-22", "a card", 80, 700),)
        self.answer, self.memory, self.init, self.driver = answer, memory, init, driver
        self.nvmlErrorString = lambda code: ERRORS.get(code, b"Unknown Error")
        self.calls: list[object] = []
        self.processes: dict[int, int] = {}
        self.sm_clock: int | None = 1980  # MHz
        self.reasons = 0x4  # bits: at its power cap

    def nvmlInit_v2(self) -> int:
        return self.init

    def nvmlShutdown(self) -> None:
        self.calls.append("shutdown")

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        _pointer(count, ctypes.c_uint)[0] = len(self.gpus)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        self.calls.append(index)
        if index >= len(self.gpus):
            return NOT_FOUND
        _pointer(handle, ctypes.c_void_p)[0] = index + 1  # 0 is no handle
        return self.answer

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:
        self.calls.append(name)
        ids = [gpu[0].encode() for gpu in self.gpus]
        if name not in ids:
            return NOT_FOUND
        _pointer(handle, ctypes.c_void_p)[0] = ids.index(name) + 1
        return self.answer

    def nvmlDeviceGetUUID(self, device: Any, text: Any, size: int) -> int:
        text.value = self.gpus[device.value - 1][0].encode()
        return 0

    def nvmlDeviceGetName(self, device: Any, text: Any, size: int) -> int:
        text.value = self.gpus[device.value - 1][1].encode()
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:
        text.value = self.driver.encode()
        return 0

    def nvmlDeviceGetMemoryInfo(self, device: Any, info: Any) -> int:
        _pointer(info, ctypes.c_ulonglong)[0] = self.gpus[device.value - 1][2] * GIB
        return self.memory

    def nvmlDeviceGetEnforcedPowerLimit(self, device: Any, milliwatts: Any) -> int:
        watts = self.gpus[device.value - 1][3]
        _pointer(milliwatts, ctypes.c_uint)[0] = 1000 * (watts or 0)
        return NOT_SUPPORTED if watts is None else 0

    def nvmlDeviceGetUtilizationRates(self, device: Any, rates: Any) -> int:
        _pointer(rates, ctypes.c_uint)[0] = 50
        self.calls.append("rates")
        return 0

    def nvmlDeviceGetClockInfo(self, device: Any, kind: int, clock: Any) -> int:
        assert kind == 1  # that of the multiprocessors
        _pointer(clock, ctypes.c_uint)[0] = self.sm_clock or 0
        return NOT_SUPPORTED if self.sm_clock is None else 0

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device: Any, reasons: Any) -> int:
        _pointer(reasons, ctypes.c_ulonglong)[0] = self.reasons
        self.calls.append("reasons")
        return 0

    def nvmlDeviceGetComputeRunningProcesses_v3(self, device: Any, count: Any, found: Any) -> int:
        for place, (pid, used) in enumerate(self.processes.items()):
            found[place].pid, found[place].used = pid, used
        _pointer(count, ctypes.c_uint)[0] = len(self.processes)
        self.calls.append("processes")
        return 0


def _pointer(reference: Any, kind: Any) -> Any:
    return ctypes.cast(reference, ctypes.POINTER(kind))
