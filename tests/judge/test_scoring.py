"""The judge's score against a plain evaluation: train.py once in three boxes, once in here."""

import importlib.util
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import knobs
from tasks.judge import protocol
from tasks.records import Candidate
from tasks.trial import experiment
from tests.boxes import LENGTH, VOCAB, make_bench, make_dataset, make_profile

TRAIN = Path(__file__).parents[2] / "trainer" / "train.py"
SMALL = {
    "DEPTH": 2,
    "ASPECT_RATIO": 16,
    "HEAD_DIM": 16,
    "MAX_SEQ_LEN": LENGTH,
    "VOCAB_SIZE": VOCAB,
    "DEVICE_BATCH_SIZE": 6,
    "TOTAL_BATCH_SIZE": 6 * LENGTH,
}


def plain_evaluation(
    monkeypatch, source: Path, checkpoint: Path, stream: np.ndarray, n_bytes: int
) -> float:
    """Bits per byte from the model's logits, row by row of the stream, in float64."""
    import torch

    spec = importlib.util.spec_from_file_location("candidate", source)
    assert spec is not None
    assert spec.loader is not None
    candidate = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "candidate", candidate)  # its dataclasses look it up
    spec.loader.exec_module(candidate)
    model = candidate.load_model(str(checkpoint), "cpu")
    nats = 0.0
    with torch.inference_mode():
        for first in range(0, len(stream) - 1, LENGTH):
            tokens = torch.from_numpy(stream[first : first + LENGTH + 1].astype(np.int64))
            losses = -torch.log_softmax(model(tokens[None, :-1])[0].double(), dim=1)
            chosen = losses[torch.arange(len(tokens) - 1), tokens[1:]]
            nats += chosen[tokens[1:] != 255].sum().item()
    return nats / math.log(2) / n_bytes


@pytest.mark.slow
def test_the_judges_score_is_that_of_a_plain_evaluation(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "dataset")
    random = np.random.default_rng(5)
    stream = np.where(
        random.random(1200) < 0.05, 255, random.geometric(0.05, 1200).clip(0, 254)
    ).astype(np.uint16)
    stream[0] = 255
    np.save(Path(dataset.validation) / f"stream_{VOCAB}.npy", stream)
    n_bytes = int((stream != 255).sum())
    (Path(dataset.validation) / "manifest.json").write_text(f'{{"bytes": {n_bytes}}}')
    np.save(
        Path(dataset.train) / f"rows_{VOCAB}_{LENGTH}.npy",
        random.geometric(0.05, (60, LENGTH + 1)).clip(0, 254).astype("u2"),
    )
    finish = protocol.finish

    def keep_checkpoint(box, begun, checkpoint, **limits):
        trained = finish(box, begun, checkpoint, **limits)
        shutil.copy(checkpoint, tmp_path / "model.pt")
        return trained

    monkeypatch.setattr(protocol, "finish", keep_checkpoint)
    source = tmp_path / "train.py"
    source.write_text(knobs.write(TRAIN.read_text(), SMALL))
    profile = make_profile().model_copy(
        update={"budget": make_profile().budget.model_copy(update={"amount": 3e8})}
    )
    run = experiment.run_experiment(
        Candidate.parse(source.read_text()),
        make_bench(dataset, tmp_path, profile),
        seed=3,
        worth_audit=lambda claimed: True,
    )
    assert (run.status, run.audit_gap) == ("ok", 0.0), run.reason
    assert run.val_bpb is not None
    assert run.val_bpb < 7.5  # it has learned something: a uniform guess scores 8
    assert run.val_bpb == pytest.approx(
        plain_evaluation(monkeypatch, source, tmp_path / "model.pt", stream, n_bytes), rel=1e-6
    )
