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
from tasks.records import Dataset, PackedRows
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


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the files of a dataset are made from."""

    shards: Shards
    held_out: FileRef  # hashes of the documents that may not be trained on
    tokenizers: tuple[FileRef, ...]

    def fingerprint(self, data: configs.Data) -> str:
        return dataset.fingerprint(
            self.shards.train,
            self.shards.validation,
            self.shards.holdout,
            self.tokenizers,
            data.validation_documents,
            data.sequence_length,
            data.holdout_documents or data.validation_documents,
        )


class Steps:
    """The steps of one preparation: each is logged, and those that were cached are remembered."""

    def __init__(self) -> None:
        self.cached: list[str] = []

    def run(self, name: str, work: Callable[[], Found]) -> Any:
        started = time.monotonic()
        result, found = work()
        if found:
            self.cached.append(name)
        spent = "cached" if found else f"{time.monotonic() - started:.1f} s"
        get_run_logger().info(f"{name}: {spent}")
        return result

    def make(self, name: str, calls: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
        """The results of calls, each a task, the folder that it writes into, and its inputs."""

        def work() -> Found:
            found = [_make(*call) for call in calls]
            return tuple(result for result, _ in found), all(cached for _, cached in found)

        made: tuple[Any, ...] = self.run(name, work)
        return made


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
    steps = Steps()
    get_run_logger().info(f"data: {data.license}")
    source = _resolved(data.source, root)
    inputs = _make_inputs(steps, data, source, root)
    fingerprint = inputs.fingerprint(data)
    place = root / fingerprint[:16]
    rows = _make_dataset(steps, data, inputs, place)
    scored_bytes = _make_scored(steps, data, inputs, place)
    _write_record(data, source, inputs.shards, rows, place)
    _make_current(profile, place, root)
    kernels = attention_kernels.fetch_each(
        profile.attention_kernels, root / "kernels", get_run_logger().warning
    )
    return Dataset(
        fingerprint=fingerprint,
        public=str(place / "public"),
        train=str(place / "train"),
        validation=str(place / "validation"),
        validation_bytes=scored_bytes["validation"],
        holdout=str(place / "holdout") if "holdout" in scored_bytes else None,
        holdout_bytes=scored_bytes.get("holdout"),
        cached=tuple(steps.cached),
        attention_kernels=kernels,
        rows=rows,
    )


def _make_inputs(steps: Steps, data: configs.Data, source: str, root: Path) -> Inputs:
    """The files that datasets have in common."""
    shards: Shards = steps.run("shards", lambda: _fetch_shards(data, source, root))
    dataset.check_shards(shards.train, shards.held_out)
    folder = _open_folder(root / "held_out")
    [held_out] = steps.make(
        "held out", [(data_steps.hash_held_out, folder, shards.validation, shards.holdout)]
    )
    folder, characters = _open_folder(root / "tokenizers"), data.tokenizer_characters
    tokenizers = steps.make(
        "tokenizer",
        [
            (data_steps.train_tokenizer, folder, shards.train, held_out, characters, size)
            for size in data.vocab_sizes
        ],
    )
    return Inputs(shards, held_out, tokenizers)


def _make_dataset(
    steps: Steps, data: configs.Data, inputs: Inputs, place: Path
) -> tuple[PackedRows, ...]:
    """The files of one dataset that a box may read, in folders of `place`: its rows.

    The others go by their names.
    """
    public, train = (_open_folder(place / name) for name in ("public", "train"))
    shards, tokenizers = inputs.shards, inputs.tokenizers
    meta = fixed.Meta(
        fingerprint=inputs.fingerprint(data),
        vocab_sizes=data.vocab_sizes,
        sequence_length=data.sequence_length,
        bos={size: size - 1 for size in data.vocab_sizes},
        license=data.license,
        metric_version=fixed.METRIC_VERSION,
    )
    steps.make("meta", [(data_steps.write_public, public, meta, tokenizers)])
    encoded = steps.make(
        "tokens",
        [
            (data_steps.encode_shard, train, shard, index, inputs.held_out, tokenizer)
            for tokenizer in tokenizers
            for index, shard in enumerate(shards.train)
        ],
    )
    count = len(shards.train)
    _tell_left_out(steps, inputs, encoded[:count])
    streams = [encoded[start : start + count] for start in range(0, len(encoded), count)]
    rows: tuple[PackedRows, ...] = steps.make(
        "rows",
        [
            (data_steps.pack_rows, train, files, size, data.sequence_length)
            for size, files in zip(data.vocab_sizes, streams, strict=True)
        ],
    )
    for packed in rows:
        get_run_logger().info(packed.describe())
    return rows


def _make_scored(steps: Steps, data: configs.Data, inputs: Inputs, place: Path) -> dict[str, int]:
    """The files of what is scored, in folders of `place`: by folder, the bytes of its documents."""
    scored = {"validation": (inputs.shards.validation, data.validation_documents)}
    if inputs.shards.holdout:
        count = data.holdout_documents or data.validation_documents
        scored["holdout"] = (inputs.shards.holdout, count)
    found = {}
    for what, (shard, count) in scored.items():
        call = (data_steps.encode_scored, _open_folder(place / what), what, shard)
        [[*_, manifest]] = steps.make(what, [(*call, inputs.tokenizers, count)])
        found[what] = json.loads(Path(manifest.path).read_text(encoding="utf-8"))["bytes"]
    return found


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


def _make(task: Task[..., Any], folder: Path, *inputs: Any) -> Found:
    """`cache.ensure` under a key with the contents of the inputs. `folder` is the last argument."""
    contents = [_content(value) for value in inputs]
    key = cache.key(task.name, 1, **data_steps.sources(), folder=str(folder), inputs=contents)
    return cache.ensure(task, key, *inputs, folder)


def _content(value: Any) -> Any:
    """An input of a step as JSON, without the paths of its files."""
    if isinstance(value, FileRef):
        return value.sha256
    if isinstance(value, Shard):
        return value.content
    if isinstance(value, fixed.Meta):
        return value.to_dict()
    return [*map(_content, value)] if isinstance(value, list | tuple) else value


def _tell_left_out(
    steps: Steps, inputs: Inputs, encoded: Sequence[tuple[FileRef, FileRef]]
) -> None:
    """Logs which training documents were left out because they are held out, if any were."""
    train = inputs.shards.train
    kept = sum(len(np.load(lengths.path, mmap_mode="r")) for _, lengths in encoded)
    if kept < sum(map(dataset.count, train)):
        folder = Path(inputs.held_out.path).parent
        [line] = steps.make(
            "left out", [(data_steps.name_left_out, folder, train, inputs.held_out)]
        )
        get_run_logger().info(Path(line.path).read_text(encoding="utf-8"))


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


def _write_record(
    data: configs.Data, source: str, shards: Shards, rows: Sequence[PackedRows], folder: Path
) -> None:
    """dataset.json: where every document came from and what the rows hold of them.

    For people; no box sees it.
    """

    def entry(written: str, shard: Shard) -> dict[str, Any]:
        file = dataset.file_name(written)
        return {"file": file, "content": shard.content, "bytes": shard.file.bytes}

    record = {
        "source": fetch.shown(source),
        "license": data.license,
        "train": [entry(*pair) for pair in zip(data.train, shards.train, strict=True)],
        "validation": [entry(data.validation, shards.validation)],
        "holdout": [entry(data.holdout, shards.holdout)] if data.holdout and shards.holdout else [],
        "rows": [
            {
                "vocab_size": packed.vocab_size,
                "sequence_length": packed.sequence_length,
                "count": packed.count,
                "training_tokens": packed.tokens,
                "share_held": packed.share,
            }
            for packed in rows
        ],
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
