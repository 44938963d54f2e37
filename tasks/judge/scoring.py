"""From claims to a score: the checks that a claim must pass, and bits per byte by metric version 1."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.judge.protocol import Shape, Stopped
from trainer import prepare

LOWEST_CLAIM = -1e-4  # nats; a probability has none below 0, rounding may go a little under


class Validation:
    """The judge's own copy of what is scored: streams by vocabulary, raw bytes of each token, bytes of the documents."""

    def __init__(self, public: Path, folder: Path) -> None:
        meta = json.loads((public / "meta.json").read_text())
        self.documents_bytes = int(json.loads((folder / "manifest.json").read_text())["bytes"])
        self.streams = {
            int(vocab): (np.load(folder / f"stream_{vocab}.npy", mmap_mode="r"), int(bos)) for vocab, bos in meta["bos"].items()
        }
        self._token_bytes = {vocab: np.load(public / f"token_bytes_{vocab}.npy") for vocab in self.streams}

    def score(self, shape: Shape, rows: npt.NDArray[np.uint16], claims: npt.NDArray[np.float32]) -> float:
        """Bits per byte of the claims, nats float32 [R, T]. Raises Stopped when they cannot be negative log-probabilities."""
        if not np.isfinite(claims).all():
            raise Stopped("bad_claims", f"{int((~np.isfinite(claims)).sum())} of {claims.size} claimed losses are not finite")
        if claims.min() < LOWEST_CLAIM:
            raise Stopped("bad_claims", f"claimed a loss of {claims.min():.4f} nats: no probability is above 1")
        return prepare.score(claims, rows, self._token_bytes[shape.vocab_size], self.documents_bytes)
