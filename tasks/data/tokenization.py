"""From text to tokens: tokenizer, token streams, packed training rows, scored validation stream.

The tokenizer is byte-level BPE, trained by rustbpe, used through tiktoken. Its one special token,
BOS, has the last id and precedes every document. The bytes of a token are counted in the merge
table: decoded to text, a part of a character would count as the three bytes of U+FFFD.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import rustbpe

from tasks.errors import DataError
from tasks.files import FileRef, write_data
from tasks.records import PackedRows
from trainer import packing, prepare

# GPT-4's split pattern, but with at most two digits in a group, as in karpathy/autoresearch.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

MOST_ROWS = 1 << 24  # in a file; planning them takes half a minute and a GiB
BUFFER = 1024  # texts in memory while a tokenizer is trained
IN_USE_SECONDS = 600.0  # rows that a candidate asked for stay as long: it may still be compiling


def train_tokenizer(texts: Iterable[str], vocab_size: int, characters: int) -> prepare.Tokenizer:
    """A tokenizer of `vocab_size` tokens, BOS included, trained on the first `characters` of texts.

    A vocabulary of 256 tokens is the bytes themselves and needs no training. Raises DataError when
    the text is too short for so many tokens.
    """
    if vocab_size == 256:
        return prepare.Tokenizer(
            PATTERN, {bytes([byte]): byte for byte in range(255)}, {prepare.BOS: 255}
        )
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(_head(texts, characters), vocab_size - 1, BUFFER, PATTERN)
    ranks = {bytes(token): int(rank) for token, rank in trainer.get_mergeable_ranks()}
    if len(ranks) < vocab_size - 1:
        raise DataError(
            f"the training text gives {len(ranks) + 1} tokens, vocab_sizes has {vocab_size}: "
            "lower it, or add text"
        )
    return prepare.Tokenizer(PATTERN, ranks, {prepare.BOS: vocab_size - 1})


def _head(texts: Iterable[str], characters: int) -> Iterator[str]:
    left = characters
    for text in texts:
        if left <= 0:
            return
        yield from prepare.pieces(text[:left])
        left -= len(text)


def token_bytes(tokenizer: prepare.Tokenizer) -> npt.NDArray[np.int32]:
    """The number of raw bytes of each token, int32 [V]; 0 for BOS."""
    table = np.zeros(tokenizer.size, np.int32)
    for token, rank in tokenizer.ranks.items():
        table[rank] = len(token)
    return table


def write_tokenizer(tokenizer: prepare.Tokenizer, path: Path) -> FileRef:
    return write_data(path, json.dumps(tokenizer.to_dict()).encode("ascii"))


def read_tokenizer(path: Path) -> prepare.Tokenizer:
    return prepare.Tokenizer.from_dict(json.loads(path.read_text(encoding="ascii")))


def write_public(
    meta: prepare.Meta, tokenizers: Sequence[prepare.Tokenizer], folder: Path
) -> tuple[FileRef, ...]:
    """Writes the folder that a candidate may always read: meta.json, tokenizers, token bytes."""
    refs = [write_data(folder / "meta.json", json.dumps(meta.to_dict()).encode())]
    for tokenizer in tokenizers:
        refs.append(write_tokenizer(tokenizer, folder / f"tokenizer_{tokenizer.size}.json"))
        refs.append(
            _write_array(folder / f"token_bytes_{tokenizer.size}.npy", token_bytes(tokenizer))
        )
    return tuple(refs)


def encode_shard(
    batches: Iterable[Sequence[str]],
    tokenizer: prepare.Tokenizer,
    folder: Path,
    shard: int,
    threads: int = 1,
) -> tuple[FileRef, FileRef]:
    """Writes the tokens of a shard, and how many each document has.

    tokens_<V>_<shard>.bin is a uint16 stream of documents, each after a BOS. The int32 array
    lengths_<V>_<shard>.npy counts the BOS too. Batches are encoded in parallel, and few are in
    memory at a time, however long the shard is.
    """
    lengths: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)]

    def fill(file: BinaryIO) -> None:
        for stream in _encoded(batches, tokenizer, threads):
            file.write(stream.tobytes())
            starts = np.append(np.flatnonzero(stream == tokenizer.bos), len(stream))
            lengths.append(np.diff(starts).astype(np.int32))

    tokens = write_data(folder / f"tokens_{tokenizer.size}_{shard:05d}.bin", fill)
    return tokens, _write_array(
        folder / f"lengths_{tokenizer.size}_{shard:05d}.npy", np.concatenate(lengths)
    )


def _encoded(
    batches: Iterable[Sequence[str]], tokenizer: prepare.Tokenizer, threads: int
) -> Iterator[prepare.Tokens]:
    """The stream of each batch, in order; the encoder releases Python's lock."""
    waiting: deque[Future[prepare.Tokens]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            waiting.append(pool.submit(tokenizer.encode_documents, batch))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def pack(folder: Path, vocab_size: int, T: int) -> PackedRows:
    """Writes rows_<V>_<T>.npy, uint16 [n, T+1]: one pass over the streams in `folder`.

    A block of rows is in memory at a time. Raises DataError when the text fills no row, or too many
    for one file.
    """
    streams, lengths = prepare.streams(folder, vocab_size)
    tokens = sum(map(len, streams))
    if tokens // T > MOST_ROWS:
        raise DataError(
            f"{tokens} training tokens fill more than {MOST_ROWS} rows of {T + 1}: "
            f"raise sequence_length to at least {tokens // MOST_ROWS + 1}"
        )
    plan = packing.plan_rows(lengths, T)
    if not (n := packing.rows_in(plan, T)):
        raise DataError(
            f"{tokens} training tokens fill no row of {T + 1}: lower sequence_length, or add text"
        )

    def fill(file: BinaryIO) -> None:
        header = {"descr": "<u2", "fortran_order": False, "shape": (n, T + 1)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in packing.blocks(streams, plan, T):
            file.write(block.tobytes())

    file = write_data(folder / f"rows_{vocab_size}_{T}.npy", fill)
    return PackedRows(file, vocab_size, T, n, tokens, packing.share_held(plan, lengths))


def pack_if_missing(folder: Path, vocab_size: object, T: object) -> str | None:
    """`pack` for the sizes in a candidate's knobs: in the box it would cost a part of the budget.

    Returns why a candidate with this length cannot run, so that a number in its source cannot keep
    the trusted side busy for hours; None if it can. Sizes without tokens and lengths beyond the
    text are ignored: the candidate fails on them if it asks for their rows.
    """
    if not (isinstance(vocab_size, int) and isinstance(T, int)):
        return None
    if T > prepare.LONGEST_ROW:
        return f"MAX_SEQ_LEN = {T} is beyond the longest row, {prepare.LONGEST_ROW}: lower it"
    if (rows := folder / f"rows_{vocab_size}_{T}.npy").is_file():
        with contextlib.suppress(OSError):
            os.utime(rows)  # in use: not among the first to be removed
        return None
    tokens = sum(path.stat().st_size // 2 for path in folder.glob(f"tokens_{vocab_size}_*.bin"))
    if not 0 < T < tokens:
        return None
    if tokens // T > MOST_ROWS:
        return (
            f"MAX_SEQ_LEN = {T} cuts the training text into more rows than the limit, {MOST_ROWS}: "
            f"raise it to at least {tokens // MOST_ROWS + 1}"
        )
    pack(folder, vocab_size, T)
    return None


def prune_rows(folder: Path, kept: Collection[tuple[int, int]], most: int) -> list[Path]:
    """Removes all but the `most` latest rows that candidates asked for, and returns their paths.

    They can be packed again. `kept` has the (vocabulary size, length) pairs of the profile itself.
    A box that has a file open keeps it; one that is starting has asked for it a moment ago.
    """
    own = {f"rows_{vocab_size}_{T}.npy" for vocab_size, T in kept}
    asked_at: dict[Path, float] = {}
    for path in folder.glob("rows_*.npy"):
        with contextlib.suppress(FileNotFoundError):  # another night has just removed it
            asked_at[path] = path.stat().st_mtime
    others = sorted(
        (path for path in asked_at if path.name not in own), key=lambda path: -asked_at[path]
    )
    gone = [path for path in others[most:] if time.time() - asked_at[path] > IN_USE_SECONDS]
    for path in gone:
        path.unlink(missing_ok=True)
    return gone


def encode_scored(
    documents: Sequence[str],
    tokenizers: Sequence[prepare.Tokenizer],
    folder: Path,
    what: str = "validation",
) -> tuple[FileRef, ...]:
    """Writes the scored documents as tokens and describes them in manifest.json.

    stream_<V>.npy is uint16: BOS document BOS document ... Raises DataError unless the tokens have
    exactly the UTF-8 bytes of the documents, which are the metric's denominator.
    """
    refs: list[FileRef] = []
    total = sum(len(document.encode("utf-8")) for document in documents)
    if not total:
        raise DataError(
            f"the {len(documents)} {what} documents are all empty: "
            "there is no text to score. Choose another shard"
        )
    for tokenizer in tokenizers:
        stream = tokenizer.encode_documents(documents)
        covered = int(token_bytes(tokenizer)[stream].sum(dtype=np.int64))
        if covered != total:
            raise DataError(
                f"vocabulary {tokenizer.size}: tokens of {covered} bytes "
                f"for {total} bytes of {what} text"
            )
        refs.append(_write_array(folder / f"stream_{tokenizer.size}.npy", stream))
    content = hashlib.sha256()
    for document in documents:
        content.update(document.encode("utf-8") + b"\0")
    manifest = {
        "documents": len(documents),
        "bytes": total,
        "sha256": content.hexdigest(),
        "metric_version": prepare.METRIC_VERSION,
    }
    refs.append(write_data(folder / "manifest.json", json.dumps(manifest).encode()))
    return tuple(refs)


def _write_array(path: Path, array: npt.NDArray[np.generic]) -> FileRef:
    return write_data(path, lambda file: np.save(file, array))
