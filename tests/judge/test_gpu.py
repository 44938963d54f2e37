"""Which GPU a box gets, from CUDA_VISIBLE_DEVICES and the device nodes."""

import pytest

from tasks.judge import bwrap, gpu
from tests.boxes import make_spec


@pytest.mark.parametrize(
    ("visible", "first"),
    [
        ("3,1", "3"),
        (" 2", "2"),
        ("GPU-0a1b,1", "GPU-0a1b"),
        ("MIG-GPU-ab/1/0", "MIG-GPU-ab/1/0"),
        ("", None),
        ("-1,0", None),
        ("NoDevFiles", None),
    ],
)
def test_the_first_visible_gpu(monkeypatch, visible, first):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu.first_visible() == first


def test_without_the_variable_it_is_the_first_of_the_machine(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu.first_visible() == "0"


@pytest.mark.parametrize(("visible", "inside"), [("3,1", "3"), ("GPU-0a1b", "GPU-0a1b"), ("", "")])
def test_a_box_sees_that_gpu_alone_and_counts_as_the_driver_does(
    folder, monkeypatch, visible, inside
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environment = bwrap.environment(make_spec(folder, device="cuda"), 3)
    assert environment["CUDA_VISIBLE_DEVICES"] == inside
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_the_nodes_of_every_gpu_and_of_its_slices_are_found(tmp_path):
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "sda"):
        (tmp_path / name).touch()
    (tmp_path / "nvidia-caps").mkdir()
    names = [node.name for node in gpu.nodes(tmp_path)]
    assert names == ["nvidia-caps", "nvidia-uvm", "nvidia0", "nvidiactl"]
