"""What a training needs of its device, tried step by step: fixed code, run in a box of its own.

No candidate sees this file. tasks/judge/device_probe.py opens the box, with the limits of a night,
and reads what is reported here:

    up  ->  (trying, tried)*  ->  trying, saved + a checkpoint

The first failure ends it, unless train.py can do without what the step tries. No torch at import.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trainer.link import open_link

if TYPE_CHECKING:
    from torch import Tensor

    # Causal attention, q, k, v -> y, all [B, T, heads, head_dim]: token t sees t - window ... t.
    Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]

PINNED_BYTES = 64 * 2**20
TOKENS, HEADS, HEAD_DIM, WINDOW = 256, 2, 128, 64  # shape of the attention that is tried
MOST_ERROR = 0.03  # relative error of attention; bf16 rounds to 0.4%
REASON_CHARACTERS = 300


@dataclasses.dataclass(frozen=True)
class Step:
    """`run(device)` returns what it found and raises whatever goes wrong."""

    name: str
    run: Callable[[str], str]
    needed: bool = True  # false: train.py uses something else where this fails
    on_cpu: bool = True  # false: there is nothing to try on a CPU


def main(checkpoint_bytes: int) -> None:
    """Tries every step on the box's device; the checkpoint that is handed over is of that size."""
    link, device = open_link(), os.environ["NIGHTLY_DEVICE"]
    if link is None:
        raise RuntimeError("device_steps.main() is for a box, and there is no judge here")
    link.send({"msg": "up", "python": sys.version})
    for step in steps():
        link.send({"msg": "trying", "step": step.name})
        holds, detail = _try(step, device)
        link.send({"msg": "tried", "holds": holds, "detail": detail})
        if holds is False:
            return link.wait_for_the_end()
    link.send({"msg": "trying", "step": "checkpoint"})
    began = time.monotonic()
    blob = _checkpoint(checkpoint_bytes, device)
    saved = {"bytes": blob.getbuffer().nbytes, "seconds": time.monotonic() - began}
    link.send({"msg": "saved", **saved}, blob.getbuffer())
    link.wait_for_the_end()


def steps() -> list[Step]:
    """Every step but the last, the checkpoint, in order."""
    kernels = [part.partition("=")[0] for part in os.environ.get("LOCAL_KERNELS", "").split(":")]
    native = [
        Step(f"attention, {name}", functools.partial(_native, name), needed=False, on_cpu=False)
        for name in kernels
        if name
    ]
    return [
        Step("start", _start),
        Step("pinned memory", _pinned_copy, on_cpu=False),
        Step("torch.compile", _compile),
        *native,
        Step("attention, FlexAttention", _flex, needed=False, on_cpu=False),
        Step("attention, torch's own", _torchs_own),
    ]


def _try(step: Step, device: str) -> tuple[bool | None, str]:
    if device == "cpu" and not step.on_cpu:
        return None, "not on a CPU"
    began = time.monotonic()
    try:
        detail = step.run(device)
    except Exception as error:  # a driver, a compiler and a kernel may fail in any way
        without = "" if step.needed else "; train.py uses the next backend"
        return False if step.needed else None, f"{_reason(error)}{without}"
    return True, f"{detail}, {time.monotonic() - began:.1f} s"


def _reason(error: Exception) -> str:
    """An error's type and its most telling line: a compiler's own error, or else the first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    telling = next((line for line in lines if " error: " in line), lines[0])
    return f"{type(error).__name__}: {telling}"[:REASON_CHARACTERS]


def _start(device: str) -> str:
    """Imports torch and computes something: a device that torch cannot use fails here."""
    import torch

    # On a GPU for which this torch has no code, the first kernel fails.
    if (total := torch.ones(1000, device=device).sum().item()) != 1000:
        raise RuntimeError(f"the sum of 1000 ones is {total}")
    if device == "cpu":
        return f"torch {torch.__version__}"
    gpu = torch.cuda.get_device_properties(0)
    runtime = f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    capability = f"compute capability {gpu.major}.{gpu.minor}"
    return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {capability}, {runtime}"


def _pinned_copy(device: str) -> str:
    """Copies page-locked memory to the device and back, as train.py does with its batches."""
    import torch

    host = torch.arange(PINNED_BYTES // 8).pin_memory()
    began = time.monotonic()
    there = host.to(device, non_blocking=True)
    torch.cuda.synchronize()
    seconds = time.monotonic() - began
    if not torch.equal(there.cpu(), host):
        raise RuntimeError("what came back is not what was copied")
    return f"{PINNED_BYTES / 2**20:.0f} MiB at {PINNED_BYTES / 1e9 / seconds:.1f} GB/s"


def _compile(device: str) -> str:
    """Compiles one small function, forward and backward, and compares it with itself, eager.

    On a CPU, where train.py compiles nothing, it is only traced: g++ would take half a minute.
    """
    import torch

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x @ weight).square().mean()

    noise = torch.Generator(device).manual_seed(0)
    x, weight = (torch.randn(256, 256, generator=noise, device=device) for _ in range(2))
    gradients = []
    backend = "aot_eager" if device == "cpu" else "inductor"
    for tried in (loss, torch.compile(loss, dynamic=False, backend=backend)):
        leaf = weight.clone().requires_grad_()
        gradients.append(torch.autograd.grad(tried(x, leaf), leaf)[0])
    if not (error := _distance(gradients[1], gradients[0])) < 0.01:  # NaN fails too
        raise RuntimeError(f"the compiled gradient is off by {error:.2%}")
    return f"{'traced' if device == 'cpu' else 'compiled'} forward and backward"


def _native(repository: str, device: str) -> str:
    """A kernel that the profile pins, called as train.py calls FlashAttention-3."""
    import kernels

    kernel = kernels.get_kernel(repository, version=1)  # LOCAL_KERNELS: a box has no network
    flash = getattr(kernel, "flash_attn_interface", kernel).flash_attn_func

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        y = flash(q, k, v, causal=True, window_size=(window, 0))
        attended: Tensor = y[0] if isinstance(y, tuple) else y  # some builds add the log-sum-exp
        return attended

    return _compare(attend, device, WINDOW)


def _flex(device: str) -> str:
    """FlexAttention, compiled. It has no backward pass on a CPU."""
    import torch
    from torch.nn.attention import flex_attention as flex

    def in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key <= WINDOW)

    mask = flex.create_block_mask(in_window, None, None, TOKENS, TOKENS, device=device)

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = flex.flex_attention(q, k, v, block_mask=mask)
        assert isinstance(y, torch.Tensor)
        return y.transpose(1, 2)

    return _compare(torch.compile(attend, dynamic=False), device, WINDOW)


def _torchs_own(device: str) -> str:
    import torch

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2)

    return _compare(attend, device, TOKENS)


def _exact(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention by its definition."""
    import torch

    place = torch.arange(q.size(1), device=q.device)
    age = place[:, None] - place
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.size(-1))
    scores = scores.masked_fill((age < 0) | (age > window), -math.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def _compare(attend: Attention, device: str, window: int) -> str:
    """Compares y, dq, dk and dv with exact attention in float32. Raises RuntimeError if off."""
    import torch

    noise = torch.Generator(device).manual_seed(0)
    shape = (1, TOKENS, HEADS, HEAD_DIM)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    *qkv, pull = (torch.randn(shape, generator=noise, device=device, dtype=dtype) for _ in range(4))
    found = []
    for tried, kind in ((attend, dtype), (_exact, torch.float32)):
        q, k, v = (x.to(kind).clone().requires_grad_() for x in qkv)
        y = tried(q, k, v, window)
        found.append([y, *torch.autograd.grad(y, (q, k, v), pull.to(kind))])
    worst = 0.0
    for name, ours, exact in zip(("y", "dq", "dk", "dv"), *found, strict=True):
        error = _distance(ours, exact)
        if not error < MOST_ERROR:  # NaN fails too
            raise RuntimeError(f"{name} is off by {error:.2%}, where {MOST_ERROR:.0%} is allowed")
        worst = max(worst, error)
    return f"forward and backward within {worst:.2%} of exact attention"


def _distance(ours: Tensor, exact: Tensor) -> float:
    """The relative error in the Frobenius norm."""
    ours, exact = ours.detach().float(), exact.detach().float()
    return float((ours - exact).norm() / exact.norm())


def _checkpoint(size: int, device: str) -> io.BytesIO:
    """A checkpoint of at least `size` bytes, saved as `harness.finish` saves one."""
    import torch

    state: dict[str, Any] = {
        f"weights.{i}": torch.ones(size // 8, dtype=torch.bfloat16, device=device) for i in range(4)
    }
    blob = io.BytesIO()
    torch.save({name: tensor.detach().to("cpu") for name, tensor in state.items()}, blob)
    return blob
