"""The cached tasks of a preparation: each makes files of one kind from files.

They are here, not beside the functions that they call, because each of them combines several
modules. A result is named by `key`, the first argument: see tasks/cache.py.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prefect import State, Task, get_run_logger, task
from prefect.client.schemas.objects import TaskRun

from tasks import cache
from tasks.data import dataset, fetch, progress, tokenization
from tasks.data.dataset import Shard
from tasks.files import FileRef, write_data
from tasks.records import PackedRows
from trainer import packing
from trainer import prepare as fixed

MOST_THREADS = 16
RETRY_SECONDS = (5, 30)  # a source that is away for longer ends the preparation


@functools.cache
def sources() -> dict[str, str]:
    """sha256 of the modules that decide what the prepared files contain: a part of their keys."""
    paths = (Path(str(module.__file__)) for module in (fixed, packing, tokenization, dataset))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.data, fetch.Unreachable)


@task(
    task_run_name="fetch {name}",
    persist_result=True,
    cache_key_fn=cache.given_key,
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=list(RETRY_SECONDS),
    retry_condition_fn=_may_pass,
)
def fetch_shard(key: str, source: str, name: str, folder: Path, sha256: str | None) -> FileRef:
    with progress.reporting(name, get_run_logger().info) as report:
        return fetch.fetch(source, name, folder, sha256, report)


@task(task_run_name="hash held-out documents", persist_result=True, cache_key_fn=cache.given_key)
def hash_held_out(key: str, validation: Shard, holdout: Shard | None, folder: Path) -> FileRef:
    digests = dataset.held_out(validation, holdout)
    return write_data(folder / f"{cache.short(key)}.bin", digests.tobytes())


@task(task_run_name="name what is left out", persist_result=True, cache_key_fn=cache.given_key)
def name_left_out(key: str, train: Sequence[Shard], held_out: FileRef, folder: Path) -> FileRef:
    """A line for people, beside the hashes: no box sees what it quotes."""
    line = dataset.left_out(train, np.fromfile(held_out.path, np.uint64))
    return write_data(folder / f"{cache.short(key)}.txt", line.encode("utf-8", "replace"))


@task(task_run_name="train tokenizer {size}", persist_result=True, cache_key_fn=cache.given_key)
def train_tokenizer(
    key: str, train: Sequence[Shard], held_out: FileRef, characters: int, size: int, folder: Path
) -> FileRef:
    texts = (text for shard in train for batch in _unseen(shard, held_out) for text in batch)
    tokenizer = tokenization.train_tokenizer(texts, size, characters)
    return tokenization.write_tokenizer(tokenizer, folder / f"{cache.short(key)}.json")


@task(task_run_name="write public files", persist_result=True, cache_key_fn=cache.given_key)
def write_public(
    key: str, meta: fixed.Meta, tokenizers: Sequence[FileRef], folder: Path
) -> tuple[FileRef, ...]:
    return tokenization.write_public(meta, [_read(ref) for ref in tokenizers], folder)


@task(task_run_name="encode shard {index}", persist_result=True, cache_key_fn=cache.given_key)
def encode_shard(
    key: str, shard: Shard, index: int, held_out: FileRef, tokenizer: FileRef, folder: Path
) -> tuple[FileRef, FileRef]:
    batches = _unseen(shard, held_out)
    return tokenization.encode_shard(batches, _read(tokenizer), folder, index, _threads())


@task(task_run_name="pack rows {size}x{length}", persist_result=True, cache_key_fn=cache.given_key)
def pack_rows(
    key: str, streams: Sequence[tuple[FileRef, FileRef]], size: int, length: int, folder: Path
) -> PackedRows:
    """`streams` are the files in `folder` that it reads: the key depends on them."""
    return tokenization.pack(folder, size, length)


@task(task_run_name="encode {what}", persist_result=True, cache_key_fn=cache.given_key)
def encode_scored(
    key: str, what: str, shard: Shard, tokenizers: Sequence[FileRef], count: int, folder: Path
) -> tuple[FileRef, ...]:
    scored = dataset.scored(shard, count, what)
    return tokenization.encode_scored(scored, [_read(ref) for ref in tokenizers], folder, what)


def _read(tokenizer: FileRef) -> fixed.Tokenizer:
    return tokenization.read_tokenizer(Path(tokenizer.path))


def _threads() -> int:
    """Encoders in parallel: more would wait for the one reader, and each holds a few batches."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return min(len(os.sched_getaffinity(0)), MOST_THREADS)
    return min(os.cpu_count() or 1, MOST_THREADS)


def _unseen(shard: Shard, held_out: FileRef) -> Iterator[list[str]]:
    """Batches of the documents that may be trained on."""
    digests = set(np.fromfile(held_out.path, np.uint64).tolist())
    return (list(dataset.unseen(batch, digests)) for batch in dataset.batches(shard))
