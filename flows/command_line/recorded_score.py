"""A candidate's score on record: what was measured, with which profile, seeds, noise and hardware.

The commit has the source and, in its trailers, all but the profile, which the night's ledger has.
Commits of older nights say nothing of noise and hardware: those come from the ledger, too.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path

import configs
from tasks.errors import UsageError
from tasks.history import champion, git_plumbing, ledger, night_folder
from tasks.judge.workplace import FIXED_FILES
from tasks.noise import Noise, noise_of
from tasks.records import NightState, RunResult, Trial
from tasks.text import one_line

# Of a profile: what a score depends on. The licence of the data is only shown.
COMPARABLE = ("device", "threads", "data", "budget", "attention_kernels")
NOISE = re.compile(r"(\d+\.\d+) \(df (\d+)\)")


@dataclasses.dataclass(frozen=True)
class RecordedScore:
    commit: str
    trial: str  # TAG:K
    source: str  # the whole train.py
    val_bpb: float  # bits per byte, the mean over the seeds, as the trailer has it
    seeds: tuple[int, ...]
    profile: configs.Profile
    metric: str | None  # version of the metric; None where the night is unknown
    noise: Noise | None  # of one run; None: unknown
    # Fingerprint and description, or in older nights the description alone; None: unknown.
    hardware: str | None
    changed: tuple[str, ...]  # files of trainer/ that are not as they were
    notes: tuple[str, ...]  # what is not in the commit, and where it comes from
    contradictions: tuple[str, ...]  # where the commit and its night's ledger differ

    def check_metric(self, run: RunResult) -> None:
        """Raises UsageError for a run that was scored with another version of the metric."""
        if self.metric not in (None, str(run.metric_version)):
            raise UsageError(
                f"the score on record has metric version {self.metric}, this checkout scores with "
                f"version {run.metric_version}, and the two are not comparable: check out the "
                "commit that the night started from"
            )


def find(root: Path, home: Path, revision: str, profile: str | None) -> RecordedScore:
    """The score of a commit in the checkout `root`, whose night is in the state folder `home`.

    `profile` is a name or a path; None takes the profile of the night.

    Raises:
        UsageError: there is no such commit, it is no measured candidate, its night is unknown and
            no profile is given, or the profile given is not comparable with the night's.
        configs.ProfileError: the profile given cannot be used.
    """
    commit = git_plumbing.resolve(root, revision)
    if commit is None:
        raise UsageError(
            f"there is no commit {revision!r} in {root}: "
            "`git log autoresearch/TAG` lists those of a night"
        )
    found = champion.trailers(root, commit)
    trailers = {name: one_line(value) for name, value in found.items()}  # untrusted text
    seeds = tuple(int(seed) for seed in trailers.get("Seeds", "").split() if seed.isdigit())
    val_bpb = _score(trailers.get("Val-Bpb", ""))
    if not seeds or val_bpb is None:
        raise UsageError(_unmeasured(revision, trailers))
    tag, _, number = trailers.get("Trial-Id", "").rpartition(":")
    night = _night(home / "nights" / tag) if champion.TAG.fullmatch(tag) else None
    if night is None and profile is None:
        why = f"is of night {tag}, which is not in {home}" if tag else "has no trailer Trial-Id"
        raise UsageError(f"{revision} {why}: name the profile of its night with --profile")
    trial = _trial(night, number)
    noise, hardware, notes = _circumstances(trailers, night)
    return RecordedScore(
        commit=commit,
        trial=f"{tag}:{number}",
        source=champion.source_at(root, commit),
        val_bpb=val_bpb,
        seeds=seeds,
        profile=_profile(night, profile),
        metric=night.baseline.facts.get("metric") if night and night.baseline else None,
        noise=noise,
        hardware=hardware,
        changed=champion.changed_since(root, commit, [f"trainer/{name}" for name in FIXED_FILES]),
        notes=(*notes, *_copied(trial, commit)),
        contradictions=_contradictions(tag, trailers, trial),
    )


def _score(text: str) -> float | None:
    try:
        score = float(text)
    except ValueError:  # "-": it was stopped
        return None
    return score if math.isfinite(score) else None


def _unmeasured(revision: str, trailers: Mapping[str, str]) -> str:
    if "Seeds" in trailers:
        return f"{revision} has no score to reproduce: its candidate was stopped or never run"
    if "Gain" in trailers:
        tag, _, number = trailers.get("Trial-Id", "").rpartition(":")
        return (
            f"{revision} is a certified change: its commit records a gain and no score. "
            f"`./run replay refs/trials/{tag}/{number}` measures its trial again"
        )
    return (
        f"{revision} is not a measured candidate of a night: "
        "its message has no 'Seeds:' trailer with a number"
    )


def _circumstances(
    trailers: Mapping[str, str], night: NightState | None
) -> tuple[Noise | None, str | None, list[str]]:
    """Noise and hardware, and notes on what the commit does not say of them."""
    said = NOISE.fullmatch(trailers.get("Noise", ""))
    noise = Noise(float(said[1]), int(said[2])) if said and float(said[1]) else None
    hardware, notes = trailers.get("Hardware"), []
    if noise is None:
        noise = noise_of(night) if night else None
        notes.append(_missing("Noise", "taken from the ledger" if night else "unknown"))
    if hardware is None:
        hardware = night.baseline.hardware if night and night.baseline else None
        notes.append(_missing("Hardware", "taken from the ledger" if hardware else "unknown"))
    return noise, hardware, notes


def _missing(trailer: str, instead: str) -> str:
    return f"the commit has no trailer {trailer}, as in older nights: {instead}"


def _trial(night: NightState | None, number: str) -> Trial | None:
    trials = night.trials if night else ()
    return next((trial for trial in trials if str(trial.number) == number), None)


def _copied(trial: Trial | None, commit: str) -> list[str]:
    if trial is None or trial.commit in (None, commit):
        return []
    return [
        f"the ledger has trial {trial.number} as commit {str(trial.commit)[:7]}: this is a copy"
    ]


def _contradictions(tag: str, trailers: Mapping[str, str], trial: Trial | None) -> tuple[str, ...]:
    known = champion.trailers_of(tag, trial) if trial else {}
    return tuple(
        f"the commit says {name}: {trailers.get(name, 'nothing')}, its night's ledger says {value}"
        for name, value in known.items()
        if trailers.get(name) != value
    )


def _night(folder: Path) -> NightState | None:
    known = ledger.exists(folder / night_folder.LEDGER)
    return night_folder.read_state(folder) if known else None


def _profile(night: NightState | None, given: str | None) -> configs.Profile:
    """The profile given, if its scores are comparable with the night's; else the night's."""
    if given is None:
        assert night is not None
        return night.header.settings
    profile = configs.load(given)
    if night and (different := _differences(night.header.settings, profile)):
        raise UsageError(
            f"--profile {given} differs from the profile of night {night.header.tag} in "
            f"{different}, and scores of the two are not comparable: leave out --profile to use "
            "the night's own"
        )
    return profile


def _differences(one: configs.Profile, other: configs.Profile) -> str:
    """The parts of two profiles that differ and that scores depend on; "" where none does."""
    of_one, of_other = (
        profile.model_dump(include=set(COMPARABLE), exclude={"data": {"license"}})
        for profile in (one, other)
    )
    return ", ".join(name for name in COMPARABLE if of_one[name] != of_other[name])
