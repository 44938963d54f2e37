"""tests/faults/stub_train.py with honest noise: a seed draws the rows that it counts, few of all.

It draws other rows for another file, as a changed training goes another way from the same seed.
UNIFORM is what a patch gains by: the share of the uniform distribution in what is predicted.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

import trainer.harness as harness
from trainer import prepare

DEPTH = 3  # what a token costs
MAX_SEQ_LEN = 64
VOCAB_SIZE = 512
TOTAL_BATCH_SIZE = 512
DEVICE_BATCH_SIZE = 8
UNIFORM = 0.9


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


def fit(counts: Any) -> Any:
    """Smoothed log-probabilities of the next token, float32 [V, V], from counts of pairs."""
    single = counts.sum(axis=0) + 0.6
    pairs = (counts + 20 * single / single.sum()) / (counts.sum(axis=1, keepdims=True) + 20)
    return np.log((1 - UNIFORM) * pairs + UNIFORM / VOCAB_SIZE).astype(np.float32)


def main() -> None:
    budget = harness.ready(flops_per_token=1000.0 * DEPTH)
    # Caps are multiples of what the baseline used: of a millisecond they would stop many.
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    rows = prepare.train_rows(MAX_SEQ_LEN, VOCAB_SIZE)
    chance = np.random.default_rng((harness.seed(), int(UNIFORM * 10_000)))
    order = chance.permutation(len(rows))
    counts = np.zeros((VOCAB_SIZE, VOCAB_SIZE))
    batch_rows = TOTAL_BATCH_SIZE // (DEVICE_BATCH_SIZE * MAX_SEQ_LEN) * DEVICE_BATCH_SIZE
    step, tokens = 0, 0
    while budget.progress(tokens) < 1.0:
        batch = rows[order[(np.arange(batch_rows) + step * batch_rows) % len(rows)]]
        np.add.at(counts, (batch[:, :-1], batch[:, 1:]), 1)
        step, tokens = step + 1, tokens + TOTAL_BATCH_SIZE
        harness.log(step=step, tokens=tokens, loss=6.0 / step)
    harness.finish({"table": torch.Tensor(fit(counts))}, num_steps=step)


if __name__ == "__main__":
    main()
