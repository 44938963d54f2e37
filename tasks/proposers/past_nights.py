"""What earlier nights on the same data have tried, for a researcher that need not find all of it again."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import NightlyError
from tasks.history import ledger
from tasks.history.night_state import fold
from tasks.records import NightState, Trial
from tasks.statuses import Decision
from tasks.usage import KINDS

NIGHTS, IDEAS = 20, 300  # that are remembered, the latest
KNOBS = "knobs"  # what tpe changes, beside the kinds that a researcher names
NOT_RUN = ("rejected_patch", "sandbox_error")  # these say nothing about their ideas


@dataclasses.dataclass(frozen=True)
class EarlierTrial:
    """A trial of an earlier night on the same data."""

    night: str
    trial: int
    summary: str
    kind: str
    verdict: Decision
    delta: (
        float | None
    )  # val_bpb less its parent's; None when it has no score or was measured on other hardware
    z: float | None


def kind_of(trial: Trial) -> str:
    """One of llm_calls.KINDS, or `knobs`, or `unnamed` where a proposer named none of them."""
    if trial.idea.kind in KINDS:
        return trial.idea.kind
    return KNOBS if trial.idea.proposer == "tpe" else "unnamed"


def trials(nights: Path, *, but: str, dataset: str, hardware: str) -> tuple[EarlierTrial, ...]:
    """The ideas of the nights in this folder with the same data, `but` the one named, the latest night first.

    Each night has an equal share, of which ideas in code come before knobs, kept ones before others, clear results before
    faint ones. A night that is damaged, or of another version, is left out.
    """
    ledgers = [path for path in nights.glob("*/ledger.jsonl") if path.parent.name != but]
    newest_first = sorted(ledgers, key=_modified, reverse=True)
    alike = (state for path in newest_first if (state := _read(path, dataset)))
    found = list(itertools.islice(alike, NIGHTS))
    by_words: dict[tuple[str, str], EarlierTrial] = {}  # each night takes tpe's first steps again
    for state in found:
        for idea in itertools.islice(_telling(state, hardware), IDEAS // len(found)):
            by_words.setdefault((idea.kind, idea.summary), idea)
    return tuple(by_words.values())


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed a moment ago
        return 0.0


def _read(path: Path, dataset: str) -> NightState | None:
    """The night of this ledger, if it can be read and has this data."""
    try:
        events = ledger.read(path)
        alike = any(
            event["event"] == "baseline" and event.get("dataset") == dataset for event in events
        )
        return fold(events) if alike else None
    except (
        NightlyError,
        OSError,
        ValueError,
        AttributeError,
    ):  # the last two: a field of another type
        return None


def _telling(state: NightState, hardware: str) -> Iterator[EarlierTrial]:
    baseline = state.baseline
    if baseline is None:
        return
    scores = {trial.commit: trial.val_bpb for trial in state.trials}
    run = [trial for trial in state.trials if trial.status not in NOT_RUN]
    for trial in sorted(
        run,
        key=lambda trial: (kind_of(trial) == KNOBS, trial.verdict != "keep", -abs(trial.z or 0.0)),
    ):
        before, delta = scores.get(trial.parent) or baseline.val_bpb, None
        if trial.val_bpb is not None and before is not None and baseline.hardware == hardware:
            delta = trial.val_bpb - before
        yield EarlierTrial(
            state.header.tag,
            trial.number,
            trial.idea.summary,
            kind_of(trial),
            trial.verdict,
            delta,
            trial.z,
        )
