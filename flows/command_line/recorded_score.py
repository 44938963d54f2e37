"""A candidate's score on record: what was measured, with which profile and which seeds.

The commit has the source and, in its trailers, score, seeds and trial; the night's ledger has the
profile. Not covered: the hardware, on which a score depends too.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import configs
from tasks.errors import UsageError
from tasks.history import champion, git_plumbing, ledger, night_folder
from tasks.records import NightState, RunResult

# Of a profile: what a score depends on. The licence of the data is only shown.
COMPARABLE = ("device", "threads", "data", "budget", "attention_kernels")


@dataclasses.dataclass(frozen=True)
class RecordedScore:
    source: str  # the whole train.py
    val_bpb: str  # bits per byte, as the trailer has it
    seeds: tuple[int, ...]
    profile: configs.Profile
    metric: str | None  # version of the metric; None where the night is unknown

    def check_metric(self, run: RunResult) -> None:
        """Raises UsageError for a run that was scored with another version of the metric."""
        if self.metric not in (None, str(run.metric_version)):
            raise UsageError(
                f"the score on record has metric version {self.metric}, this checkout scores with "
                f"version {run.metric_version}, and the two are not comparable: check out the "
                "commit that the night started from"
            )


def find(root: Path, home: Path, commit: str, profile: str | None) -> RecordedScore:
    """The score of a commit in the checkout `root`, whose night is in the state folder `home`.

    `profile` is a name or a path; None takes the profile of the night.

    Raises:
        UsageError: there is no such commit, it is no measured candidate, its night is unknown and
            no profile is given, or the profile given is not comparable with the night's.
        configs.ProfileError: the profile given cannot be used.
    """
    if git_plumbing.resolve(root, commit) is None:
        raise UsageError(
            f"there is no commit {commit!r} in {root}: "
            "`git log autoresearch/TAG` lists those of a night"
        )
    trailers = champion.trailers(root, commit)
    seeds = tuple(int(seed) for seed in trailers.get("Seeds", "").split() if seed.isdigit())
    if not seeds:
        raise UsageError(
            f"{commit} is not a measured candidate of a night: "
            "its message has no 'Seeds:' trailer with a number"
        )
    tag = trailers.get("Trial-Id", "").rpartition(":")[0]
    night = _night(home / "nights" / tag) if tag else None
    if night is None and profile is None:
        why = f"is of night {tag}, which is not in {home}" if tag else "has no trailer Trial-Id"
        raise UsageError(f"{commit} {why}: name the profile of its night with --profile")
    return RecordedScore(
        source=champion.source_at(root, commit),
        val_bpb=trailers["Val-Bpb"],
        seeds=seeds,
        profile=_profile(night, profile),
        metric=night.baseline.facts.get("metric") if night and night.baseline else None,
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
