"""What a training corpus is, in figures that a researcher can reason with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from tasks.records import Dataset
from trainer import prepare

COUNTED = 1 << 24  # tokens from the beginning, for the bytes of a token


@dataclasses.dataclass(frozen=True)
class CorpusFacts:
    """The training text of one prepared vocabulary."""

    vocab_size: int
    documents: int
    shards: int
    tokens: int  # with the BOS of each document
    bytes_per_token: float  # of UTF-8, BOS not counted; of the first COUNTED tokens of a shard

    @classmethod
    def of(cls, dataset: Dataset, vocab_size: int) -> CorpusFacts:
        """Reads the first shard. Raises OSError."""
        streams, lengths = prepare.streams(Path(dataset.train), vocab_size)
        table = np.load(Path(dataset.public) / f"token_bytes_{vocab_size}.npy")
        counts = np.bincount(streams[0][:COUNTED], minlength=len(table))[: len(table)]
        scored = counts[table > 0].sum()
        return cls(
            vocab_size,
            len(lengths),
            len(streams),
            int(lengths.sum(dtype=np.int64)),
            float((counts * table).sum() / max(scored, 1)),
        )

    def describe(self) -> str:
        text = (self.tokens - self.documents) * self.bytes_per_token / 1e6
        return (
            f"vocabulary {self.vocab_size}: {self.tokens:,} tokens in {self.documents:,} documents "
            f"of {self.shards} shards, {self.bytes_per_token:.2f} bytes a token, about "
            f"{text:,.1f} MB of UTF-8"
        )
