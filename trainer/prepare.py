"""What a candidate may know of the data, and the metric: the same inside a box and outside. Fixed.

A candidate reads the dataset's meta and tokenizers at any time and the training rows after go; the
judge cuts and scores the validation rows with the functions here. At import numpy and the standard
library, tiktoken once a tokenizer is built, torch never.

    public/   meta.json  tokenizer_<V>.json  token_bytes_<V>.npy
    train/    tokens_<V>_<shard>.bin  lengths_<V>_<shard>.npy  rows_<V>_<T>.npy
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import itertools
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainer import packing

if TYPE_CHECKING:
    import tiktoken

LONGEST_ROW = 2**17  # tokens: the limit of MAX_SEQ_LEN
METRIC_VERSION = 1  # scores of different versions are never compared
BOS = "<|bos|>"  # the only special token; begins every document
# Characters of white space in a row; the splitters of tiktoken and rustbpe fail at about a million.
LONGEST_BLANK = 500_000

Tokens = packing.Tokens


@dataclasses.dataclass(frozen=True)
class Meta:
    """The fields of meta.json."""

    fingerprint: str  # of the dataset: shards, tokenizers and preparation
    vocab_sizes: tuple[int, ...]  # of the prepared tokenizers; the first is the profile's main one
    sequence_length: int  # of the rows that every dataset has; others are packed when needed
    bos: dict[int, int]  # vocabulary size -> id of BOS
    license: str
    metric_version: int

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> Meta:
        return cls(
            fingerprint=table["fingerprint"],
            vocab_sizes=tuple(table["vocab_sizes"]),
            sequence_length=table["sequence_length"],
            bos={int(size): token for size, token in table["bos"].items()},  # JSON keys are text
            license=table["license"],
            metric_version=table["metric_version"],
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def current() -> dict[str, Any]:
    """$NIGHTLY_HOME/data/current.json: folders, budget and device of a run outside a box.

    Raises FileNotFoundError if nothing was prepared yet.
    """
    checkout = Path(__file__).resolve().parent.parent
    home = Path(os.environ.get("NIGHTLY_HOME") or checkout / ".nightly")
    path = home / "data" / "current.json"
    if not path.is_file():
        raise FileNotFoundError(f"no prepared dataset: {path} is missing. Run ./run prepare first")
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table


def _folder(part: str, variable: str, inside: str) -> Path:
    """Where a part of the dataset is: as the judge says in a box, else as current.json says."""
    if "NIGHTLY_ROLE" in os.environ:
        return Path(os.environ.get(variable, inside))
    return Path(current()[part])


def _public() -> Path:
    return _folder("public", "NIGHTLY_PUBLIC", "/dataset")


def _train() -> Path:
    return _folder("train", "NIGHTLY_TRAIN", "/data/d")


def meta() -> Meta:
    return Meta.from_dict(json.loads((_public() / "meta.json").read_text(encoding="utf-8")))


def _prepared(vocab_size: int | None) -> int:
    sizes = meta().vocab_sizes
    size = sizes[0] if vocab_size is None else vocab_size
    if size not in sizes:
        raise ValueError(
            f"vocabulary size {size} is not prepared: choose one of {', '.join(map(str, sizes))}"
        )
    return size


class Tokenizer:
    """A byte-pair encoding. With 256 tokens it is the bytes, and BOS for 0xFF, which no UTF-8 has.

    As JSON: {"pattern": regex, "ranks": [[base64 bytes, rank], ...], "specials": {text: id}}.
    """

    def __init__(self, pattern: str, ranks: dict[bytes, int], specials: dict[str, int]) -> None:
        self.pattern, self.ranks, self.specials = pattern, ranks, specials

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> Tokenizer:
        ranks = {base64.b64decode(token): rank for token, rank in table["ranks"]}
        return cls(table["pattern"], ranks, dict(table["specials"]))

    def to_dict(self) -> dict[str, Any]:
        ranks = sorted(self.ranks.items(), key=lambda item: item[1])
        return {
            "pattern": self.pattern,
            "ranks": [[base64.b64encode(token).decode("ascii"), rank] for token, rank in ranks],
            "specials": self.specials,
        }

    @classmethod
    def load(cls, vocab_size: int | None = None) -> Tokenizer:
        """The prepared tokenizer of this size. Raises ValueError if the size is not prepared."""
        path = _public() / f"tokenizer_{_prepared(vocab_size)}.json"
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))

    @functools.cached_property
    def _encoding(self) -> tiktoken.Encoding:
        import tiktoken  # not at import: a candidate that trains on packed rows never needs it

        return tiktoken.Encoding(
            name="nightly",
            pat_str=self.pattern,
            mergeable_ranks=self.ranks,
            special_tokens=self.specials,
        )

    @property
    def size(self) -> int:
        return len(self.ranks) + len(self.specials)

    @property
    def bos(self) -> int:
        return self.specials[BOS]

    def encode(self, text: str) -> list[int]:
        """Token ids without BOS. Text that looks like a special token is encoded as plain text."""
        return [token for piece in pieces(text) for token in self._encoding.encode_ordinary(piece)]

    def encode_documents(self, texts: Sequence[str]) -> Tokens:
        """The stream of documents, uint16, each behind a BOS.

        One call of the encoder for all of them, so that no token becomes a Python int.
        """
        # A text that spells BOS is only text: encoded alone.
        if any(BOS in text or len(pieces(text)) > 1 for text in texts):
            parts = [
                part
                for text in texts
                for part in (np.array([self.bos]), *map(self._plain, pieces(text)))
            ]
            return np.concatenate(parts).astype(np.uint16)
        return self._encoding.encode_to_numpy(
            "".join(BOS + text for text in texts), allowed_special={BOS}
        ).astype(np.uint16)

    def _plain(self, text: str) -> npt.NDArray[np.uint32]:
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def decode(self, tokens: Sequence[int]) -> str:
        return self._encoding.decode(list(tokens))


def pieces(text: str) -> list[str]:
    """The text, cut in runs of white space that are too long for a splitter."""
    if len(text) < LONGEST_BLANK:
        return [text]
    cuts = [0, *(found.end() for found in re.finditer(rf"\s{{{LONGEST_BLANK}}}", text)), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(cuts)]


def token_bytes(vocab_size: int | None = None) -> npt.NDArray[np.int32]:
    """Raw bytes of each token, int32 [V]; 0 marks BOS, which is never scored."""
    table: npt.NDArray[np.int32] = np.load(_public() / f"token_bytes_{_prepared(vocab_size)}.npy")
    return table


def train_rows(T: int, vocab_size: int | None = None) -> Tokens:
    """Training rows, uint16 [n, T+1], one pass over the data in packed order; read on modulo n.

    A memory map if the rows were packed in advance: for the profile's T, and for the T and
    vocabulary size of a candidate's knobs. If not, they are packed now, in memory and in the
    budget's time.

    Raises PermissionError in a box before go, when no rows are there, and ValueError for a size
    that is not prepared or a length below 1.
    """
    size, folder = _prepared(vocab_size), _train()
    if T < 1:
        raise ValueError(f"sequence length {T} must be at least 1")
    if (packed := folder / f"rows_{size}_{T}.npy").is_file():
        rows: Tokens = np.load(packed, mmap_mode="r")
        return rows
    return packing.pack_rows(*streams(folder, size), T)


def streams(folder: Path, vocab_size: int) -> tuple[list[Tokens], npt.NDArray[np.int32]]:
    """The shards' token streams as memory maps, and the lengths of all documents in order."""
    shards = sorted(folder.glob(f"tokens_{vocab_size}_*.bin"))
    if not shards:
        raise FileNotFoundError(f"No such file: {folder}/tokens_{vocab_size}_*.bin")
    lengths = [
        np.load(shard.with_name(shard.name.replace("tokens", "lengths")).with_suffix(".npy"))
        for shard in shards
    ]
    found = [
        np.memmap(shard, np.uint16, "r") if shard.stat().st_size else np.zeros(0, np.uint16)
        for shard in shards
    ]
    return found, np.concatenate(lengths)


def cut_rows(stream: Tokens, T: int, bos: int) -> Tokens:
    """The rows of metric version 1, uint16 [R, T+1]: row r is stream[r*T : r*T + T+1].

    The last one is filled up with BOS. So every token of the stream but the first, which is BOS, is
    a target exactly once, whatever T is.
    """
    count = max(-(-(len(stream) - 1) // T), 0)
    padded = np.full(count * T + 1, bos, np.uint16)
    padded[: len(stream)] = stream[: len(padded)]
    rows = np.empty((count, T + 1), np.uint16)
    rows[:, :T] = padded[:-1].reshape(count, T)
    rows[:, T] = padded[T::T]
    return rows


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Bits per UTF-8 byte of a text of `n_bytes` whose tokens cost `nats` in total."""
    return nats / (math.log(2) * n_bytes)


def score(
    nll: npt.NDArray[np.float32], rows: Tokens, token_bytes: npt.NDArray[np.int32], n_bytes: int
) -> float:
    """Bits per byte of the losses `nll` (nats, R*T values in row order) of the targets rows[:, 1:].

    Targets without bytes (BOS) are not scored. Summed in float64. Raises ValueError if the counts
    differ.
    """
    targets = rows[:, 1:].reshape(-1)
    if nll.size != targets.size:
        raise ValueError(f"{nll.size} losses for {targets.size} targets: one for each is needed")
    scored = token_bytes[targets] > 0
    return bits_per_byte(float(nll.reshape(-1)[scored].sum(dtype=np.float64)), n_bytes)
