"""The machine as far as a score depends on it: a description for people, a fingerprint to compare.

Scores that were measured on different hardware are never compared.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator
from pathlib import Path

from tasks.judge import gpu, nvml

SYS = Path("/sys")


def describe(device: str, threads: int) -> str:
    """One line for people: the processor that a profile's `device` names, and the version of torch.

    "NVIDIA H100 80GB HBM3 80 GiB 700 W, driver 580.65.06, torch 2.13.0" is one of a GPU, and
    "AMD EPYC 7B13, 2 threads, torch 2.13.0" one of a CPU. Part of the fingerprint.
    """
    torch = importlib.metadata.version("torch")
    if device == "cuda":
        return f"{first_gpu() or 'unknown GPU'}, torch {torch}"
    return f"{_cpu_model()}, {threads} thread{'s' * (threads > 1)}, torch {torch}"


def first_gpu() -> gpu.Gpu | None:
    """The first visible GPU of NVIDIA's driver or AMD's; None if neither knows one."""
    return nvml.first_gpu() or _first_amd_gpu()


def fingerprint(device: str, threads: int) -> str:
    """16 hexadecimal digits, of `describe`, the operating system and the version of Python.

    For equality alone: a cached baseline is used again only under the same fingerprint.
    """
    parts = [
        describe(device, threads),
        platform.system(),
        platform.machine(),
        platform.python_version(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def label(device: str, threads: int) -> str:
    """Fingerprint and description in one line, as a commit has them."""
    return f"{fingerprint(device, threads)} {describe(device, threads)}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _first_amd_gpu() -> gpu.Gpu | None:
    """The first visible GPU of AMD's kernel driver, which describes all of them in files.

    HIP numbers GPUs as the driver's topology does, and takes `GPU-` with a serial number too. The
    driver is part of the kernel unless a version of its own is installed.
    """
    name = gpu.first_visible()
    for index, properties in enumerate(_amd_gpus()):
        if name not in (str(index), f"GPU-{int(properties.get('unique_id', 0)):016x}"):
            continue
        version = int(properties["gfx_target_version"])  # 90402 is gfx942
        target = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
        card = SYS / f"class/drm/renderD{properties['drm_render_minor']}/device"
        limit = [_line(path) for path in card.glob("hwmon/hwmon*/power1_cap")]  # microwatts
        return gpu.Gpu(
            name=_line(card / "product_name") or f"AMD {target}",
            memory_bytes=int(_line(card / "mem_info_vram_total") or 0),
            power_limit_watts=int(limit[0]) / 1e6 if limit and limit[0] else None,
            driver=_line(SYS / "module/amdgpu/version") or platform.release(),
        )
    return None


def _amd_gpus() -> Iterator[dict[str, str]]:
    """The properties of each GPU in the driver's topology, in order. CPUs are nodes there too."""
    nodes = (SYS / "class/kfd/kfd/topology/nodes").glob("[0-9]*")
    for node in sorted(nodes, key=lambda node: int(node.name)):
        try:
            lines = (node / "properties").read_text().splitlines()
        except PermissionError:  # a GPU that was not given to this container
            continue
        properties = dict(line.split(maxsplit=1) for line in lines)
        if properties.get("simd_count", "0") != "0":
            yield properties


def _line(path: Path) -> str:
    """The text of a small file; empty if there is no such file or it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
