"""The file that is edited: a small GPT, its optimizer and training loop.

Everything here may change but the contract, which is three names and their meaning: the ALL_CAPS
knobs below, `load_model(path, device)` and `main()`. The judge gives the seed, says when the budget
starts, takes the checkpoint and scores it; trainer/harness.py talks to it. After Karpathy's
autoresearch and nanochat, whose names are kept. Runs alone as `python -m trainer.train`.
"""

from __future__ import annotations

import functools
import gc
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainer.harness as harness
from trainer import prepare

# --------------------------------------------------------------------------------------------------
# Knobs: edit them here. They are literals, so that they can be read without running this file.

DEPTH = 3  # transformer layers
ASPECT_RATIO = 21  # model width = depth x this, rounded up to a whole number of heads
HEAD_DIM = 32  # width of one attention head, even
# Attention of each layer, repeated: L whole context, S a part of it. The last layer is always L.
WINDOW_PATTERN = "L"
SHORT_WINDOW_DIVISOR = 2  # S looks back MAX_SEQ_LEN / this
MAX_SEQ_LEN = 128  # context length in tokens
VOCAB_SIZE = 2048  # one of the prepared tokenizers
TOTAL_BATCH_SIZE = 1024  # tokens per optimizer step
DEVICE_BATCH_SIZE = 8  # rows per forward pass; a step accumulates as many passes as it needs
ROPE_BASE = 10000.0  # the rotary embedding's longest wavelength is nearly 2 pi x this, in tokens
QK_SCALE = 1.0  # factor on attention scores, after QK-norm and 1/sqrt(head_dim)
VE_GATE_CHANNELS = 32  # channels of the stream that a value embedding's gate reads
VE_GATE_MAX = 2.0  # the gate's largest value; it starts at half of it
INIT_SCALE = 1.0  # factor on the uniform initial weights of layers and value embeddings
X0_LAMBDA_INIT = 0.1  # share of the token embedding that enters each layer at first
EMBEDDING_LR = 0.6  # token and value embeddings (AdamW)
UNEMBEDDING_LR = 0.004  # output head (AdamW)
MATRIX_LR = 0.04  # matrices of the layers (Muon)
SCALAR_LR = 0.5  # per-layer scalars (AdamW)
WEIGHT_DECAY = 0.2  # of the matrices, cautious; falls to 0 over the budget
EMBEDDING_DECAY = 0.0  # weight decay of the token embedding, times its rate; so are the next two
VALUE_EMBEDDING_DECAY = 0.0
UNEMBEDDING_DECAY = 0.0
ADAM_BETAS = (0.8, 0.95)  # decay of AdamW's first and second moment
MUON_MOMENTUM = 0.95  # Nesterov momentum, reached from 0.85 in 300 steps
MUON_BETA2 = 0.95  # decay of the running average size of each neuron's update
WARMUP_RATIO = 0.0  # share of the budget over which rates rise from 0
WARMDOWN_RATIO = 0.5  # share of the budget over which rates fall at the end
FINAL_LR_FRAC = 0.0  # share of the rates that remains at the end

# --------------------------------------------------------------------------------------------------
# Attention: attend(q, k, v, window) -> y, all [B, T, heads, head_dim]. Token t sees the tokens
# t - window ... t.

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Plain scaled dot-product attention, causal without a mask; shapes as everywhere here."""
    q, k, v, scale = (
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        QK_SCALE / math.sqrt(q.size(-1)),
    )
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale
    ).transpose(1, 2)


def local_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Exact sliding-window attention without a T x T mask, for every device.

    Queries are cut into chunks of `window`, each of which needs the keys of its own chunk and of
    the one before, so the cost grows with T * window. With a mask over all of T x T it would cost
    more than full attention.
    """
    B, T, heads, dim = q.shape
    if (groups := heads // k.size(2)) > 1:
        k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
    if window >= T - 1:
        return _sdpa(q, k, v, None)
    if tail := -T % window:  # padding comes last, so no real query sees it
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, tail)) for x in (q, k, v))
    chunks = (T + tail) // window
    first = _sdpa(q[:, :window], k[:, :window], v[:, :window], None)
    k, v = (x.reshape(B, chunks, window, heads, dim) for x in (k, v))
    pairs = [
        torch.cat([x[:, :-1], x[:, 1:]], dim=2).reshape(-1, 2 * window, heads, dim) for x in (k, v)
    ]
    # Key b of a pair of chunks is window + a - b tokens before query a of the second chunk.
    a, b = torch.arange(window, device=q.device)[:, None], torch.arange(2 * window, device=q.device)
    rest = _sdpa(
        q[:, window:].reshape(-1, window, heads, dim),
        pairs[0],
        pairs[1],
        (a <= b) & (b <= a + window),
    )
    return torch.cat([first, rest.reshape(B, -1, heads, dim)], dim=1)[:, :T]


def local_kernel(repo: str) -> Any:
    """A kernel of the package `kernels`, from a local copy: a box has no network. RuntimeError."""
    if f"{repo}=" not in os.environ.get("LOCAL_KERNELS", ""):
        raise RuntimeError(f"LOCAL_KERNELS names no {repo}")
    import kernels

    return kernels.get_kernel(repo, version=1)  # looks into LOCAL_KERNELS before it asks a hub


def flash_attention_3(repo: str, majors: tuple[int, ...]) -> Attention:
    """FlashAttention-3 (Shah et al., arXiv 2407.08608). Raises where it cannot run.

    `majors` are the compute capabilities that it is built for. When compiled, it is one node of a
    block's graph if the kernel registers it as an operator, and a break in the graph if not.
    """
    capability = torch.cuda.get_device_capability()
    # HIP has numbers of its own: an MI300 reports 9.4.
    if torch.version.hip or capability[0] not in majors:
        raise RuntimeError(
            f"it is built for NVIDIA's compute capabilities {majors} and this is {capability}"
        )
    kernel = local_kernel(repo)
    flash = getattr(kernel, "flash_attn_interface", kernel).flash_attn_func

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        y = flash(
            q,
            k,
            v,
            softmax_scale=QK_SCALE / math.sqrt(q.size(-1)),
            causal=True,
            window_size=(window, 0),
        )
        attended: Tensor = y[0] if isinstance(y, tuple) else y  # some builds add the log-sum-exp
        return attended

    return attend


def flex_attention(windows: list[int], T: int, device: str) -> Attention:
    """FlexAttention, one kernel once compiled. Raises below compute capability 8.0."""
    from torch.nn.attention import flex_attention as flex

    if device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        raise RuntimeError(
            f"it needs compute capability (8, 0) and this is {torch.cuda.get_device_capability()}"
        )

    def causal_window(window: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        return lambda batch, head, query, key: (key <= query) & (query - key <= window)

    masks = {
        w: flex.create_block_mask(causal_window(w), None, None, T, T, device=device)
        for w in set(windows)
    }

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        grouped, scale = q.size(1) != k.size(1), QK_SCALE / math.sqrt(q.size(-1))
        y = flex.flex_attention(q, k, v, block_mask=masks[window], scale=scale, enable_gqa=grouped)
        assert isinstance(y, Tensor)
        return y.transpose(1, 2)

    return attend


def smoke_test(attend: Attention, config: GPTConfig, device: str, dtype: torch.dtype) -> None:
    """Compares one row of the real shape, forward and backward, with `local_attention`.

    Raises RuntimeError if they differ.
    """
    noise = torch.Generator(device).manual_seed(0)
    heads = (config.n_head, config.n_kv_head, config.n_kv_head, config.n_head)
    shapes = [(1, config.sequence_len, n, config.n_embd // config.n_head) for n in heads]
    *qkv, pull = (
        torch.randn(shape, generator=noise, device=device, dtype=dtype) for shape in shapes
    )
    for window in sorted(set(config.windows())):
        found = []
        for tried in (attend, local_attention):
            q, k, v = (x.clone().requires_grad_() for x in qkv)
            found.append([y := tried(q, k, v, window), *torch.autograd.grad(y, (q, k, v), pull)])
        for name, ours, exact in zip("yqkv", *found, strict=True):
            error = ((ours.float() - exact.float()).norm() / exact.float().norm()).item()
            if not error < 0.03:  # bf16 rounds to 0.4%; NaN fails too
                raise RuntimeError(
                    f"{name} is off by {error:.2%} at window {window}, where 3% is allowed"
                )


def choose_attention(device: str, config: GPTConfig) -> Attention:
    """The fastest attention that works here; prints which, and why faster ones do not."""
    if device != "cuda":
        return local_attention
    backends: dict[str, Callable[[], Attention]] = {
        "FlashAttention-3 for Hopper": functools.partial(
            flash_attention_3, "varunneal/flash-attention-3", (9,)
        ),
        "FlashAttention-3": functools.partial(
            flash_attention_3, "kernels-community/flash-attn3", (8, 9)
        ),
        "FlexAttention": functools.partial(
            flex_attention, config.windows(), config.sequence_len, device
        ),
    }
    for name, backend in backends.items():
        try:
            attend = backend()
            smoke_test(torch.compile(attend, dynamic=False), config, device, torch.bfloat16)
            print(f"attention: {name}", file=sys.stderr)
            return attend
        except Exception as reason:  # an optional kernel may fail in any way
            print(f"attention: no {name}: {reason}", file=sys.stderr)
    return local_attention


# --------------------------------------------------------------------------------------------------
# Model

# 0-D: how much of the stream, and of the token embedding, enters a layer.
Lambdas = tuple[Tensor, Tensor]
Rotary = tuple[Tensor, Tensor]  # cosine and sine, [1, T, 1, head_dim / 2]


@dataclass(frozen=True)
class GPTConfig:
    sequence_len: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int  # fewer than n_head: grouped queries share keys and values
    n_embd: int
    window_pattern: str

    @classmethod
    def from_knobs(cls) -> GPTConfig:
        """Raises ValueError if knobs do not fit together."""
        if DEPTH < 1 or HEAD_DIM < 2 or HEAD_DIM % 2:
            raise ValueError(f"DEPTH = {DEPTH} must be at least 1 and HEAD_DIM = {HEAD_DIM} even")
        if not WINDOW_PATTERN or set(WINDOW_PATTERN) - set("SL"):
            raise ValueError(f"WINDOW_PATTERN = {WINDOW_PATTERN!r} must be made of S and L")
        if SHORT_WINDOW_DIVISOR < 1:
            raise ValueError(f"SHORT_WINDOW_DIVISOR = {SHORT_WINDOW_DIVISOR} must be at least 1")
        n_head = max(-(-DEPTH * ASPECT_RATIO // HEAD_DIM), 1)
        return cls(
            MAX_SEQ_LEN, VOCAB_SIZE, DEPTH, n_head, n_head, n_head * HEAD_DIM, WINDOW_PATTERN
        )

    def windows(self) -> list[int]:
        """How far each layer looks back, in tokens."""
        sizes = {"L": self.sequence_len, "S": max(self.sequence_len // SHORT_WINDOW_DIVISOR, 1)}
        pattern = [
            self.window_pattern[i % len(self.window_pattern)] for i in range(self.n_layer - 1)
        ]
        return [sizes[letter] for letter in [*pattern, "L"]]


def norm(x: Tensor) -> Tensor:
    # Autocast makes this float32, and would make the whole stream float32 after it.
    return F.rms_norm(x, (x.size(-1),)).to(x.dtype)


def has_ve(layer_idx: int, n_layer: int) -> bool:
    """Every other layer has value embeddings, the last one included."""
    return layer_idx % 2 == (n_layer - 1) % 2


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the halves of each head, [B, T, heads, head_dim], by the angles of its position."""
    left, right = x.chunk(2, dim=3)
    return torch.cat([left * cos + right * sin, right * cos - left * sin], dim=3)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer_idx: int, attend: Attention) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = (
            config.n_head,
            config.n_kv_head,
            config.n_embd // config.n_head,
        )
        self.attend = attend
        kv_dim = self.n_kv_head * self.head_dim
        self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_k = nn.Linear(config.n_embd, kv_dim, bias=False)
        self.c_v = nn.Linear(config.n_embd, kv_dim, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.gate_channels = min(VE_GATE_CHANNELS, config.n_embd)
        self.ve_gate = (
            nn.Linear(self.gate_channels, self.n_kv_head, bias=False)
            if has_ve(layer_idx, config.n_layer)
            else None
        )

    def forward(
        self, x: Tensor, ve: Tensor | None, cos: Tensor, sin: Tensor, window: int
    ) -> Tensor:
        B, T, _ = x.shape
        qk = F.linear(x, torch.cat([self.c_q.weight, self.c_k.weight])).view(
            B, T, -1, self.head_dim
        )
        v = self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)
        # Each token scales its own value embedding.
        if ve is not None and self.ve_gate is not None:
            gate = VE_GATE_MAX * torch.sigmoid(self.ve_gate(x[..., : self.gate_channels]))
            v = v + gate.unsqueeze(-1) * ve.view(B, T, self.n_kv_head, self.head_dim)
        qk = norm(apply_rotary_emb(qk, cos, sin)).to(v.dtype)
        q, k = qk[:, :, : self.n_head], qk[:, :, self.n_head :]
        y: Tensor = self.c_proj(self.attend(q, k, v, window).reshape(B, T, -1))
        return y


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c_proj(F.relu(self.c_fc(x)).square())
        return y


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer_idx: int, attend: Attention) -> None:
        super().__init__()
        self.attn = CausalSelfAttention(config, layer_idx, attend)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        lambdas: Lambdas,
        ve: Tensor | None,
        rotary: Rotary,
        window: int,
    ) -> Tensor:
        x = lambdas[0] * x + lambdas[1] * x0
        x = x + self.attn(norm(x), ve, *rotary, window)
        y: Tensor = x + self.mlp(norm(x))
        return y


def soft_cap(logits: Tensor) -> Tensor:
    return 15 * torch.tanh(logits.float() / 15)  # between -15 and 15


def cross_entropy(x: Tensor, lm_head: Tensor, targets: Tensor) -> Tensor:
    """Nats of each target, [B*T]. Compiled, it keeps no float32 logits in memory: all is fused."""
    logits = soft_cap(F.linear(norm(x), lm_head))
    return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1), reduction="none")


class FusedCrossEntropy(torch.autograd.Function):
    """The same for eager mode, x [N, D], targets [N]; can be differentiated once.

    It makes 7 passes over the logits, where autograd would make 14.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, lm_head: Tensor, targets: Tensor) -> Tensor:
        # 15 tanh(l / 15) = 30 sigmoid(2 l / 15) - 15
        half = F.linear(x * (2 / 15), lm_head).sigmoid_()
        powers = torch.add(half.new_tensor(-15), half, alpha=30).exp_()
        total = powers.sum(dim=1, keepdim=True)
        ctx.save_for_backward(x, lm_head, targets[:, None], half, powers, total)
        nats: Tensor = total.log() - (30 * half.gather(1, targets[:, None]) - 15)
        return nats[:, 0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, lm_head, targets, half, powers, total = ctx.saved_tensors
        # Of the capped logits: 4 = 30 * 2 / 15 is the cap's derivative but for half (1 - half).
        grad = 4 * grad[:, None]
        logits = torch.ops.aten.sigmoid_backward(
            powers.mul_(grad / total).scatter_add_(1, targets, -grad), half
        )
        return logits @ lm_head, logits.T @ x, None


def fused_cross_entropy(x: Tensor, lm_head: Tensor, targets: Tensor) -> Tensor:
    x = norm(x).view(-1, x.size(-1))
    nats: Tensor = FusedCrossEntropy.apply(x, lm_head, targets.reshape(-1))  # type: ignore[no-untyped-call]
    return nats


class GPT(nn.Module):
    """model(idx) -> logits [B, T, V]; model(idx, targets, reduction) -> nats [B*T] or their mean.

    `reduction` is "none" or "mean".
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig, attend: Attention) -> None:
        super().__init__()
        self.config = config
        self.windows = config.windows()
        self.cross_entropy = fused_cross_entropy
        kv_dim = config.n_embd // config.n_head * config.n_kv_head
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        with_ve = [i for i in range(config.n_layer) if has_ve(i, config.n_layer)]
        self.value_embeds = nn.ModuleDict(
            {str(i): nn.Embedding(config.vocab_size, kv_dim) for i in with_ve}
        )
        self.h = nn.ModuleList([Block(config, i, attend) for i in range(config.n_layer)])
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.resid_lambdas = nn.Parameter(torch.ones(config.n_layer))
        self.x0_lambdas = nn.Parameter(torch.zeros(config.n_layer))
        half = config.n_embd // config.n_head // 2
        angles = torch.outer(
            torch.arange(config.sequence_len), ROPE_BASE ** (-torch.arange(half) / half)
        )
        self.register_buffer("cos", angles.cos()[None, :, None, :], persistent=False)
        self.register_buffer("sin", angles.sin()[None, :, None, :], persistent=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Every layer starts as the identity: its output goes through a projection of zeros."""
        # Uniform, with a standard deviation of scale / sqrt(width).
        bound = INIT_SCALE * math.sqrt(3 / self.config.n_embd)
        nn.init.normal_(self.wte.weight, std=1.0)
        nn.init.normal_(self.lm_head.weight, std=0.001)
        for name, weight in (*self.h.named_parameters(), *self.value_embeds.named_parameters()):
            if "c_proj" in name or "ve_gate" in name:  # a gate of zeros is half open
                nn.init.zeros_(weight)
            else:
                nn.init.uniform_(weight, -bound, bound)
        nn.init.ones_(self.resid_lambdas)
        nn.init.constant_(self.x0_lambdas, X0_LAMBDA_INIT)

    def flops_per_token(self) -> int:
        """Forward and backward: 6 per matrix weight, 12 per head channel and key, as upstream."""
        matrices = self.lm_head.weight.numel() + sum(p.numel() for p in self.h.parameters())
        keys = sum(min(window, self.config.sequence_len) for window in self.windows)
        return 6 * matrices + 12 * self.config.n_embd * keys

    def compile_regions(self) -> None:
        """Compiles blocks and head one by one: equal blocks share a graph, so depth is free."""
        for block in self.h:
            block.compile(dynamic=False)
        self.cross_entropy = torch.compile(cross_entropy, dynamic=False)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, reduction: str = "mean"
    ) -> Tensor:
        # bf16 matrix products on a GPU; a CPU without AMX only emulates them
        with torch.autocast(idx.device.type, torch.bfloat16, enabled=idx.is_cuda):
            x0 = norm(self.wte(idx))
            # Two tensors for the compiler too, or the first block would get graphs of its own.
            x = x0.view_as(x0)
            rotary = self.cos[:, : idx.size(1)].to(x.dtype), self.sin[:, : idx.size(1)].to(x.dtype)
            lambdas = zip(self.resid_lambdas.unbind(), self.x0_lambdas.unbind(), strict=True)
            for i, (block, pair) in enumerate(zip(self.h, lambdas, strict=True)):
                ve = self.value_embeds[str(i)](idx) if str(i) in self.value_embeds else None
                x = block(x, x0, pair, ve, rotary, self.windows[i])
            if targets is None:
                return soft_cap(self.lm_head(norm(x)))
            # When it is scored, the loss must be that of the logits to the last bit.
            loss = self.cross_entropy if self.training else cross_entropy
            nats = loss(x, self.lm_head.weight, targets)
        return nats if reduction == "none" else nats.mean()


def build_model(device: str, attend: Attention) -> GPT:
    model = GPT(GPTConfig.from_knobs(), attend).to(device)
    if device == "cuda":  # lookups in bf16 take half the memory; the loss will be compiled
        model.wte.bfloat16()
        model.value_embeds.bfloat16()
        model.cross_entropy = cross_entropy
    return model


def load_model(path: str, device: str) -> nn.Module:
    """The model of a checkpoint, for scoring: eager, which is faster than to compile it first."""
    use_threads(device)
    model = build_model(device, local_attention)
    model.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    return model.eval()


# --------------------------------------------------------------------------------------------------
# Optimizer. Plain classes: torch.optim's base class imports torch's compiler, which takes 2 s.

Betas = tuple[float, float]
# Rates of a compiled step are 0-D tensors, so that a new value does not compile it again.
Number = float | Tensor


def adamw_update(
    p: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    lr: Number,
    correction: Number,
    keep: Number | None,
    betas: Betas,
) -> None:
    """One step of AdamW (Loshchilov & Hutter, arXiv 1711.05101).

    `lr` and `correction` include the bias corrections of m and v; `keep` is the factor of weight
    decay, None without decay.
    """
    m.lerp_(grad, 1 - betas[0])
    v.lerp_(grad.square(), 1 - betas[1])
    if keep is not None:
        p.mul_(keep)
    p.sub_(m / (v.sqrt() * correction + 1e-10) * lr)


class AdamW:
    """Groups of (parameters, rate, betas, weight decay), for all but the matrices of the layers."""

    def __init__(
        self, groups: list[tuple[list[Tensor], float, Betas, float]], compiled: bool
    ) -> None:
        self.groups = groups
        self.scalar = torch.tensor if compiled else float
        self.update = torch.compile(adamw_update, dynamic=False) if compiled else adamw_update
        self.reset()

    def reset(self) -> None:
        self.steps = 0
        self.moments = [
            [(torch.zeros_like(p), torch.zeros_like(p)) for p in group[0]] for group in self.groups
        ]

    @torch.no_grad()
    def step(self, multiplier: float) -> None:
        self.steps += 1
        for (params, lr, betas, decay), moments in zip(self.groups, self.moments, strict=True):
            rate = self.scalar(lr * multiplier / (1 - betas[0] ** self.steps))
            correction = self.scalar(1 / math.sqrt(1 - betas[1] ** self.steps))
            keep = self.scalar(1 - lr * multiplier * decay) if decay else None
            for p, (m, v) in zip(params, moments, strict=True):
                assert p.grad is not None
                # A vector is as long as the model is deep, so compiled it would compile again.
                update = self.update if p.ndim > 1 else adamw_update
                update(p, p.grad, m, v, rate, correction, keep, betas)
                p.grad = None


# Coefficients of the five iterations of Polar Express (Amsel et al., arXiv 2505.16932), with its
# safety factor of 2%.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def polar_express(g: Tensor) -> Tensor:
    """The orthogonal factor of each matrix of [n, rows, cols], roughly: singular values near 1."""
    tall = g.size(1) > g.size(2)
    x = g.bfloat16() if g.is_cuda else g
    x = x.mT if tall else x
    x = x / (x.square().sum(dim=(1, 2), keepdim=True).sqrt() * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS:  # x <- a x + (b G + c G G) x with G = x x^T
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).type_as(g)


def muon_update(
    p: Tensor,
    grad: Tensor,
    buffer: Tensor,
    second: Tensor,
    lr: Number,
    momentum: Number,
    decay: Number,
) -> None:
    """One step of Muon (Jordan et al. 2024) on a stack of matrices, p [n, rows, cols].

    Nesterov momentum, orthogonalised by Polar Express; then NorMuon (arXiv 2510.05491): each
    neuron's update is divided by its running size `second`, and the whole is scaled back to its
    former size; then cautious weight decay (arXiv 2510.12402): only where the signs agree.
    """
    buffer.lerp_(grad, 1 - momentum)
    g = polar_express(grad.lerp(buffer, momentum))
    size = g.square().mean(dim=-1 if second.size(2) == 1 else -2, keepdim=True)
    second.lerp_(size, 1 - MUON_BETA2)
    scale = second.clamp_min(1e-10).rsqrt()
    before, after = (
        size.sum(dim=(1, 2), keepdim=True),
        (size * scale.square()).sum(dim=(1, 2), keepdim=True),
    )
    g = g * (scale * (before / after.clamp_min(1e-20)).sqrt())
    p.sub_(lr * (g + decay * p * (g * p >= 0)))


class Muon:
    """All matrices of the layers. Those of one shape are views of a stack, updated in one batch."""

    def __init__(self, params: list[nn.Parameter], lr: float, compiled: bool) -> None:
        self.lr = lr
        self.scalar = torch.tensor if compiled else float
        self.update = torch.compile(muon_update, dynamic=False) if compiled else muon_update
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for p in params:
            by_shape.setdefault(p.shape, []).append(p)
        self.stacks = []
        # Each matrix begins at a multiple of 16 bytes: the graph of equal blocks assumes that.
        for shape, group in by_shape.items():
            flat = F.pad(torch.stack([p.data.flatten() for p in group]), (0, -shape.numel() % 4))
            self.stacks.append(flat[:, : shape.numel()].view(-1, *shape))
        self.grads = [torch.zeros_like(stack) for stack in self.stacks]
        for group, stack, grad in zip(by_shape.values(), self.stacks, self.grads, strict=True):
            for i, p in enumerate(group):
                # Backward adds to a gradient in place, so nothing is ever copied.
                p.data, p.grad = stack[i], grad[i]
        self.buffers = [torch.zeros_like(stack) for stack in self.stacks]
        self.seconds = [
            torch.zeros_like(s[:, :, :1] if s.size(1) >= s.size(2) else s[:, :1])
            for s in self.stacks
        ]
        if compiled:
            from torch._dynamo import maybe_mark_dynamic

            for tensor in (*self.stacks, *self.grads, *self.buffers, *self.seconds):
                # The number of matrices, so that a change of depth compiles nothing.
                maybe_mark_dynamic(tensor, 0)

    def reset(self) -> None:
        for state in (*self.buffers, *self.seconds):
            state.zero_()

    @torch.no_grad()
    def step(self, multiplier: float, momentum: float, decay: float) -> None:
        for p, grad, buffer, second in zip(
            self.stacks, self.grads, self.buffers, self.seconds, strict=True
        ):
            lr = self.lr * multiplier * math.sqrt(max(1.0, p.size(1) / p.size(2)))
            self.update(
                p, grad, buffer, second, self.scalar(lr), self.scalar(momentum), self.scalar(decay)
            )
            grad.zero_()


def build_optimizers(model: GPT, compiled: bool) -> tuple[AdamW, Muon]:
    scale = (model.config.n_embd / 768) ** -0.5  # rates were tuned at a width of 768
    groups: list[tuple[list[Tensor], float, Betas, float]] = [
        ([model.lm_head.weight], UNEMBEDDING_LR * scale, ADAM_BETAS, UNEMBEDDING_DECAY),
        ([model.wte.weight], EMBEDDING_LR * scale, ADAM_BETAS, EMBEDDING_DECAY),
        (
            list(model.value_embeds.parameters()),
            EMBEDDING_LR * scale,
            ADAM_BETAS,
            VALUE_EMBEDDING_DECAY,
        ),
        ([model.resid_lambdas], SCALAR_LR * 0.01, ADAM_BETAS, 0.0),
        ([model.x0_lambdas], SCALAR_LR, (0.96, 0.95), 0.0),
    ]
    return AdamW(groups, compiled), Muon(list(model.h.parameters()), MATRIX_LR, compiled)


# --------------------------------------------------------------------------------------------------
# Training. `done` is the share of the budget that has been spent.


def lr_multiplier(done: float) -> float:
    if done < WARMUP_RATIO:
        return done / WARMUP_RATIO
    if done <= 1 - WARMDOWN_RATIO:
        return 1.0
    left = (1 - done) / WARMDOWN_RATIO
    return left + (1 - left) * FINAL_LR_FRAC


def use_threads(device: str) -> None:
    if device == "cpu":  # more threads than the judge allows would only wait for each other
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def accumulation_steps() -> int:
    """Raises ValueError if a step is not a whole number of forward passes."""
    tokens = DEVICE_BATCH_SIZE * MAX_SEQ_LEN
    if TOTAL_BATCH_SIZE < 1 or TOTAL_BATCH_SIZE % tokens:
        raise ValueError(
            f"{TOTAL_BATCH_SIZE = } must be a multiple of "
            f"DEVICE_BATCH_SIZE * MAX_SEQ_LEN = {tokens}"
        )
    return TOTAL_BATCH_SIZE // tokens


def packed_batches(rows: prepare.Tokens) -> Iterator[prepare.Tokens]:
    """Endless uint16 [DEVICE_BATCH_SIZE, T+1], in the order of the packed rows."""
    first = 0
    while True:
        last = first + DEVICE_BATCH_SIZE
        yield rows[first:last] if last <= len(rows) else rows[np.arange(first, last) % len(rows)]
        first = last % len(rows)


class Bus:
    """The way to the GPU: pinned memory and a separate stream, so that copies overlap with work."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def buffer(self) -> Tensor:
        return torch.empty((DEVICE_BATCH_SIZE, MAX_SEQ_LEN + 1), dtype=torch.int16, pin_memory=True)

    def send(self, buffer: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """The batch on the device; until the event it is not there and `buffer` must not change."""
        with torch.cuda.stream(self.stream):
            return buffer.to("cuda", non_blocking=True), self.stream.record_event()

    def receive(self, tokens: Tensor, landed: torch.cuda.Event) -> Tensor:
        """The batch for the main stream, which waits for it; the host does not wait."""
        (main := torch.cuda.current_stream()).wait_event(landed)
        # Or the copying stream would reuse its memory while the main stream reads it.
        tokens.record_stream(main)
        return tokens


def staged(batches: Iterator[prepare.Tokens], bus: Bus) -> Iterator[Tensor]:
    """The batches on the device, int64, in order; each is copied while the one before is in use.

    They alternate between two pinned buffers; one is filled again only when its last copy is done.
    """
    buffers = [bus.buffer() for _ in range(2)]
    sent: deque[tuple[Tensor, torch.cuda.Event]] = deque(maxlen=2)
    for turn, batch in enumerate(batches):
        if turn > 1:
            sent[0][1].synchronize()
        buffers[turn % 2].numpy()[:] = batch.view(np.int16)  # torch has few kernels for uint16
        sent.append(bus.send(buffers[turn % 2]))
        if turn > 0:
            yield bus.receive(*sent[0]).long() & 0xFFFF


def batches(rows: prepare.Tokens, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (inputs, targets), int64 [DEVICE_BATCH_SIZE, T], in the order of the packed rows."""
    packed = packed_batches(rows)
    on_device = (
        staged(packed, Bus())
        if device == "cuda"
        else (torch.from_numpy(b.astype(np.int64)).to(device) for b in packed)
    )
    for tokens in on_device:
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def on_its_way(loss: Tensor) -> Callable[[], float]:
    """Starts to copy a loss to the host; the function waits for that copy alone."""
    if not loss.is_cuda:
        return loss.item
    host = torch.empty((), pin_memory=True).copy_(loss, non_blocking=True)
    copied = torch.cuda.current_stream().record_event()
    return lambda: (copied.synchronize(), host.item())[1]


def check(loss: float, step: int) -> None:
    """Fails fast: a run that has diverged does not recover."""
    if not loss <= 100:  # NaN too
        raise RuntimeError(f"loss {loss} at step {step}: training has diverged")


def main() -> None:
    device = harness.device()
    use_threads(device)
    passes = accumulation_steps()
    if VOCAB_SIZE not in prepare.meta().vocab_sizes:
        raise ValueError(
            f"VOCAB_SIZE = {VOCAB_SIZE} is not prepared; prepared: {prepare.meta().vocab_sizes}"
        )
    compiled = device == "cuda"
    config = GPTConfig.from_knobs()
    torch.manual_seed(harness.seed())
    model = build_model(device, choose_attention(device, config))
    model.init_weights()
    adamw, muon = build_optimizers(model, compiled)
    if compiled:
        model.compile_regions()

    def train_step(data: Iterator[tuple[Tensor, Tensor]], step: int, done: float) -> Tensor:
        """One optimizer step; its mean loss, still on the device."""
        total = torch.zeros((), device=device)
        for _ in range(passes):
            loss = model(*next(data)) / passes
            loss.backward()
            total += loss.detach()
        momentum = 0.85 + (MUON_MOMENTUM - 0.85) * min(step / 300, 1)
        adamw.step(lr_multiplier(done))
        muon.step(lr_multiplier(done), momentum, WEIGHT_DECAY * (1 - done))
        return total

    if compiled:  # compile on noise before the clock starts, then start over
        noise = np.random.default_rng(0).integers(
            VOCAB_SIZE, size=(DEVICE_BATCH_SIZE, MAX_SEQ_LEN + 1)
        )
        train_step(batches(noise.astype(np.uint16), device), 0, 0.0)
        torch.manual_seed(harness.seed())
        model.init_weights()
        adamw.reset()
        muon.reset()
        torch.cuda.synchronize()

    budget = harness.ready(
        flops_per_token=model.flops_per_token(),
        checkpoint_bytes=sum(tensor.nbytes for tensor in model.state_dict().values()),
    )
    data = batches(prepare.train_rows(MAX_SEQ_LEN, VOCAB_SIZE), device)
    step, tokens, last_loss = 0, 0, None
    while (done := budget.progress(tokens)) < 1.0:
        loss = on_its_way(train_step(data, step, done))
        # The host, whose clock counts, is a step ahead: the GPU works on the queued step meanwhile.
        if last_loss is not None:
            check(value := last_loss(), step - 1)
            harness.log(step=step - 1, tokens=tokens, loss=value)
        last_loss, step, tokens = loss, step + 1, tokens + TOTAL_BATCH_SIZE
        if step == 1:  # everything alive now lives to the end: the collector need not look at it
            gc.collect()
            gc.freeze()
            gc.disable()
    if last_loss is not None:
        check(value := last_loss(), step - 1)
        harness.log(step=step - 1, tokens=tokens, loss=value)
    metrics = {
        "num_steps": step,
        "num_params_M": sum(p.numel() for p in model.parameters()) / 1e6,
        "depth": DEPTH,
    }
    if device == "cuda":
        metrics["peak_vram_mb"] = torch.cuda.max_memory_allocated() / 2**20
    harness.finish(model.state_dict(), **metrics)


if __name__ == "__main__":
    main()
