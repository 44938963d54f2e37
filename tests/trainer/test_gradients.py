"""Gradients in the smoke step of a GPU, on a CPU and with a smaller limit of what is kept."""

import weakref

import pytest
import torch
from torch import nn

from trainer import gradients

ROWS, WIDTH = 64, 16


@pytest.fixture
def limit(monkeypatch):
    """Sets from which size on a tensor is not kept, in bytes."""
    return lambda size: monkeypatch.setattr(gradients, "LARGEST_KEPT", size)


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    made.unused = nn.Parameter(torch.ones(3))
    return made


def loss_of(model: nn.Sequential) -> torch.Tensor:
    loss: torch.Tensor = model[:3](torch.ones(ROWS, WIDTH)).square().mean()
    return loss


def test_small_tensors_are_kept_and_their_gradients_true(model):
    loss_of(model).backward()
    expected = [p.grad for p in model[:3].parameters()]
    model.zero_grad()
    with gradients.inference_only():
        loss_of(model).backward()
        found = torch.autograd.grad(loss_of(model), list(model[:3].parameters()))
    for gradient, true, again in zip(
        [p.grad for p in model[:3].parameters()], expected, found, strict=True
    ):
        assert torch.equal(gradient, true)
        assert torch.equal(again, true)


def test_without_what_is_large_the_gradients_of_what_was_used_are_zeros(model, limit):
    limit(4 * ROWS)
    model[0].bias.grad = torch.ones(WIDTH)
    seen: list[torch.Tensor] = []
    with gradients.inference_only():
        loss = loss_of(model)
        loss.register_hook(seen.append)  # needs a graph
        assert loss.requires_grad
        loss.backward()
        (alone, _) = torch.autograd.grad(loss_of(model), model[0].parameters())
        torch.autograd.backward([loss_of(model)], inputs=[model.unused])
    assert torch.equal(model[0].weight.grad, torch.zeros(WIDTH, WIDTH))
    assert torch.equal(model[2].bias.grad, torch.zeros(1))
    assert torch.equal(model[0].bias.grad, torch.ones(WIDTH))  # zeros were added
    assert torch.equal(alone, torch.zeros(WIDTH, WIDTH))
    assert torch.equal(model.unused.grad, torch.zeros(3))


def test_what_no_loss_uses_has_no_gradient(model, limit):
    limit(0)
    with gradients.inference_only():
        loss_of(model).backward()
    assert model.unused.grad is None


def test_nothing_large_stays_in_memory(model, limit):
    made: list[weakref.ref[torch.Tensor]] = []
    model[1].register_forward_hook(lambda *found: made.append(weakref.ref(found[2])))
    true = loss_of(model)
    assert made[0]() is not None
    limit(4 * ROWS)
    with gradients.inference_only():
        lean = loss_of(model)
    assert made[1]() is None
    assert torch.equal(true, lean)


def test_a_function_of_torch_that_cannot_be_tried_is_known(model):
    with gradients.inference_only(), pytest.raises(RuntimeError) as raised:
        torch.func.grad(torch.sum)(torch.ones(2))
    assert gradients.is_ours(raised.value)
    assert not gradients.is_ours(RuntimeError("another"))


def test_afterwards_all_is_as_before(model, limit):
    limit(0)
    with gradients.inference_only():
        loss_of(model)
    loss_of(model).backward()
    assert model[0].weight.grad.any()
