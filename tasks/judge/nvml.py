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
    try:
        nvml = library or ctypes.CDLL(LIBRARY)
    except OSError:
        nvml = None
    device = ctypes.c_void_p()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip().encode()
    if nvml is None or nvml.nvmlInit_v2() != 0:
        yield None
        return
    try:
        if visible.isdigit():
            found = nvml.nvmlDeviceGetHandleByIndex_v2(int(visible), ctypes.byref(device))
        else:  # GPU-... or MIG-...
            found = nvml.nvmlDeviceGetHandleByUUID(visible, ctypes.byref(device))
        clock = BusyClock(nvml, device) if found == 0 else None
        if clock is None:
            yield None
            return
        clock.start()
        try:
            yield clock
        finally:
            clock.stop()
    finally:
        nvml.nvmlShutdown()
