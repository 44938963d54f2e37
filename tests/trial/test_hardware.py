"""What a machine is called, and when two count as the same; GPUs are made up."""

import ctypes
import importlib.metadata

import pytest

from tasks.trial import hardware
from tests.made_up_gpu import Driver

TORCH = f"torch {importlib.metadata.version('torch')}"
CPU_NODE = "cpu_cores_count 64\nsimd_count 0\ngfx_target_version 0\n"
GPU_NODE = (
    "simd_count 1216\ngfx_target_version {version}\ndrm_render_minor {minor}\nunique_id {id}\n"
)


@pytest.fixture(autouse=True)
def _all_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def nvidia(monkeypatch):
    """A machine with two unequal GPUs."""
    driver = Driver(("GPU-a", "small", 24, 450), ("GPU-b", "large", 80, 700))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)


@pytest.fixture
def amd(tmp_path, monkeypatch):
    """The files of AMD's driver on a machine with a CPU, a data centre's GPU and a desktop's."""
    monkeypatch.setattr(hardware, "SYS", tmp_path)
    monkeypatch.setattr("tasks.judge.nvml.LIBRARY", "libnothing-like-that.so.1")
    nodes = [
        CPU_NODE,
        GPU_NODE.format(version=90402, minor=128, id=171),
        GPU_NODE.format(version=110000, minor=129, id=0),
    ]
    for number, text in enumerate(nodes):
        node = tmp_path / "class/kfd/kfd/topology/nodes" / str(number)
        node.mkdir(parents=True)
        (node / "properties").write_text(text)
    for minor, gib in ((128, 192), (129, 24)):
        card = tmp_path / f"class/drm/renderD{minor}/device"
        card.mkdir(parents=True)
        (card / "mem_info_vram_total").write_text(f"{gib * 2**30}\n")
    mi300x = tmp_path / "class/drm/renderD128/device"
    (mi300x / "product_name").write_text("AMD Instinct MI300X OAM\n")
    (mi300x / "hwmon/hwmon3").mkdir(parents=True)
    (mi300x / "hwmon/hwmon3/power1_cap").write_text("750000000\n")
    (tmp_path / "module/amdgpu").mkdir(parents=True)
    (tmp_path / "module/amdgpu/version").write_text("6.12.12\n")


def test_a_gpu_is_described_by_a_made_up_driver(nvidia):
    assert hardware.describe("cuda", 4) == f"small 24 GiB 450 W, driver 580.1, {TORCH}"


@pytest.mark.parametrize("visible", ["1", "1,0", "GPU-b"])
def test_the_fingerprint_is_of_the_first_visible_gpu_by_a_made_up_driver(
    nvidia, monkeypatch, visible
):
    first = hardware.fingerprint("cuda", 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.describe("cuda", 4).startswith("large 80 GiB 700 W")
    assert hardware.fingerprint("cuda", 4) != first


def test_one_gpu_under_two_names_has_one_fingerprint_by_a_made_up_driver(nvidia, monkeypatch):
    found = set()
    for visible in ("1", "GPU-b", "GPU-b,GPU-a"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found.add(hardware.fingerprint("cuda", 4))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("visible", "described"),
    [
        ("0", "AMD Instinct MI300X OAM 192 GiB 750 W, driver 6.12.12"),
        ("GPU-00000000000000ab", "AMD Instinct MI300X OAM 192 GiB 750 W, driver 6.12.12"),
        ("1,0", "AMD gfx1100 24 GiB, driver 6.12.12"),
        ("2", "unknown GPU"),
        ("", "unknown GPU"),
    ],
)
def test_an_amd_gpu_is_described_by_made_up_files(amd, monkeypatch, visible, described):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.describe("cuda", 4) == f"{described}, {TORCH}"


def test_a_gpu_that_no_driver_describes_is_not_called_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "SYS", tmp_path)
    monkeypatch.setattr("tasks.judge.nvml.LIBRARY", "libnothing-like-that.so.1")
    assert hardware.describe("cuda", 4) == f"unknown GPU, {TORCH}"


def test_a_cpu_is_described_with_its_threads(monkeypatch):
    monkeypatch.setattr(hardware, "_cpu_model", lambda: "a CPU")
    assert hardware.describe("cpu", 1) == f"a CPU, 1 thread, {TORCH}"
    assert hardware.describe("cpu", 2) == f"a CPU, 2 threads, {TORCH}"
    assert hardware.fingerprint("cpu", 1) != hardware.fingerprint("cpu", 2)
