"""What a GPU needs of the system around it, by made-up drivers; the box is real, on the CPU."""

import dataclasses

import pytest

import configs
from tasks.judge import device_probe, nvml
from tasks.trial import device_readiness
from tasks.trial.device_readiness import TorchBuild
from tests.made_up_gpu import Driver

PYPI = TorchBuild("2.13.0", "13.0", None)
OLDER = TorchBuild("2.13.0+cu126", "12.6", None)
CPU = TorchBuild("2.13.0+cpu", None, None)
ROCM = TorchBuild("2.13.0+rocm7.2", None, "7.2.26015")
AGAIN = "then rm -rf .venv && ./run doctor"
CU126 = f"set TORCH_INDEX=https://download.pytorch.org/whl/cu126 in .env, {AGAIN}"
PYPIS = f"unset TORCH_INDEX, also in .env, {AGAIN}"
ROCMS = f"set TORCH_INDEX=https://download.pytorch.org/whl/rocm7.2 in .env, {AGAIN}"


@pytest.fixture(autouse=True)
def _no_amd_and_no_windows(monkeypatch, tmp_path):
    monkeypatch.setattr(device_readiness, "AMD_NODE", tmp_path / "no-kfd")
    monkeypatch.setattr(device_readiness, "WSL_NODE", tmp_path / "no-dxg")


@pytest.fixture
def without_driver(monkeypatch):
    monkeypatch.setattr("tasks.judge.nvml.LIBRARY", "libnothing-like-that.so.1")


def found(monkeypatch, build, driver=None) -> device_readiness.Finding:
    """The driver's line where torch is of this build and the driver of this version."""
    monkeypatch.setattr(device_readiness, "torch_build", lambda: build)
    if driver is not None:
        made_up = Driver(driver=driver)
        monkeypatch.setattr(nvml, "driver", lambda ask=nvml.driver: ask(made_up))
    return device_readiness.driver()


@pytest.mark.parametrize(
    ("driver", "build", "holds", "remedy"),
    [
        ("580.65.06", PYPI, True, ""),
        ("595.71", PYPI, True, ""),
        ("580.64.99", PYPI, False, CU126),
        ("535.183.01", PYPI, False, CU126),
        ("525.60.13", PYPI, False, CU126),
        ("525.60.12", PYPI, False, "update the driver to 580.65.06 or newer"),
        ("470.256.02", PYPI, False, "update the driver to 580.65.06 or newer"),
        ("535.183.01", OLDER, True, ""),
        ("595.71", OLDER, True, ""),
        ("470.256.02", OLDER, False, "update the driver to 580.65.06 or newer"),
        ("470.256.02", CPU, False, "update the driver to 580.65.06 or newer"),
        ("580.65.06", CPU, False, PYPIS),
        ("535.183.01", CPU, False, CU126),
        ("580.65.06", ROCM, False, PYPIS),
    ],
)
def test_the_driver_that_torch_needs_by_a_made_up_one(monkeypatch, driver, build, holds, remedy):
    line = found(monkeypatch, build, driver)
    assert line.holds is holds
    assert driver in line.detail
    assert build.version in line.detail
    assert remedy in line.remedy
    assert bool(line.remedy) == (not holds)
    assert (CU126 in line.remedy) == (remedy == CU126)


def test_an_old_driver_is_told_both_versions_by_a_made_up_one(monkeypatch):
    assert found(monkeypatch, PYPI, "535.183.01").detail == (
        "NVIDIA 535.183.01 is too old: torch 2.13.0 has CUDA runtime 13.0, which needs 580.65.06 "
        "or newer"
    )


@pytest.mark.usefixtures("without_driver")
def test_no_driver_is_told_with_the_library_that_is_missing(monkeypatch):
    line = found(monkeypatch, PYPI)
    assert (line.holds, "libnothing-like-that.so.1" in line.detail) == (False, True)
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in line.remedy


@pytest.mark.usefixtures("without_driver")
def test_wsl_takes_the_driver_of_windows_by_a_made_up_node(monkeypatch, tmp_path):
    monkeypatch.setattr(device_readiness, "WSL_NODE", tmp_path)
    assert "driver of Windows" in found(monkeypatch, PYPI).remedy


@pytest.mark.usefixtures("without_driver")
@pytest.mark.parametrize(
    ("build", "holds", "remedy"), [(ROCM, True, ""), (PYPI, False, ROCMS), (CPU, False, ROCMS)]
)
def test_a_card_of_amd_needs_a_build_for_rocm_by_a_made_up_node(
    monkeypatch, tmp_path, build, holds, remedy
):
    monkeypatch.setattr(device_readiness, "AMD_NODE", tmp_path)
    line = found(monkeypatch, build)
    assert (line.holds, line.remedy) == (holds, remedy)


def test_a_driver_that_was_updated_in_use_needs_a_restart_by_a_made_up_one(monkeypatch):
    broken = Driver(init=18)
    monkeypatch.setattr(nvml, "driver", lambda ask=nvml.driver: ask(broken))
    line = device_readiness.driver()
    assert (line.holds, "version mismatch" in line.detail) == (False, True)
    assert line.remedy.endswith("restart the machine")


def test_the_installed_torch_is_described_without_importing_it():
    import torch

    assert device_readiness.torch_build() == TorchBuild(
        torch.__version__, torch.version.cuda, torch.version.hip
    )


def test_a_system_without_gcc_is_told_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(device_readiness, "COMMANDS", str(tmp_path))
    line = device_readiness.compiler()
    assert line.holds is False
    assert f"there is no gcc and no clang in {tmp_path}" in line.detail
    assert line.remedy == "apt install gcc"


@pytest.mark.parametrize(
    ("include", "remedy"),
    [("/usr/include/python3.none", "apt install python3."), ("/opt/none", "with its headers")],
)
def test_a_python_without_headers_is_told_what_to_install(monkeypatch, include, remedy):
    paths = {"include": include}
    monkeypatch.setattr("sysconfig.get_paths", lambda: paths)
    line = device_readiness.compiler()
    assert (line.holds, f"{include}/Python.h is missing" in line.detail) == (False, True)
    assert remedy in line.remedy


def test_a_step_that_fails_for_a_compiler_that_is_missing_has_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(device_readiness, "COMMANDS", str(tmp_path))
    failed = device_probe.Tried("torch.compile", False, "RuntimeError: Failed to find C compiler.")
    assert "apt install gcc" in device_readiness._remedy(failed)


@pytest.mark.parametrize(
    ("detail", "remedy"),
    [
        ("the box used 9.00 GiB of memory, the limit is 8.00 GiB", "raise memory_gib or tasks"),
        ("the box ran 99 processes and threads, the limit is 64", "raise memory_gib or tasks"),
        ("was killed while trying this: by the kernel for its memory", "raise memory_gib or tasks"),
        ("AcceleratorError: CUDA error: no kernel image is available", CU126),
        ("RuntimeError: CUDA unknown error", "ls -l /dev/nvidia*"),
    ],
)
def test_the_remedy_fits_what_failed_by_a_made_up_driver(monkeypatch, detail, remedy):
    assert found(monkeypatch, PYPI, "580.65.06").holds
    assert remedy in device_readiness._remedy(device_probe.Tried("start", False, detail))


def test_a_gpu_too_new_for_cuda_12_needs_pypis_build_by_a_made_up_driver(monkeypatch):
    assert found(monkeypatch, OLDER, "580.65.06").holds
    failed = device_probe.Tried("start", False, "CUDA error: no kernel image is available")
    assert PYPIS in device_readiness._remedy(failed)


@pytest.mark.slow
def test_a_training_box_of_a_night_holds_every_step_on_a_cpu(tmp_path):
    kernel = f"someone/fast-attention@{'0' * 40}"
    laptop = configs.load("laptop")
    profile = laptop.model_copy(update={"attention_kernels": (kernel,)})
    lines = list(device_readiness.in_a_box(tmp_path, profile, "bwrap"))
    assert [(line.name, line.holds) for line in lines] == [
        ("attention, someone/fast-attention", None),
        ("start", True),
        ("pinned memory", None),
        ("torch.compile", True),
        ("attention, FlexAttention", None),
        ("attention, torch's own", True),
        ("checkpoint", True),
        ("memory", True),
    ], [dataclasses.astuple(line) for line in lines]
    details = {line.name: line.detail for line in lines}
    assert details["attention, someone/fast-attention"].startswith("not tried: the preparation")
    assert details["pinned memory"] == details["attention, FlexAttention"] == "not on a CPU"
    assert details["torch.compile"].startswith("traced forward and backward, ")
    assert details["checkpoint"].startswith("260 MB saved in ")
    assert f"of the box's {laptop.limits.memory_gib:.0f} GiB" in details["memory"]
    assert list((tmp_path / "boxes").iterdir()) == []
