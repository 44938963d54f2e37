"""Which documents are what: reading the parquet shards, and keeping training and validation apart.

A shard is a parquet file with a column `text`, one document a row. The scored list is the first N documents of the
validation shard, whole. No document of it may be in a training shard: two files are told apart by their content, never
by their names.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.records import DataError, FileRef
from trainer import prepare


def documents(path: Path) -> Iterator[str]:
    """The documents of a shard in order, read one row group at a time.

    Raises DataError when it is no parquet file, has no column `text` of strings, has no rows, or a text is missing.
    """
    try:
        with pq.ParquetFile(path) as file:
            _check_schema(path, file)
            for group in range(file.num_row_groups):
                texts: list[str | None] = file.read_row_group(group, columns=["text"]).column("text").to_pylist()
                for text in texts:
                    if text is None:
                        raise DataError(f"{path}: row group {group} has a row without a text: drop such rows from the file")
                    yield text
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as parquet: {error}. Fetch it again, or correct [data] in the profile"
        ) from error


def _check_schema(path: Path, file: pq.ParquetFile) -> None:
    schema = file.schema_arrow
    if "text" not in schema.names:
        raise DataError(
            f"{path} has no column `text`, only {', '.join(schema.names) or 'none'}: rename the one with the documents"
        )
    kind = schema.field("text").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{path}: column `text` holds {kind}, not strings")
    if file.metadata.num_rows == 0:
        raise DataError(f"{path} has no documents: leave it out of the profile")


def scored(path: Path, count: int) -> list[str]:
    """The first `count` documents of the validation shard: the list that is scored. Raises DataError when it has fewer."""
    found = list(itertools.islice(documents(path), count))
    if len(found) < count:
        raise DataError(f"{path} has {len(found)} documents, validation_documents = {count} are asked for: lower it")
    return found


def check_shards(train: Sequence[FileRef], validation: FileRef) -> None:
    """Raises DataError when there is no training shard, or one has the validation shard's content."""
    if not train:
        raise DataError("no training shard: name at least one in [data] train of the profile")
    for shard in train:
        if shard.sha256 == validation.sha256:
            raise DataError(
                f"training shard {shard.path} is the validation shard {validation.path} (equal sha256 {shard.sha256[:16]}...): "
                "a score on text that was trained on means nothing. Leave it out of [data] train"
            )


def check_overlap(train: Iterable[str], scored: Iterable[str]) -> None:
    """Raises DataError when a scored document is among the training documents, saying how many are."""
    held_out = {_digest(text) for text in scored}
    found = held_out.intersection(map(_digest, train))
    if found:
        raise DataError(
            f"{len(found)} of {len(held_out)} validation documents are also in the training shards: a score on text that was "
            "trained on means nothing. Remove them from the training shards, or choose another validation shard"
        )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def fingerprint(
    train: Sequence[FileRef],
    validation: FileRef,
    tokenizers: Sequence[FileRef],
    validation_documents: int,
    sequence_length: int,
) -> str:
    """sha256 over all that a score depends on: scores of datasets with different ones are never compared."""
    facts = {
        "train": [shard.sha256 for shard in train],
        "validation": validation.sha256,
        "tokenizers": [tokenizer.sha256 for tokenizer in tokenizers],
        "validation_documents": validation_documents,
        "sequence_length": sequence_length,
        "metric": prepare.METRIC_VERSION,
        "packer": prepare.PACKER_VERSION,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
