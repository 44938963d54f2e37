"""What this machine is, as far as a score depends on it. Scores of different fingerprints are never compared."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path

import pynvml


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _gpus() -> list[dict[str, str | float]]:
    """Name, memory and power limit of each visible NVIDIA GPU; none where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [
            {
                "name": str(pynvml.nvmlDeviceGetName(handle)),
                "memory_gib": round(float(pynvml.nvmlDeviceGetMemoryInfo(handle).total) / 2**30),
                "power_limit_w": round(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
                "driver": str(pynvml.nvmlSystemGetDriverVersion()),
            }
            for handle in handles
        ]
    finally:
        pynvml.nvmlShutdown()


def describe(device: str, threads: int) -> str:
    """One readable line: the processor a profile's `device` names, and the torch that drives it."""
    torch = importlib.metadata.version("torch")
    if device == "cuda" and (gpus := _gpus()):
        first = gpus[0]
        return f"{first['name']} {first['memory_gib']} GiB {first['power_limit_w']} W, driver {first['driver']}, torch {torch}"
    return f"{_cpu_model()}, {threads} thread{'s' * (threads > 1)}, torch {torch}"


def fingerprint(device: str, threads: int) -> str:
    """A short hash of everything in `describe` and of the operating system and Python."""
    parts = [
        describe(device, threads),
        platform.system(),
        platform.machine(),
        platform.python_version(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
