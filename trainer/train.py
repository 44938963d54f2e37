"""The file that is edited: a small GPT, its optimizer and training loop.

Everything here may change but the contract, which is three names and their meaning: the ALL_CAPS
knobs below, `load_model(path, device)` and `main()`. The judge gives the seed, says when the budget
starts, takes the checkpoint and scores it; trainer/harness.py talks to it. After Karpathy's
autoresearch and nanochat, whose names are kept. Runs alone as `python -m trainer.train`.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
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
# A letter for each layer, repeated: L sees all the context, S a part, T an eighth. The last is L.
WINDOW_PATTERN = "L"
SHORT_WINDOW_DIVISOR = 2  # S looks back MAX_SEQ_LEN / this
DOCUMENT_MASK = False  # attention sees nothing before the start of its own document
MAX_SEQ_LEN = 128  # context length in tokens
VOCAB_SIZE = 2048  # one of the prepared tokenizers
TOTAL_BATCH_SIZE = 1024  # tokens per optimizer step
DEVICE_BATCH_SIZE = 8  # rows per forward pass; a step accumulates as many passes as it needs
ROPE_BASE = 10000.0  # the rotary embedding's longest wavelength is nearly 2 pi x this, in tokens
QK_SCALE = 1.0  # factor on attention scores, after QK-norm and 1/sqrt(head_dim)
BIGRAM_TABLE = 0  # rows of each layer's table of hashed bigrams, in VOCAB_SIZEs; 0: no bigrams
TRIGRAM_TABLE = 0  # the same for trigrams, whose table all layers share
VE_GATE_CHANNELS = 32  # channels of a layer's input that a value embedding's gate reads
VE_GATE_MAX = 2.0  # the gate's largest value; it starts at half of it
INIT_SCALE = 1.0  # factor on the uniform initial weights of layers and value embeddings
X0_LAMBDA_INIT = 0.1  # share of the token embedding that enters each layer at first
EMBEDDING_LR = 0.6  # token and value embeddings (AdamW)
UNEMBEDDING_LR = 0.004  # output head (AdamW)
NGRAM_LR = 0.3  # tables of n-grams (RMSProp)
MATRIX_LR = 0.04  # matrices of the layers (Muon)
SCALAR_LR = 0.5  # per-layer scalars (AdamW)
WEIGHT_DECAY = 0.2  # of the matrices, cautious; falls to 0 over the budget
EMBEDDING_DECAY = 0.0  # weight decay of the token embedding, times its rate; so are the next two
VALUE_EMBEDDING_DECAY = 0.0
UNEMBEDDING_DECAY = 0.0
ADAM_BETAS = (0.8, 0.95)  # decay of AdamW's first and second moment
NGRAM_BETA2 = 0.99  # decay of the running average size of a row's gradients
MUON_MOMENTUM = 0.95  # Nesterov momentum, which starts at 0.85
MUON_MOMENTUM_WARMUP = 300  # steps in which it rises to that
MUON_MOMENTUM_DROP = 0.0  # how far it falls during the warm-down
MUON_BETA2 = 0.95  # decay of the running average size of each neuron's update
WARMUP_RATIO = 0.0  # share of the budget over which rates rise from 0
WARMDOWN_RATIO = 0.5  # share of the budget over which rates fall at the end
FINAL_LR_FRAC = 0.0  # share of the rates that remains at the end

# --------------------------------------------------------------------------------------------------
# Attention: attend(q, k, v, window, documents) -> y, all [B, T, heads, head_dim]. Token t sees the
# tokens t - window ... t of its row. With `documents`, which number the document of each token, int
# [B, T], it sees those of its own document alone.

Attention = Callable[..., Tensor]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Plain scaled dot-product attention, causal without a mask; shapes as everywhere here."""
    scale = QK_SCALE / math.sqrt(q.size(-1))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale
    ).transpose(1, 2)


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, documents: Tensor | None = None
) -> Tensor:
    """Exact sliding-window attention without a T x T mask, for every device.

    Queries are cut into chunks of `window`, each of which needs the keys of its own chunk and of
    the one before, so the cost grows with T * window.
    """
    B, T, heads, dim = q.shape
    if (groups := heads // k.size(2)) > 1:
        k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
    if window >= T - 1:
        if documents is None:
            return _sdpa(q, k, v, None)
        return _sdpa(q, k, v, (documents[:, None, :, None] == documents[:, None, None]).tril())
    numbers = torch.zeros(B, T, device=q.device) if documents is None else documents

    def chunks(x: Tensor) -> Tensor:
        """[B, T, ...] -> [B, n, window, ...]: a chunk of padding, of no document, is the first."""
        x = F.pad(x, (*(0, 0) * (x.ndim - 2), window, -T % window), value=-1)
        return x.view(B, -1, window, *x.shape[2:])

    q, own, *others = (chunks(x) for x in (q, numbers, numbers, k, v))
    q, own = q[:, 1:].flatten(0, 1), own[:, 1:].flatten(0, 1)
    seen, k, v = (torch.cat([x[:, :-1], x[:, 1:]], dim=2).flatten(0, 1) for x in others)
    # Key b of a pair of chunks is window + a - b tokens before query a of the second chunk.
    a, b = torch.arange(window, device=q.device)[:, None], torch.arange(2 * window, device=q.device)
    mask = (a <= b) & (b <= a + window) & (own[:, :, None] == seen[:, None])
    return _sdpa(q, k, v, mask[:, None]).reshape(B, -1, heads, dim)[:, :T]


def flash_attention_3(repo: str, majors: tuple[int, ...]) -> Attention:
    """FlashAttention-3 (Shah et al., arXiv 2407.08608). Raises where it cannot run.

    `majors` are the compute capabilities that it is built for. When compiled, it is one node of a
    block's graph if the kernel registers it as an operator, and a break in the graph if not.
    """
    capability = torch.cuda.get_device_capability()
    # HIP has numbers of its own: an MI300 reports 9.4.
    if torch.version.hip or capability[0] not in majors:
        raise RuntimeError(f"it is for compute capabilities {majors} and this is {capability}")
    if DOCUMENT_MASK:
        raise RuntimeError("it knows no documents, and DOCUMENT_MASK is on")
    if f"{repo}=" not in os.environ.get("LOCAL_KERNELS", ""):  # a box has no network
        raise RuntimeError(f"LOCAL_KERNELS names no {repo}")
    import kernels

    kernel = kernels.get_kernel(repo, version=1)  # looks into LOCAL_KERNELS before it asks a hub
    flash = getattr(kernel, "flash_attn_interface", kernel).flash_attn_func

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int, documents: None = None) -> Any:
        scale, span = QK_SCALE / math.sqrt(q.size(-1)), (window, 0)
        y = flash(q, k, v, softmax_scale=scale, causal=True, window_size=span)
        return y[0] if isinstance(y, tuple) else y  # some builds add the log-sum-exp

    return attend


def flex_attention(windows: list[int], T: int, device: str) -> Attention:
    """FlexAttention, one kernel once compiled. Raises below compute capability 8.0."""
    from torch.nn.attention import flex_attention as flex

    if device == "cuda" and (card := torch.cuda.get_device_capability()) < (8, 0):
        raise RuntimeError(f"it needs compute capability (8, 0) and this is {card}")

    def within(window: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        return lambda row, head, query, key: (key <= query) & (query - key <= window)

    masks = {w: flex.create_block_mask(within(w), None, None, T, T, device) for w in set(windows)}

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int, documents: Any = None) -> Tensor:
        def same(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return torch.where(documents[row, query] == documents[row, key], score, -math.inf)

        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        grouped, scale = q.size(1) != k.size(1), QK_SCALE / math.sqrt(q.size(-1))
        score_mod = None if documents is None else same
        y = flex.flex_attention(q, k, v, score_mod, masks[window], scale, grouped)
        assert isinstance(y, Tensor)
        return y.transpose(1, 2)

    return attend


def smoke_test(attend: Attention, config: GPTConfig, device: str, dtype: torch.dtype) -> None:
    """RuntimeError if `attend` differs from `local_attention` on a row, forward or backward."""
    noise = torch.Generator(device).manual_seed(0)
    T, dim = config.sequence_len, config.n_embd // config.n_head
    *qkv, pull = (
        torch.randn((1, T, heads, dim), generator=noise, device=device, dtype=dtype)
        for heads in (config.n_head, config.n_kv_head, config.n_kv_head, config.n_head)
    )
    documents = torch.arange(T, device=device)[None] // 100 if DOCUMENT_MASK else None
    compiled = torch.compile(attend, dynamic=False) if device == "cuda" else attend
    for window in sorted(set(config.windows())):
        found = []
        for tried in (compiled, local_attention):
            q, k, v = (x.clone().requires_grad_() for x in qkv)
            y = tried(q, k, v, window, documents)
            found.append([y, *torch.autograd.grad(y, (q, k, v), pull)])
        for name, ours, exact in zip("yqkv", *found, strict=True):
            error = ((ours.float() - exact.float()).norm() / exact.float().norm()).item()
            if not error < 0.03:  # bf16 rounds to 0.4%; NaN fails too
                raise RuntimeError(f"{name} is off by {error:.2%} at window {window} (limit 3%)")


def choose_attention(device: str, config: GPTConfig) -> Attention:
    """The fastest attention that works here; prints which, and why faster ones do not."""
    if device != "cuda":
        return local_attention
    hopper, T = "varunneal/flash-attention-3", config.sequence_len
    backends: dict[str, Callable[[], Attention]] = {
        "FlashAttention-3 for Hopper": lambda: flash_attention_3(hopper, (9,)),
        "FlashAttention-3": lambda: flash_attention_3("kernels-community/flash-attn3", (8, 9)),
        "FlexAttention": lambda: flex_attention(config.windows(), T, device),
    }
    for name, backend in backends.items():
        try:
            smoke_test(attend := backend(), config, device, torch.bfloat16)
            print(f"attention: {name}", file=sys.stderr)
            return attend
        except Exception as reason:  # an optional kernel may fail in any way
            print(f"attention: no {name}: {reason}", file=sys.stderr)
    return local_attention


# --------------------------------------------------------------------------------------------------
# Model

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
            raise ValueError(f"{DEPTH = } must be at least 1 and {HEAD_DIM = } even")
        if not WINDOW_PATTERN or set(WINDOW_PATTERN) - set("SLT"):
            raise ValueError(f"{WINDOW_PATTERN = } must be made of S, L and T")
        if SHORT_WINDOW_DIVISOR < 1:
            raise ValueError(f"{SHORT_WINDOW_DIVISOR = } must be at least 1")
        n_head = max(-(-DEPTH * ASPECT_RATIO // HEAD_DIM), 1)
        shape = DEPTH, n_head, n_head, n_head * HEAD_DIM
        return cls(MAX_SEQ_LEN, VOCAB_SIZE, *shape, WINDOW_PATTERN)

    def windows(self) -> list[int]:
        """How far each layer looks back, in tokens."""
        T, repeats = self.sequence_len, self.n_layer // len(self.window_pattern) + 1
        sizes = {"L": T, "S": max(T // SHORT_WINDOW_DIVISOR, 1), "T": max(T // 8, 1)}
        pattern = (self.window_pattern * repeats)[: self.n_layer - 1]
        return [sizes[letter] for letter in pattern + "L"]


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


class HashedEmbedding(nn.Module):
    """Vectors of n-grams, [B, T, dim], by their numbers, [B, T].

    Each half of a vector has a table and a multiplicative hash (Knuth, TAOCP 6.4) of its own, so
    two n-grams seldom share both. On a CPU the gradient is sparse: the rows of the batch alone.
    """

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.rows, self.weight = rows, nn.Parameter(torch.zeros(2 * rows, dim // 2))

    def forward(self, numbers: Tensor) -> Tensor:
        factors = -7046029254386353131, -4417276706812531889  # odd, of 64 bits
        hashed = [(numbers * by >> 32) % self.rows + i * self.rows for i, by in enumerate(factors)]
        return F.embedding(torch.stack(hashed, -1), self.weight, sparse=numbers.is_cpu).flatten(2)


def ngram_numbers(idx: Tensor, bos: int) -> tuple[Tensor, Tensor]:
    """A number for each bigram, and for each trigram, that ends at a token of `idx`, int64 [B, T].

    Nothing is seen before the start of a document or a row: BOS stands there.
    """
    one, two = (F.pad(idx, (n, 0), value=bos)[:, :-n] for n in (1, 2))
    one = one.masked_fill(idx == bos, bos)
    bigram = one << 16 | idx
    return bigram, two.masked_fill(one == bos, bos) << 32 | bigram


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer_idx: int, attend: Attention) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        self.head_dim = config.n_embd // config.n_head
        self.attend = attend
        kv_dim = self.n_kv_head * self.head_dim
        self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_k = nn.Linear(config.n_embd, kv_dim, bias=False)
        self.c_v = nn.Linear(config.n_embd, kv_dim, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.gate_channels = min(VE_GATE_CHANNELS, config.n_embd)
        gates = self.n_kv_head * (1 + bool(BIGRAM_TABLE) + bool(TRIGRAM_TABLE))
        with_ve = has_ve(layer_idx, config.n_layer)
        self.ve_gate = nn.Linear(self.gate_channels, gates, bias=False) if with_ve else None

    def forward(self, x: Tensor, ves: Sequence[Tensor], rotary: Rotary, *seen: Any) -> Tensor:
        """`seen` is what attention may see: the window, and the documents' numbers or None."""
        B, T, _ = x.shape
        weight = torch.cat([self.c_q.weight, self.c_k.weight])
        qk = F.linear(x, weight).view(B, T, -1, self.head_dim)
        v = self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)
        # Each token scales its own value embeddings.
        if self.ve_gate is not None:
            gates = VE_GATE_MAX * torch.sigmoid(self.ve_gate(x[..., : self.gate_channels]))
            for ve, gate in zip(ves, gates.chunk(len(ves), dim=2), strict=True):
                v = v + gate.unsqueeze(-1) * ve.view(B, T, self.n_kv_head, self.head_dim)
        qk = norm(apply_rotary_emb(qk, *rotary)).to(v.dtype)
        q, k = qk[:, :, : self.n_head], qk[:, :, self.n_head :]
        return F.linear(self.attend(q, k, v, *seen).reshape(B, T, -1), self.c_proj.weight)


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

    def forward(self, x: Tensor, x0: Tensor, lambdas: tuple[Tensor, ...], *inputs: Any) -> Tensor:
        """`lambdas`, 0-D: how much of the stream and of the token embedding enters the layer."""
        x = lambdas[0] * x + lambdas[1] * x0
        x = x + self.attn(norm(x), *inputs)
        y: Tensor = x + self.mlp(norm(x))
        return y


def soft_cap(logits: Tensor) -> Tensor:
    return 15 * torch.tanh(logits.float() / 15)  # between -15 and 15


def cross_entropy(x: Tensor, lm_head: Tensor, targets: Tensor) -> Tensor:
    """Nats of each target, [B*T]. Compiled, it keeps no float32 logits in memory: all is fused."""
    logits = soft_cap(F.linear(norm(x), lm_head))
    return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1), reduction="none")


class FusedCrossEntropy(torch.autograd.Function):
    """The same in eager mode, x [N, D], in half of autograd's 14 passes; differentiable once."""

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
        # The cap's derivative is 4 half (1 - half); half (1 - half) comes from sigmoid_backward.
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
    """model(idx) -> logits [B, T, V]; with targets nats, [B*T] or their mean by `reduction`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig, attend: Attention, bos: int) -> None:
        super().__init__()
        self.config, self.bos = config, bos
        self.windows, self.cross_entropy = config.windows(), fused_cross_entropy
        kv_dim = config.n_embd // config.n_head * config.n_kv_head
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        layers, V = range(config.n_layer), config.vocab_size
        with_ve = [str(i) for i in layers if has_ve(i, config.n_layer)]
        self.value_embeds = nn.ModuleDict({i: nn.Embedding(V, kv_dim) for i in with_ve})
        self.ngrams = nn.ModuleDict()  # each layer's bigrams, and the trigrams of all
        if BIGRAM_TABLE:
            self.ngrams.update({i: HashedEmbedding(BIGRAM_TABLE * V, kv_dim) for i in with_ve})
        if TRIGRAM_TABLE:
            self.ngrams["trigrams"] = HashedEmbedding(TRIGRAM_TABLE * V, kv_dim)
        self.h = nn.ModuleList([Block(config, i, attend) for i in layers])
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.resid_lambdas = nn.Parameter(torch.ones(config.n_layer))
        self.x0_lambdas = nn.Parameter(torch.zeros(config.n_layer))
        half = config.n_embd // config.n_head // 2
        inv_freq = ROPE_BASE ** (-torch.arange(half) / half)
        angles = torch.outer(torch.arange(config.sequence_len), inv_freq)
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
        for table in self.ngrams.parameters():
            nn.init.zeros_(table)
        nn.init.ones_(self.resid_lambdas)
        nn.init.constant_(self.x0_lambdas, X0_LAMBDA_INIT)

    def flops_per_token(self) -> int:
        """Forward and backward: 6 per matrix weight, 12 per head channel and key, as upstream."""
        matrices = self.lm_head.weight.numel() + sum(p.numel() for p in self.h.parameters())
        keys = sum(min(window, self.config.sequence_len) for window in self.windows)
        return 6 * matrices + 12 * self.config.n_embd * keys

    def compile_regions(self) -> None:
        """Compiles each block, and the head: equal blocks share a graph, so depth costs nothing."""
        for block in self.h:
            block.compile(dynamic=False)
        self.cross_entropy = torch.compile(cross_entropy, dynamic=False)

    def value_embeddings(self, idx: Tensor) -> dict[int, list[Tensor]]:
        """By layer, [B, T, kv_dim] each: of the token, its bigram and its trigram."""
        found = {int(i): [table(idx)] for i, table in self.value_embeds.items()}
        if self.ngrams:
            bigrams, trigrams = ngram_numbers(idx, self.bos)
            shared = [self.ngrams["trigrams"](trigrams)] if TRIGRAM_TABLE else []
            for i, ves in found.items():
                own = [self.ngrams[str(i)](bigrams)] if BIGRAM_TABLE else []
                ves += own + shared
        return found

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
            documents = (idx == self.bos).cumsum(1) if DOCUMENT_MASK else None
            ves = self.value_embeddings(idx)
            for i, (block, pair) in enumerate(zip(self.h, lambdas, strict=True)):
                x = block(x, x0, pair, ves.get(i, ()), rotary, self.windows[i], documents)
            if targets is None:
                return soft_cap(self.lm_head(norm(x)))
            # When it is scored, the loss must be that of the logits to the last bit.
            loss = self.cross_entropy if self.training else cross_entropy
            nats = loss(x, self.lm_head.weight, targets)
        return nats if reduction == "none" else nats.mean()


def build_model(device: str, attend: Attention) -> GPT:
    knows_documents = DOCUMENT_MASK or BIGRAM_TABLE or TRIGRAM_TABLE
    bos = prepare.meta().bos[VOCAB_SIZE] if knows_documents else -1
    model = GPT(GPTConfig.from_knobs(), attend, bos).to(device)
    if device == "cuda":  # lookups in bf16 take half the memory; the loss will be compiled
        for tables in (model.wte, model.value_embeds, model.ngrams):
            tables.bfloat16()
        model.cross_entropy = cross_entropy
    return model


def load_model(path: str, device: str) -> nn.Module:
    """The model of a checkpoint, for scoring: eager, as compiling takes longer than it saves."""
    use_threads(device)
    model = build_model(device, local_attention)
    model.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    return model.eval()


# --------------------------------------------------------------------------------------------------
# Optimizer. Plain classes: torch.optim's base class imports torch's compiler, which takes 2 s.

Tensors = Sequence[Tensor]
Betas = tuple[float, float]
Group = tuple[Tensors, float, Betas, float]
# Rates of a compiled step are 0-D tensors, so that a new value does not compile it again.
Rates = Sequence[float | Tensor]


def adamw_update(p: Tensor, grad: Tensor, moments: Tensors, rates: Rates, betas: Betas) -> None:
    """One step of AdamW (Loshchilov & Hutter, arXiv 1711.05101).

    `rates`: the learning rate and the factor on sqrt(v), with the bias corrections in them; then,
    if there is weight decay, what it multiplies the parameters by.
    """
    (m, v), (lr, correction, *keep) = moments, rates
    m.lerp_(grad, 1 - betas[0])
    v.lerp_(grad.square(), 1 - betas[1])
    for factor in keep:
        p.mul_(factor)
    p.sub_(m / (v.sqrt() * correction + 1e-10) * lr)


def rms_update(p: Tensor, grad: Tensor, second: Tensor, lr: float | Tensor) -> None:
    """One step of RMSProp without momentum, p [rows, dim], second [rows, 1].

    `second` is the running mean square of a row's gradients. It begins with the first one, and a
    row without a gradient stays as it is.
    """
    square = grad.float().square().mean(dim=1, keepdim=True)
    running = torch.where(second > 0, second.lerp(square, 1 - NGRAM_BETA2), square)
    second.copy_(torch.where(square > 0, running, second))
    p.sub_(grad * (lr * (second + 1e-30).rsqrt()))


class AdamW:
    """Groups of (parameters, rate, betas, weight decay), for all but the matrices of the layers.

    A group whose first beta is 0 has tables of n-grams: RMSProp, which keeps one number a row.
    """

    def __init__(self, groups: list[Group], compiled: bool) -> None:
        self.groups, self.scalar = groups, torch.tensor if compiled else float
        self.update = torch.compile(adamw_update, dynamic=False) if compiled else adamw_update
        self.update_rows = torch.compile(rms_update, dynamic=False) if compiled else rms_update
        self.reset()

    def reset(self) -> None:
        self.steps, self.moments = 0, []
        for params, _, betas, _ in self.groups:
            like = params if betas[0] else [p[:, :1].float() for p in params]
            self.moments.append([[torch.zeros_like(x) for b in betas if b] for x in like])

    @torch.no_grad()
    def step(self, multiplier: float) -> None:
        self.steps += 1
        for (params, lr, betas, decay), moments in zip(self.groups, self.moments, strict=True):
            rate = lr * multiplier / (1 - betas[0] ** self.steps)
            correction = 1 / math.sqrt(1 - betas[1] ** self.steps)
            keep = (1 - lr * multiplier * decay,) if decay else ()
            rates = tuple(self.scalar(number) for number in (rate, correction, *keep))
            for p, state in zip(params, moments, strict=True):
                assert p.grad is not None
                # A vector is as long as the model is deep, so compiled it would compile again.
                update = self.update if p.ndim > 1 else adamw_update
                if betas[0]:
                    update(p, p.grad, state, rates, betas)
                elif not p.grad.is_sparse:
                    self.update_rows(p, p.grad, state[0], rates[0])
                else:
                    rows = (grad := p.grad.coalesce()).indices()[0]
                    part, second = p[rows], state[0][rows]
                    self.update_rows(part, grad.values(), second, rates[0])
                    p[rows], state[0][rows] = part, second
                p.grad = None


# Polar Express (Amsel et al., arXiv 2505.16932), five iterations, with a safety factor of 2%.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def polar_express(g: Tensor) -> Tensor:
    """The polar factor of each matrix of [n, rows, cols], roughly: singular values near 1."""
    tall = g.size(1) > g.size(2)
    x = g.bfloat16() if g.is_cuda else g
    x = x.mT if tall else x
    x = x / (x.square().sum(dim=(1, 2), keepdim=True).sqrt() * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS:  # x <- a x + (b G + c G G) x with G = x x^T
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).type_as(g)


def muon_update(p: Tensor, grad: Tensor, buffer: Tensor, second: Tensor, rates: Rates) -> None:
    """One step of Muon (Jordan et al. 2024) on a stack of matrices, p [n, rows, cols].

    Nesterov momentum, orthogonalised by Polar Express; then NorMuon (arXiv 2510.05491): each
    neuron's update is divided by its running size `second`, and the whole is scaled back to its
    former size; then cautious weight decay (arXiv 2510.12402): only where the signs agree.
    """
    lr, momentum, decay = rates
    buffer.lerp_(grad, 1 - momentum)
    g = polar_express(grad.lerp(buffer, momentum))
    size = g.square().mean(dim=-1 if second.size(2) == 1 else -2, keepdim=True)
    second.lerp_(size, 1 - MUON_BETA2)
    scale = second.clamp_min(1e-10).rsqrt()
    before, after = (x.sum(dim=(1, 2), keepdim=True) for x in (size, size * scale.square()))
    g = g * (scale * (before / after.clamp_min(1e-20)).sqrt())
    p.sub_(lr * (g + decay * p * (g * p >= 0)))


class Muon:
    """All matrices of the layers. Those of one shape are views of one stack, updated together."""

    def __init__(self, params: list[nn.Parameter], lr: float, compiled: bool) -> None:
        self.lr, self.scalar = lr, torch.tensor if compiled else float
        self.update = torch.compile(muon_update, dynamic=False) if compiled else muon_update
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for p in params:
            by_shape.setdefault(p.shape, []).append(p)
        self.stacks = []
        # Each matrix begins at a multiple of 16 bytes: the graph of equal blocks assumes that.
        for shape, group in by_shape.items():
            flat = F.pad(torch.stack([p.data.flatten() for p in group]), (0, -shape.numel() % 4))
            self.stacks.append(flat[:, : shape.numel()].view(-1, *shape))
        self.grads, self.buffers = ([torch.zeros_like(x) for x in self.stacks] for _ in range(2))
        for group, stack, grad in zip(by_shape.values(), self.stacks, self.grads, strict=True):
            for i, p in enumerate(group):
                # Backward adds to a gradient in place, so nothing is ever copied.
                p.data, p.grad = stack[i], grad[i]
        parts = (x[:, :, :1] if x.size(1) >= x.size(2) else x[:, :1] for x in self.stacks)
        self.seconds = [torch.zeros_like(part) for part in parts]
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
            rates = self.scalar(lr), self.scalar(momentum), self.scalar(decay)
            self.update(p, grad, buffer, second, rates)
            grad.zero_()


def build_optimizers(model: GPT, compiled: bool) -> tuple[AdamW, Muon]:
    scale = (model.config.n_embd / 768) ** -0.5  # rates were tuned at a width of 768
    embedding_lr, value_embeds = EMBEDDING_LR * scale, list(model.value_embeds.parameters())
    groups: list[Group] = [
        ([model.lm_head.weight], UNEMBEDDING_LR * scale, ADAM_BETAS, UNEMBEDDING_DECAY),
        ([model.wte.weight], embedding_lr, ADAM_BETAS, EMBEDDING_DECAY),
        (value_embeds, embedding_lr, ADAM_BETAS, VALUE_EMBEDDING_DECAY),
        ([model.resid_lambdas], SCALAR_LR * 0.01, ADAM_BETAS, 0.0),
        ([model.x0_lambdas], SCALAR_LR, (0.96, 0.95), 0.0),
    ]
    if tables := list(model.ngrams.parameters()):
        groups.append((tables, NGRAM_LR * scale, (0.0, NGRAM_BETA2), 0.0))
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


def muon_momentum(step: int, done: float) -> float:
    peak = 0.85 + (MUON_MOMENTUM - 0.85) * min(step / max(MUON_MOMENTUM_WARMUP, 1), 1)
    return peak - MUON_MOMENTUM_DROP * max(1 - (1 - done) / max(WARMDOWN_RATIO, 1e-9), 0)


def use_threads(device: str) -> None:
    if device == "cpu":  # more threads than the judge allows would only wait for each other
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def accumulation_steps() -> int:
    """Raises ValueError if a step is not a whole number of forward passes."""
    tokens = DEVICE_BATCH_SIZE * MAX_SEQ_LEN
    if TOTAL_BATCH_SIZE < 1 or TOTAL_BATCH_SIZE % tokens:
        needed = f"DEVICE_BATCH_SIZE * MAX_SEQ_LEN = {tokens}"
        raise ValueError(f"{TOTAL_BATCH_SIZE = } must be a multiple of {needed}")
    return TOTAL_BATCH_SIZE // tokens


def batches(rows: prepare.Tokens, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (inputs, targets), int64 [DEVICE_BATCH_SIZE, T], in the order of the packed rows."""
    first, on_gpu = 0, device == "cuda"
    while True:
        last = first + DEVICE_BATCH_SIZE
        batch = rows[first:last] if last <= len(rows) else rows[np.arange(first, last) % len(rows)]
        tokens = torch.from_numpy(batch.astype(np.int64))
        # From pinned memory the host need not wait for the copy, which is queued with the work.
        tokens = (tokens.pin_memory() if on_gpu else tokens).to(device, non_blocking=on_gpu)
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        first = last % len(rows)


def on_its_way(loss: Tensor) -> Callable[[], float]:
    """Starts to copy a loss to the host; the function waits for that copy alone."""
    if not loss.is_cuda:
        return loss.item
    host = torch.empty((), pin_memory=True).copy_(loss, non_blocking=True)
    copied = torch.cuda.current_stream().record_event()
    return lambda: (copied.synchronize(), host.item())[1]


def check(loss: float, step: int) -> float:
    """Returns the loss; RuntimeError if it has diverged, from which no run recovers."""
    if not loss <= 100:  # NaN too
        raise RuntimeError(f"loss {loss} at step {step}: training has diverged")
    return loss


def main() -> None:
    device = harness.device()
    use_threads(device)
    passes = accumulation_steps()
    if VOCAB_SIZE not in (sizes := prepare.meta().vocab_sizes):
        raise ValueError(f"{VOCAB_SIZE = } is not prepared; prepared: {sizes}")
    compiled = device == "cuda"
    torch.manual_seed(harness.seed())
    model = build_model(device, choose_attention(device, GPTConfig.from_knobs()))
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
        adamw.step(rate := lr_multiplier(done))
        muon.step(rate, muon_momentum(step, done), WEIGHT_DECAY * (1 - done))
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
            harness.log(step=step - 1, tokens=tokens, loss=check(last_loss(), step - 1))
        last_loss, step, tokens = loss, step + 1, tokens + TOTAL_BATCH_SIZE
        if step == 1:  # everything alive now lives to the end: the collector need not look at it
            gc.collect()
            gc.freeze()
            gc.disable()
    if last_loss is not None:
        harness.log(step=step - 1, tokens=tokens, loss=check(last_loss(), step - 1))
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    metrics = {"num_steps": step, "num_params_M": parameters, "depth": DEPTH}
    if device == "cuda":
        metrics["peak_vram_mb"] = torch.cuda.max_memory_allocated() / 2**20
    harness.finish(model.state_dict(), **metrics)


if __name__ == "__main__":
    main()
