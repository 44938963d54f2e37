"""From a profile's [data] to a dataset on disk, each step cached by Prefect and verified before it is used again.

The cached tasks are here, not beside the functions that they call, because each of them composes several modules. Their
keys hold the content of their inputs, the folder of their output and the source of the code that makes it, so an edit of
that code makes the step anew. A prepared dataset lies in data/<fingerprint>, its tokenizers and shards beside it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prefect import State, Task, flow, get_run_logger, task
from prefect.client.schemas.objects import TaskRun

import configs
from flows import server
from tasks import cache, dataset, fetch, tokenization
from tasks.records import DataError, Dataset, FileRef
from trainer import prepare as fixed

RETRY_SECONDS = (5, 30)  # a source that is away for longer ends the preparation with its message
QUIET_BYTES = 32 << 20  # a smaller download is over before anybody asks how far it is


@flow(name="prepare", flow_run_name="prepare {profile.name}")
def prepare(profile: configs.Profile) -> Dataset:
    """`prepare_dataset` by itself, into the state folder."""
    return prepare_dataset(profile, server.state_home())


def prepare_dataset(profile: configs.Profile, home: Path) -> Dataset:
    """Fetches, tokenizes and packs a profile's data under home/data, or finds it there, and makes it the current one.

    Called inside a flow. Raises DataError, whose text names the file and the remedy.
    """
    data, root, cached = profile.data, _open_folder(home / "data"), []
    get_run_logger().info(f"data: {data.license}")

    def step(name: str, work: Callable[[], tuple[Any, bool]]) -> Any:
        started = time.monotonic()
        result, found = work()
        cached.extend([name] if found else [])
        get_run_logger().info(f"{name}: {'cached' if found else f'{time.monotonic() - started:.1f} s'}")
        return result

    *train, validation = step("shards", lambda: _fetch_shards(data, root))
    dataset.check_shards(train, validation)
    tokenizers = step("tokenizer", lambda: _train_tokenizers(data, train, root))
    fingerprint = dataset.fingerprint(train, validation, tokenizers, data.validation_documents, data.sequence_length)
    folders = {name: _open_folder(root / fingerprint[:16] / name) for name in ("public", "train", "validation")}
    step("meta", lambda: _write_public(data, fingerprint, tokenizers, folders["public"]))
    streams = step("tokens", lambda: _encode_shards(profile, train, tokenizers, folders["train"]))
    step("rows", lambda: _pack_rows(data, streams, folders["train"]))
    *_, manifest = step("validation", lambda: _encode_validation(data, train, validation, tokenizers, folders["validation"]))
    places = {name: str(folder) for name, folder in folders.items()}
    _make_current(profile, places, root)
    scored_bytes = json.loads(Path(manifest.path).read_text(encoding="utf-8"))["bytes"]
    return Dataset(fingerprint=fingerprint, **places, validation_bytes=scored_bytes, cached=tuple(cached))


def _fetch_shards(data: configs.Data, root: Path) -> tuple[list[FileRef], bool]:
    """The training shards and, last, the validation shard."""
    source = str(configs.FOLDER / Path(data.source).expanduser()) if fetch.is_local(data.source) else data.source
    folder = root / "shards" / hashlib.sha256(source.encode()).hexdigest()[:16]
    names, known = [*data.train, data.validation], {}

    def call(name: str, sha256: str | None) -> tuple[Any, ...]:
        key = cache.key("fetch-shard", 1, source=source, name=name, folder=str(folder), sha256=sha256)
        return key, source, name, folder, sha256

    if data.checksums:
        listed, _ = cache.ensure(fetch_shard, *call(data.checksums, None))
        known = fetch.checksums(Path(listed.path))
        if missing := [name for name in names if name not in known]:
            raise DataError(f"{data.checksums} of {source} has no checksum of {', '.join(missing)}: add it")
    return cache.ensure_each(fetch_shard, [call(name, known.get(name)) for name in names])


def _train_tokenizers(data: configs.Data, train: Sequence[FileRef], root: Path) -> tuple[tuple[FileRef, ...], bool]:
    parts = {**_sources(), "shards": _hashes(train), "characters": data.tokenizer_characters}
    folder = _open_folder(root / "tokenizers")

    def one(size: int) -> tuple[FileRef, bool]:
        key = cache.key("train-tokenizer", 1, **parts, vocab_size=size, folder=str(folder))
        return cache.ensure(train_tokenizer, key, train, size, data.tokenizer_characters, folder)

    return _each(one(size) for size in data.vocab_sizes)


def _write_public(
    data: configs.Data, fingerprint: str, tokenizers: Sequence[FileRef], folder: Path
) -> tuple[tuple[FileRef, ...], bool]:
    meta = fixed.Meta(
        fingerprint=fingerprint,
        vocab_sizes=data.vocab_sizes,
        sequence_length=data.sequence_length,
        bos={size: size - 1 for size in data.vocab_sizes},
        license=data.license,
        metric_version=fixed.METRIC_VERSION,
    )
    parts = {**_sources(), "meta": meta.to_dict(), "tokenizers": _hashes(tokenizers), "folder": str(folder)}
    return cache.ensure(write_public, cache.key("write-public", 1, **parts), meta, tokenizers, folder)


def _encode_shards(
    profile: configs.Profile, train: Sequence[FileRef], tokenizers: Sequence[FileRef], folder: Path
) -> tuple[tuple[tuple[FileRef, FileRef], ...], bool]:
    def one(tokenizer: FileRef) -> tuple[tuple[FileRef, FileRef], bool]:
        parts = {**_sources(), "shards": _hashes(train), "tokenizer": tokenizer.sha256, "folder": str(folder)}
        return cache.ensure(encode_shards, cache.key("encode-shards", 1, **parts), train, tokenizer, folder, profile.threads)

    return _each(one(tokenizer) for tokenizer in tokenizers)


def _pack_rows(
    data: configs.Data, streams: Sequence[tuple[FileRef, FileRef]], folder: Path
) -> tuple[tuple[FileRef, ...], bool]:
    def one(size: int, tokens: FileRef, lengths: FileRef) -> tuple[FileRef, bool]:
        length = data.sequence_length
        parts = {
            **_sources(),
            "stream": _hashes([tokens, lengths]),
            "vocab_size": size,
            "length": length,
            "folder": str(folder),
        }
        return cache.ensure(pack_rows, cache.key("pack-rows", 1, **parts), tokens, lengths, size, length, folder)

    return _each(one(size, *stream) for size, stream in zip(data.vocab_sizes, streams, strict=True))


def _encode_validation(
    data: configs.Data, train: Sequence[FileRef], validation: FileRef, tokenizers: Sequence[FileRef], folder: Path
) -> tuple[tuple[FileRef, ...], bool]:
    count = data.validation_documents
    shards = {"train": _hashes(train), "validation": validation.sha256}
    parts = {**_sources(), **shards, "tokenizers": _hashes(tokenizers), "count": count, "folder": str(folder)}
    key = cache.key("encode-validation", 1, **parts)
    return cache.ensure(encode_validation, key, train, validation, tokenizers, count, folder)


def _each(results: Iterator[tuple[Any, bool]]) -> tuple[tuple[Any, ...], bool]:
    found = tuple(results)
    return tuple(result for result, _ in found), all(cached for _, cached in found)


def _hashes(refs: Sequence[FileRef]) -> list[str]:
    return [ref.sha256 for ref in refs]


def _sources() -> dict[str, str]:
    """sha256 of the modules that decide what the prepared files hold: a part of every key but the fetch's."""
    paths = (Path(str(module.__file__)) for module in (fixed, tokenization, dataset))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _texts(shards: Sequence[FileRef]) -> Iterator[str]:
    return itertools.chain.from_iterable(dataset.documents(Path(shard.path)) for shard in shards)


def _open_folder(path: Path) -> Path:
    """The folder, made if need be, readable by everybody: a box runs under another uid."""
    for folder in (path.parent, path):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
    return path


def _make_current(profile: configs.Profile, places: dict[str, str], root: Path) -> None:
    """data/current.json: what `python -m trainer.train` uses when a human runs it outside a box."""
    budget = {"kind": profile.budget.kind, "amount": profile.budget.amount}
    current = {"profile": profile.name, **places, "budget": budget, "device": profile.device, "threads": profile.threads}
    try:
        FileRef.write(root / "current.json", json.dumps(current, indent=1).encode())
    except OSError as error:
        raise DataError(
            f"cannot write {root / 'current.json'}: {error.strerror}. Free some space, or set NIGHTLY_HOME"
        ) from error


def _may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.data, fetch.Unreachable)


def _tenths(name: str) -> fetch.Progress:
    """Logs a long download at each tenth."""
    log, told = get_run_logger(), 0

    def progress(done: int, total: int | None) -> None:
        nonlocal told
        if total and total > QUIET_BYTES and done * 10 // total > told:
            told = done * 10 // total
            log.info(f"{name}: {done >> 20} of {total >> 20} MiB")

    return progress


@task(
    task_run_name="fetch {name}",
    persist_result=True,
    cache_key_fn=cache.given_key,
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=list(RETRY_SECONDS),
    retry_condition_fn=_may_pass,
)
def fetch_shard(key: str, source: str, name: str, folder: Path, sha256: str | None) -> FileRef:
    return fetch.fetch(source, name, folder, sha256, _tenths(name))


@task(task_run_name="train tokenizer {size}", persist_result=True, cache_key_fn=cache.given_key)
def train_tokenizer(key: str, train: Sequence[FileRef], size: int, characters: int, folder: Path) -> FileRef:
    tokenizer = tokenization.train_tokenizer(_texts(train), size, characters)
    return tokenization.write_tokenizer(tokenizer, folder / f"{key.rpartition(':')[2][:16]}.json")


@task(task_run_name="write public files", persist_result=True, cache_key_fn=cache.given_key)
def write_public(key: str, meta: fixed.Meta, tokenizers: Sequence[FileRef], folder: Path) -> tuple[FileRef, ...]:
    return tokenization.write_public(meta, [tokenization.read_tokenizer(Path(ref.path)) for ref in tokenizers], folder)


@task(task_run_name="encode shards", persist_result=True, cache_key_fn=cache.given_key)
def encode_shards(
    key: str, train: Sequence[FileRef], tokenizer: FileRef, folder: Path, threads: int
) -> tuple[FileRef, FileRef]:
    return tokenization.encode_shards(_texts(train), tokenization.read_tokenizer(Path(tokenizer.path)), folder, threads)


@task(task_run_name="pack rows {size}x{length}", persist_result=True, cache_key_fn=cache.given_key)
def pack_rows(key: str, tokens: FileRef, lengths: FileRef, size: int, length: int, folder: Path) -> FileRef:
    return tokenization.pack(Path(tokens.path), Path(lengths.path), size, length, folder)


@task(task_run_name="encode validation", persist_result=True, cache_key_fn=cache.given_key)
def encode_validation(
    key: str, train: Sequence[FileRef], validation: FileRef, tokenizers: Sequence[FileRef], count: int, folder: Path
) -> tuple[FileRef, ...]:
    scored = dataset.scored(Path(validation.path), count)
    dataset.check_overlap(_texts(train), scored)
    return tokenization.encode_validation(scored, [tokenization.read_tokenizer(Path(ref.path)) for ref in tokenizers], folder)
