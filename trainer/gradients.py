"""A smoke step's gradients on a GPU: zeros, if true ones would need large activations.

A step that is not compiled keeps several times what the compiled one keeps, and would run out of
memory where training does not. So large tensors are not kept, and once one has been dropped,
backward gives zeros to every parameter that the loss depends on. All else is as in training:
the graph, hooks on it, the optimizer. Fixed, like the harness. No torch at import.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

# Smaller tensors are kept, so small computations, such as a test of an attention kernel on one row,
# have their true gradients.
LARGEST_KEPT = 2**23  # bytes


class _LeftOut:
    """In place of a tensor that was not kept."""

    def __init__(self, tensor: Any) -> None:
        self.like = tensor.shape, tensor.dtype, tensor.device


@contextlib.contextmanager
def inference_only() -> Iterator[None]:
    """Everything in the block keeps no large tensor for backward, on any device."""
    import torch

    kept_all = True
    backward, grad = torch.autograd.backward, torch.autograd.grad

    def keep(tensor: Any) -> Any:
        nonlocal kept_all
        if tensor.nbytes <= LARGEST_KEPT:
            return tensor
        kept_all = False
        return _LeftOut(tensor)

    def give(kept: Any) -> Any:
        if not isinstance(kept, _LeftOut):
            return kept
        shape, dtype, device = kept.like
        return torch.zeros((), dtype=dtype, device=device).expand(shape)

    def zeros_backward(tensors: Any, *arguments: Any, **options: Any) -> None:
        if kept_all:
            return backward(tensors, *arguments, **options)
        inputs = options.get("inputs")
        for leaf in _leaves(_listed(tensors)) if inputs is None else _listed(inputs):
            if leaf.grad is None:
                leaf.grad = torch.zeros_like(leaf)

    def zeros_grad(outputs: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        if kept_all:
            return grad(outputs, inputs, *arguments, **options)
        return tuple(torch.zeros_like(tensor) for tensor in _listed(inputs))

    torch.autograd.backward, torch.autograd.grad = zeros_backward, zeros_grad
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, give):
            yield
    finally:
        torch.autograd.backward, torch.autograd.grad = backward, grad


def is_ours(error: Exception) -> bool:
    """Whether a candidate failed only because of `inference_only`: torch.func.grad, say, does."""
    return isinstance(error, RuntimeError) and "saved tensor hooks" in str(error)


def _listed(tensors: Any) -> list[Any]:
    """As torch takes them: a tensor, or any number of them in anything that can be iterated."""
    import torch

    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)


def _leaves(tensors: list[Any]) -> Iterator[Any]:
    """The tensors to whose `grad` backward would add."""
    unseen = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set()
    while unseen:
        node = unseen.pop()
        if node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            yield node.variable
        unseen += [before for before, _ in node.next_functions if before is not None]
