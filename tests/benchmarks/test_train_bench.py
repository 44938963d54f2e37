"""What `./run bench train` measures with: at tiny shapes, and that it can tell right from wrong."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import timed_train, train_bench
from tests.benchmarks.plain_gpt import PlainGPT
from tests.benchmarks.timed_train import Stopwatch, attention_errors, noise

KNOBS = {
    "DEPTH": 2,
    "ASPECT_RATIO": 16,
    "HEAD_DIM": 16,
    "WINDOW_PATTERN": "SL",
    "MAX_SEQ_LEN": 32,
    "VOCAB_SIZE": 64,
    "TOTAL_BATCH_SIZE": 128,
    "DEVICE_BATCH_SIZE": 2,
}


SHORT_SIGHTED = """
exact_attention = local_attention
def local_attention(q, k, v, window):
    return exact_attention(q, k, v, max(window - 1, 1))
"""

ACROSS_DOCUMENTS = """
DOCUMENT_MASK = True
exact_attention = local_attention
def local_attention(q, k, v, window, documents):
    return exact_attention(q, k, v, window)
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[Path]:
    """A tiny train.py; what `load` leaves behind is taken away."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield train_bench._candidate(tmp_path, "tiny", KNOBS)
    torch.set_num_threads(threads)
    sys.modules.pop("trainer.train", None)


def shapes(**changes: Any) -> timed_train.Shapes:
    return dataclasses.replace(train_bench._shapes(KNOBS, "cpu"), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["timed_train", "plain_gpt"])
def test_both_sides_run_by_themselves_and_say_the_same_figures(
    module: str, loaded: Path, tmp_path: Path
) -> None:
    few = shapes(skip=1, steps=3)
    found = train_bench._fresh(module, few, tmp_path, 1, [str(loaded)])
    assert 0 < found["seconds_to_ready"] < found["seconds_to_first_step"] < 120
    assert found["tokens_per_second"] > 0
    assert found["tokens_per_cpu_second"] > 0


def test_the_stopwatch_leaves_the_first_steps_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 12.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    watch = Stopwatch(shapes(skip=2, steps=4))
    done = [watch.progress(step * 100) for step in range(7)]
    assert done[-1] == 1.0
    assert max(done[:-1]) < 1.0
    assert watch.figures["tokens_per_second"] == (600 - 200) / 2.0


def test_exact_attention_is_found_exact(loaded: Path) -> None:
    found = attention_errors(shapes(), loaded)
    assert isinstance(found["chosen"], dict), found
    assert set(found["chosen"]) == {"y", "dq", "dk", "dv"}
    assert max(found["chosen"].values()) < 1e-5


def test_a_window_that_is_off_by_one_token_is_found(loaded: Path) -> None:
    source = loaded.read_text(encoding="utf-8")
    loaded.write_text(source + SHORT_SIGHTED, encoding="utf-8")
    found = attention_errors(shapes(), loaded)
    assert isinstance(found["local"], dict), found
    assert found["local"]["y"] > train_bench.ERROR_LIMIT


def test_attention_that_sees_other_documents_is_found(loaded: Path) -> None:
    source = loaded.read_text(encoding="utf-8")
    loaded.write_text(source + ACROSS_DOCUMENTS, encoding="utf-8")
    found = attention_errors(shapes(), loaded)
    assert isinstance(found["chosen"], dict), found
    assert found["chosen"]["y"] > train_bench.ERROR_LIMIT


def test_the_plain_loop_has_the_same_shapes_and_sees_no_later_token(loaded: Path) -> None:
    given = shapes()
    torch.manual_seed(0)
    model = PlainGPT(given)
    assert (given.width, given.heads, given.depth) == (32, 2, 2)
    assert model.head.weight.shape == (given.vocab, given.width)
    assert model.head.weight is not model.tokens.weight
    rows = torch.from_numpy(noise(given)[:1].astype("int64"))
    changed = rows.clone()
    changed[0, -2] = (changed[0, -2] + 1) % given.vocab
    early = [
        model.layers[0](model.tokens(x[:, :-1]) + model.positions.weight)[:, :-1]
        for x in (rows, changed)
    ]
    assert torch.equal(*early)


def test_the_stopwatch_stops_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks, told = iter([10.0, 11.0, 13.0, 13.0]), []
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    watch = Stopwatch(shapes(skip=2, steps=100, seconds=2.5), lambda seen: told.append(len(seen)))
    done = [watch.progress(step * 100) for step in range(5)]
    assert [share == 1.0 for share in done] == [False, False, False, False, True]
    assert watch.figures["tokens_per_second"] == (400 - 200) / 3.0
    assert told == [1, 2, 4]
