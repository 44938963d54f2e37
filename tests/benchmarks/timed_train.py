"""One timing of trainer/train.py in a process of its own, without a box: its `main` over random
tokens and a stopwatch.

`python -m tests.benchmarks.timed_train SHAPES.json TRAIN.py` prints one JSON object. The candidate
is loaded by path, as a box does it; harness and dataset are replaced by what is here. With
`--attention` it compares the attention of TRAIN.py with exact attention in float32 instead.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from trainer import harness, prepare, speed

NOISE_ROWS = 4096
DOCUMENT_TOKENS = 700  # mean length of a document of ClimbMix
CHECK_ROWS = 2  # of q, k, v in the comparison with exact attention


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What is trained, for how many steps, and when the process was started (time.time())."""

    device: str
    vocab: int
    length: int
    depth: int
    width: int
    heads: int
    batch: int  # rows a pass
    total_batch: int  # tokens a step
    skip: int  # steps before the stopwatch: allocator, caches, and whatever compiles late
    steps: int
    born: float
    seconds: float | None = None  # the stopwatch stops after so many, if its steps are not done


class Stopwatch:
    """In the place of the harness's Budget: ends the run after its steps and has timed all but the
    first of them. `tell` is called with the figures so far whenever there are more."""

    def __init__(
        self, shapes: Shapes, tell: Callable[[Any], object] = lambda figures: None
    ) -> None:
        self.shapes, self.tell, self.calls = shapes, tell, 0
        self.figures: dict[str, float] = {}

    def progress(self, tokens: int) -> float:
        """Called at the start of each step with the tokens that went before. Waits for the GPU only
        where it reads a clock."""
        done, last = self.calls, self.shapes.skip + self.shapes.steps
        self.calls += 1
        is_last = done == last or self._is_late(done)
        if (is_last or done in (0, 1, self.shapes.skip)) and self.shapes.device == "cuda":
            torch.cuda.synchronize()
        if done == 0:
            self.figures["seconds_to_ready"] = time.time() - self.shapes.born
        if done == 1:
            self.figures["seconds_to_first_step"] = time.time() - self.shapes.born
        if done == self.shapes.skip:
            self.began = time.monotonic(), time.process_time(), tokens
        if is_last:
            counted = tokens - self.began[2]
            self.figures["tokens_per_second"] = counted / (time.monotonic() - self.began[0])
            self.figures["tokens_per_cpu_second"] = counted / (time.process_time() - self.began[1])
        if is_last or done in (0, 1):
            self.tell(self.figures)
        return 1.0 if is_last else done / last

    def _is_late(self, done: int) -> bool:
        limit = self.shapes.seconds
        if limit is None or done <= self.shapes.skip:
            return False
        return time.monotonic() - self.began[0] >= limit


def noise(shapes: Shapes) -> npt.NDArray[np.uint16]:
    """Random tokens, uint16 [rows, T+1]: speed does not depend on what they say, but it may on
    where documents begin, so each row begins one and has others."""
    random = np.random.default_rng(0)
    rows = random.integers(shapes.vocab, size=(NOISE_ROWS, shapes.length + 1)).astype(np.uint16)
    rows[random.random(rows.shape) < 1 / DOCUMENT_TOKENS] = shapes.vocab - 1
    rows[:, 0] = shapes.vocab - 1
    return rows


def load(path: Path) -> Any:
    """A train.py under the name that it has in a box."""
    spec = importlib.util.spec_from_file_location("trainer.train", path)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules["trainer.train"] = module
    spec.loader.exec_module(module)
    return module


def time_training(
    shapes: Shapes,
    path: Path,
    change: Callable[[Any], object] = lambda train: None,
    tell: Callable[[Any], object] = lambda figures: None,
) -> dict[str, Any]:
    """Figures of `main`: seconds from process start, tokens a second, memory, MFU where the card's
    peak is known. `change` may alter the loaded module before it runs; `tell` as in Stopwatch."""
    watch, ended = Stopwatch(shapes, tell), {}
    bos = {shapes.vocab: shapes.vocab - 1}
    meta = SimpleNamespace(vocab_sizes=(shapes.vocab,), sequence_length=shapes.length, bos=bos)
    rows = noise(shapes)

    def ready(flops_per_token: float, checkpoint_bytes: int) -> Stopwatch:
        ended["flops_per_token"] = flops_per_token
        return watch

    vars(harness).update(
        device=lambda: shapes.device, seed=lambda: 1, ready=ready, log=lambda **point: None
    )
    vars(harness).update(
        finish=lambda state_dict, **metrics: ended.update(num_params_M=metrics.get("num_params_M"))
    )
    vars(prepare).update(meta=lambda: meta, train_rows=lambda T, vocab_size=None: rows)
    train = load(path)
    change(train)
    train.main()
    figures: dict[str, Any] = {**watch.figures, **ended}
    figures["peak_host_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if shapes.device == "cuda":
        card = torch.cuda.get_device_name()
        peak, achieved = (
            speed.peak_flops(card),
            ended["flops_per_token"] * watch.figures["tokens_per_second"],
        )
        figures |= {
            "card": card,
            "tflops_per_second": achieved / 1e12,
            "mfu_percent": 100 * achieved / peak if peak else None,
        }
        figures["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        figures["peak_reserved_memory_mib"] = torch.cuda.max_memory_reserved() / 2**20
    return figures


def attention_errors(shapes: Shapes, path: Path) -> dict[str, dict[str, float] | str]:
    """By backend of TRAIN.py: the relative error (2-norm) of y, dq, dk and dv, worst over its
    windows; or why it failed.

    The yardstick is torch's exact attention in float32 under a mask, of the same bf16 numbers. With
    the knob DOCUMENT_MASK on, the rows have several documents, and none may see another.
    """
    train, device = load(path), shapes.device
    config = train.GPTConfig.from_knobs()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    backends = {
        "chosen": lambda: train.choose_attention(device, config),
        "local": lambda: train.local_attention,
    }
    if device == "cuda":
        backends["FlexAttention"] = lambda: train.flex_attention(
            config.windows(), shapes.length, device
        )
    found: dict[str, dict[str, float] | str] = {}
    for name, backend in backends.items():
        try:
            # as in training
            attend = torch.compile(backend(), dynamic=False) if device == "cuda" else backend()
            errors = [
                _errors(train, attend, shapes, window, dtype)
                for window in sorted(set(config.windows()))
            ]
            found[name] = {part: max(error[part] for error in errors) for part in errors[0]}
        except Exception as error:  # one that is not for this card is a finding
            found[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found


def _errors(
    train: Any, attend: Any, shapes: Shapes, window: int, dtype: torch.dtype
) -> dict[str, float]:
    random = torch.Generator(shapes.device).manual_seed(window)
    shape = (CHECK_ROWS, shapes.length, shapes.heads, shapes.width // shapes.heads)
    *qkv, pull = (
        torch.randn(shape, generator=random, device=shapes.device).to(dtype) for _ in range(4)
    )
    place = torch.arange(shapes.length, device=shapes.device)
    back = place[:, None] - place[None, :]
    mask, documents = (back >= 0) & (back <= window), []
    if vars(train).get("DOCUMENT_MASK"):
        starts = torch.rand(shape[:2], generator=random, device=shapes.device) < 4 / shapes.length
        documents = [numbers := starts.cumsum(1)]
        mask = mask & (numbers[:, None, :, None] == numbers[:, None, None])
    scale = vars(train).get("QK_SCALE", 1.0) / math.sqrt(shape[-1])

    def exact(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, *documents: torch.Tensor
    ) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(
                1, 2
            )

    results = []
    for tried, kind in ((attend, dtype), (exact, torch.float32)):
        q, k, v = (x.to(kind).detach().requires_grad_() for x in qkv)
        y = tried(q, k, v, window, *documents)
        results.append([y, *torch.autograd.grad(y, (q, k, v), pull.to(kind))])
    names = ("y", "dq", "dk", "dv")
    return {
        name: ((a.float() - b).norm() / b.norm()).item()
        for name, a, b in zip(names, *results, strict=True)
    }


if __name__ == "__main__":
    given = Shapes(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    measure = attention_errors if "--attention" in sys.argv else time_training
    print(json.dumps(measure(given, Path(os.path.abspath(sys.argv[2])))))
