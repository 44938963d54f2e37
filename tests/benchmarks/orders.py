"""What the processes of `./run bench gpu` are told, as JSON in a file."""

from __future__ import annotations

import dataclasses
from typing import Any

from tests.benchmarks.timed_train import Shapes


@dataclasses.dataclass(frozen=True)
class TrainOrder:
    """For compiled_train."""

    shapes: Shapes
    train: str  # path of the train.py
    whole: bool = False  # the model as one graph, and not train.py's own regions
    seed: str | None = None  # file with the kernels that another process compiled
    export: str | None = None  # file for those of this process


@dataclasses.dataclass(frozen=True)
class TrialOrder:
    """For timed_trial."""

    profile: dict[str, Any]  # a whole Profile, with the budget of this trial
    train: str  # path of the train.py
    home: str  # a state folder of its own
    scored_tokens: int  # the validation text is repeated up to about so many; 0: never
    seed: str | None = None  # file with the kernels that another process compiled
    attention_kernels: tuple[tuple[str, str, int], ...] = ()  # the manifests' FileRefs
