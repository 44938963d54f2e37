"""What earlier nights on the same data have tried, so that a researcher need not repeat it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from configs import traits
from tasks.errors import NightlyError
from tasks.history import ledger
from tasks.history.night_state import fold
from tasks.records import NightState, Trial
from tasks.statuses import Decision
from tasks.usage import KINDS

MOST_NIGHTS = 20  # the latest
MOST_TRIALS = 300
KNOBS = "knobs"  # the kind of tpe's changes, besides those that a researcher names
NOT_RUN = ("rejected_patch", "sandbox_error")  # these say nothing about their ideas


@dataclasses.dataclass(frozen=True)
class EarlierTrial:
    """A trial of an earlier night on the same data."""

    night: str
    trial: int
    summary: str
    kind: str
    verdict: Decision
    # val_bpb minus its parent's; None without a score, or if it was measured on other hardware.
    delta: float | None
    z: float | None


def kind_of(trial: Trial) -> str:
    """One of usage.KINDS, or `knobs`, or `unnamed` if its proposer named none of them."""
    if trial.idea.kind in KINDS:
        return trial.idea.kind
    return KNOBS if traits(trial.idea.proposer).turns_knobs else "unnamed"


def trials(nights: Path, *, but: str, dataset: str, hardware: str) -> tuple[EarlierTrial, ...]:
    """Trials of the nights in this folder with the same data, except night `but`, the latest first.

    Each night has an equal share. In it, changes of code come before knobs, kept ones before
    others, and clear results before faint ones. A night that is damaged, or of another version, is
    left out.
    """
    ledgers = [path for path in nights.glob("*/ledger.jsonl") if path.parent.name != but]
    newest_first = sorted(ledgers, key=_modified, reverse=True)
    alike = (state for path in newest_first if (state := _read(path, dataset)))
    found = list(itertools.islice(alike, MOST_NIGHTS))
    by_words: dict[tuple[str, str], EarlierTrial] = {}  # each night repeats tpe's first steps
    for state in found:
        for trial in itertools.islice(_ranked(state, hardware), MOST_TRIALS // len(found)):
            by_words.setdefault((trial.kind, trial.summary), trial)
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
        baselines = (event for event in events if event["event"] == "baseline")
        alike = any(event.get("dataset") == dataset for event in baselines)
        return fold(events) if alike else None
    except (NightlyError, OSError, ValueError, AttributeError):
        return None  # the last two errors: a field of another type


def _ranked(state: NightState, hardware: str) -> Iterator[EarlierTrial]:
    baseline = state.baseline
    if baseline is None:
        return
    scores = {trial.commit: trial.val_bpb for trial in state.candidates}

    def rank(trial: Trial) -> tuple[bool, bool, float]:
        return kind_of(trial) == KNOBS, trial.verdict != "keep", -abs(trial.z or 0.0)

    run = [trial for trial in state.candidates if trial.status not in NOT_RUN]
    for trial in sorted(run, key=rank):
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
