"""The cached tasks of a preparation: each makes files of one kind from files, and Prefect remembers which it made.

They are here, not beside the functions that they call, because each of them composes several modules. A result is
named by `key`, its first argument: see tasks/cache.py.
"""

from __future__ import annotations

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
from tasks.files import FileRef
from trainer import packing
from trainer import prepare as fixed

MOST_THREADS = 16
RETRY_SECONDS = (5, 30)  # a source that is away for longer ends the preparation with its message


def sources() -> dict[str, str]:
    """sha256 of the modules that decide what the prepared files hold: a part of every key but the fetch's."""
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
    return tokenization.write(
        folder / f"{cache.short(key)}.bin", lambda file: file.write(digests.tobytes())
    )


@task(task_run_name="train tokenizer {size}", persist_result=True, cache_key_fn=cache.given_key)
def train_tokenizer(
    key: str, train: Sequence[Shard], held_out: FileRef, size: int, characters: int, folder: Path
) -> FileRef:
    texts = (text for shard in train for batch in _unseen(shard, held_out) for text in batch)
    return tokenization.write_tokenizer(
        tokenization.train_tokenizer(texts, size, characters), folder / f"{cache.short(key)}.json"
    )


@task(task_run_name="write public files", persist_result=True, cache_key_fn=cache.given_key)
def write_public(
    key: str, meta: fixed.Meta, tokenizers: Sequence[FileRef], folder: Path
) -> tuple[FileRef, ...]:
    return tokenization.write_public(
        meta, [tokenization.read_tokenizer(Path(ref.path)) for ref in tokenizers], folder
    )


@task(task_run_name="encode shard {index}", persist_result=True, cache_key_fn=cache.given_key)
def encode_shard(
    key: str, shard: Shard, index: int, held_out: FileRef, tokenizer: FileRef, folder: Path
) -> tuple[FileRef, FileRef]:
    reader = tokenization.read_tokenizer(Path(tokenizer.path))
    return tokenization.encode_shard(_unseen(shard, held_out), reader, folder, index, _threads())


@task(task_run_name="pack rows {size}x{length}", persist_result=True, cache_key_fn=cache.given_key)
def pack_rows(key: str, size: int, length: int, folder: Path) -> FileRef:
    return tokenization.pack(folder, size, length)


@task(task_run_name="encode validation", persist_result=True, cache_key_fn=cache.given_key)
def encode_validation(
    key: str, validation: Shard, tokenizers: Sequence[FileRef], count: int, folder: Path
) -> tuple[FileRef, ...]:
    scored = dataset.scored(validation, count)
    return tokenization.encode_validation(
        scored, [tokenization.read_tokenizer(Path(ref.path)) for ref in tokenizers], folder
    )


def _threads() -> int:
    """Encoders beside one another: what one reader keeps busy, and each holds a few batches."""
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )  # macOS has none
    return min(usable, MOST_THREADS)


def _unseen(shard: Shard, held_out: FileRef) -> Iterator[list[str]]:
    """Batches of the documents that may be trained on."""
    digests = set(np.fromfile(held_out.path, np.uint64).tolist())
    return (list(dataset.unseen(batch, digests)) for batch in dataset.batches(shard))
