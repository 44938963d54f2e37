"""From a profile's [data] to a dataset on disk, each step cached by Prefect and verified before it is used again.

Keys hold the content of a step's inputs, the folder of its output and the source of the code that makes it, so an edit
of that code makes the step anew. What is done shard by shard is cached shard by shard: a preparation that is killed
goes on where it was. A prepared dataset lies in data/<fingerprint>; tokenizers and shards lie beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow, get_run_logger

import configs
from flows import data_steps, state_home
from tasks import cache
from tasks.data import attention_kernels, dataset, fetch
from tasks.data.dataset import Shard
from tasks.errors import DataError
from tasks.files import FileRef, make_readable
from tasks.records import Dataset
from trainer import prepare as fixed

Found = tuple[Any, bool]  # a step's result, and whether all of it came from the cache


@flow(name="prepare", flow_run_name="prepare {profile.name}")
def prepare(profile: configs.Profile) -> Dataset:
    """`prepare_dataset` by itself, into the state folder."""
    return prepare_dataset(profile, state_home.locate())


def prepare_dataset(profile: configs.Profile, home: Path) -> Dataset:
    """Fetches, tokenizes and packs a profile's data under home/data, or finds it there, and makes it the current one.

    Called inside a flow. Raises DataError, whose text names the file and the remedy.
    """
    data, root, cached = profile.data, _open_folder(home / "data"), []
    get_run_logger().info(f"data: {data.license}")

    def step(name: str, work: Callable[[], Found]) -> Any:
        started = time.monotonic()
        result, found = work()
        cached.extend([name] if found else [])
        get_run_logger().info(
            f"{name}: {'cached' if found else f'{time.monotonic() - started:.1f} s'}"
        )
        return result

    source = _resolved(data.source, root)
    train, validation, holdout = step("shards", lambda: _fetch_shards(data, source, root))
    dataset.check_shards(train, [validation, holdout] if holdout else [validation])
    held_out = step("held out", lambda: _hash_held_out(validation, holdout, root))
    tokenizers = step("tokenizer", lambda: _train_tokenizers(data, train, held_out, root))
    fingerprint = dataset.fingerprint(
        train, validation, holdout, tokenizers, data.validation_documents, data.sequence_length
    )
    folders = {
        name: _open_folder(root / fingerprint[:16] / name)
        for name in ("public", "train", "validation")
    }
    step("meta", lambda: _write_public(data, fingerprint, tokenizers, folders["public"]))
    streams = step("tokens", lambda: _encode_shards(train, held_out, tokenizers, folders["train"]))
    _check_left_out(train, streams[0])
    step("rows", lambda: _pack_rows(data, streams, folders["train"]))
    *_, manifest = step(
        "validation",
        lambda: _encode_validation(data, validation, tokenizers, folders["validation"]),
    )
    places = {name: str(folder) for name, folder in folders.items()}
    _record(data, source, train, validation, holdout, folders["public"].parent)
    _make_current(profile, places, root)
    kernels = attention_kernels.fetch_each(
        profile.attention_kernels, root / "kernels", get_run_logger().warning
    )
    return Dataset(
        fingerprint=fingerprint,
        public=places["public"],
        train=places["train"],
        validation=places["validation"],
        validation_bytes=json.loads(Path(manifest.path).read_text(encoding="utf-8"))["bytes"],
        cached=tuple(cached),
        attention_kernels=kernels,
    )


def _resolved(source: str, root: Path) -> str:
    """The source as it was when it was first asked for: a branch of a hub keeps the commit that it had then."""
    if fetch.is_local(source):
        return str(configs.FOLDER / os.path.expanduser(source))
    if not source.startswith("hf://"):
        return source
    kept = _open_folder(root / "sources") / hashlib.sha256(source.encode()).hexdigest()[:16]
    if not kept.is_file():
        _write(kept, fetch.resolve(source))
    return kept.read_text(encoding="utf-8")


def _fetch_shards(data: configs.Data, source: str, root: Path) -> Found:
    """The training shards, the validation shard, and the holdout shard if there is one."""
    folder = root / "shards" / hashlib.sha256(source.encode()).hexdigest()[:16]
    written = [*data.train, data.validation, *([data.holdout] if data.holdout else [])]
    names, known = list(dict.fromkeys(map(dataset.file_name, written))), {}

    def call(name: str, sha256: str | None) -> tuple[Any, ...]:
        key = cache.key(
            "fetch-shard", 1, source=source, name=name, folder=str(folder), sha256=sha256
        )
        return key, source, name, folder, sha256

    if data.checksums:
        listed, _ = cache.ensure(data_steps.fetch_shard, *call(data.checksums, None))
        known = fetch.checksums(Path(listed.path))
        if missing := [name for name in names if name not in known]:
            raise DataError(
                f"{data.checksums} of {fetch.shown(source)} has no checksum of {', '.join(missing)}: add it"
            )
    files, found = cache.ensure_each(
        data_steps.fetch_shard, [call(name, known.get(name)) for name in names]
    )
    by_name = dict(zip(names, files, strict=True))
    train, validation, holdout = (
        [Shard.of(each, by_name[dataset.file_name(each)]) for each in part]
        for part in (
            data.train,
            written[len(data.train) : len(data.train) + 1],
            written[len(data.train) + 1 :],
        )
    )
    return (train, validation[0], holdout[0] if holdout else None), found


def _hash_held_out(validation: Shard, holdout: Shard | None, root: Path) -> Found:
    folder, content = (
        _open_folder(root / "held_out"),
        [shard.content for shard in (validation, holdout) if shard],
    )
    key = cache.key("hash-held-out", 1, **data_steps.sources(), content=content, folder=str(folder))
    return cache.ensure(data_steps.hash_held_out, key, validation, holdout, folder)


def _train_tokenizers(
    data: configs.Data, train: Sequence[Shard], held_out: FileRef, root: Path
) -> Found:
    characters, folder = data.tokenizer_characters, _open_folder(root / "tokenizers")
    parts = {
        **data_steps.sources(),
        "shards": _contents(train),
        "held_out": held_out.sha256,
        "characters": characters,
    }

    def one(size: int) -> Found:
        key = cache.key("train-tokenizer", 1, **parts, vocab_size=size, folder=str(folder))
        return cache.ensure(
            data_steps.train_tokenizer, key, train, held_out, size, characters, folder
        )

    return _each(one(size) for size in data.vocab_sizes)


def _write_public(
    data: configs.Data, fingerprint: str, tokenizers: Sequence[FileRef], folder: Path
) -> Found:
    meta = fixed.Meta(
        fingerprint=fingerprint,
        vocab_sizes=data.vocab_sizes,
        sequence_length=data.sequence_length,
        bos={size: size - 1 for size in data.vocab_sizes},
        license=data.license,
        metric_version=fixed.METRIC_VERSION,
    )
    parts = {
        **data_steps.sources(),
        "meta": meta.to_dict(),
        "tokenizers": _hashes(tokenizers),
        "folder": str(folder),
    }
    return cache.ensure(
        data_steps.write_public, cache.key("write-public", 1, **parts), meta, tokenizers, folder
    )


def _encode_shards(
    train: Sequence[Shard], held_out: FileRef, tokenizers: Sequence[FileRef], folder: Path
) -> Found:
    """Of each tokenizer, the tokens and lengths of each shard."""

    def one(tokenizer: FileRef, index: int, shard: Shard) -> Found:
        facts = {"shard": shard.content, "held_out": held_out.sha256, "tokenizer": tokenizer.sha256}
        key = cache.key(
            "encode-shard", 1, **data_steps.sources(), **facts, index=index, folder=str(folder)
        )
        return cache.ensure(data_steps.encode_shard, key, shard, index, held_out, tokenizer, folder)

    return _each(
        _each(one(tokenizer, i, shard) for i, shard in enumerate(train)) for tokenizer in tokenizers
    )


def _check_left_out(train: Sequence[Shard], encoded: Sequence[tuple[FileRef, FileRef]]) -> None:
    documents = sum(map(dataset.count, train))
    left_out = documents - sum(len(np.load(lengths.path, mmap_mode="r")) for _, lengths in encoded)
    dataset.check_left_out(left_out, documents)
    if left_out:
        get_run_logger().info(
            f"{left_out} training documents are also held out: they were left out of the training"
        )


def _pack_rows(
    data: configs.Data, streams: Sequence[Sequence[tuple[FileRef, FileRef]]], folder: Path
) -> Found:
    def one(size: int, shards: Sequence[tuple[FileRef, FileRef]]) -> Found:
        hashes = [ref.sha256 for refs in shards for ref in refs]
        facts = {
            "streams": hashes,
            "vocab_size": size,
            "length": data.sequence_length,
            "folder": str(folder),
        }
        key = cache.key("pack-rows", 1, **data_steps.sources(), **facts)
        return cache.ensure(data_steps.pack_rows, key, size, data.sequence_length, folder)

    return _each(one(size, shards) for size, shards in zip(data.vocab_sizes, streams, strict=True))


def _encode_validation(
    data: configs.Data, validation: Shard, tokenizers: Sequence[FileRef], folder: Path
) -> Found:
    count = data.validation_documents
    facts = {
        "validation": validation.content,
        "tokenizers": _hashes(tokenizers),
        "count": count,
        "folder": str(folder),
    }
    key = cache.key("encode-validation", 1, **data_steps.sources(), **facts)
    return cache.ensure(data_steps.encode_validation, key, validation, tokenizers, count, folder)


def _each(results: Iterator[Found]) -> Found:
    found = tuple(results)
    return tuple(result for result, _ in found), all(cached for _, cached in found)


def _hashes(refs: Sequence[FileRef]) -> list[str]:
    return [ref.sha256 for ref in refs]


def _contents(shards: Sequence[Shard]) -> list[str]:
    return [shard.content for shard in shards]


def _open_folder(path: Path) -> Path:
    """The folder, made if need be, readable by everybody: a box runs under another uid."""
    try:
        for folder in (path.parent, path):
            folder.mkdir(parents=True, exist_ok=True)
            make_readable(folder)
    except OSError as error:
        raise DataError(
            f"{path} cannot be used: {error.strerror}. Set NIGHTLY_HOME to a folder that you own"
        ) from error
    return path


def _write(path: Path, text: str) -> None:
    try:
        FileRef.write(path, text.encode())
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror}. Free some space, or set NIGHTLY_HOME"
        ) from error


def _record(
    data: configs.Data,
    source: str,
    train: Sequence[Shard],
    validation: Shard,
    holdout: Shard | None,
    folder: Path,
) -> None:
    """dataset.json: where every document came from. For people; no box sees it."""

    def of(written: Sequence[str | None], shards: Sequence[Shard | None]) -> list[dict[str, Any]]:
        pairs = zip(written, shards, strict=True)
        return [
            {"file": dataset.file_name(name), "content": s.content, "bytes": s.file.bytes}
            for name, s in pairs
            if name and s
        ]

    told = {
        "source": fetch.shown(source),
        "license": data.license,
        "train": of(data.train, train),
        "validation": of([data.validation], [validation]),
        "holdout": of([data.holdout], [holdout]),
    }
    _write(folder / "dataset.json", json.dumps(told, indent=1))


def _make_current(profile: configs.Profile, places: dict[str, str], root: Path) -> None:
    """data/current.json: what `python -m trainer.train` uses when a human runs it outside a box."""
    budget = {"kind": profile.budget.kind, "amount": profile.budget.amount}
    current = {
        "profile": profile.name,
        **places,
        "budget": budget,
        "device": profile.device,
        "threads": profile.threads,
    }
    _write(root / "current.json", json.dumps(current, indent=1))
