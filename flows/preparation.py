"""From a profile's [data] to a dataset on disk, in steps that Prefect caches and that are verified.

The key of a step has the content of its inputs, the folder of its output and the source of the code
that makes it, so that an edit of that code makes the files again. Work on shards is cached for each
shard, and a preparation that was killed continues from there. A prepared dataset is in
data/<fingerprint>; tokenizers and shards are beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prefect import Task, flow, get_run_logger

import configs
from flows import data_steps, state_home
from tasks import cache
from tasks.data import attention_kernels, dataset, fetch
from tasks.data.dataset import Shard
from tasks.errors import DataError
from tasks.files import FileRef, make_readable, write_data
from tasks.records import Dataset
from trainer import prepare as fixed

Found = tuple[Any, bool]  # the result of a step, and whether all of it came from the cache


@dataclasses.dataclass(frozen=True)
class Shards:
    """What a profile's [data] names, on disk."""

    train: list[Shard]
    validation: Shard
    holdout: Shard | None

    @property
    def held_out(self) -> list[Shard]:
        return [shard for shard in (self.validation, self.holdout) if shard]


@flow(name="prepare", flow_run_name="prepare {profile.name}")
def prepare(profile: configs.Profile) -> Dataset:
    """`prepare_dataset` by itself, into the state folder."""
    return prepare_dataset(profile, state_home.locate())


def prepare_dataset(profile: configs.Profile, home: Path) -> Dataset:
    """Fetches, tokenizes and packs a profile's data under home/data, and makes it the current one.

    What is there already is used. Call it inside a flow. Raises DataError, whose text names the
    file and the remedy.
    """
    data, root = profile.data, _open_folder(home / "data")
    cached: list[str] = []
    get_run_logger().info(f"data: {data.license}")

    def step(name: str, work: Callable[[], Found]) -> Any:
        started = time.monotonic()
        result, found = work()
        if found:
            cached.append(name)
        spent = "cached" if found else f"{time.monotonic() - started:.1f} s"
        get_run_logger().info(f"{name}: {spent}")
        return result

    source = _resolved(data.source, root)
    shards: Shards = step("shards", lambda: _fetch_shards(data, source, root))
    dataset.check_shards(shards.train, shards.held_out)
    held_out = step("held out", lambda: _hash_held_out(shards, root))
    tokenizers = step("tokenizer", lambda: _train_tokenizers(data, shards.train, held_out, root))
    fingerprint = dataset.fingerprint(
        shards.train,
        shards.validation,
        shards.holdout,
        tokenizers,
        data.validation_documents,
        data.sequence_length,
    )
    place = root / fingerprint[:16]
    public, train, validation = (
        _open_folder(place / name) for name in ("public", "train", "validation")
    )
    step("meta", lambda: _write_public(data, fingerprint, tokenizers, public))
    streams = step("tokens", lambda: _encode_shards(shards.train, held_out, tokenizers, train))
    _check_left_out(shards.train, streams[0])
    step("rows", lambda: _pack_rows(data, streams, train))
    *_, manifest = step(
        "validation", lambda: _encode_validation(data, shards.validation, tokenizers, validation)
    )
    _write_record(data, source, shards, place)
    _make_current(profile, place, root)
    kernels = attention_kernels.fetch_each(
        profile.attention_kernels, root / "kernels", get_run_logger().warning
    )
    return Dataset(
        fingerprint=fingerprint,
        public=str(public),
        train=str(train),
        validation=str(validation),
        validation_bytes=json.loads(Path(manifest.path).read_text(encoding="utf-8"))["bytes"],
        cached=tuple(cached),
        attention_kernels=kernels,
    )


def _resolved(source: str, root: Path) -> str:
    """The source to fetch from: a branch of a hub stays at the commit that it first had."""
    if fetch.is_local(source):
        return str(configs.FOLDER / os.path.expanduser(source))
    if not source.startswith("hf://"):
        return source
    kept = _open_folder(root / "sources") / hashlib.sha256(source.encode()).hexdigest()[:16]
    if not kept.is_file():
        write_data(kept, fetch.resolve(source).encode())
    return kept.read_text(encoding="utf-8")


def _fetch_shards(data: configs.Data, source: str, root: Path) -> Found:
    folder = root / "shards" / hashlib.sha256(source.encode()).hexdigest()[:16]
    held_out = [data.validation, *([data.holdout] if data.holdout else [])]
    names = list(dict.fromkeys(map(dataset.file_name, [*data.train, *held_out])))
    known: dict[str, str] = {}

    def call(name: str, sha256: str | None) -> tuple[Any, ...]:
        facts = {"source": source, "name": name, "folder": str(folder), "sha256": sha256}
        return cache.key("fetch-shard", 1, **facts), source, name, folder, sha256

    if data.checksums:
        listed, _ = cache.ensure(data_steps.fetch_shard, *call(data.checksums, None))
        known = fetch.checksums(Path(listed.path))
        if missing := [name for name in names if name not in known]:
            raise DataError(
                f"{data.checksums} of {fetch.shown(source)} has no checksum of "
                f"{', '.join(missing)}: add it"
            )
    files, found = cache.ensure_each(
        data_steps.fetch_shard, [call(name, known.get(name)) for name in names]
    )
    by_name = dict(zip(names, files, strict=True))

    def shard(written: str) -> Shard:
        return Shard.of(written, by_name[dataset.file_name(written)])

    holdout = shard(data.holdout) if data.holdout else None
    return Shards([*map(shard, data.train)], shard(data.validation), holdout), found


def _make(task: Task[..., Any], folder: Path, *arguments: Any, **facts: Any) -> Found:
    """`cache.ensure` for a step that writes into `folder`, its last argument.

    `facts` are the contents of its inputs, as JSON values.
    """
    key = cache.key(task.name, 1, **data_steps.sources(), folder=str(folder), **facts)
    return cache.ensure(task, key, *arguments, folder)


def _hash_held_out(shards: Shards, root: Path) -> Found:
    return _make(
        data_steps.hash_held_out,
        _open_folder(root / "held_out"),
        shards.validation,
        shards.holdout,
        content=[shard.content for shard in shards.held_out],
    )


def _train_tokenizers(
    data: configs.Data, train: Sequence[Shard], held_out: FileRef, root: Path
) -> Found:
    folder = _open_folder(root / "tokenizers")
    return _each(
        _make(
            data_steps.train_tokenizer,
            folder,
            train,
            held_out,
            size,
            data.tokenizer_characters,
            shards=[shard.content for shard in train],
            held_out=held_out.sha256,
            characters=data.tokenizer_characters,
            vocab_size=size,
        )
        for size in data.vocab_sizes
    )


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
    return _make(
        data_steps.write_public,
        folder,
        meta,
        tokenizers,
        meta=meta.to_dict(),
        tokenizers=[ref.sha256 for ref in tokenizers],
    )


def _encode_shards(
    train: Sequence[Shard], held_out: FileRef, tokenizers: Sequence[FileRef], folder: Path
) -> Found:
    """The tokens and lengths of each shard, for each tokenizer."""

    def one(tokenizer: FileRef, index: int, shard: Shard) -> Found:
        return _make(
            data_steps.encode_shard,
            folder,
            shard,
            index,
            held_out,
            tokenizer,
            shard=shard.content,
            index=index,
            held_out=held_out.sha256,
            tokenizer=tokenizer.sha256,
        )

    return _each(
        _each(one(tokenizer, i, shard) for i, shard in enumerate(train)) for tokenizer in tokenizers
    )


def _check_left_out(train: Sequence[Shard], encoded: Sequence[tuple[FileRef, FileRef]]) -> None:
    documents = sum(map(dataset.count, train))
    left_out = documents - sum(len(np.load(lengths.path, mmap_mode="r")) for _, lengths in encoded)
    dataset.check_left_out(left_out, documents)
    if left_out:
        get_run_logger().info(
            f"{left_out} training documents are also held out: they are not trained on"
        )


def _pack_rows(
    data: configs.Data, streams: Sequence[Sequence[tuple[FileRef, FileRef]]], folder: Path
) -> Found:
    return _each(
        _make(
            data_steps.pack_rows,
            folder,
            size,
            data.sequence_length,
            streams=[ref.sha256 for refs in shards for ref in refs],
            vocab_size=size,
            length=data.sequence_length,
        )
        for size, shards in zip(data.vocab_sizes, streams, strict=True)
    )


def _encode_validation(
    data: configs.Data, validation: Shard, tokenizers: Sequence[FileRef], folder: Path
) -> Found:
    return _make(
        data_steps.encode_validation,
        folder,
        validation,
        tokenizers,
        data.validation_documents,
        validation=validation.content,
        tokenizers=[ref.sha256 for ref in tokenizers],
        count=data.validation_documents,
    )


def _each(results: Iterable[Found]) -> Found:
    found = tuple(results)
    return tuple(result for result, _ in found), all(cached for _, cached in found)


def _open_folder(path: Path) -> Path:
    """The folder, made if needed, readable by every user: a box runs under another uid."""
    try:
        for folder in (path.parent, path):
            folder.mkdir(parents=True, exist_ok=True)
            make_readable(folder)
    except OSError as error:
        raise DataError(
            f"{path} cannot be used: {error.strerror}. Set NIGHTLY_HOME to a folder that you own"
        ) from error
    return path


def _write_record(data: configs.Data, source: str, shards: Shards, folder: Path) -> None:
    """dataset.json: where every document came from. For people; no box sees it."""

    def entry(written: str, shard: Shard) -> dict[str, Any]:
        file = dataset.file_name(written)
        return {"file": file, "content": shard.content, "bytes": shard.file.bytes}

    record = {
        "source": fetch.shown(source),
        "license": data.license,
        "train": [entry(*pair) for pair in zip(data.train, shards.train, strict=True)],
        "validation": [entry(data.validation, shards.validation)],
        "holdout": [entry(data.holdout, shards.holdout)] if data.holdout and shards.holdout else [],
    }
    write_data(folder / "dataset.json", json.dumps(record, indent=1).encode())


def _make_current(profile: configs.Profile, place: Path, root: Path) -> None:
    """data/current.json: what `python -m trainer.train` uses outside a box."""
    current = {
        "profile": profile.name,
        **{name: str(place / name) for name in ("public", "train", "validation")},
        "budget": {"kind": profile.budget.kind, "amount": profile.budget.amount},
        "device": profile.device,
        "threads": profile.threads,
    }
    write_data(root / "current.json", json.dumps(current, indent=1).encode())
