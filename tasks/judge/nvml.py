"""What NVIDIA's driver says of the first visible GPU: what it is, how busy, and whether it answers.

The management library (NVML) is called through ctypes, as the judge needs no package. Where a
parameter `library` is None, it is the system's.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from tasks.judge import gpu
from tasks.judge.processes import is_ours

LIBRARY = "libnvidia-ml.so.1"
INTERVAL_SECONDS = 0.2  # the driver averages utilisation over about this long
TEXT_BYTES = 96  # as long as any name, id or version gets
WELL, NOT_FOUND = 0, 6  # nvmlReturn_t
MOST_PROCESSES = 256  # on a GPU
NOT_KNOWN = 2**64 - 1  # a process's memory, where the driver does not say
SM_CLOCK = 1  # nvmlClockType_t
# Reasons for a low clock that are not the program's doing: nvmlClocksEventReasons without the power
# cap, which every heavy program reaches, and without an idle GPU.
HELD_BACK = {
    0x02: "application clocks",
    0x08: "hardware slowdown",
    0x10: "synchronised clocks",
    0x20: "heat",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
LOOKS_OF_A_STRANGER = 5  # so many in a row: by then a container's new process is known

Watching = TypeVar("Watching", bound="_Watch")


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))  # percent


class _Memory(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_ulonglong) for name in ("total", "free", "used"))  # bytes


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),  # bytes
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _Watch:
    """Looks at a GPU now and then in a thread, from `start` to `stop`."""

    def __init__(self, library: Any, device: Any) -> None:
        self._library, self._device = library, device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gpu-clock", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self._look()

    def _look(self) -> None:
        raise NotImplementedError


class BusyClock(_Watch):
    """Adds up the busy seconds of a GPU.

    A box's start-up is not in its budget, so what it makes the GPU do before `ready` is recorded.
    The figure is the whole GPU's: other programs on it are counted too.
    """

    def __init__(self, library: Any, device: Any) -> None:
        super().__init__(library, device)
        self.seconds = 0.0
        self._last = time.monotonic()

    def _look(self) -> None:
        now, used = time.monotonic(), _Utilization()
        answer = self._library.nvmlDeviceGetUtilizationRates(self._device, ctypes.byref(used))
        if answer == WELL:
            self.seconds += (now - self._last) * used.gpu / 100
        self._last = now


class PeakMemory(_Watch):
    """The most memory of a GPU that some processes had at a time: CUDA's contexts included.

    None if the driver never named one of them, as in a container, where it has other pids, and
    before version 510.
    """

    def __init__(self, library: Any, device: Any, pids: Callable[[], Iterable[int]]) -> None:
        super().__init__(library, device)
        self.bytes: int | None = None
        self._pids = pids

    def _look(self) -> None:
        pids = set(self._pids())
        running = _processes(self._library, self._device) or {}
        used = [used for pid, used in running.items() if pid in pids and used != NOT_KNOWN]
        if used:
            self.bytes = max(self.bytes or 0, sum(used))


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast a GPU ran, and for whom. None: the driver does not say."""

    sm_clock: float | None  # MHz, mean
    lowest_sm_clock: float | None
    held_back: Mapping[str, float]  # by reason, a value of HELD_BACK: share of the looks
    gpu_others: int | None  # most processes of others that computed on it at a time


class PaceWatch(_Watch):
    """Clocks of a GPU, what holds them back, and processes on it that are not ours.

    In a container the driver's pids are others than the system's: until it names one of the box's,
    others cannot be told apart and are not counted.
    """

    def __init__(self, library: Any, device: Any, pids: Callable[[], Iterable[int]]) -> None:
        super().__init__(library, device)
        self._box = pids
        self._clocks: list[int] = []
        self._looks = 0
        self._held_back: Counter[str] = Counter()
        self._strangers: Counter[int] = Counter()  # pid: looks in a row
        self._others: int | None = None

    def pace(self) -> Pace:
        """Up to now: once it is stopped, of the whole span."""
        return Pace(
            statistics.fmean(self._clocks) if self._clocks else None,
            min(self._clocks, default=None),
            {reason: count / self._looks for reason, count in self._held_back.items()},
            self._others,
        )

    def _look(self) -> None:
        self._looks += 1
        clock, reasons = ctypes.c_uint(), ctypes.c_ulonglong()
        answer = self._library.nvmlDeviceGetClockInfo(self._device, SM_CLOCK, ctypes.byref(clock))
        if answer == WELL:
            self._clocks.append(clock.value)
        # Its older name, which drivers of either age have.
        ask = getattr(self._library, "nvmlDeviceGetCurrentClocksThrottleReasons", None)
        if ask is not None and ask(self._device, ctypes.byref(reasons)) == WELL:
            self._held_back.update(why for bit, why in HELD_BACK.items() if reasons.value & bit)
        running = _processes(self._library, self._device)
        if running is not None:
            self._look_at(set(running))

    def _look_at(self, running: set[int]) -> None:
        unknown = running - set(self._box())
        if running == unknown and self._others is None:
            return
        strangers = {pid for pid in unknown if not is_ours(pid)}
        self._strangers = Counter({pid: self._strangers[pid] + 1 for pid in strangers})
        staying = sum(looks >= LOOKS_OF_A_STRANGER for looks in self._strangers.values())
        self._others = max(self._others or 0, staying)


@contextlib.contextmanager
def busy_clock(library: Any = None) -> Iterator[BusyClock | None]:
    """A running clock of the first visible GPU; None without one."""
    with _watching(BusyClock, library) as clock:
        yield clock


@contextlib.contextmanager
def peak_memory(
    pids: Callable[[], Iterable[int]], library: Any = None
) -> Iterator[PeakMemory | None]:
    """Watches what the processes `pids()` have of the first visible GPU; None without one."""
    with _watching(functools.partial(PeakMemory, pids=pids), library) as peak:
        yield peak


@contextlib.contextmanager
def pace(pids: Callable[[], Iterable[int]], library: Any = None) -> Iterator[PaceWatch | None]:
    """Watches the first visible GPU while the processes `pids()` use it; None without one."""
    with _watching(functools.partial(PaceWatch, pids=pids), library) as watch:
        yield watch


@contextlib.contextmanager
def _watching(make: Callable[[Any, Any], Watching], library: Any) -> Iterator[Watching | None]:
    with _opened(library) as nvml:
        answer, device = _first_device(nvml)
        if answer != WELL:
            yield None
            return
        watch = make(nvml, device)
        watch.start()
        try:
            yield watch
        finally:
            watch.stop()


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


def _processes(nvml: Any, device: Any) -> dict[int, int] | None:
    """The bytes of each process that computes on a GPU; None before version 510 of the driver."""
    ask = getattr(nvml, "nvmlDeviceGetComputeRunningProcesses_v3", None)
    found, count = (_Process * MOST_PROCESSES)(), ctypes.c_uint(MOST_PROCESSES)
    if ask is None or ask(device, ctypes.byref(count), found) != WELL:
        return None
    return {process.pid: process.used for process in found[: count.value]}


def _why(nvml: Any, answer: int) -> str:
    nvml.nvmlErrorString.restype = ctypes.c_char_p
    return (nvml.nvmlErrorString(answer) or b"unknown error").decode()


def _text(ask: Any, *device: Any) -> str:
    answer = ctypes.create_string_buffer(TEXT_BYTES)
    ask(*device, answer, TEXT_BYTES)
    return answer.value.decode("utf-8", "replace")
