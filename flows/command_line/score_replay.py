"""A replay of a recorded score: whether it is reproduced, and by which test."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from typing import Any, Literal

from flows.command_line.recorded_score import RecordedScore
from tasks.errors import UsageError
from tasks.noise import SD_FLOOR, Noise
from tasks.records import RunResult
from tasks.trial import hardware, reproduction
from tasks.trial.reproduction import Equality

Outcome = Literal["reproduced", "not reproduced", "stopped", "other hardware"]
EXIT_CODES: dict[Outcome, int] = {
    "reproduced": 0,
    "not reproduced": 3,
    "stopped": 3,
    "other hardware": 4,
}
# No night uses seeds so large. Each replay takes the same ones, so that it can be repeated.
BEFORE_FRESH_SEEDS = 1_000_000


@dataclasses.dataclass(frozen=True)
class ScoreReplay:
    recorded: RecordedScore
    seeds: tuple[int, ...]
    hardware: str  # hardware.label() of this machine
    scores: tuple[float, ...] = ()
    stopped: str | None = None  # which run was stopped, and why

    @classmethod
    def plan(cls, recorded: RecordedScore, fresh_seeds: int | None) -> ScoreReplay:
        """What to run: the recorded seeds, or so many fresh ones.

        Raises UsageError if the result could not be judged.
        """
        seeds = recorded.seeds
        if fresh_seeds:
            used = max(BEFORE_FRESH_SEEDS, *seeds)
            seeds = tuple(range(used + 1, used + 1 + fresh_seeds))
        profile = recorded.profile
        planned = cls(recorded, seeds, hardware.label(profile.device, profile.threads))
        if recorded.noise is None and len(seeds) == 1 and not planned.is_exact:
            raise UsageError(
                f"the noise of {recorded.commit[:7]} is not on record, and one run cannot show it: "
                "use --seeds 3"
            )
        return planned

    def after(self, run: RunResult) -> ScoreReplay:
        """The same with one run more.

        Raises UsageError for a run that was scored with another version of the metric.
        """
        if run.val_bpb is None:
            why = f"seed {run.seed}: {run.status}: {run.reason}"
            return dataclasses.replace(self, stopped=why)
        self.recorded.check_metric(run)
        return dataclasses.replace(self, scores=(*self.scores, run.val_bpb))

    @property
    def is_same_hardware(self) -> bool:
        """By the fingerprint, or by the description where the recording has no other."""
        _, _, described = self.hardware.partition(" ")
        return self._has_fingerprint or described == self.recorded.hardware

    @property
    def _has_fingerprint(self) -> bool:
        here, _, _ = self.hardware.partition(" ")
        return (self.recorded.hardware or "").startswith(f"{here} ")

    @property
    def is_exact(self) -> bool:
        """Whether the scores have to be the recorded ones to the last digit.

        A GPU adds in no fixed order, and a budget of seconds gives a different number of tokens
        each time.
        """
        profile, changed = self.recorded.profile, self.recorded.changed
        same = self._has_fingerprint and self.seeds == self.recorded.seeds and not changed
        return same and profile.device == "cpu" and profile.budget.kind == "flops"

    @functools.cached_property
    def equality(self) -> Equality:
        """What the scores say; the hardware must be the same."""
        recorded = self.recorded
        if self.is_exact:
            return reproduction.identical(recorded.val_bpb, self.scores)
        noise = recorded.noise or Noise(SD_FLOOR, 0)
        return reproduction.compare(recorded.val_bpb, len(recorded.seeds), noise, self.scores)

    @property
    def outcome(self) -> Outcome:
        if self.stopped:
            return "stopped"
        if not self.is_same_hardware:
            return "other hardware"
        is_reproduced = self.equality.holds and not self.recorded.contradictions
        return "reproduced" if is_reproduced else "not reproduced"

    @property
    def reason(self) -> str:
        outcome = self.outcome
        if outcome == "stopped":
            return str(self.stopped)
        if outcome == "other hardware":
            return f"the score was recorded on {self._other()}, so the two are not compared"
        equal = self.equality
        if equal.holds and self.recorded.contradictions:
            return "the commit is not as its night recorded it"
        if self.is_exact and equal.holds:
            return "the same seeds gave the same score, to the last digit"
        if self.is_exact:
            difference = _signed(equal.difference)
            return f"the same seeds on the same CPU gave a score that is {difference} bits per byte"
        assert equal.z is not None
        enough = "no more" if equal.holds else "more"
        return (
            f"the replay is {_signed(equal.difference)} bits per byte, {abs(equal.z):.1f} standard "
            f"errors: {enough} than chance explains in 99 of 100 replays"
        )

    def _other(self) -> str:
        if not self.recorded.hardware:
            return "unknown hardware"
        if self.recorded.hardware.partition(" ")[2] == self.hardware.partition(" ")[2]:
            return "hardware of the same description with another system or Python"
        return "other hardware"

    def text(self) -> str:
        """The outcome, both scores, and how much they say."""
        recorded = self.recorded
        lines = [f"{self.outcome}: {self.reason}"]
        lines += [f"but {line}" for line in recorded.contradictions]
        if self.scores and not self.stopped:
            seeds = f"seeds {_listed(self.seeds)}"
            if self.seeds != recorded.seeds:
                seeds = f"recorded with seeds {_listed(recorded.seeds)}, replayed with {seeds}"
            lines.append(
                f"recorded {recorded.val_bpb:.6f}, replayed {statistics.fmean(self.scores):.6f}: "
                f"{seeds}, profile {recorded.profile.name}"
            )
            lines += self._precision() if self.is_same_hardware else ()
        if not self.is_same_hardware:
            lines.append(f"recorded on: {recorded.hardware or 'unknown'}")
            lines.append(f"replayed on: {self.hardware}")
        if recorded.changed:
            lines.append(f"note: {', '.join(recorded.changed)} changed since: scores may differ")
        return "\n".join([*lines, *(f"note: {note}" for note in recorded.notes)])

    def _precision(self) -> list[str]:
        if self.is_exact:
            return []
        equal, recorded = self.equality, self.recorded.noise
        noises = [f"recorded {_told(recorded)}" if recorded else "not recorded"]
        if equal.noise:
            noises.append(f"in the replay {_told(equal.noise)}")
        return [
            f"sd of one run: {', '.join(noises)}",
            f"9 of 10 such replays would detect a difference of {equal.visible:.4f} bits per byte",
        ]

    def to_json(self) -> dict[str, Any]:
        """All of it, as numbers; `equality` is None where nothing was compared."""
        recorded = self.recorded
        is_compared = self.is_same_hardware and not self.stopped
        noise = reproduction.own_noise(self.scores)
        return {
            "outcome": self.outcome,
            "reason": self.reason,
            "commit": recorded.commit,
            "trial": recorded.trial,
            "profile": recorded.profile.name,
            "recorded": {
                "val_bpb": recorded.val_bpb,
                "seeds": recorded.seeds,
                "noise": recorded.noise and dataclasses.asdict(recorded.noise),
                "hardware": recorded.hardware,
            },
            "replayed": {
                "val_bpb": statistics.fmean(self.scores) if self.scores else None,
                "seeds": self.seeds,
                "scores": self.scores,
                "noise": noise and dataclasses.asdict(noise),
                "hardware": self.hardware,
            },
            "equality": self._equality_json() if is_compared else None,
            "contradictions": recorded.contradictions,
            "notes": recorded.notes,
            "changed": recorded.changed,
        }

    def _equality_json(self) -> dict[str, Any]:
        equal = self.equality
        return {
            "holds": equal.holds,
            "exact": self.is_exact,
            "difference": equal.difference,
            "z": equal.z,
            "visible": equal.visible,
        }


def _signed(difference: float) -> str:
    return f"{'worse' if difference > 0 else 'better'} by {abs(difference):.6f}"


def _told(noise: Noise) -> str:
    return f"{noise.sd:.6f} (df {noise.degrees_of_freedom})"


def _listed(seeds: tuple[int, ...]) -> str:
    return " ".join(map(str, seeds))
