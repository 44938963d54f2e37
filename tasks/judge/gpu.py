"""The one GPU that a box gets: the first that CUDA_VISIBLE_DEVICES shows to this process.

Nothing here talks to a driver. tasks/judge/nvml.py asks NVIDIA's about this GPU.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

NAME = re.compile(r"[0-9]+|(GPU|MIG)-.+")


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What a score may depend on. Its text is one readable line."""

    name: str
    memory_bytes: int
    power_limit_watts: float | None  # None if the driver does not say: laptops, slices
    driver: str  # version

    def __str__(self) -> str:
        limit = "" if self.power_limit_watts is None else f" {self.power_limit_watts:.0f} W"
        memory = f"{self.memory_bytes / 2**30:.0f} GiB"
        return f"{self.name} {memory}{limit}, driver {self.driver}"


def first_visible() -> str | None:
    """An index in the order of nvidia-smi, or the id of a GPU (GPU-...) or of a slice (MIG-...).

    None if no GPU is visible: CUDA stops reading the list at the first entry that names no device,
    so an empty one or -1 hides every GPU.
    """
    name = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return name if NAME.fullmatch(name) else None


def environment() -> dict[str, str]:
    """What makes this GPU the only one that CUDA sees, with indices as everywhere else here.

    By default CUDA counts the fastest GPU first, and NVIDIA's management library by bus address.
    """
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": first_visible() or "",
    }


def nodes(dev: Path = Path("/dev")) -> list[Path]:
    """NVIDIA's device nodes, with nvidia-caps as a whole: the driver knows which a slice needs."""
    return sorted(dev.glob("nvidia*"))
