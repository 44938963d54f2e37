"""Parquet shards and their documents; training and held-out documents are kept apart.

A shard is a parquet file with a column `text`, one document a row, or some row groups of such a
file. The scored documents are the first N of the validation shard and of the holdout shard, each
of them complete. A training document that is also a validation or holdout document is left out of
the training: documents are compared by content, never by the names of their files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import DataError
from tasks.files import FileRef
from trainer import packing, prepare

BATCH = 1024  # documents in memory at a time, or fewer, so that
BATCH_CHARACTERS = 8 << 20  # their text has about this size: whole books are long
# Rows that are decoded at a time. The size of a text that repeats is not in the file's metadata: it
# is stored once.
ROWS = 64
TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
# Share of distinct documents that two parts of the data may have in common; one document in any
# case. More is not chance but a wrong split.
MOST_SHARED = 0.01
SHOWN = 60  # characters of a document in a message


@dataclasses.dataclass(frozen=True)
class Shard:
    """A parquet file, or its row groups `first` to `stop` - 1.

    A profile writes "name", "name#20:" or "name#:20".
    """

    file: FileRef
    first: int = 0
    stop: int | None = None

    @classmethod
    def of(cls, written: str, file: FileRef) -> Shard:
        first, _, stop = written.partition("#")[2].partition(":")
        return cls(file, int(first or 0), int(stop) if stop else None)

    @property
    def content(self) -> str:
        """A text that is equal for shards of equal content, wherever they are."""
        groups = f"#{self.first}:{self.stop or ''}" if self.first or self.stop else ""
        return self.file.sha256 + groups

    def overlaps(self, other: Shard) -> bool:
        ends = [shard.stop or 1 << 31 for shard in (self, other)]
        return self.file.sha256 == other.file.sha256 and max(self.first, other.first) < min(ends)


def file_name(written: str) -> str:
    """The file of a shard that is named as in a profile."""
    return written.partition("#")[0]


def batches(shard: Shard) -> Iterator[list[str]]:
    """The documents of a shard in order, at most BATCH and about BATCH_CHARACTERS at a time.

    Raises DataError when it is not a parquet file, has no column `text` of strings, lacks the row
    groups, has no rows, or has a row whose text is missing or not UTF-8.
    """
    path = Path(shard.file.path)
    batch: list[str] = []
    characters = 0
    try:
        for text in _texts(path, shard):
            batch.append(text)
            characters += len(text)
            if len(batch) == BATCH or characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as parquet: {error}. "
            "Fetch it again, or correct [data] in the profile"
        ) from error
    if batch:
        yield batch


def _texts(path: Path, shard: Shard) -> Iterator[str]:
    with pq.ParquetFile(path) as file:
        _check_schema(path, file)
        groups = range(file.num_row_groups)[shard.first : shard.stop]
        if not groups:
            raise DataError(
                f"{path} has {file.num_row_groups} row groups, "
                f"none in {shard.first}:{shard.stop or ''}"
            )
        # The number of the next row in the file; the first has number 0.
        row = sum(file.metadata.row_group(group).num_rows for group in range(groups.start))
        for batch in file.iter_batches(_rows_at_a_time(file, groups), groups, columns=["text"]):
            yield from _decoded(path, row, batch.column("text"))
            row += len(batch)


def _decoded(path: Path, first: int, column: pa.Array) -> list[str]:
    """The texts of a column whose first row has number `first` in the file."""
    texts: list[str] = []
    if not column.null_count:
        with contextlib.suppress(UnicodeDecodeError):
            texts = column.to_pylist()
            return texts
    # Some text is missing or broken: one at a time, to name its row.
    for row, value in enumerate(column, start=first):
        try:
            text = value.as_py()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, row {row} (the first is row 0): the text is not UTF-8, {error.reason} "
                f"at byte {error.start}. Correct it, or drop such rows from the file"
            ) from error
        if text is None:
            raise DataError(
                f"{path} has a row without a text, row {row} (the first is row 0): "
                "drop such rows from the file"
            )
        texts.append(text)
    return texts


def documents(shard: Shard) -> Iterator[str]:
    return itertools.chain.from_iterable(batches(shard))


def count(shard: Shard) -> int:
    """The number of documents in a shard."""
    with pq.ParquetFile(shard.file.path) as file:
        groups = range(file.num_row_groups)[shard.first : shard.stop]
        return sum(file.metadata.row_group(group).num_rows for group in groups)


def _rows_at_a_time(file: pq.ParquetFile, groups: Iterable[int]) -> int:
    """ROWS, or fewer where a row group's texts are long on average."""
    # By its whole path: a field of a struct may be called `text` too.
    paths = [file.schema.column(place).path for place in range(len(file.schema))]
    place, sizes = paths.index("text"), [ROWS]
    for group in map(file.metadata.row_group, groups):
        sizes.append(
            BATCH_CHARACTERS * group.num_rows // max(group.column(place).total_uncompressed_size, 1)
        )
    return max(min(sizes), 1)


def _check_schema(path: Path, file: pq.ParquetFile) -> None:
    schema = file.schema_arrow
    if schema.names.count("text") > 1:
        raise DataError(
            f"{path} has {schema.names.count('text')} columns `text`: "
            "rename all but the one with the documents"
        )
    if "text" not in schema.names:
        raise DataError(
            f"{path} has no column `text`, only {', '.join(schema.names) or 'none'}: "
            "rename the one with the documents"
        )
    kind = schema.field("text").type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not any(is_text(kind) for is_text in TEXT_TYPES):
        raise DataError(
            f"{path}: column `text` holds {kind}, not strings: write it with a column of strings"
        )
    if file.metadata.num_rows == 0:
        raise DataError(f"{path} has no documents: leave it out of the profile")


def scored(shard: Shard, count: int, what: str = "validation") -> list[str]:
    """The first `count` documents of the shard for `what`. Raises DataError when it has fewer."""
    found = list(itertools.islice(documents(shard), count))
    if len(found) < count:
        raise DataError(
            f"{shard.file.path} has {len(found)} documents, "
            f"the profile asks for {what}_documents = {count}: set it to {len(found)} or fewer"
        )
    return found


def check_shards(train: Sequence[Shard], held_out: Sequence[Shard]) -> None:
    """Raises DataError unless there are training shards, and none shares content with any other."""
    if not train:
        raise DataError("no training shard: name at least one in [data] train of the profile")
    for shard, other in itertools.combinations(train, 2):
        if shard.overlaps(other):
            raise DataError(
                f"training shards {shard.file.path} and {other.file.path} share content "
                f"(equal sha256 {shard.file.sha256[:16]}...): a pass would read it twice. "
                "Leave one out of [data] train"
            )
    for shard, held in itertools.product(train, held_out):
        if shard.overlaps(held):
            raise DataError(
                f"training shard {shard.file.path} and held-out shard {held.file.path} share "
                f"content (equal sha256 {shard.file.sha256[:16]}...): a score on text that was "
                "trained on means nothing. Leave it out of [data] train"
            )


def held_out(validation: Shard, holdout: Shard | None) -> npt.NDArray[np.uint64]:
    """The hashes of the documents that no training may see: uint64 [n], sorted and distinct.

    Raises DataError when the two shards share documents: the holdout would confirm nothing.
    """
    found = [np.unique(_digests(documents(shard))) for shard in (validation, holdout) if shard]
    shared = len(np.intersect1d(found[0], found[-1])) if len(found) > 1 else 0
    if _is_wrong_split(shared, len(found[-1])):
        raise DataError(
            f"{shared} of {len(found[-1])} distinct holdout documents are also validation "
            "documents: a holdout must be unseen. Choose another holdout shard"
        )
    return np.unique(np.concatenate(found))


def unseen(texts: Iterable[str], held_out: Container[int]) -> Iterator[str]:
    """The texts that are not held out."""
    return (text for text in texts if _digest(text) not in held_out)


def left_out(train: Iterable[Shard], held_out: npt.NDArray[np.uint64]) -> str:
    """What is left out of the training because it is held out, in one line that names the document
    that repeats most.

    Distinct documents are counted: an empty one may come a thousand times. Raises DataError when
    more of them are held out than chance explains.
    """
    known = frozenset(held_out.tolist())
    times: Counter[int] = Counter()
    beginnings: dict[int, str] = {}
    digests = array("Q")
    for text in itertools.chain.from_iterable(map(documents, train)):
        digests.append(digest := _digest(text))
        if digest in known:
            times[digest] += 1
            beginnings.setdefault(digest, text[:SHOWN])
    shared, distinct = len(times), len(np.unique(np.frombuffer(digests, np.uint64)))
    if _is_wrong_split(shared, distinct):
        raise DataError(
            f"{shared} of {distinct} distinct training documents are held-out documents too, more "
            f"than the {MOST_SHARED:.0%} that chance explains: "
            "choose other training or held-out shards"
        )
    [(most, repeats)] = times.most_common(1)
    repeated = f". One of them {repeats} times: {beginnings[most]!r}" if repeats > 1 else ""
    return (
        f"{times.total()} training documents, {shared} of them distinct, are also held out: they "
        f"are not trained on{repeated}"
    )


def _is_wrong_split(shared: int, documents: int) -> bool:
    return shared > max(1, MOST_SHARED * documents)


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
    holdout_documents: int | None = None,
) -> str:
    """sha256 of everything in the data that a score depends on.

    Scores of datasets with different fingerprints are never compared.
    """
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
        facts |= {"holdout": holdout.content, "holdout_documents": holdout_documents}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
