"""Counts the floating-point operations of training steps as they are executed, on a CPU.

The convention is that of the figure that a candidate gives to `harness.ready`: 2 for each weight of
a matrix product and token in the forward pass and 4 in the backward pass, and of attention 4 and 8
for each head channel and key (PaLM, Chowdhery et al., arXiv 2204.02311, appendix B). So it counts
matrix products, convolutions and attention, all by torch's own formulas where it has some, in every
forward pass that has gradients and in its backward pass. Not counted are embeddings and pointwise
work, what a backward pass computes again to save memory, and what has no gradient: the optimizer,
averages, a look at the data. Keys that a mask excludes from attention are not counted; attention
that is causal without a mask counts all keys, those after a query too. Beside the FLOPs it counts
the memory traffic of all operations, the optimizer's too: how dear a step is to a CPU.

Imports torch: the harness imports this once the candidate is about to train.
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import graph
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
ENGINE = graph._engine_run_backward.__code__  # the frame that autograd's own operations run in
GRADIENT_ENDS = "torch::autograd::AccumulateGrad"  # its hooks may be an optimizer


def _attention(given: Any, mask: Any) -> float:
    """Scores and weighted values of the fused kernel for CPUs, which torch does not count.

    `given` is query [B, H, T, D], key [B, H', S, D] and value [B, H', S, E]; `mask` is None or what
    is added to the scores, [B, H, T, S] once it is expanded.
    """
    query, key, value = given
    pairs = math.prod(query.shape[:3]) * key.shape[2]
    share = 1.0 if mask is None else (mask > -math.inf).double().mean().item()
    return float(2 * pairs * share * (query.shape[3] + value.shape[3]))


def _lstm(x: Any, of_input: Any, of_state: Any) -> float:
    """One layer and direction: x [T, B, D] and the weights of all gates."""
    return float(2 * math.prod(x.shape[:2]) * (of_input.numel() + of_state.numel()))


def _grouped(a: Any, b: Any, out: Any) -> float:
    """Of a mixture of experts: rows [M, K] by [G, K, N], or its gradient [M, K] by [K, N]."""
    return float(2 * (a.shape[-1] * out.numel() if b.ndim == 3 else a.numel() * b.shape[1]))


# Of operations that torch's own table lacks, from their arguments and result. The backward pass of
# attention has four products for the two of the forward pass, and computes the scores again.
OURS: dict[Any, Callable[[Any, Any, Any], float]] = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: (
        lambda given, named, out: _attention(given[:3], named.get("attn_mask"))
    ),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda given, named, out: 2 * _attention(given[1:4], named.get("attn_mask"))
    ),
    ATEN.mkldnn_rnn_layer: lambda given, named, out: _lstm(*given[:3]),
    ATEN.mkldnn_rnn_layer_backward: lambda given, named, out: 2 * _lstm(*given[:3]),
    ATEN._grouped_mm: lambda given, named, out: _grouped(given[0], given[1], out),
    ATEN.mv: lambda given, named, out: 2.0 * given[0].numel(),
    ATEN.addmv: lambda given, named, out: 2.0 * given[1].numel(),
    ATEN.dot: lambda given, named, out: 2.0 * given[0].numel(),
    ATEN.addbmm: lambda given, named, out: 2.0 * given[1].numel() * given[2].shape[2],
    ATEN._addmm_activation: lambda given, named, out: 2.0 * given[1].numel() * given[2].shape[1],
}
FUNCTION: Any = torch.autograd.Function
APPLY = FUNCTION.__dict__["apply"]  # a class method
TORCHS = dict(flop_counter.flop_registry)  # a copy: what is in the original may change
# Its table has no operations that write to their first argument.
IN_PLACE = {
    ATEN.addmm_: ATEN.addmm,
    ATEN.baddbmm_: ATEN.baddbmm,
    ATEN.addbmm_: ATEN.addbmm,
    ATEN.addmv_: ATEN.addmv,
}
COMPLEX = 4  # real products in a complex one
CALL = 2**14  # bytes of results that take a CPU as long as the call itself
PARTS = 4  # of a training, in each of which a step is counted


@dataclasses.dataclass
class Counts:
    """FLOPs of the operations between two moments, by what they were for."""

    forward: float = 0.0
    backward: float = 0.0
    again: float = 0.0  # forward passes during the backward pass
    traffic: float = 0.0  # bytes of all results, whatever for, and CALL for each operation

    @property
    def flops(self) -> float:
        """Without what was computed a second time, so at most as much as the first time."""
        return self.forward + self.backward + max(self.again - self.forward, 0.0)


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what this thread computes between `__enter__` and `__exit__`, into `counts`.

    What runs within an operation of higher order, such as torch.while_loop, is not seen.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counts()
        self._functions: list[bool] = []  # whether gradients were on where each was applied
        self._stance: Any = None
        # Not the thread's number: one that begins later may have that of one that has ended.
        self._here = threading.local()
        self._here.is_counted = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: to keep the compiler out of the method below, torch would import it, in 2 s."""
        return False

    def __enter__(self) -> Counter:
        functions = self._functions

        def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
            """In a Function's forward method gradients are off: notes what they were outside."""
            functions.append(torch.is_grad_enabled())
            try:
                return APPLY.__func__(function, *args, **kwargs)
            finally:
                functions.pop()

        FUNCTION.apply = classmethod(apply)
        if "torch._dynamo" in sys.modules:  # something may be compiled: no operation is seen there
            self._stance = torch.compiler.set_stance("force_eager")
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *problem: Any) -> None:
        FUNCTION.apply = APPLY
        if self._stance is not None:
            self._stance.__exit__(*problem)
        if hasattr(self._here, "is_counted"):  # no other thread can take a mode away
            super().__exit__(*problem)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        if isinstance(function, torch._ops.HigherOrderOperator):
            return out
        if not function.is_view:
            self.counts.traffic += CALL + _bytes(out)
        packet = IN_PLACE.get(function._overloadpacket, function._overloadpacket)
        if packet in TORCHS or packet in OURS:
            purpose = self._purpose(sys._getframe(1).f_code is ENGINE)
            if purpose is not None:
                flops = _flops(packet, args, kwargs, out)
                setattr(self.counts, purpose, getattr(self.counts, purpose) + flops)
        return out

    def _purpose(self, is_autograds_own: bool) -> str | None:
        """The field of Counts that an operation belongs to; None for what has no gradient.

        `is_autograds_own` says that the operation was not called by code in Python, such as a hook
        or a forward pass that is done again.
        """
        node = torch._C._current_autograd_node()
        if node is None:
            has_gradients = torch.is_grad_enabled() or any(self._functions)
            return "forward" if has_gradients else None
        if node.name() == GRADIENT_ENDS:
            return None
        return "again" if torch.is_grad_enabled() and not is_autograds_own else "backward"


def _bytes(out: Any) -> int:
    if isinstance(out, torch.Tensor):
        return out.numel() * out.element_size()
    return sum(map(_bytes, out)) if isinstance(out, (list, tuple)) else 0


def _flops(packet: Any, args: Any, kwargs: Any, out: Any) -> float:
    if packet in OURS:
        flops = OURS[packet](args, kwargs, out)
    else:
        flops = TORCHS[packet](*args, **kwargs, out_val=out)
    is_complex = isinstance(out, torch.Tensor) and out.is_complex()
    return float(flops) * (COMPLEX if is_complex else 1)


class Steps:
    """Counts steps of a training: from one report of tokens to the next that has more of them.

    With `every` those are all, else the first and one at random in each of PARTS parts of the
    budget, so that nobody knows when.
    """

    def __init__(self, *, every: bool) -> None:
        dice = random.SystemRandom()  # the candidate's own random numbers are not touched
        at_random = [(part + dice.random()) / PARTS for part in range(PARTS)]
        self._starts = [] if every else at_random  # shares of the budget
        self._every = every
        self._tokens = 0
        self._dearest = Counts(), 0  # and tokens
        self._late = 0.0
        self._counter: Counter | None = Counter()
        self._counter.__enter__()

    def report(self, tokens: int, done: float) -> None:
        """The candidate says how many tokens it has trained on, which is `done` of its budget."""
        if self._counter is not None:
            if tokens <= self._tokens:  # still in the same step
                return
            self._close(tokens)
        self._tokens = tokens
        due = [start for start in self._starts if start <= done]
        self._starts = self._starts[len(due) :]
        if self._every or due or done >= 1:
            self._counter = Counter()
            self._counter.__enter__()

    def _close(self, tokens: int) -> None:
        assert self._counter is not None
        self._counter.__exit__(None, None, None)
        counts, more = self._counter.counts, tokens - self._tokens
        self._counter = None
        if more <= 0:
            self._late = counts.flops
        elif counts.flops * self._dearest[1] >= self._dearest[0].flops * more:
            self._dearest = counts, more

    def found(self) -> dict[str, float]:
        """Ends the count: the dearest of the steps, and FLOPs after the last report of tokens."""
        if self._counter is not None:
            self._close(self._tokens)
        counts, tokens = self._dearest
        return {
            "counted_flops": counts.flops,
            "counted_tokens": tokens,
            "counted_traffic": counts.traffic,
            "late_flops": self._late,
        }
