"""The smoke step in real boxes: what the judge makes of its messages. The GPU is made up."""

import pytest

from tasks.judge import protocol
from tasks.judge.box import open_box
from tasks.judge.workplace import assemble
from tests.boxes import make_spec

CANDIDATE = """
import torch
import trainer.harness as harness

def main():
    {first}
    raise {error}
"""
BUDGET = protocol.Budget("flops", 1.0, 1.0, cpu_seconds=None)
FIRST = {
    "before ready": "pass",
    "after go": "harness.ready(flops_per_token=1.0)",
    "after a step": """harness.ready(flops_per_token=1.0)
    large = torch.nn.Parameter(torch.ones(2**22))
    (large * large).sum().backward()
    assert not large.grad.any()
    """,
    "after a log": "harness.ready(flops_per_token=1.0); harness.log(step=0, tokens=1, loss=1.0)",
}


OUT_OF_MEMORY = 'torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 83.80 GiB")'
NO_HANDLE = 'RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")'


def smoke(folder, first: str, device: str, error: str = OUT_OF_MEMORY) -> str:
    """The log of a candidate that runs out of memory there, if the judge lets it pass."""
    assemble(CANDIDATE.format(first=first, error=error), folder)
    spec = make_spec(folder, role="smoke", device=device, memory_bytes=2**31, tasks=64)
    with open_box(spec) as box:
        assert protocol.smoke(box, spec.gate, BUDGET, startup_seconds=120, max_bytes=1) is None
        box.kill()
        return box.log.text()


@pytest.mark.parametrize("place", FIRST)
def test_a_smoke_step_that_runs_out_of_a_made_up_gpus_memory_passes_wherever_it_does(folder, place):
    error = NO_HANDLE if place == "after go" else OUT_OF_MEMORY
    assert "smoke step: given up" in smoke(folder, FIRST[place], "cuda", error)


def test_a_smoke_step_that_runs_out_of_memory_on_a_cpu_is_out_of_memory(folder):
    reason = r"ran out of memory while in its smoke step, .*: .*OutOfMemoryError: CUDA out of"
    with pytest.raises(protocol.Stopped, match=reason) as stopped:
        smoke(folder, FIRST["before ready"], "cpu")
    assert stopped.value.status == "out_of_memory"


def test_a_smoke_step_that_crashes_on_a_made_up_gpu_is_a_crash(folder):
    with pytest.raises(protocol.Stopped, match="CUDA error: an illegal") as stopped:
        smoke(folder, "pass", "cuda", 'RuntimeError("CUDA error: an illegal memory access")')
    assert stopped.value.status == "startup_crashed"


STATE = """
import torch
import trainer.harness as harness

VOCAB_SIZE, MAX_SEQ_LEN, DEVICE_BATCH_SIZE = 256, 8, 2

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(256, 256))
        self.register_buffer("rows", torch.zeros(100, 9, dtype=torch.int16))
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("sparse", torch.eye(2).to_sparse())
    def forward(self, idx, targets=None, reduction="mean"):
        assert not torch.is_grad_enabled()
        logits = torch.vmap(lambda row: self.table[row] * self.scale)(idx)
        if targets is None:
            return logits
        losses = logits.logsumexp(-1) - logits.gather(-1, targets[..., None])[..., 0]
        return losses.flatten()

def load_model(path, device):
    assert not torch.is_grad_enabled()
    state = torch.load(path)
    model = torch.compile(Model())
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model

def main():
    harness.ready(flops_per_token=1.0)
    state = torch.compile(Model()).state_dict()
    assert all(name.startswith("_orig_mod.") for name in state)
    harness.finish({**state, "text": torch.zeros(5000, dtype=torch.uint8), "step": torch.zeros(1)})
"""


@pytest.mark.slow
def test_a_smoke_step_names_what_no_forward_pass_reads(folder):
    """Not the count of steps, which is small. Names, vmap and sparse tensors are as in training."""
    assemble(STATE, folder)
    spec = make_spec(folder, role="smoke", memory_bytes=2**31, tasks=64)
    with open_box(spec) as box:
        found = protocol.smoke(box, spec.gate, BUDGET, startup_seconds=120, max_bytes=2**20)
    assert found is not None
    _, smoked = found
    assert smoked.state_bytes == 4 * 256 * 256 + 2 * 900 + 4
    assert smoked.unread == ("text", "_orig_mod.rows")
