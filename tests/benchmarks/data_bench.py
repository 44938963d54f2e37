"""`./run bench data`: the data path against the straightforward ways to do the same
(plain_data.py), in one call.

The reader's batches against those of a loader that tokenizes and packs on the fly: same rows, one
core. Then whole preparations, each in a process of its own so that its peak of resident memory is
its own.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

import configs
from tasks.files import FileRef
from tests.benchmarks import plain_data, synthetic_text
from trainer import prepare

T, B, VOCAB_SIZE, CHARACTERS = 2048, 32, 8192, 60_000_000
BATCHES = 30  # of the on-the-fly loader; the reader is done in no time and reads MANY of them
MANY = 100
READER_TARGET, FIRST_BATCH_TARGET, CORPUS_TARGET, PIPELINE_TARGET = 200, 0.050, 5.0, 4.0
WAYS = {
    "ours": "ours, as a Prefect flow",
    "prepare_plainly": "Hugging Face tokenizers, a document at a time, list scan",
    "prepare_in_one_batch": "Hugging Face tokenizers, one batch on all cores, list scan",
    "prepare_with_our_parts": "rustbpe and tiktoken a document at a time, list scan",
}


def run(repeats: int, json_file: Path | None = None) -> bool:
    """Prints the tables; False when a target is missed."""
    with tempfile.TemporaryDirectory() as work:
        shard = Path(work, "shards", "train.parquet")
        shard.parent.mkdir()
        characters = synthetic_text.write_shard(shard, CHARACTERS)
        synthetic_text.write_shard(shard.with_name("validation.parquet"), 500_000, seed=1)
        print(
            f"{characters / 1e6:.0f} MB of synthetic text, vocabulary {VOCAB_SIZE}, T {T}",
            flush=True,
        )
        whole: dict[str, list[dict[str, float]]] = {"laptop": [], **{way: [] for way in WAYS}}
        for i, (way, found) in itertools.product(range(repeats), whole.items()):
            folder = Path(work, f"{way}-{i}")
            folder.mkdir(mode=0o755)
            found.append(_in_a_process(way, shard, folder))
        reader = _read(Path(work, "ours-0", "data"), shard, repeats)
    median = {
        way: {name: statistics.median(each[name] for each in found) for name in found[0]}
        for way, found in whole.items()
    }
    figures = {
        "characters": characters,
        "preparation": median,
        "reader": reader,
        "repeats": repeats,
    }
    if json_file:
        FileRef.write(json_file, json.dumps(figures, indent=1).encode())
    return _print(figures)


def _in_a_process(way: str, shard: Path, folder: Path) -> dict[str, float]:
    """Seconds and peak resident MiB of one preparation; a server and imports are there before the
    clock starts."""
    command = [sys.executable, "-m", "tests.benchmarks.preparing", way, str(shard), str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def profile(folder: Path) -> configs.Profile:
    """A profile of the synthetic shards in `folder`, at a GPU's shapes."""
    data = {
        "source": str(folder),
        "train": ["train.parquet"],
        "validation": "validation.parquet",
        "license": "synthetic",
        "validation_documents": 100,
        "vocab_sizes": [VOCAB_SIZE],
        "sequence_length": T,
    }
    budget = {"kind": "flops", "amount": 1.0}
    return configs.Profile.model_validate(
        {"name": "synthetic", "description": "", "device": "cpu", "data": data, "budget": budget}
    )


def _read(data: Path, shard: Path, repeats: int) -> dict[str, float]:
    """The reader and the on-the-fly loader on the same documents, alternating, one thread each."""
    torch.set_num_threads(1)
    (train,) = data.glob("*/train")
    (public,) = data.glob("*/public")
    tokenizer = prepare.Tokenizer.from_dict(
        json.loads((public / f"tokenizer_{VOCAB_SIZE}.json").read_text())
    )
    texts = pq.read_table(shard).column("text").to_pylist()
    tokenizer.encode(texts[0])  # builds the encoder, for both
    packed = train / f"rows_{VOCAB_SIZE}_{T}.npy"

    def reader() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rows = np.load(packed, mmap_mode="r")
        for first in range(0, len(rows) - B, B):
            tokens = torch.from_numpy(rows[first : first + B].astype(np.int64))
            yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    pairs = zip(reader(), plain_data.on_the_fly(texts, tokenizer, B, T), strict=False)
    for ours, theirs in itertools.islice(pairs, BATCHES):
        assert all(map(torch.equal, ours, theirs)), "the reader's rows are not the plain loader's"
    loaders = {
        "reader": (reader, MANY),
        "on_the_fly": (lambda: plain_data.on_the_fly(texts, tokenizer, B, T), BATCHES),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
    for _, (name, (loader, count)) in itertools.product(range(repeats), loaders.items()):
        found[name].append(_timed(loader, count))
    figures = {}
    for name, times in found.items():
        figures[f"{name}_first_batch_seconds"] = statistics.median(first for first, _ in times)
        figures[f"{name}_tokens_per_cpu_second"] = statistics.median(speed for _, speed in times)
    return figures | {"rows_compared": BATCHES * B}


def _timed(loader: Callable[[], Iterator[Any]], count: int) -> tuple[float, float]:
    """Seconds to the first batch, and tokens a CPU-second over `count` batches."""
    began, cpu = time.perf_counter(), time.process_time()
    batches = loader()
    next(batches)
    first = time.perf_counter() - began
    read = 1 + sum(1 for _ in itertools.islice(batches, count - 1))
    return first, read * B * T / (time.process_time() - cpu)


def _print(figures: dict[str, Any]) -> bool:
    reader, median, characters = figures["reader"], figures["preparation"], figures["characters"]
    ratio = reader["reader_tokens_per_cpu_second"] / reader["on_the_fly_tokens_per_cpu_second"]
    print(
        f"\n| reading batches of {B} x {T}, one core, median of {figures['repeats']} | Mtok/s | first batch |"
    )
    print("| --- | --- | --- |")
    for name, shown in (
        ("reader", "packed rows (ours)"),
        ("on_the_fly", "tokenize and list scan on the fly"),
    ):
        speed, first = (
            reader[f"{name}_tokens_per_cpu_second"],
            reader[f"{name}_first_batch_seconds"],
        )
        print(f"| {shown} | {speed / 1e6:.2f} | {first * 1e3:.1f} ms |")
    print(f"\n{ratio:.0f}x; {reader['rows_compared']} rows compared, all equal")
    print(
        "\n| whole preparation, shard to rows | seconds | MB/s | ours is faster by | peak resident memory |"
    )
    print("| --- | --- | --- | --- | --- |")
    for way, shown in WAYS.items():
        seconds, memory = median[way]["seconds"], median[way]["peak_mib"]
        times = seconds / median["ours"]["seconds"]
        print(
            f"| {shown} | {seconds:.1f} | {characters / seconds / 1e6:.1f} | {times:.1f}x | {memory:.0f} MiB |"
        )
    print(f"\nthe embedded corpus (profile laptop): {median['laptop']['seconds']:.2f} s")
    targets = {
        f"reader at least {READER_TARGET}x": ratio >= READER_TARGET,
        f"first batch within {FIRST_BATCH_TARGET * 1e3:.0f} ms": reader[
            "reader_first_batch_seconds"
        ]
        < FIRST_BATCH_TARGET,
        f"corpus within {CORPUS_TARGET:.0f} s": median["laptop"]["seconds"] < CORPUS_TARGET,
        f"preparation at least {PIPELINE_TARGET:.0f}x the plain pipeline": median[
            "prepare_plainly"
        ]["seconds"]
        >= PIPELINE_TARGET * median["ours"]["seconds"],
    }
    for target, met in targets.items():
        print(f"{target}: {'met' if met else 'MISSED'}")
    return all(targets.values())
