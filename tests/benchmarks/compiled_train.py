"""One timing of trainer/train.py under one way of compiling it: `python -m
tests.benchmarks.compiled_train ORDER.json`, in a process with an empty compile cache.

Prints figures as JSON lines, each with all that is known by then: whoever ends this process early
still has them. On a CPU, where train.py compiles nothing, it is compiled here all the same, so that
the code below runs on every machine.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import torch

from tasks.files import FileRef
from tests.benchmarks import timed_train
from tests.benchmarks.orders import TrainOrder
from tests.benchmarks.timed_train import Shapes
from trainer import roles

# Traces forward and backward like the default, but does not generate C++, which takes a minute.
BACKEND_OF_A_CPU = "aot_eager"


def run(order: TrainOrder) -> None:
    if order.seed:
        roles.load_kernels(Path(order.seed))
    change = functools.partial(_compile, order)
    figures = timed_train.time_training(order.shapes, Path(order.train), change, _tell)
    kernels = roles.compiled_kernels()
    if order.export:
        FileRef.write(Path(order.export), kernels)  # a box will read it
    _tell(figures | {"compiled_kernels_mib": len(kernels) / 2**20})


def _tell(figures: dict[str, Any]) -> None:
    print(json.dumps(figures), flush=True)


def _compile(order: TrainOrder, train: Any) -> None:
    """Has `main` of a loaded train.py compile its model as ordered."""
    if not hasattr(getattr(train, "GPT", None), "compile_regions"):
        sys.exit("train.py has no GPT.compile_regions: what else compiles its model is unknown")
    if order.whole:
        train.GPT.compile_regions = _compile_whole
    if order.shapes.device == "cpu":
        torch.compile = functools.partial(torch.compile, backend=BACKEND_OF_A_CPU)
        train.build_model = _compiled(train.build_model)


def _compile_whole(model: torch.nn.Module) -> None:
    model.compile(dynamic=False)


def _compiled(build: Any) -> Any:
    """`build`, whose models compile their regions at once."""

    def built(*args: Any, **kwargs: Any) -> Any:
        model = build(*args, **kwargs)
        model.compile_regions()
        return model

    return built


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    run(TrainOrder(**{**given, "shapes": Shapes(**given["shapes"])}))
