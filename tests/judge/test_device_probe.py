"""What a training needs of its device, tried in real boxes on the CPU: nothing here has a GPU."""

import pytest

from tasks.judge import device_probe
from tasks.judge.device_probe import Tried
from tasks.judge.workplace import assemble
from tests.boxes import make_spec
from trainer import device_steps


def probe(folder, **limits) -> list[Tried]:
    assemble("", folder)
    spec = make_spec(folder, **{"memory_bytes": 2**32, "tasks": 64, **limits})
    return device_probe.probe(spec, folder / "checkpoint", checkpoint_bytes=2**20)


def test_the_first_step_that_a_limit_ends_is_the_last_and_says_which_limit(folder):
    (found,) = probe(folder, memory_bytes=32 * 2**20)
    assert (found.step, found.holds) == ("start", False)
    assert found.detail.startswith("the box used 0.")
    assert found.detail.endswith(" GiB of memory, the limit is 0.03 GiB")


def test_a_torch_that_cannot_use_the_device_fails_at_the_start(folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (found,) = probe(folder, device="cuda")
    assert (found.step, found.holds) == ("start", False)
    assert "CUDA" in found.detail


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Failed to find C compiler.\nMore.", "RuntimeError: Failed to find C compiler."),
        ("\nin x\nx.c:3:10: fatal error: Python.h: No such file\nend", "x.c:3:10: fatal error:"),
        ("", "RuntimeError: no message"),
    ],
)
def test_of_an_error_the_telling_line_is_reported(text, told):
    def fail(device):
        raise RuntimeError(text)

    holds, detail = device_steps._try(device_steps.Step("compile", fail), "cpu")
    assert holds is False
    assert told in detail


def test_what_train_py_can_do_without_is_no_failure():
    def fail(device):
        raise RuntimeError("no kernel image")

    step = device_steps.Step("attention", fail, needed=False)
    holds, detail = device_steps._try(step, "cuda")
    assert holds is None
    assert detail == "RuntimeError: no kernel image; train.py uses the next backend"


def test_an_attention_that_is_wrong_is_found():
    import torch

    def zero(q, k, v, window):
        return 0 * (q + k + v)

    with pytest.raises(RuntimeError, match=r"y is off by 100\.00%, where 3% is allowed"):
        device_steps._compare(zero, "cpu", device_steps.WINDOW)

    def exact(q, k, v, window):
        return device_steps._exact(q, k, v, window)

    assert "within 0.00%" in device_steps._compare(exact, "cpu", device_steps.WINDOW)
    assert torch.is_grad_enabled()
