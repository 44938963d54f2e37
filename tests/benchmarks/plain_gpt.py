"""The yardstick of `./run bench train`: a plain eager GPT and loop, as nanoGPT (Karpathy, 2022) has
them.

LayerNorm, learned positions, GELU MLP of four times the width, untied head, torch's causal
attention, torch.optim.AdamW, clipped gradients, random crops of one stream of tokens. Nothing in it
is slow on purpose. Runs as a process of its own: `python -m tests.benchmarks.plain_gpt
SHAPES.json`.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.timed_train import Shapes, Stopwatch, noise

BETAS, WEIGHT_DECAY, LEARNING_RATE, MAX_NORM = (0.9, 0.95), 0.1, 6e-4, 1.0
WARMUP_STEPS, DECAY_STEPS, LOG_STEPS = 10, 1000, 10


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, width = x.shape
        q, k, v = (
            part.view(B, T, self.heads, -1).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(B, T, width))
        return out


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y


class PlainGPT(nn.Module):
    """model(idx, targets) -> mean loss in nats; both int64 [B, T]."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shapes.vocab, shapes.width)
        self.positions = nn.Embedding(shapes.length, shapes.width)
        self.layers = nn.ModuleList(
            [Layer(shapes.width, shapes.heads) for _ in range(shapes.depth)]
        )
        self.norm = nn.LayerNorm(shapes.width, bias=False)
        self.head = nn.Linear(shapes.width, shapes.vocab, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(idx) + self.positions(torch.arange(idx.size(1)))
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


def learning_rate(step: int) -> float:
    """Linear warm-up, then a cosine."""
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / WARMUP_STEPS
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * min(step / DECAY_STEPS, 1)))


def main(shapes: Shapes) -> dict[str, float]:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(1)
    model = PlainGPT(shapes)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS)
    stream, crops = noise(shapes).reshape(-1), np.random.default_rng(1)
    passes = shapes.total_batch // (shapes.batch * shapes.length)

    def batch() -> tuple[Tensor, Tensor]:
        first = crops.integers(len(stream) - shapes.length - 1, size=shapes.batch)
        rows = [torch.from_numpy(stream[i : i + shapes.length + 1].astype(np.int64)) for i in first]
        tokens = torch.stack(rows)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    watch, step = Stopwatch(shapes), 0
    while watch.progress(step * shapes.total_batch) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        for _ in range(passes):
            loss = model(*batch()) / passes
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % LOG_STEPS == 0 and not math.isfinite(loss.item()):
            raise RuntimeError(f"loss {loss.item()} at step {step}")
        step += 1
    return watch.figures


if __name__ == "__main__":
    print(json.dumps(main(Shapes(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))))
