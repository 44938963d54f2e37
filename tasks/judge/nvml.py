"""How long a GPU was busy, seen from outside: NVIDIA's management library through ctypes, as the judge needs no package.

A box's start-up is outside its budget, so what it makes a GPU do before `ready` is put on record. The figure is the whole
GPU's: another program on it is counted too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
INTERVAL_SECONDS = 0.2  # the driver averages utilisation over about this long


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))  # percent


class BusyClock:
    """Adds up busy seconds of one GPU in a thread of its own, from `start` to `stop`."""

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
        last, found = time.monotonic(), _Utilization()
        while not self._stop.wait(INTERVAL_SECONDS):
            now = time.monotonic()
            if self._library.nvmlDeviceGetUtilizationRates(self._device, ctypes.byref(found)) == 0:
                self.seconds += (now - last) * found.gpu / 100
            last = now


@contextlib.contextmanager
def busy_clock(library: Any = None) -> Iterator[BusyClock | None]:
    """A running clock of the first visible GPU; None where there is no NVIDIA driver."""
    with _opened(library) as nvml:
        found, device = _first_device(nvml) if nvml else (1, None)
        if found != 0:
            yield None
            return
        clock = BusyClock(nvml, device)
        clock.start()
        try:
            yield clock
        finally:
            clock.stop()


def lost(library: Any = None) -> str | None:
    """Why the first visible GPU cannot be used at all, in the driver's words; None while it answers or has no such driver.

    What a candidate breaks ends with its process; a card that fell off the bus answers nobody, and no patch did that.
    """
    with _opened(library) as nvml:
        if nvml is None:
            return None
        answer, device = _first_device(nvml)
        if answer == 0:
            answer = nvml.nvmlDeviceGetMemoryInfo(
                device, ctypes.byref((ctypes.c_ulonglong * 3)())
            )  # total, free, used
        if answer == 0:
            return None
        nvml.nvmlErrorString.restype = ctypes.c_char_p
        return f"the GPU does not answer: {(nvml.nvmlErrorString(answer) or b'unknown').decode()}. Look at dmesg for Xid"


@contextlib.contextmanager
def _opened(library: Any) -> Iterator[Any]:
    """The library, ready; None where there is no NVIDIA driver."""
    try:
        nvml = library or ctypes.CDLL(LIBRARY)
    except OSError:
        nvml = None
    if nvml is None or nvml.nvmlInit_v2() != 0:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _first_device(nvml: Any) -> tuple[int, Any]:
    """NVML's answer, 0 when it is well, and the first visible device."""
    device = ctypes.c_void_p()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip().encode()
    if visible.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex_v2(int(visible), ctypes.byref(device)), device
    return nvml.nvmlDeviceGetHandleByUUID(
        visible, ctypes.byref(device)
    ), device  # GPU-... or MIG-...
