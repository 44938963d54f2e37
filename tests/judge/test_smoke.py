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
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 83.80 GiB")
"""
BUDGET = protocol.Budget("flops", 1.0, 1.0, cpu_seconds=None)
FIRST = {
    "before ready": "pass",
    "after go": "harness.ready(flops_per_token=1.0)",
    "after a log": "harness.ready(flops_per_token=1.0); harness.log(step=0, tokens=1, loss=1.0)",
}


def smoke(folder, first: str, device: str) -> str:
    """The log of a candidate that runs out of memory there, if the judge lets it pass."""
    assemble(CANDIDATE.format(first=first), folder)
    spec = make_spec(folder, role="smoke", device=device, memory_bytes=2**31, tasks=64)
    with open_box(spec) as box:
        assert protocol.smoke(box, spec.gate, BUDGET, startup_seconds=120, max_bytes=1) is None
        box.kill()
        return box.log.text()


@pytest.mark.parametrize("place", FIRST)
def test_a_smoke_step_that_runs_out_of_a_made_up_gpus_memory_passes_wherever_it_does(folder, place):
    assert "smoke step: out of memory" in smoke(folder, FIRST[place], "cuda")


def test_a_smoke_step_that_runs_out_of_memory_on_a_cpu_is_a_crash(folder):
    with pytest.raises(protocol.Stopped, match="out of memory") as stopped:
        smoke(folder, FIRST["before ready"], "cpu")
    assert stopped.value.status == "startup_crashed"
