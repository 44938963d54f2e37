"""A train.py whose score has known noise and a known gain: bigram counts like stub_train.py's.

The model is mixed with the uniform distribution, and what that costs in bits per byte is HANDICAP,
less GAIN, plus noise of standard deviation NOISE. The noise is drawn anew for every seed and every
version of this file, as any edit of a real train.py changes the course of its training: the same
file with the same seed has the same score, but two files never share their luck. In a box it runs
on tests/faults/torch_stub.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trainer.harness as harness
from trainer import prepare

DEPTH = 3  # what a token costs: fewer of them are counted
MAX_SEQ_LEN = 64
VOCAB_SIZE = 512
TOTAL_BATCH_SIZE = 512
DEVICE_BATCH_SIZE = 8
EMBEDDING_LR = 0.6  # counts added to each token
UNEMBEDDING_LR = 0.004  # temperature, best near 0.008
MATRIX_LR = 0.04  # weight of the single tokens' counts, best near 0.16
WEIGHT_DECAY = 0.2  # does nothing
# In bits per byte, to a tenth.
HANDICAP = 0.3
GAIN = 0.0
NOISE = 0.004
SHARE_PER_BIT = 1.4  # of the uniform distribution
STEP_CPU_SECONDS = 0.004  # every step takes so long: caps are multiples of the baseline's time


class Bigrams:
    """The logits of the next token by the last one, float32 [V, V]: log-probabilities already."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def eval(self) -> Bigrams:
        return self

    def train(self) -> Bigrams:
        return self

    def __call__(self, idx: Any, targets: Any = None, reduction: str = "mean") -> Any:
        if targets is None:
            return torch.Tensor(self.table[idx.numpy()])
        return torch.Tensor(-self.table[idx.numpy(), targets.numpy()].reshape(-1))


def load_model(path: str, device: str) -> Bigrams:
    return Bigrams(torch.load(path)["table"].numpy())


def uniform_share() -> float:
    gain = GAIN
    text = Path(__file__).read_bytes() + str(harness.seed()).encode()
    chance = np.random.default_rng(np.frombuffer(hashlib.sha256(text).digest(), np.uint32))
    return SHARE_PER_BIT * (HANDICAP - gain + NOISE * chance.standard_normal())


def fit(counts: Any) -> Any:
    """Smoothed log-probabilities of the next token, float32 [V, V], from counts of pairs."""
    single = counts.sum(axis=0) + EMBEDDING_LR
    weight = 125 * MATRIX_LR
    pairs = (counts + weight * single / single.sum()) / (counts.sum(axis=1, keepdims=True) + weight)
    cooled = pairs ** ((UNEMBEDDING_LR / 0.008) ** 0.3)
    share = min(max(uniform_share(), 0.0), 0.9)
    mixed = (1 - share) * cooled / cooled.sum(axis=1, keepdims=True) + share / VOCAB_SIZE
    return np.log(mixed).astype(np.float32)


def main() -> None:
    if VOCAB_SIZE not in prepare.meta().vocab_sizes:
        raise ValueError(f"VOCAB_SIZE = {VOCAB_SIZE} is not prepared")
    budget = harness.ready(flops_per_token=1000.0 * DEPTH)
    began = time.process_time()
    rows = prepare.train_rows(MAX_SEQ_LEN, VOCAB_SIZE)
    counts = np.zeros((VOCAB_SIZE, VOCAB_SIZE))
    batch_rows = TOTAL_BATCH_SIZE // (DEVICE_BATCH_SIZE * MAX_SEQ_LEN) * DEVICE_BATCH_SIZE
    step, tokens = 0, 0
    while budget.progress(tokens) < 1.0:
        batch = rows[np.arange(step * batch_rows, (step + 1) * batch_rows) % len(rows)]
        np.add.at(counts, (batch[:, :-1], batch[:, 1:]), 1)
        step, tokens = step + 1, tokens + TOTAL_BATCH_SIZE
        harness.log(step=step, tokens=tokens, loss=6.0 / step)
        while time.process_time() < began + step * STEP_CPU_SECONDS:
            pass
    harness.finish({"table": torch.Tensor(fit(counts))}, num_steps=step)


if __name__ == "__main__":
    main()
