"""Where a step goes, module by module: nothing is lost and nothing is counted twice."""

import time

import pytest
import torch
from torch import nn

from trainer import flops, step_parts


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Linear(16, 16, bias=False)

    def forward(self, x):
        return x + self.mlp(x).relu()


class Model(nn.Module):
    """Two layers, and a head whose weight the model itself uses."""

    def __init__(self):
        super().__init__()
        self.h = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(16, 64, bias=False)

    def forward(self, x):
        for layer in self.h:
            x = layer(x)
        return nn.functional.linear(x, self.head.weight).square().mean()


def one_step(model: Model, x: torch.Tensor) -> None:
    model(x).backward()
    with torch.no_grad():
        torch.randn(32, 32) @ torch.randn(32, 32)


@pytest.fixture
def step():
    torch.manual_seed(0)
    return Model(), torch.randn(8, 16)


def test_flops_are_those_of_the_counter_by_part_and_the_optimizers_apart(step):
    with flops.Counter() as whole:
        one_step(*step)
    parts = step_parts.Parts(time.process_time)
    with parts.followed(), parts.counted():
        one_step(*step)
    found = {part["name"]: part["flops"] for part in parts.found(1)}
    layer, head = 2 * 8 * 16 * 16, 2 * 8 * 16 * 64
    # The first layer's input needs no gradient.
    assert found["h.*.mlp"] == 3 * layer + 2 * layer
    assert found[step_parts.MODEL] == 3 * head
    assert found[step_parts.OUTSIDE] == 2 * 32**3
    assert sum(found.values()) - 2 * 32**3 == whole.counts.flops


def test_what_is_kept_for_backward_has_its_part_and_parameters_are_not_kept(step):
    parts = step_parts.Parts(time.process_time)
    with parts.followed(), parts.counted():
        one_step(*step)
    kept = {part["name"]: part["kept_bytes"] for part in parts.found(1)}
    assert kept["h.*.mlp"] == 2 * 8 * 16 * 4  # what its weight is multiplied by
    assert kept[step_parts.OUTSIDE] == 0
    assert sum(kept.values()) < 8 * 4096


def test_all_time_of_the_block_is_on_some_part(step):
    ticks = iter(range(1, 1000))
    parts = step_parts.Parts(lambda: float(next(ticks)))
    with parts.followed():
        first = parts._since
        one_step(*step)
    assert sum(parts.seconds.values()) == parts._since - first
    assert all(part["milliseconds"] > 0 for part in parts.found(1))


def test_hooks_are_gone_after_the_block(step):
    backward = torch.autograd.backward
    parts = step_parts.Parts(time.process_time)
    with parts.followed():
        pass
    one_step(*step)
    assert torch.autograd.backward is backward
    assert set(parts.seconds) == {step_parts.OUTSIDE}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("h.0.attn.c_v", "h.*.attn"),
        ("transformer.h.11.mlp", "transformer.h.*.mlp"),
        ("value_embeds.2", "value_embeds.*"),
        ("experts.3.layers.4.up", "experts.*.layers"),
        ("lm_head", "lm_head"),
        ("encoder.norm.scale", "encoder.norm"),
        ("w2", "w2"),
        ("", step_parts.MODEL),
    ],
)
def test_modules_that_differ_in_a_number_are_one_part(name, part):
    assert step_parts.collapsed(name) == part
