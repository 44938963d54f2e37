"""From text to tokens: the tokenizer, the token stream, the packed training rows, the scored validation stream.

The tokenizer is byte-level BPE, trained by rustbpe, used by tiktoken. Its one special token, BOS, has the last id and
leads every document. The length of a token in bytes is that of its bytes in the merge table: decoding it to text would
count a part of a character as the three bytes of U+FFFD.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import rustbpe

from tasks.errors import DataError
from tasks.files import FileRef
from trainer import packing, prepare

# GPT-4's split pattern with numbers in groups of at most two digits, as karpathy/autoresearch has it.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

BUFFER = 1024  # texts that the training holds at a time
IN_USE_SECONDS = (
    600.0  # for which rows that a candidate asked for are not removed: it may be compiling still
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, characters: int) -> prepare.Tokenizer:
    """A tokenizer of `vocab_size` tokens, BOS included, trained on the first `characters` of the texts.

    256 tokens are the bytes themselves and need no training. Raises DataError when the text is too short to give so
    many tokens.
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
            f"the training text gives {len(ranks) + 1} tokens, vocab_sizes has {vocab_size}: lower it, or add text"
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
    """Raw bytes of each token, int32 [V]; 0 for BOS."""
    table = np.zeros(tokenizer.size, np.int32)
    for token, rank in tokenizer.ranks.items():
        table[rank] = len(token)
    return table


def write_tokenizer(tokenizer: prepare.Tokenizer, path: Path) -> FileRef:
    return write(path, lambda file: file.write(json.dumps(tokenizer.to_dict()).encode("ascii")))


def read_tokenizer(path: Path) -> prepare.Tokenizer:
    return prepare.Tokenizer.from_dict(json.loads(path.read_text(encoding="ascii")))


def write_public(
    meta: prepare.Meta, tokenizers: Sequence[prepare.Tokenizer], folder: Path
) -> tuple[FileRef, ...]:
    """The folder that a candidate may read at any time: meta.json, and of each size tokenizer and token bytes."""
    refs = [
        write(folder / "meta.json", lambda file: file.write(json.dumps(meta.to_dict()).encode()))
    ]
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
    """Writes tokens_<V>_<shard>.bin, the uint16 stream of BOS-led documents, and lengths_<V>_<shard>.npy, int32 each.

    Batches are encoded beside one another, and few are held at a time, however long the shard is.
    """
    lengths: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)]

    def fill(file: BinaryIO) -> None:
        for stream in _encoded(batches, tokenizer, threads):
            file.write(stream.tobytes())
            starts = np.append(np.flatnonzero(stream == tokenizer.bos), len(stream))
            lengths.append(np.diff(starts).astype(np.int32))

    tokens = write(folder / f"tokens_{tokenizer.size}_{shard:05d}.bin", fill)
    return tokens, _write_array(
        folder / f"lengths_{tokenizer.size}_{shard:05d}.npy", np.concatenate(lengths)
    )


def _encoded(
    batches: Iterable[Sequence[str]], tokenizer: prepare.Tokenizer, threads: int
) -> Iterator[prepare.Tokens]:
    """The stream of each batch, in order; the encoder leaves Python's lock to other threads."""
    waiting: deque[Future[prepare.Tokens]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            waiting.append(pool.submit(tokenizer.encode_documents, batch))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def pack(folder: Path, vocab_size: int, T: int) -> FileRef:
    """Writes rows_<V>_<T>.npy, uint16 [n, T+1], one pass over the streams in `folder`, a block of rows at a time.

    Raises DataError when there is less than one row of text.
    """
    streams, lengths = prepare.streams(folder, vocab_size)
    plan = packing.plan_rows(lengths, T)
    if not (n := packing.rows_in(plan, T)):
        raise DataError(
            f"{sum(map(len, streams))} training tokens fill no row of {T + 1}: lower sequence_length, or add text"
        )

    def fill(file: BinaryIO) -> None:
        header = {"descr": "<u2", "fortran_order": False, "shape": (n, T + 1)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in packing.blocks(streams, plan, T):
            file.write(block.tobytes())

    return write(folder / f"rows_{vocab_size}_{T}.npy", fill)


def pack_if_missing(folder: Path, vocab_size: object, T: object) -> None:
    """`pack` for what a candidate's knobs name, once: in the box it would pay for it out of its budget.

    What cannot be, a size that is not prepared or a T beyond the text, is left for the candidate to hear of.
    """
    if not (isinstance(vocab_size, int) and isinstance(T, int)):
        return
    if (rows := folder / f"rows_{vocab_size}_{T}.npy").is_file():
        with contextlib.suppress(OSError):
            os.utime(rows)  # in use: not the first to be removed
        return
    if 0 < T < sum(path.stat().st_size // 2 for path in folder.glob(f"tokens_{vocab_size}_*.bin")):
        pack(folder, vocab_size, T)


def prune_rows(folder: Path, kept: Collection[tuple[int, int]], most: int) -> list[Path]:
    """Removes rows that candidates asked for, all but the `most` latest: they can be packed again. Returns what is gone.

    `kept` are the (vocabulary size, length) pairs of the profile itself. A box that has the file open keeps it; one that
    starts up has asked for it a moment ago.
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


def encode_validation(
    documents: Sequence[str], tokenizers: Sequence[prepare.Tokenizer], folder: Path
) -> tuple[FileRef, ...]:
    """Writes stream_<V>.npy, uint16 BOS document BOS document ..., and manifest.json, what is scored.

    Raises DataError unless the scored tokens' bytes are the documents' UTF-8 bytes exactly: the metric's denominator.
    """
    total, refs = sum(len(document.encode("utf-8")) for document in documents), []
    if not total:
        raise DataError(
            f"the {len(documents)} validation documents are all empty: there is no text to score. Choose another shard"
        )
    for tokenizer in tokenizers:
        stream = tokenizer.encode_documents(documents)
        covered = int(token_bytes(tokenizer)[stream].sum(dtype=np.int64))
        if covered != total:
            raise DataError(
                f"vocabulary {tokenizer.size}: tokens of {covered} bytes for {total} bytes of validation text"
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
    refs.append(
        write(folder / "manifest.json", lambda file: file.write(json.dumps(manifest).encode()))
    )
    return tuple(refs)


def _write_array(path: Path, array: npt.NDArray[np.generic]) -> FileRef:
    return write(path, lambda file: np.save(file, array))


def write(path: Path, fill: Callable[[BinaryIO], object]) -> FileRef:
    """A file that is there whole or not at all, readable by a box's uid. Raises DataError when the disk refuses it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o755)
        return FileRef.write(path, fill)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free >> 20 if path.parent.is_dir() else 0
        raise DataError(
            f"cannot write {path}: {error.strerror or error} ({free} MiB are free). Nothing was left behind: free some space, "
            "or set NIGHTLY_HOME to a larger disk"
        ) from error
