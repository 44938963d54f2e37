"""The one GPU that a box gets: the first that CUDA_VISIBLE_DEVICES shows to this process.

And what a box needs to reach it: device nodes, the groups that may open them, and the folder of the
driver's library where the loader does not find it by itself. That library is not asked here:
tasks/judge/nvml.py asks NVIDIA's about this GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

NAME = re.compile(r"[0-9]+|(GPU|MIG)-.+")
DEV = Path("/dev")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # there while its kernel module is loaded
NODE_SECONDS = 30.0  # that nvidia-modprobe may take to load a module and make its node
LIBCUDA = "libcuda.so.1"
# Where GKE and the container images of cloud providers mount the driver, and where WSL2 does.
USUAL_FOLDERS = (Path("/usr/local/nvidia/lib64"), Path("/usr/lib/wsl/lib"))
SYSTEM = Path("/usr")  # in every box
# A line of `ldconfig -p`; "libc6" alone is a library for 32 bits.
CACHED = re.compile(rf"^\t{re.escape(LIBCUDA)} \(libc6,.*\) => (.+)$", re.MULTILINE)


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
    found = {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": first_visible() or "",
    }
    if (DEV / "nvidiactl").exists():
        # Memory that grows in place does not fall to pieces. Where it cannot (WSL2, older versions
        # of ROCm), torch would only warn.
        found["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    folder = _unknown_to_the_loader()
    if folder is not None:
        found |= {"LD_LIBRARY_PATH": str(folder), "TRITON_LIBCUDA_PATH": str(folder)}
    return found


def driver_folders() -> list[Path]:
    """Folders of libcuda that a box does not have by itself; each is to be at the same path."""
    library = _cached_library()
    folder = _unknown_to_the_loader() or (library.parent if library else None)
    if folder is None:
        return []
    # The second is another one if the library is a link.
    folders = {folder, (folder / LIBCUDA).resolve().parent}
    return sorted(folder for folder in folders if not folder.is_relative_to(SYSTEM))


def _unknown_to_the_loader() -> Path | None:
    """The folder of the libcuda of this process, if that is not the one in the loader's cache.

    As the loader does, it looks into LD_LIBRARY_PATH first: a folder there that holds no libcuda is
    nothing that a box needs.
    """
    listed = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    folders = [Path(name) for name in listed if name.startswith("/")]
    cached = _cached_library()
    if cached is None:
        folders += USUAL_FOLDERS
    folder = next((f.resolve() for f in folders if (f / LIBCUDA).exists()), None)
    return None if cached and folder == cached.parent.resolve() else folder


@functools.cache
def _cached_library() -> Path | None:
    """The libcuda that the loader knows without LD_LIBRARY_PATH."""
    ldconfig = shutil.which("ldconfig", path="/usr/sbin:/sbin:/usr/bin")
    if ldconfig is None:
        return None
    listed = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, errors="replace")
    found = CACHED.search(listed.stdout)
    return Path(found[1]) if found else None


def nodes() -> list[Path]:
    """The device nodes of NVIDIA's GPUs, of those of WSL2, and of AMD's.

    nvidia-caps is a whole folder: the driver knows which of them a slice needs. Render nodes belong
    to AMD's driver only if its own node is there: any integrated graphics has one.
    """
    found = [*DEV.glob("nvidia*"), *DEV.glob("dxg"), *DEV.glob("kfd")]
    if DEV / "kfd" in found:
        found += DEV.glob("dri/renderD*")
    return sorted(found)


def groups(found: Iterable[Path]) -> list[int]:
    """The ids of the groups without which these nodes cannot be used, such as `render`."""
    needed = set()
    for node in found:
        state = node.stat()
        others = stat.S_IROTH | stat.S_IWOTH
        if state.st_mode & others != others and state.st_mode & stat.S_IWGRP:
            needed.add(state.st_gid)
    return sorted(needed - {0})  # root's group may read too much else


def make_nodes() -> None:
    """Makes the nodes of NVIDIA's driver that a fresh machine lacks until a program of root's asks.

    In a box nobody could: there /dev is read-only, and nvidia-modprobe is not root. Where that tool
    is missing or fails, CUDA says in the box what it lacks.
    """
    missing = any(not (DEV / name).exists() for name in ("nvidiactl", "nvidia-uvm"))
    tool = shutil.which("nvidia-modprobe")
    if missing and NVIDIA_DRIVER.exists() and tool is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([tool, "-u", "-c0"], capture_output=True, timeout=NODE_SECONDS)
