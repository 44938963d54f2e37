"""The reference: what the baseline claimed. Audits ask more often where a candidate claims less.

Its file belongs to the judge, and no box sees it. A candidate with another vocabulary or row length
is compared with it by the bytes of the text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tasks.judge.scoring import Nats


@dataclasses.dataclass(frozen=True)
class Reference:
    """Claims for the scored targets of one vocabulary, in the order of the text."""

    vocab_size: int
    nats: Nats  # [n]

    @classmethod
    def mean(cls, of: Sequence[Reference]) -> Reference:
        """The mean of runs of one file: steadier than each of them, and equal to none."""
        return cls(of[0].vocab_size, np.mean([one.nats for one in of], axis=0, dtype=np.float32))

    def save(self, file: BinaryIO) -> None:
        """Two arrays, one after the other: an archive of them cannot be written in one go."""
        np.save(file, np.int64(self.vocab_size))
        np.save(file, self.nats)

    @classmethod
    def load(cls, path: Path) -> Reference:
        with path.open("rb") as file:
            return cls(int(np.load(file)), np.load(file))

    def at(self, ends: npt.NDArray[np.int64], own_ends: npt.NDArray[np.int64]) -> Nats:
        """Nats float32 of tokens that end after `ends` bytes of the text.

        `own_ends` is where the reference's own tokens end; their nats are spread over their bytes.
        """
        totals = np.interp(
            np.concatenate([[0], ends]),
            np.concatenate([[0], own_ends]),
            np.concatenate([[0.0], self.nats.cumsum(dtype=np.float64)]),
        )
        nats: Nats = np.diff(totals).astype(np.float32)
        return nats
