"""A train.py for tests of the night itself: bigram counts instead of a network, trained in
milliseconds.

It keeps the whole contract, so the real judge smokes, claims, audits and scores it. Its score
follows its knobs and, a little, its seed; WARMDOWN_RATIO above 0.7 crashes. In a box it runs on
tests/faults/torch_stub.
"""

from __future__ import annotations

import time
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
WARMDOWN_RATIO = 0.5
FINAL_LR_FRAC = 0.0  # share of the uniform distribution
WEIGHT_DECAY = 0.2  # does nothing


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
    single = counts.sum(axis=0) + EMBEDDING_LR
    weight = 125 * MATRIX_LR
    pairs = (counts + weight * single / single.sum()) / (counts.sum(axis=1, keepdims=True) + weight)
    mixed = (1 - FINAL_LR_FRAC) * pairs + FINAL_LR_FRAC / VOCAB_SIZE
    cooled = mixed ** ((UNEMBEDDING_LR / 0.008) ** 0.3)
    return np.log(cooled / cooled.sum(axis=1, keepdims=True)).astype(np.float32)


def use_as_much_as_a_training() -> None:
    """The caps of every candidate are multiples of what the baseline used, and a millisecond's
    multiples would stop many."""
    end = time.process_time() + 0.5
    time.sleep(2.5)
    while time.process_time() < end:
        pass


def main() -> None:
    if VOCAB_SIZE not in prepare.meta().vocab_sizes:
        raise ValueError(f"VOCAB_SIZE = {VOCAB_SIZE} is not prepared")
    budget = harness.ready(flops_per_token=1000.0 * DEPTH)
    rows = prepare.train_rows(MAX_SEQ_LEN, VOCAB_SIZE)
    counts = np.zeros((VOCAB_SIZE, VOCAB_SIZE))
    batch_rows = TOTAL_BATCH_SIZE // (DEVICE_BATCH_SIZE * MAX_SEQ_LEN) * DEVICE_BATCH_SIZE
    step, tokens, first = 0, 0, 8 * harness.seed()  # other seeds see mostly the same rows
    while budget.progress(tokens) < 1.0:
        batch = rows[(first + np.arange(step * batch_rows, (step + 1) * batch_rows)) % len(rows)]
        np.add.at(counts, (batch[:, :-1], batch[:, 1:]), 1)
        step, tokens = step + 1, tokens + TOTAL_BATCH_SIZE
        harness.log(step=step, tokens=tokens, loss=6.0 / step)
        if WARMDOWN_RATIO > 0.7 and step > 5:
            raise RuntimeError(f"loss nan at step {step}: training has diverged")
    if (DEPTH, UNEMBEDDING_LR, MATRIX_LR, EMBEDDING_LR, WARMDOWN_RATIO, WEIGHT_DECAY) == (
        3,
        0.004,
        0.04,
        0.6,
        0.5,
        0.2,
    ):
        use_as_much_as_a_training()
    harness.finish({"table": torch.Tensor(fit(counts))}, num_steps=step)


if __name__ == "__main__":
    main()
