"""A night: what somebody asks for, and what stays the same from its first trial to its last."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import configs
from tasks.history.llm_calls import CallLog
from tasks.judge.bwrap import Isolation
from tasks.records import Baseline, Dataset


@dataclasses.dataclass(frozen=True)
class Request:
    """What somebody asks of a night; None leaves it to the profile, or to the night that goes on."""

    profile: str
    trials: int | None
    hours: float | None
    proposer: str | None
    patches: str | None
    seed: int
    allow_unsandboxed: bool
    model: str | None = None


@dataclasses.dataclass(frozen=True)
class Night:
    """What stays the same from the first trial to the last."""

    tag: str
    folder: Path  # nights/<tag> in the state folder
    home: Path
    root: Path  # the checkout
    profile: configs.Profile
    dataset: Dataset
    base: str  # source of the baseline's train.py
    baseline: Baseline
    isolation: Isolation
    seed: int
    calls: CallLog
