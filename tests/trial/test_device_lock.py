"""One night on a device: a second is refused by the name of the first; a dead one holds none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import configs
from tasks.errors import UsageError
from tasks.trial import device_lock
from tests.trials import make_header

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from tasks.trial import device_lock
from tests.trials import make_header
with device_lock.held(Path(sys.argv[1]), "cuda-0", "night nov21"):
    print("held", flush=True)
    time.sleep(600)
"""


def settings(device: str, kind: str) -> configs.Profile:
    changes = {"settings": {"device": device, "budget": {"kind": kind}}}
    return make_header(**changes).settings


@pytest.fixture(autouse=True)
def _all_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds cuda-0."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("device", "kind", "held"),
    [
        ("cpu", "flops", None),
        ("cpu", "seconds", "cpu"),
        ("mps", "seconds", "mps"),
        ("cuda", "seconds", "cuda-0"),
        ("cuda", "flops", "cuda-0"),  # memory is shared whatever the budget
    ],
)
def test_the_device_that_a_night_needs_for_itself(device, kind, held):
    assert device_lock.device_of(settings(device, kind)) == held


@pytest.mark.parametrize(
    ("visible", "held"),
    [("3", "cuda-3"), ("2,3", "cuda-2"), ("MIG-GPU-ab/1/0", "cuda-MIG-GPU-ab_1_0")],
)
def test_the_gpu_is_the_one_that_a_box_sees(monkeypatch, visible, held):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_lock.device_of(settings("cuda", "seconds")) == held


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_night_on_a_hidden_gpu_is_refused(monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UsageError, match=f"'{visible}' hides every GPU"):
        device_lock.device_of(settings("cuda", "seconds"))


def test_a_second_night_is_refused_with_the_name_of_the_first(tmp_path, holder):
    with (
        pytest.raises(
            UsageError,
            match=rf"night dec1 .* cuda-0, on which night nov21 is running \(pid {holder.pid}\)",
        ),
        device_lock.held(tmp_path, "cuda-0", "night dec1"),
    ):
        pass


@pytest.mark.usefixtures("holder")
@pytest.mark.parametrize("device", ["cuda-1", None])
def test_another_device_is_free(tmp_path, device):
    with device_lock.held(tmp_path, device, "night dec1"):
        pass


def test_a_dead_night_holds_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    with device_lock.held(tmp_path, "cuda-0", "night dec1"):
        assert (tmp_path / "device-cuda-0.lock").read_text() == f"night dec1 {os.getpid()}"


def test_a_night_that_needs_no_device_leaves_no_file(tmp_path):
    with device_lock.held(tmp_path, None, "night dec1"):
        assert list(tmp_path.iterdir()) == []
