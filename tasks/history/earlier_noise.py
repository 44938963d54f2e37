"""Repeats of earlier comparable nights, from which a new night knows the noise.

Each night has a file of its own in data/noise, beside the cached baselines, which is written again
after each trial: it is made from the ledger, and outlives the night's folder. Two nights never
write one file, and a night that is resumed counts once.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.files import write_data
from tasks.noise import Noise
from tasks.records import BaselineEvent, NightState

MOST_DEGREES = 100  # of freedom: with so many the sd is known to 7 %
# Nights whose train.py differs have the same noise if their models are of one size, up to this
# factor. Candidates of one night differ as much.
MOST_TIMES = 2.0


@dataclasses.dataclass(frozen=True)
class Entry:
    """One night's repeats, and what they depend on."""

    tag: str
    profile: str  # name
    updated: str  # UTC
    hardware: str  # hardware.describe()
    facts: Mapping[str, str]  # of the baseline, but for train.py
    parameters: int | None  # of the baseline, self-reported
    repeats: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, state: NightState, baseline: BaselineEvent) -> Entry:
        return cls(
            tag=state.header.tag,
            profile=state.header.settings.name,
            updated=state.updated,
            hardware=baseline.hardware,
            facts=_apart_from_train(baseline.facts),
            parameters=baseline.parameters,
            repeats=tuple(group for group in state.repeats if len(group) > 1),
        )

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Entry:
        """Raises KeyError, TypeError, ValueError."""
        repeats = tuple(tuple(map(float, group)) for group in saved["repeats"])
        if not all(math.isfinite(score) for group in repeats for score in group):
            raise ValueError("a score is not finite")
        return cls(**{**saved, "repeats": repeats})

    @property
    def degrees_of_freedom(self) -> int:
        return Noise.pooled(self.repeats).degrees_of_freedom

    def measures_as(self, hardware: str, facts: Mapping[str, str], parameters: int | None) -> bool:
        """Whether its scores scatter as those of a baseline with these facts."""
        one, other = self.parameters, parameters
        is_of_size = not (one and other) or max(one, other) <= MOST_TIMES * min(one, other)
        is_same = self.hardware == hardware and self.facts == _apart_from_train(facts)
        return is_same and is_of_size


def record(home: Path, state: NightState) -> None:
    """Writes the repeats of a night where the next one finds them. Raises DataError."""
    if state.baseline is None:
        return
    entry = Entry.of(state, state.baseline)
    content = json.dumps(dataclasses.asdict(entry)).encode()
    write_data(_folder(home) / f"{entry.tag}.json", content)


def find(
    home: Path, but: str, hardware: str, facts: Mapping[str, str], parameters: int | None
) -> tuple[dict[str, tuple[tuple[float, ...], ...]], list[str]]:
    """(repeats by tag, what could not be read) of nights that measured the same, but not `but`.

    The latest first, until there are enough.
    """
    entries, problems = _read(home)
    found: dict[str, tuple[tuple[float, ...], ...]] = {}
    degrees = 0
    for entry in entries:
        if degrees >= MOST_DEGREES:
            break
        if entry.tag != but and entry.repeats and entry.measures_as(hardware, facts, parameters):
            found[entry.tag] = entry.repeats
            degrees += entry.degrees_of_freedom
    return found, problems


def known(
    home: Path, profile: str, hardware: str, facts: Mapping[str, str]
) -> tuple[list[Entry], list[str]]:
    """(nights, what could not be read): those of a profile on this hardware, like its latest.

    `facts` are those that are known before the data is prepared.
    """
    entries, problems = _read(home)
    own = [
        entry
        for entry in entries
        if entry.profile == profile
        and entry.hardware == hardware
        and facts.items() <= entry.facts.items()
    ]
    if own:
        latest = own[0]
        own = [e for e in own if e.measures_as(hardware, latest.facts, latest.parameters)]
    return own, problems


def _read(home: Path) -> tuple[Sequence[Entry], list[str]]:
    """All nights, the latest first, and a line for each file that is damaged."""
    problems: list[str] = []

    def entries() -> Iterator[Entry]:
        for path in _folder(home).glob("*.json"):
            try:
                yield Entry.from_json(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                what = f"{type(error).__name__}: {error}"
                problems.append(
                    f"{path} cannot be read ({what}), so the noise that night {path.stem} measured "
                    f"is not used: `./run rebuild {path.stem}` writes it again"
                )

    return sorted(entries(), key=lambda entry: entry.updated, reverse=True), problems


def _folder(home: Path) -> Path:
    return home / "data" / "noise"


def _apart_from_train(facts: Mapping[str, str]) -> dict[str, str]:
    return {name: fact for name, fact in facts.items() if name != "train.py"}
