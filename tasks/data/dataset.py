"""Which documents are what: reading the parquet shards, and keeping training and held-out documents apart.

A shard is a parquet file with a column `text`, one document a row, or some row groups of one. The scored list is the
first N documents of the validation shard, whole. A training document that is also a validation or holdout document is
left out of the training: documents are told apart by their content, never by the names of their files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import DataError
from tasks.files import FileRef
from trainer import packing, prepare

BATCH = 1024  # documents that are held at a time, and
BATCH_BYTES = 8 << 20  # about how much of their text: those of books are fewer
MOST_SHARED = (
    0.01  # of documents that two parts of the data may share: more is no accident but a wrong split
)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A parquet file, or its row groups `first` to `stop` - 1. A profile writes "name", "name#20:" or "name#:20"."""

    file: FileRef
    first: int = 0
    stop: int | None = None

    @classmethod
    def of(cls, written: str, file: FileRef) -> Shard:
        first, _, stop = written.partition("#")[2].partition(":")
        return cls(file, int(first or 0), int(stop) if stop else None)

    @property
    def content(self) -> str:
        """What it holds, in one word: the same for equal content, wherever it lies."""
        return self.file.sha256 + (
            f"#{self.first}:{self.stop or ''}" if self.first or self.stop else ""
        )

    def overlaps(self, other: Shard) -> bool:
        ends = [shard.stop or 1 << 31 for shard in (self, other)]
        return self.file.sha256 == other.file.sha256 and max(self.first, other.first) < min(ends)


def file_name(written: str) -> str:
    """The file of a shard as a profile writes it."""
    return written.partition("#")[0]


def batches(shard: Shard) -> Iterator[list[str]]:
    """The documents of a shard in order, BATCH at a time.

    Raises DataError when it is no parquet file, has no column `text` of strings, no such row groups, no rows, or a text
    is missing.
    """
    path = Path(shard.file.path)
    try:
        with pq.ParquetFile(path) as file:
            _check_schema(path, file)
            groups = range(file.num_row_groups)[shard.first : shard.stop]
            if not groups:
                raise DataError(
                    f"{path} has {file.num_row_groups} row groups, none in {shard.first}:{shard.stop or ''}"
                )
            for batch in file.iter_batches(
                _batch_size(file, groups), row_groups=groups, columns=["text"]
            ):
                texts: list[str | None] = batch.column(0).to_pylist()
                if None in texts:
                    raise DataError(
                        f"{path} has a row without a text: drop such rows from the file"
                    )
                yield texts  # type: ignore[misc]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as parquet: {error}. Fetch it again, or correct [data] in the profile"
        ) from error


def documents(shard: Shard) -> Iterator[str]:
    return itertools.chain.from_iterable(batches(shard))


def count(shard: Shard) -> int:
    """How many documents a shard has."""
    with pq.ParquetFile(shard.file.path) as file:
        groups = range(file.num_row_groups)[shard.first : shard.stop]
        return sum(file.metadata.row_group(group).num_rows for group in groups)


def _batch_size(file: pq.ParquetFile, groups: Iterable[int]) -> int:
    """Documents a batch: BATCH, or fewer where those of a row group are long on average."""
    place, sizes = file.schema.names.index("text"), [BATCH]
    for group in map(file.metadata.row_group, groups):
        sizes.append(
            BATCH_BYTES * group.num_rows // max(group.column(place).total_uncompressed_size, 1)
        )
    return max(min(sizes), 1)


def _check_schema(path: Path, file: pq.ParquetFile) -> None:
    schema = file.schema_arrow
    if schema.names.count("text") > 1:
        raise DataError(
            f"{path} has {schema.names.count('text')} columns `text`: rename all but that with the documents"
        )
    if "text" not in schema.names:
        raise DataError(
            f"{path} has no column `text`, only {', '.join(schema.names) or 'none'}: rename the one with the documents"
        )
    kind = schema.field("text").type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{path}: column `text` holds {kind}, not strings")
    if file.metadata.num_rows == 0:
        raise DataError(f"{path} has no documents: leave it out of the profile")


def scored(shard: Shard, count: int) -> list[str]:
    """The first `count` documents of the validation shard: the list that is scored. Raises DataError when it has fewer."""
    found = list(itertools.islice(documents(shard), count))
    if len(found) < count:
        raise DataError(
            f"{shard.file.path} has {len(found)} documents, validation_documents = {count} are asked for: lower it"
        )
    return found


def check_shards(train: Sequence[Shard], held_out: Sequence[Shard]) -> None:
    """Raises DataError when there is no training shard, or one has content of another, a validation or a holdout shard."""
    if not train:
        raise DataError("no training shard: name at least one in [data] train of the profile")
    for shard, other in itertools.combinations(train, 2):
        if shard.overlaps(other):
            raise DataError(
                f"training shards {shard.file.path} and {other.file.path} share content (equal sha256 "
                f"{shard.file.sha256[:16]}...): a pass would read it twice. Leave one out of [data] train"
            )
    for shard, held in itertools.product(train, held_out):
        if shard.overlaps(held):
            raise DataError(
                f"training shard {shard.file.path} and held-out shard {held.file.path} share content (equal sha256 "
                f"{shard.file.sha256[:16]}...): a score on text that was trained on means nothing. Leave it out of [data] train"
            )


def held_out(validation: Shard, holdout: Shard | None) -> npt.NDArray[np.uint64]:
    """The hashes of all documents that no training may see, sorted, each once.

    Raises DataError when the two shards share documents: then a holdout would confirm nothing.
    """
    found = [np.unique(_digests(documents(shard))) for shard in (validation, holdout) if shard]
    shared = len(np.intersect1d(found[0], found[-1])) if len(found) > 1 else 0
    if shared > MOST_SHARED * len(found[-1]):
        raise DataError(
            f"{shared} of {len(found[-1])} holdout documents are also validation documents: a holdout must be unseen. "
            "Choose another holdout shard"
        )
    return np.unique(np.concatenate(found))


def unseen(texts: Iterable[str], held_out: Container[int]) -> Iterator[str]:
    """The texts that are not held out."""
    return (text for text in texts if _digest(text) not in held_out)


def check_left_out(left_out: int, documents: int) -> None:
    """Raises DataError when so many of the training documents are held out that the split must be wrong."""
    if left_out > MOST_SHARED * documents:
        raise DataError(
            f"{left_out} of {documents} training documents are held-out documents too, more than the {MOST_SHARED:.0%} that "
            "chance explains: choose other training or held-out shards"
        )


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def _digests(texts: Iterable[str]) -> npt.NDArray[np.uint64]:
    return np.fromiter(map(_digest, texts), np.uint64)


def fingerprint(
    train: Sequence[Shard],
    validation: Shard,
    holdout: Shard | None,
    tokenizers: Sequence[FileRef],
    validation_documents: int,
    sequence_length: int,
) -> str:
    """sha256 over all that a score depends on: scores of datasets with different ones are never compared."""
    facts = {
        "train": [shard.content for shard in train],
        "validation": validation.content,
        "tokenizers": [tokenizer.sha256 for tokenizer in tokenizers],
        "validation_documents": validation_documents,
        "sequence_length": sequence_length,
        "metric": prepare.METRIC_VERSION,
        "packer": packing.PACKER_VERSION,
    }
    if holdout:
        facts["holdout"] = holdout.content
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
