"""What the data path is measured against: the straightforward ways to do the same, written as one
would at first.

The loader tokenizes on the fly and packs by a scan of the list of waiting documents, as
karpathy/autoresearch's does. The pipeline prepares a shard with the most used tokenizer library,
one step after the other, all of it in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tasks.data.tokenization import PATTERN, train_tokenizer
from trainer import prepare

BUFFER, BATCH = 1000, 128


def packed(documents: Iterator[Sequence[list[int]]], T: int) -> Iterator[list[int]]:
    """Rows of T + 1 tokens from batches of documents: best fit by list scan, else the shortest
    document cropped, whose tail waits behind the others; none counts as longer than a row."""
    waiting: list[list[int]] = []
    while True:
        row: list[int] = []
        while (room := T + 1 - len(row)) > 0:
            while len(waiting) < BUFFER and (more := next(documents, None)) is not None:
                waiting.extend(more)
            if not waiting:
                return
            best, best_length = -1, 0
            for i, document in enumerate(waiting):
                if best_length < min(len(document), T + 1) <= room:
                    best, best_length = i, min(len(document), T + 1)
            if best < 0:
                best = min(range(len(waiting)), key=lambda i: min(len(waiting[i]), T + 1))
            piece = waiting.pop(best)
            row.extend(piece[:room])
            if len(piece) > room:
                waiting.append(piece[room - 1 :])
        yield row


def on_the_fly(
    texts: Sequence[str], tokenizer: prepare.Tokenizer, B: int, T: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of (inputs, targets), int64 [B, T] each, from text; one thread."""

    def encoded() -> Iterator[list[list[int]]]:
        for first in range(0, len(texts), BATCH):
            yield [
                [tokenizer.bos, *tokenizer.encode(text)] for text in texts[first : first + BATCH]
            ]

    rows = packed(encoded(), T)
    while len(batch := list(itertools.islice(rows, B))) == B:
        tokens = torch.tensor(batch)
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def prepare_plainly(shard: Path, vocab_size: int, T: int, folder: Path) -> None:
    """Tokenizer, tokens and rows of a shard with Hugging Face's tokenizers, a document at a time."""
    texts, tokenizer, bos = _with_tokenizer(shard, vocab_size, folder)
    _pack([[bos, *tokenizer.encode(text).ids] for text in texts], T, folder)


def prepare_in_one_batch(shard: Path, vocab_size: int, T: int, folder: Path) -> None:
    """The same with all documents in one call, which encodes them on all cores."""
    texts, tokenizer, bos = _with_tokenizer(shard, vocab_size, folder)
    _pack([[bos, *each.ids] for each in tokenizer.encode_batch(texts)], T, folder)


def _with_tokenizer(shard: Path, vocab_size: int, folder: Path) -> tuple[list[str], Tokenizer, int]:
    """The documents, a tokenizer that was trained on them on all cores, and the id of its BOS."""
    texts: list[str] = pq.read_table(shard).column("text").to_pylist()
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[prepare.BOS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return texts, tokenizer, int(tokenizer.token_to_id(prepare.BOS) or 0)


def prepare_with_our_parts(shard: Path, vocab_size: int, T: int, folder: Path) -> None:
    """The same with rustbpe and tiktoken, the parts that the project uses too, a document at a
    time."""
    texts = pq.read_table(shard).column("text").to_pylist()
    tokenizer = train_tokenizer(texts, vocab_size, 1 << 40)
    documents = [[tokenizer.bos, *tokenizer.encode(text)] for text in texts]
    _pack(documents, T, folder)


def _pack(documents: list[list[int]], T: int, folder: Path) -> None:
    np.save(
        folder / "tokens.npy",
        np.array([token for document in documents for token in document], np.int32),
    )
    batches = (documents[first : first + BATCH] for first in range(0, len(documents), BATCH))
    np.save(folder / "rows.npy", np.array(list(packed(batches, T)), np.int32))
