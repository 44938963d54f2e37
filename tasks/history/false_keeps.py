"""How often the search rule keeps a change that does nothing, as placebos measure it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import NormalDist

from tasks.errors import NightlyError
from tasks.history import night_folder
from tasks.records import NightState
from tasks.text import counted

Z = NormalDist().inv_cdf(0.975)  # of the ends of a 95 % interval
# Tables of a profile that neither a score nor the rule depends on.
APART = {"name", "description", "train", "limits", "audit", "night", "llm", "command"}


@dataclasses.dataclass(frozen=True)
class FalseKeeps:
    """Placebos with a score, and how many of them the rule would have kept."""

    placebos: int
    kept: int
    rate: float | None  # None without a placebo
    low: float | None  # ends of the rate's 95 % interval
    high: float | None

    @classmethod
    def of(cls, placebos: int, kept: int) -> FalseKeeps:
        """With Wilson's interval (1927), which also holds for few placebos and rates near 0."""
        if not placebos:
            return cls(0, 0, None, None, None)
        rate, share = kept / placebos, Z**2 / placebos
        centre = rate + share / 2
        half = Z * math.sqrt(rate * (1 - rate) / placebos + share / (4 * placebos))
        low, high = ((centre + end) / (1 + share) for end in (-half, half))
        return cls(placebos, kept, rate, max(low, 0.0), min(high, 1.0))

    def __str__(self) -> str:
        """As in "1 would have been kept: 8%, 95% interval 1% to 35%"."""
        kept = f"{self.kept or 'none'} would have been kept"
        return f"{kept}: {self.rate:.0%}, 95% interval {self.low:.0%} to {self.high:.0%}"


def of_night(state: NightState) -> FalseKeeps:
    said = [trial.placebo for trial in state.trials if trial.placebo and trial.status == "ok"]
    return FalseKeeps.of(len(said), said.count("keep"))


def of_all(night: NightState, others: Iterable[NightState]) -> FalseKeeps:
    """Of a night and of those others whose scores could be compared with its own.

    The night itself may be among the others.
    """
    alike = [
        other
        for other in others
        if other.header.tag != night.header.tag and _bench(other) == _bench(night)
    ]
    found = [of_night(state) for state in (night, *alike)]
    return FalseKeeps.of(sum(each.placebos for each in found), sum(each.kept for each in found))


def sentence(night: FalseKeeps, everywhere: FalseKeeps) -> str:
    """Both rates in words; empty without a placebo."""
    said = []
    if night.placebos:
        said.append(f"Of {_trials(night)} (the champion unchanged) {night}.")
    if everywhere.placebos > night.placebos:
        said.append(f"Of {_trials(everywhere)} of all comparable nights {everywhere}.")
    return " ".join(said)


def _trials(found: FalseKeeps) -> str:
    return counted(found.placebos, "placebo trial")


def nights(folder: Path) -> list[NightState]:
    """All nights in the folder nights/, but for damaged ones and those of another version."""
    found = []
    for path in sorted(folder.glob(f"*/{night_folder.LEDGER}")):
        # The last two errors: a field of another type.
        with contextlib.suppress(NightlyError, OSError, ValueError, AttributeError):
            found.append(night_folder.read_state(path.parent))
    return found


def _bench(state: NightState) -> tuple[object, ...]:
    """What a night's scores depend on, and the rule that they are judged by."""
    settings, baseline = state.header.settings.model_dump(exclude=APART), state.baseline
    if baseline is None:
        return (settings,)
    return settings, baseline.dataset, baseline.hardware, baseline.facts.get("metric")
