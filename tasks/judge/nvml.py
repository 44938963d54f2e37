"""What NVIDIA's driver says of the first visible GPU: what it is, how busy, and whether it answers.

The management library (NVML) is called through ctypes, as the judge needs no package. Where a
parameter `library` is None, it is the system's.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Iterator
from typing import Any

from tasks.judge import gpu

LIBRARY = "libnvidia-ml.so.1"
INTERVAL_SECONDS = 0.2  # the driver averages utilisation over about this long
TEXT_BYTES = 96  # as long as any name, id or version gets
WELL, NOT_FOUND = 0, 6  # nvmlReturn_t


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))  # percent


class _Memory(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_ulonglong) for name in ("total", "free", "used"))  # bytes


class BusyClock:
    """Adds up the busy seconds of a GPU in a thread, from `start` to `stop`.

    A box's start-up is not in its budget, so what it makes the GPU do before `ready` is recorded.
    The figure is the whole GPU's: other programs on it are counted too.
    """

    def __init__(self, library: Any, device: Any) -> None:
        self.seconds = 0.0
        self._library, self._device = library, device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gpu-clock", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        last, used = time.monotonic(), _Utilization()
        while not self._stop.wait(INTERVAL_SECONDS):
            now = time.monotonic()
            answer = self._library.nvmlDeviceGetUtilizationRates(self._device, ctypes.byref(used))
            if answer == WELL:
                self.seconds += (now - last) * used.gpu / 100
            last = now


@contextlib.contextmanager
def busy_clock(library: Any = None) -> Iterator[BusyClock | None]:
    """A running clock of the first visible GPU; None without one."""
    with _opened(library) as nvml:
        answer, device = _first_device(nvml)
        if answer != WELL:
            yield None
            return
        clock = BusyClock(nvml, device)
        clock.start()
        try:
            yield clock
        finally:
            clock.stop()


def first_gpu(library: Any = None) -> gpu.Gpu | None:
    """The first visible GPU; None without NVIDIA's driver, or if the driver does not know it."""
    memory, milliwatts = _Memory(), ctypes.c_uint()
    with _opened(library) as nvml:
        answer, device = _first_device(nvml)
        if answer != WELL:
            return None
        nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
        limited = nvml.nvmlDeviceGetEnforcedPowerLimit(device, ctypes.byref(milliwatts)) == WELL
        return gpu.Gpu(
            name=_text(nvml.nvmlDeviceGetName, device),
            memory_bytes=memory.total,
            power_limit_watts=milliwatts.value / 1000 if limited else None,
            driver=_text(nvml.nvmlSystemGetDriverVersion),
        )


def driver(library: Any = None) -> tuple[str | None, str]:
    """The driver's version; or None and why there is none, in the library's words."""
    try:
        nvml = library or ctypes.CDLL(LIBRARY)
    except OSError as error:
        return None, str(error)
    answer = nvml.nvmlInit_v2()
    if answer != WELL:
        return None, _why(nvml, answer)
    try:
        return _text(nvml.nvmlSystemGetDriverVersion), ""
    finally:
        nvml.nvmlShutdown()


def lost(library: Any = None) -> str | None:
    """Why the first visible GPU cannot be used, in the driver's words; None if it answers.

    None too without NVIDIA's driver or a visible GPU. What a candidate breaks ends with its
    process; a card that fell off the bus stays lost, and no patch did that.
    """
    if gpu.first_visible() is None:
        return None
    with _opened(library) as nvml:
        if nvml is None:
            return None
        answer, device = _first_device(nvml)
        if answer == WELL:
            answer = nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(_Memory()))
        if answer == WELL:
            return None
        return f"the GPU does not answer: {_why(nvml, answer)}. Look at dmesg for Xid"


@contextlib.contextmanager
def _opened(library: Any) -> Iterator[Any]:
    """The library, ready for use; None without NVIDIA's driver."""
    try:
        nvml = library or ctypes.CDLL(LIBRARY)
    except OSError:
        nvml = None
    if nvml is None or nvml.nvmlInit_v2() != WELL:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _first_device(nvml: Any) -> tuple[int, Any]:
    """The library's answer and the handle of the first visible GPU."""
    device, name = ctypes.c_void_p(), gpu.first_visible()
    if nvml is None or name is None:
        return NOT_FOUND, device
    if name.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex_v2(int(name), ctypes.byref(device)), device
    answer = nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(device))
    if answer == WELL or name.startswith("MIG-"):
        return answer, device
    count = ctypes.c_uint()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    for index in range(count.value):  # CUDA takes the beginning of an id as well
        found = nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device))
        if found == WELL and _text(nvml.nvmlDeviceGetUUID, device).startswith(name):
            return WELL, device
    return answer, device


def _why(nvml: Any, answer: int) -> str:
    nvml.nvmlErrorString.restype = ctypes.c_char_p
    return (nvml.nvmlErrorString(answer) or b"unknown error").decode()


def _text(ask: Any, *device: Any) -> str:
    answer = ctypes.create_string_buffer(TEXT_BYTES)
    ask(*device, answer, TEXT_BYTES)
    return answer.value.decode("utf-8", "replace")
