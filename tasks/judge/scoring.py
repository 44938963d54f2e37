"""From claims to a score: the questions to a claim box, the checks of its claims, bits per byte."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.judge.box import Box
from tasks.judge.bwrap import Gate
from tasks.judge.protocol import Stopped, blaming, expect, expect_up, is_whole
from tasks.judge.wire import Wire
from trainer import prepare

LOWEST_CLAIM = -1e-4  # nats; a loss is not negative, but for rounding
MOST_ROWS = 2**16  # in a batch

Rows = npt.NDArray[np.uint16]
Nats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Shape:
    """The candidate's choices that the metric depends on."""

    vocab_size: int
    sequence_length: int
    batch_rows: int


def await_warm(box: Box, seconds: float) -> Wire:
    """The wire of a scoring box that has warmed up: no line of the candidate has run in it yet.

    So a box that does not become warm is our failure. Raises BoxUnavailable.
    """
    wire = Wire(box.wire)
    expect_up(box, wire, time.monotonic() + seconds, warm=True)
    return wire


def load(box: Box, wire: Wire, gate: Gate, phase: str, startup_seconds: float) -> Shape:
    """Has a warm box load the candidate and its checkpoint. Raises Stopped.

    `phase` is eval_startup or audit_startup.
    """
    deadline = time.monotonic() + startup_seconds
    with blaming(box, phase, startup_seconds):
        gate.open()
        wire.send({"msg": "load"}, deadline)
        ready = expect(wire.read(deadline), "ready")
    return shape_of(ready, "bad_claims" if phase == "eval_startup" else "audit_failed")


def shape_of(message: dict[str, Any], status: str) -> Shape:
    """The shape that a box says its model has. Raises Stopped with `status` if it cannot be."""
    names = {
        "vocab_size": "VOCAB_SIZE",
        "sequence_length": "MAX_SEQ_LEN",
        "batch_rows": "DEVICE_BATCH_SIZE",
    }
    limits = {
        "vocab_size": 2**16,
        "sequence_length": prepare.LONGEST_ROW,
        "batch_rows": MOST_ROWS,
    }
    for field, most in limits.items():
        value = message.get(field)
        if not is_whole(value, 1, most):
            raise Stopped(
                status,
                f"{names[field]} = {value!r:.40}; it must be a whole number from 1 to {most}",
            )
    return Shape(*(message[field] for field in limits))


class Validation:
    """The judge's own copy of what is scored, for each prepared vocabulary."""

    def __init__(self, public: Path, folder: Path) -> None:
        meta = json.loads((public / "meta.json").read_text())
        self.documents_bytes = int(json.loads((folder / "manifest.json").read_text())["bytes"])
        self.bos = {int(vocab): int(bos) for vocab, bos in meta["bos"].items()}
        self._streams = {
            vocab: np.load(folder / f"stream_{vocab}.npy", mmap_mode="r") for vocab in self.bos
        }
        self._token_bytes = {
            vocab: np.load(public / f"token_bytes_{vocab}.npy") for vocab in self.bos
        }

    def rows(self, shape: Shape) -> Rows:
        """The rows to score, uint16 [R, T+1]. Raises Stopped if the vocabulary is not prepared."""
        if shape.vocab_size not in self.bos:
            raise Stopped(
                "bad_claims",
                f"VOCAB_SIZE = {shape.vocab_size} is not prepared; prepared: {sorted(self.bos)}",
            )
        return prepare.cut_rows(
            self._streams[shape.vocab_size], shape.sequence_length, self.bos[shape.vocab_size]
        )

    def scored(self, shape: Shape, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which targets are scored, bool [R, T]: those that have bytes."""
        scored: npt.NDArray[np.bool_] = self._token_bytes[shape.vocab_size][rows[:, 1:]] > 0
        return scored

    def ends(self, vocab_size: int) -> npt.NDArray[np.int64]:
        """After how many bytes of the text each scored target ends, in order."""
        length = self._token_bytes[vocab_size][self._streams[vocab_size][1:]]
        ends: npt.NDArray[np.int64] = length[length > 0].cumsum(dtype=np.int64)
        return ends

    def score(self, shape: Shape, rows: Rows, claims: Nats) -> float:
        """Bits per byte of the claims, nats float32 [R, T], by metric version 1.

        Raises Stopped if those that are scored cannot be negative log-probabilities; the others may
        be anything. The reason holds no figure of a claim, as it reaches the proposer.
        """
        scored = claims[self.scored(shape, rows)]
        if not np.isfinite(scored).all():
            raise Stopped("bad_claims", "claimed losses that are not finite")
        if (scored < LOWEST_CLAIM).any():
            raise Stopped("bad_claims", "claimed losses below 0: no probability is above 1")
        return prepare.score(
            claims, rows, self._token_bytes[shape.vocab_size], self.documents_bytes
        )


def claim(box: Box, wire: Wire, shape: Shape, rows: Rows, eval_seconds: float) -> Nats:
    """Shows a loaded box the validation rows, uint16 [R, T+1]. Raises Stopped.

    Returns its claims, nats float32 [R, T], unchecked.
    """
    deadline = time.monotonic() + eval_seconds
    with blaming(box, "eval", eval_seconds):
        wire.send({"msg": "nll", "rows": len(rows)}, deadline, rows.astype("<u2").tobytes())
        data = wire.read_bytes(len(rows) * shape.sequence_length * 4, deadline)
    return np.frombuffer(data, dtype="<f4").reshape(len(rows), shape.sequence_length)
