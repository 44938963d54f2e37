"""The end of `python -m trainer.train`, without a judge: it scores itself and prints a summary.

Fixed, like the harness, but never in a box: it reads the validation data.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from trainer import prepare, roles


def self_score(checkpoint: io.BytesIO, device: str) -> float:
    """Bits per byte of a checkpoint on all validation rows, computed in this process."""
    import torch

    candidate = sys.modules["__main__"]
    V, T = int(candidate.VOCAB_SIZE), int(candidate.MAX_SEQ_LEN)
    validation = Path(prepare.current()["validation"])
    rows = prepare.cut_rows(np.load(validation / f"stream_{V}.npy"), T, prepare.meta().bos[V])
    n_bytes = int(json.loads((validation / "manifest.json").read_text(encoding="utf-8"))["bytes"])
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder, "model.pt")
        path.write_bytes(checkpoint.getbuffer())
        model = candidate.load_model(str(path), device)
        model.eval()
        nats = np.concatenate(
            list(roles.claim_nats(model, rows, int(candidate.DEVICE_BATCH_SIZE), device))
        )
    return prepare.score(nats, rows, prepare.token_bytes(V), n_bytes)


def summary(metrics: dict[str, float]) -> str:
    """karpathy/autoresearch's block of results; unknown figures are left blank."""
    formats = {
        "val_bpb": ".6f",
        "training_seconds": ".1f",
        "total_seconds": ".1f",
        "peak_vram_mb": ".1f",
        "mfu_percent": ".2f",
        "total_tokens_M": ".1f",
        "num_steps": ".0f",
        "num_params_M": ".1f",
        "depth": ".0f",
    }
    shown = {
        name: format(metrics[name], form) if name in metrics else ""
        for name, form in formats.items()
    }
    lines = [f"{name + ':':<18}{value}".rstrip() for name, value in shown.items()]
    return "\n".join(["---", *lines])
