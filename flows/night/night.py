"""A night: what somebody asks for, and what stays the same from its first trial to its last."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tasks.history.llm_calls import CallLog
from tasks.records import Baseline, Bench, Candidate, Contender


@dataclasses.dataclass(frozen=True)
class Request:
    """What somebody asks of a night; None leaves it to the profile, or to the resumed night."""

    profile: str
    trials: int | None
    hours: float | None
    proposer: str | None
    patches: str | None
    seed: int
    allow_unsandboxed: bool
    model: str | None = None
    notes: str | None = None  # a night, whose researcher's last notes this one's is given
    contenders: tuple[Contender, ...] = ()  # of a tournament


@dataclasses.dataclass(frozen=True)
class Night:
    """What stays the same from the first trial to the last."""

    tag: str
    folder: Path  # nights/<tag> in the state folder
    root: Path  # the checkout
    bench: Bench
    base: Candidate  # the baseline's train.py
    baseline: Baseline
    seed: int
    calls: CallLog

    def trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / str(number)
