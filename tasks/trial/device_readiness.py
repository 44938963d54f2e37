"""Whether a GPU can do what a night needs: driver, compiler, and steps tried in a training's box.

Nothing here imports torch: a broken one is among what must be reported.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import runpy
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from configs import Profile
from tasks.data import attention_kernels
from tasks.errors import DataError
from tasks.judge import device_probe, nvml
from tasks.judge.bwrap import COMMANDS, BoxUnavailable
from tasks.judge.workplace import workplace
from tasks.records import Bench, Candidate, Dataset
from tasks.trial.baseline import first_caps
from tasks.trial.experiment import native_kernels, train_box

# The oldest driver for each major version of CUDA's runtime: its minor versions all run on it.
# docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
OLDEST_DRIVERS = {"12": "525.60.13", "13": "580.65.06"}
# The other builds of torch 2.13 that its release notes name: one for CUDA 12, one for ROCm.
CUDA_12_INDEX = "https://download.pytorch.org/whl/cu126"
ROCM_INDEX = "https://download.pytorch.org/whl/rocm7.2"
COMPILERS = ("gcc", "clang")  # Triton takes the first
AMD_NODE = Path("/dev/kfd")
WSL_NODE = Path("/dev/dxg")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: `holds` is None where nothing is required."""

    name: str
    holds: bool | None
    detail: str
    remedy: str = ""


@dataclasses.dataclass(frozen=True)
class TorchBuild:
    """What the installed torch was built for: the runtime's version, of CUDA, of HIP or of none."""

    version: str
    cuda: str | None
    hip: str | None


def torch_build() -> TorchBuild | None:
    """The installed torch by its own file, which is read without torch; None if there is none."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return None
    try:
        named = runpy.run_path(str(Path(torch.origin).with_name("version.py")))
    except OSError:
        return None
    return TorchBuild(named["__version__"], named.get("cuda"), named.get("hip"))


def driver() -> Finding:
    """The GPU's driver, and whether the installed torch can use it."""
    build, (version, why) = torch_build(), nvml.driver()
    if build is None:
        return Finding("driver", False, "torch is not installed", _reinstall())
    if version is None and AMD_NODE.exists():
        return _amd_driver(build)
    if version is None:
        return _no_driver(why)
    if build.cuda is None:
        kind = "for ROCm" if build.hip else "without CUDA"
        found = f"NVIDIA {version}, but torch {build.version} is built {kind}"
        return Finding("driver", False, found, _build_for(version))
    runtime = f"torch {build.version} has CUDA runtime {build.cuda}"
    oldest = OLDEST_DRIVERS.get(build.cuda.partition(".")[0])
    if oldest is None or _numbers(version) >= _numbers(oldest):
        return Finding("driver", True, f"NVIDIA {version}; {runtime}")
    found = f"NVIDIA {version} is too old: {runtime}, which needs {oldest} or newer"
    return Finding("driver", False, found, _build_for(version))


def _amd_driver(build: TorchBuild) -> Finding:
    if build.hip:
        found = f"AMD's, part of the kernel; torch {build.version} has ROCm {build.hip}"
        return Finding("driver", True, found)
    found = f"AMD's, but torch {build.version} is not built for ROCm"
    return Finding("driver", False, found, _reinstall(ROCM_INDEX))


def _no_driver(why: str) -> Finding:
    remedy = (
        f"install NVIDIA's driver, {OLDEST_DRIVERS['13']} or newer, so that nvidia-smi works. In a "
        "container: start it with --gpus all and NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    )
    if "mismatch" in why:
        remedy = "the driver was updated while it was in use: restart the machine"
    elif WSL_NODE.exists():
        remedy = "WSL2 takes the driver of Windows: update it there, and install none here"
    return Finding("driver", False, f"NVIDIA's does not answer: {why}", remedy)


def _build_for(driver: str) -> str:
    """How to get a torch that runs on this driver of NVIDIA's, or a driver for one."""
    if _numbers(driver) >= _numbers(OLDEST_DRIVERS["13"]):
        return _reinstall()
    update = f"update the driver to {OLDEST_DRIVERS['13']} or newer"
    if _numbers(driver) < _numbers(OLDEST_DRIVERS["12"]):
        return update
    return (
        f"take the torch build for CUDA 12: {_reinstall(CUDA_12_INDEX)}. "
        f"Or {update}. A Blackwell card needs that: the build for CUDA 12 has no code for it"
    )


def _reinstall(index: str | None = None) -> str:
    """How to get the torch build of that index; None is PyPI's, for the newest CUDA."""
    variable = f"set TORCH_INDEX={index} in .env" if index else "unset TORCH_INDEX, also in .env"
    return f"{variable}, then rm -rf .venv && ./run doctor"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def compiler() -> Finding:
    """What Triton builds its launchers with: a C compiler where a box finds it, and Python.h."""
    found = next(filter(None, (shutil.which(name, path=COMMANDS) for name in COMPILERS)), None)
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    is_system = header.is_relative_to("/usr")
    missing, packages = [], []
    if found is None:
        missing.append(f"there is no {' and no '.join(COMPILERS)} in {COMMANDS}")
        packages.append("gcc")
    if not header.is_file():
        missing.append(f"{header} is missing")
        packages += [f"python{version}-dev"] if is_system else []
    if not missing:
        return Finding("compiler", True, f"{found}, {header}")
    remedy = [f"apt install {' '.join(packages)}"] if packages else []
    if not header.is_file() and not is_system:
        remedy.append(f"install Python {version} with its headers")
    return Finding(
        "compiler", False, f"torch.compile needs it: {', '.join(missing)}", "; ".join(remedy)
    )


def in_a_box(home: Path, profile: Profile, isolation: str) -> Iterator[Finding]:
    """What a training box, with the profile's limits, does on the device: trainer/device_steps.py.

    The last finding is the first that fails, if one does. Pinned attention kernels are tried if an
    earlier preparation has fetched them.
    """
    folder = home / "data" / "kernels"
    for pin in profile.attention_kernels:
        if not attention_kernels.fetched([pin], folder):
            name = f"attention, {pin.partition('@')[0]}"
            yield Finding(name, None, "not tried: the preparation has not fetched it yet")
    fetched = attention_kernels.fetched(profile.attention_kernels, folder)
    try:
        with workplace(home) as work:
            dataset = Dataset("", str(work), str(work), "", 0, attention_kernels=fetched)
            bench = Bench(profile, dataset, home, isolation, first_caps(profile))
            spec = train_box(Candidate.parse(""), bench, 0, work, native_kernels(dataset))
            found = device_probe.probe(spec, work / "checkpoint")
    except (BoxUnavailable, DataError) as error:
        yield Finding("a training's box", False, str(error))
        return
    except OSError as error:
        yield Finding("checkpoint", False, f"{home} cannot be written: {error.strerror}")
        return
    for tried in found:
        remedy = "" if tried.holds is not False else _remedy(tried)
        yield Finding(tried.step, tried.holds, tried.detail, remedy)


def _remedy(failed: device_probe.Tried) -> str:
    """What is likely to help. A driver and a compiler are looked at anew: they explain most."""
    if failed.detail.startswith(("the box used", "the box ran", "was killed")):
        return "raise memory_gib or tasks in the profile's [limits]"
    known = driver() if failed.step == "start" else compiler()
    if known.holds is False:
        return f"{known.detail}: {known.remedy}"
    if "no kernel image" in failed.detail:  # CUDA 12 has the oldest GPUs, CUDA 13 the newest
        build = torch_build()
        other = None if build and (build.cuda or "").startswith("12.") else CUDA_12_INDEX
        return f"this torch has no code for this GPU, another may: {_reinstall(other)}"
    if failed.step == "start":
        return (
            "see whether nvidia-smi works, and ls -l /dev/nvidia*; in a container, start it with "
            "--gpus all and NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        )
    return "look at dmesg, and check whether the profile's [limits] are too low for a box"
