"""The file that is edited: a small GPT, its optimizer, its training loop. All in it may change but the contract.

The contract is three names and their meaning: the ALL_CAPS knobs below, `load_model(path, device)` and `main()`. The
judge gives the seed, says when the budget starts, takes the checkpoint and scores it; trainer/harness.py is its pipe.
After Karpathy's autoresearch and nanochat, whose names are kept. Runs alone as `python -m trainer.train`.
"""

from __future__ import annotations

import functools
import gc
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainer.harness as harness
from trainer import prepare

# ---------------------------------------------------------------------------------------------------------------------
# Knobs: edit them here. Literals only, so that they can be read without running this file.

DEPTH = 3  # transformer layers
ASPECT_RATIO = 21  # model width = depth x this, rounded up to a whole number of heads
HEAD_DIM = 32  # width of one attention head, even
WINDOW_PATTERN = "L"  # attention of each layer, repeated: L whole context, S half of it; the last layer is always L
MAX_SEQ_LEN = 128  # context length in tokens
VOCAB_SIZE = 2048  # one of the prepared tokenizers
TOTAL_BATCH_SIZE = 1024  # tokens an optimizer step
DEVICE_BATCH_SIZE = 8  # rows a forward pass; what is missing to a step is accumulated
EMBEDDING_LR = 0.6  # token and value embeddings (AdamW)
UNEMBEDDING_LR = 0.004  # output head (AdamW)
MATRIX_LR = 0.04  # matrices of the layers (Muon)
SCALAR_LR = 0.5  # per-layer scalars (AdamW)
WEIGHT_DECAY = 0.2  # of the matrices, cautious, falls to 0 over the budget
ADAM_BETAS = (0.8, 0.95)  # decay of AdamW's first and second moment
WARMUP_RATIO = 0.0  # share of the budget over which rates rise from 0
WARMDOWN_RATIO = 0.5  # share of the budget over which rates fall at the end
FINAL_LR_FRAC = 0.0  # share of the rates that is left at the end

# ---------------------------------------------------------------------------------------------------------------------
# Attention: attend(q, k, v, window) -> y, all [B, T, heads, head_dim]. Token t sees the tokens t - window ... t.

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
FLASH_ATTENTION_3 = "kernels-community/flash-attn3"


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Plain scaled dot-product attention, causal where no mask is given; [B, T, heads, head_dim] like all in here."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None).transpose(1, 2)


def local_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Exact sliding-window attention without a T x T mask, for every device.

    Queries are cut into chunks of `window`; a chunk only needs the keys of itself and of the chunk before it, so the
    cost grows with T * window. A mask over the whole T x T would make it dearer than full attention.
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
    pairs = [torch.cat([x[:, :-1], x[:, 1:]], dim=2).reshape(-1, 2 * window, heads, dim) for x in (k, v)]
    # Key b of a pair of chunks lies window + a - b before query a of the second one.
    a, b = torch.arange(window, device=q.device)[:, None], torch.arange(2 * window, device=q.device)
    rest = _sdpa(q[:, window:].reshape(-1, window, heads, dim), pairs[0], pairs[1], (a <= b) & (b <= a + window))
    return torch.cat([first, rest.reshape(B, -1, heads, dim)], dim=1)[:, :T]


def flash_attention_3() -> Attention:
    """FlashAttention-3 from a local copy of its kernel: a box has no network. Raises when there is none or it fails."""
    if "LOCAL_KERNELS" not in os.environ:
        raise RuntimeError("no local kernel is configured (LOCAL_KERNELS)")
    import kernels

    flash = kernels.get_kernel(FLASH_ATTENTION_3, version=1)

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        y: Tensor = flash.flash_attn_func(q, k, v, causal=True, window_size=(window, 0))
        return y

    probe = torch.zeros(1, 1, 1, 64, dtype=torch.bfloat16, device="cuda")
    attend(probe, probe, probe, 1)  # a kernel built for another GPU loads well and dies at its first launch
    torch.cuda.synchronize()
    return attend


def flex_attention(windows: list[int], T: int) -> Attention:
    """FlexAttention, which torch.compile turns into one kernel. Raises below compute capability 8.0."""
    from torch.nn.attention import flex_attention as flex

    if torch.cuda.get_device_capability() < (8, 0):
        raise RuntimeError(f"compute capability {torch.cuda.get_device_capability()} is below (8, 0)")

    def causal_window(window: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        return lambda batch, head, query, key: (key <= query) & (query - key <= window)

    masks = {w: flex.create_block_mask(causal_window(w), None, None, T, T, device="cuda") for w in set(windows)}

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = flex.flex_attention(q, k, v, block_mask=masks[window], enable_gqa=q.size(1) != k.size(1))
        assert isinstance(y, Tensor)
        return y.transpose(1, 2)

    return attend


def choose_attention(device: str, windows: list[int], T: int) -> Attention:
    """The fastest attention that works here; says on stderr why a faster one was refused."""
    if device != "cuda":
        return local_attention
    backends: list[Callable[[], Attention]] = [flash_attention_3, functools.partial(flex_attention, windows, T)]
    for name, backend in zip(("flash-attn3", "FlexAttention"), backends, strict=True):
        try:
            return backend()
        except Exception as reason:  # an optional kernel may fail in any way; local_attention is always right
            print(f"attention: no {name}: {reason}", file=sys.stderr)
    return local_attention


# ---------------------------------------------------------------------------------------------------------------------
# Model


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
        """Raises ValueError when knobs do not fit together."""
        if DEPTH < 1 or HEAD_DIM < 2 or HEAD_DIM % 2:
            raise ValueError(f"DEPTH = {DEPTH} must be at least 1 and HEAD_DIM = {HEAD_DIM} even")
        if not WINDOW_PATTERN or set(WINDOW_PATTERN) - set("SL"):
            raise ValueError(f"WINDOW_PATTERN = {WINDOW_PATTERN!r} must be made of S and L")
        n_head = max(-(-DEPTH * ASPECT_RATIO // HEAD_DIM), 1)
        return cls(MAX_SEQ_LEN, VOCAB_SIZE, DEPTH, n_head, n_head, n_head * HEAD_DIM, WINDOW_PATTERN)

    def windows(self) -> list[int]:
        """How far each layer looks back, in tokens."""
        sizes = {"L": self.sequence_len, "S": max(self.sequence_len // 2, 1)}
        pattern = [self.window_pattern[i % len(self.window_pattern)] for i in range(self.n_layer - 1)]
        return [sizes[letter] for letter in [*pattern, "L"]]


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def has_ve(layer_idx: int, n_layer: int) -> bool:
    """Value embeddings are in every other layer, counted so that the last one has them."""
    return layer_idx % 2 == (n_layer - 1) % 2


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the two halves of each head, [B, T, heads, head_dim], by the angles of its position."""
    left, right = x.chunk(2, dim=3)
    return torch.cat([left * cos + right * sin, right * cos - left * sin], dim=3)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer_idx: int, attend: Attention) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.n_embd // config.n_head
        self.attend = attend
        kv_dim = self.n_kv_head * self.head_dim
        self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_k = nn.Linear(config.n_embd, kv_dim, bias=False)
        self.c_v = nn.Linear(config.n_embd, kv_dim, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.gate_channels = min(32, config.n_embd)
        self.ve_gate = nn.Linear(self.gate_channels, self.n_kv_head, bias=False) if has_ve(layer_idx, config.n_layer) else None

    def forward(self, x: Tensor, ve: Tensor | None, cos: Tensor, sin: Tensor, window: int) -> Tensor:
        B, T, _ = x.shape
        q = self.c_q(x).view(B, T, self.n_head, self.head_dim)
        k = self.c_k(x).view(B, T, self.n_kv_head, self.head_dim)
        v = self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)
        if ve is not None and self.ve_gate is not None:  # each token opens or shuts its own value embedding
            gate = 2 * torch.sigmoid(self.ve_gate(x[..., : self.gate_channels]))
            v = v + gate.unsqueeze(-1) * ve.view(B, T, self.n_kv_head, self.head_dim)
        q = norm(apply_rotary_emb(q, cos, sin)).to(v.dtype)
        k = norm(apply_rotary_emb(k, cos, sin)).to(v.dtype)
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

    def forward(self, x: Tensor, ve: Tensor | None, cos: Tensor, sin: Tensor, window: int) -> Tensor:
        x = x + self.attn(norm(x), ve, cos, sin, window)
        x = x + self.mlp(norm(x))
        return x


class GPT(nn.Module):
    """model(idx) -> logits [B, T, V]; model(idx, targets, reduction="none") -> nats [B*T], "mean" -> their mean."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig, attend: Attention) -> None:
        super().__init__()
        self.config = config
        self.windows = config.windows()
        layers = range(config.n_layer)
        kv_dim = config.n_embd // config.n_head * config.n_kv_head
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.value_embeds = nn.ModuleDict(
            {str(i): nn.Embedding(config.vocab_size, kv_dim) for i in layers if has_ve(i, config.n_layer)}
        )
        self.h = nn.ModuleList([Block(config, i, attend) for i in layers])
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.resid_lambdas = nn.Parameter(torch.ones(config.n_layer))  # how much of the stream enters each layer
        self.x0_lambdas = nn.Parameter(torch.zeros(config.n_layer))  # and how much of the token embedding
        half = config.n_embd // config.n_head // 2
        angles = torch.outer(torch.arange(config.sequence_len), 10000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos()[None, :, None, :], persistent=False)
        self.register_buffer("sin", angles.sin()[None, :, None, :], persistent=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Every layer starts as the identity: what it adds to the stream goes through a projection of zeros."""
        bound = math.sqrt(3 / self.config.n_embd)  # uniform in +-bound has standard deviation 1/sqrt(width)
        nn.init.normal_(self.wte.weight, std=1.0)
        nn.init.normal_(self.lm_head.weight, std=0.001)
        for name, weight in self.h.named_parameters():
            if "c_proj" in name or "ve_gate" in name:  # a gate of zeros is half open: 2 * sigmoid(0) = 1
                nn.init.zeros_(weight)
            else:
                nn.init.uniform_(weight, -bound, bound)
        for weight in self.value_embeds.parameters():
            nn.init.uniform_(weight, -bound, bound)
        nn.init.ones_(self.resid_lambdas)
        nn.init.constant_(self.x0_lambdas, 0.1)

    def flops_per_token(self) -> int:
        """Forward and backward: 6 a matrix weight, and 12 a head channel and key looked at, as upstream counts."""
        matrices = self.lm_head.weight.numel() + sum(p.numel() for p in self.h.parameters())
        keys = sum(min(window, self.config.sequence_len) for window in self.windows)
        return 6 * matrices + 12 * self.config.n_embd * keys

    def forward(self, idx: Tensor, targets: Tensor | None = None, reduction: str = "mean") -> Tensor:
        # bf16 matrix products on a GPU; a CPU without AMX only emulates them
        with torch.autocast(idx.device.type, torch.bfloat16, enabled=idx.is_cuda):
            x = norm(self.wte(idx))
            x0 = x
            cos, sin = self.cos[:, : idx.size(1)].to(x.dtype), self.sin[:, : idx.size(1)].to(x.dtype)
            for i, block in enumerate(self.h):
                x = self.resid_lambdas[i] * x + self.x0_lambdas[i] * x0
                ve = self.value_embeds[str(i)](idx) if str(i) in self.value_embeds else None
                x = block(x, ve, cos, sin, self.windows[i])
            logits: Tensor = self.lm_head(norm(x))
        logits = 15 * torch.tanh(logits.float() / 15)  # soft cap: no logit leaves +-15
        if targets is None:
            return logits
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1), reduction=reduction)


def build_model(device: str, attend: Attention) -> GPT:
    model = GPT(GPTConfig.from_knobs(), attend).to(device)
    if device == "cuda":  # lookups in bf16: half the memory, no loss
        model.wte.bfloat16()
        model.value_embeds.bfloat16()
    return model


def load_model(path: str, device: str) -> nn.Module:
    """The model of a checkpoint, as the judge scores it: eager and with exact attention, so that it starts quickly."""
    use_threads(device)
    model = build_model(device, local_attention)
    model.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    return model.eval()


# ---------------------------------------------------------------------------------------------------------------------
# Optimizer. Plain classes: torch.optim's base class imports torch's compiler, 2 s that a short run does not have.

Number = float | Tensor  # rates are 0-D tensors where a step is compiled: a new value must not compile it anew


def adamw_update(
    p: Tensor, grad: Tensor, m: Tensor, v: Tensor, lr: Number, correction: Number, betas: tuple[float, float]
) -> None:
    """One step of Adam (Kingma & Ba, arXiv 1412.6980); `lr` and `correction` hold the bias corrections of m and v."""
    m.lerp_(grad, 1 - betas[0])
    v.lerp_(grad.square(), 1 - betas[1])
    p.sub_(m / (v.sqrt() * correction + 1e-10) * lr)


class AdamW:
    """Groups of (parameters, rate, betas), for all that is no matrix of a layer; their weights do not decay."""

    def __init__(self, groups: list[tuple[list[Tensor], float, tuple[float, float]]], compiled: bool) -> None:
        self.groups = groups
        self.scalar = torch.tensor if compiled else float
        self.update = torch.compile(adamw_update, dynamic=False) if compiled else adamw_update
        self.reset()

    def reset(self) -> None:
        self.steps = 0
        self.moments = [[(torch.zeros_like(p), torch.zeros_like(p)) for p in group[0]] for group in self.groups]

    @torch.no_grad()
    def step(self, multiplier: float) -> None:
        self.steps += 1
        for (params, lr, betas), moments in zip(self.groups, self.moments, strict=True):
            rate = self.scalar(lr * multiplier / (1 - betas[0] ** self.steps))
            correction = self.scalar(1 / math.sqrt(1 - betas[1] ** self.steps))
            for p, (m, v) in zip(params, moments, strict=True):
                assert p.grad is not None
                self.update(p, p.grad, m, v, rate, correction, betas)
                p.grad = None


# Coefficients of the five iterations of Polar Express (Amsel et al., arXiv 2505.16932), with its safety factor of 2%.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def polar_express(g: Tensor) -> Tensor:
    """Roughly the orthogonal factor of each matrix of [n, rows, cols]: its singular values become about 1."""
    tall = g.size(1) > g.size(2)
    x = g.bfloat16() if g.is_cuda else g
    x = x.mT if tall else x
    x = x / (x.square().sum(dim=(1, 2), keepdim=True).sqrt() * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).type_as(g)


def muon_update(p: Tensor, grad: Tensor, buffer: Tensor, second: Tensor, lr: Number, momentum: Number, decay: Number) -> None:
    """One step of Muon (Jordan et al. 2024) on a stack of matrices, p [n, rows, cols].

    Nesterov momentum, orthogonalised by Polar Express; then NorMuon (arXiv 2510.05491): each neuron's update is divided
    by its running size `second`, and the whole is scaled back to the size it had; then cautious weight decay (arXiv
    2510.12402): only where it agrees with the update.
    """
    buffer.lerp_(grad, 1 - momentum)
    g = polar_express(grad.lerp(buffer, momentum))
    neuron = -1 if g.size(1) >= g.size(2) else -2
    size = g.square().mean(dim=neuron, keepdim=True)
    second.lerp_(size, 0.05)
    scale = second.clamp_min(1e-10).rsqrt()
    before, after = size.sum(dim=(1, 2), keepdim=True), (size * scale.square()).sum(dim=(1, 2), keepdim=True)
    g = g * (scale * (before / after.clamp_min(1e-20)).sqrt())
    p.sub_(lr * (g + decay * p * (g * p >= 0)))


class Muon:
    """All matrices of the layers, those of one shape as views of one stack: an update is a few batched products."""

    def __init__(self, params: list[nn.Parameter], lr: float, compiled: bool) -> None:
        self.lr = lr
        self.scalar = torch.tensor if compiled else float
        self.update = torch.compile(muon_update, dynamic=False) if compiled else muon_update
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for p in params:
            by_shape.setdefault(p.shape, []).append(p)
        self.stacks = [torch.stack([p.data for p in group]) for group in by_shape.values()]
        self.grads = [torch.zeros_like(stack) for stack in self.stacks]
        for group, stack, grad in zip(by_shape.values(), self.stacks, self.grads, strict=True):
            for i, p in enumerate(group):
                p.data, p.grad = stack[i], grad[i]  # backward adds to a gradient in place, so nothing is ever copied
        self.reset()

    def reset(self) -> None:
        self.buffers = [torch.zeros_like(stack) for stack in self.stacks]
        self.seconds = [
            torch.zeros_like(stack.sum(dim=-1 if stack.size(1) >= stack.size(2) else -2, keepdim=True)) for stack in self.stacks
        ]

    @torch.no_grad()
    def step(self, multiplier: float, momentum: float, decay: float) -> None:
        for p, grad, buffer, second in zip(self.stacks, self.grads, self.buffers, self.seconds, strict=True):
            lr = self.lr * multiplier * math.sqrt(max(1.0, p.size(1) / p.size(2)))
            self.update(p, grad, buffer, second, self.scalar(lr), self.scalar(momentum), self.scalar(decay))
            grad.zero_()


def build_optimizers(model: GPT, compiled: bool) -> tuple[AdamW, Muon]:
    scale = (model.config.n_embd / 768) ** -0.5  # rates were tuned at width 768
    adamw = AdamW(
        [
            ([model.lm_head.weight], UNEMBEDDING_LR * scale, ADAM_BETAS),
            ([model.wte.weight, *model.value_embeds.parameters()], EMBEDDING_LR * scale, ADAM_BETAS),
            ([model.resid_lambdas], SCALAR_LR * 0.01, ADAM_BETAS),
            ([model.x0_lambdas], SCALAR_LR, (0.96, 0.95)),
        ],
        compiled,
    )
    return adamw, Muon(list(model.h.parameters()), MATRIX_LR, compiled)


# ---------------------------------------------------------------------------------------------------------------------
# Schedules: `done` is the share of the budget that is spent.


def lr_multiplier(done: float) -> float:
    if done < WARMUP_RATIO:
        return done / WARMUP_RATIO
    if done <= 1 - WARMDOWN_RATIO:
        return 1.0
    left = (1 - done) / WARMDOWN_RATIO
    return left + (1 - left) * FINAL_LR_FRAC


def muon_momentum(step: int) -> float:
    return 0.85 + 0.1 * min(step / 300, 1)


def weight_decay(done: float) -> float:
    return WEIGHT_DECAY * (1 - done)


# ---------------------------------------------------------------------------------------------------------------------
# Training


def use_threads(device: str) -> None:
    if device == "cpu":  # more threads than the judge grants only wait for each other
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def accumulation_steps() -> int:
    """Raises ValueError when a step is no whole number of forward passes."""
    tokens = DEVICE_BATCH_SIZE * MAX_SEQ_LEN
    if TOTAL_BATCH_SIZE < 1 or TOTAL_BATCH_SIZE % tokens:
        raise ValueError(
            f"TOTAL_BATCH_SIZE = {TOTAL_BATCH_SIZE} must be a multiple of DEVICE_BATCH_SIZE * MAX_SEQ_LEN = {tokens}"
        )
    return TOTAL_BATCH_SIZE // tokens


def batches(rows: prepare.Tokens, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (inputs, targets), int64 [DEVICE_BATCH_SIZE, T] each, in the order of the packed rows."""
    first = 0
    while True:
        chosen = np.arange(first, first + DEVICE_BATCH_SIZE) % len(rows)
        tokens = torch.from_numpy(rows[chosen].astype(np.int32))
        if device == "cuda":
            tokens = tokens.pin_memory().to(device, non_blocking=True)
        tokens = tokens.to(device).long()
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        first = (first + DEVICE_BATCH_SIZE) % len(rows)


def check(loss: float, step: int) -> None:
    """Fails fast: a run that has blown up has nothing more to say."""
    if not loss <= 100:  # NaN as well
        raise RuntimeError(f"loss {loss} at step {step}: training has diverged")


def main() -> None:
    device = harness.device()
    use_threads(device)
    passes = accumulation_steps()
    if VOCAB_SIZE not in prepare.meta().vocab_sizes:
        raise ValueError(f"VOCAB_SIZE = {VOCAB_SIZE} is not prepared; prepared: {prepare.meta().vocab_sizes}")

    compiled = device == "cuda"
    config = GPTConfig.from_knobs()
    torch.manual_seed(harness.seed())
    model = build_model(device, choose_attention(device, config.windows(), config.sequence_len))
    model.init_weights()
    adamw, muon = build_optimizers(model, compiled)
    forward = torch.compile(model, dynamic=False) if compiled else model

    def train_step(data: Iterator[tuple[Tensor, Tensor]], step: int, done: float) -> Tensor:
        """One optimizer step; returns its mean loss, not yet waited for."""
        total = torch.zeros((), device=device)
        for _ in range(passes):
            loss = forward(*next(data)) / passes
            loss.backward()
            total += loss.detach()
        adamw.step(lr_multiplier(done))
        muon.step(lr_multiplier(done), muon_momentum(step), weight_decay(done))
        return total

    if compiled:  # compile on noise before the clock runs, then forget it
        noise = np.random.default_rng(0).integers(VOCAB_SIZE, size=(DEVICE_BATCH_SIZE, MAX_SEQ_LEN + 1))
        train_step(batches(noise.astype(np.uint16), device), 0, 0.0)
        torch.manual_seed(harness.seed())
        model.init_weights()
        adamw.reset()
        muon.reset()
        torch.cuda.synchronize()

    budget = harness.ready(flops_per_token=model.flops_per_token())
    data = batches(prepare.train_rows(MAX_SEQ_LEN, VOCAB_SIZE), device)
    step, tokens, running = 0, 0, None
    while (done := budget.progress(tokens)) < 1.0:
        queued = train_step(data, step, done)
        if running is not None:  # a GPU works on the queued step while we wait for the one before it
            check(loss := running.item(), step - 1)
            harness.log(step=step - 1, tokens=tokens, loss=loss)
        running, step, tokens = queued, step + 1, tokens + TOTAL_BATCH_SIZE
        if step == 1:  # nothing that lives now dies before the end: spare the collector the search
            gc.collect()
            gc.freeze()
            gc.disable()
    if running is not None:
        check(loss := running.item(), step - 1)
        harness.log(step=step - 1, tokens=tokens, loss=loss)
    metrics = {"num_steps": step, "num_params_M": sum(p.numel() for p in model.parameters()) / 1e6, "depth": DEPTH}
    if device == "cuda":
        metrics["peak_vram_mb"] = torch.cuda.max_memory_allocated() / 2**20
    harness.finish(model.state_dict(), **metrics)


if __name__ == "__main__":
    main()
