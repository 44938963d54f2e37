"""The baseline on this machine, measured once and cached: what limits every candidate after it."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger

from configs import Profile, knobs
from tasks import cache
from tasks.errors import UsageError
from tasks.history import champion, git_plumbing
from tasks.noise import Noise
from tasks.records import TRAIN, Baseline, Bench, Candidate
from tasks.trial import hardware
from tasks.trial.baseline import baseline_files, read_baseline
from tasks.trial.baseline_facts import baseline_facts
from tasks.trial.experiment import Report


def unpatched(root: Path, profile: Profile) -> Candidate:
    """The committed train.py with the profile's knobs: what a night of a clean checkout starts at.

    The file itself where git has no commit. Raises UsageError.
    """
    is_committed = git_plumbing.resolve(root, "HEAD") is not None
    source = champion.source_at(root, "HEAD") if is_committed else (root / TRAIN).read_text("utf-8")
    return Candidate.parse(with_knobs(source, profile))


def with_knobs(source: str, profile: Profile) -> str:
    """A train.py with the profile's knobs written into it, all else as it is.

    Raises UsageError for a knob that cannot be written.
    """
    # Python ignores the mark that some editors put at a file's beginning, and its parser does not.
    source = source.removeprefix("\ufeff")
    try:
        return knobs.write(source, profile.train)
    except knobs.KnobError as error:
        raise UsageError(f"profile {profile.name}, [train]: {error}") from error


def measured(base: Candidate, bench: Bench, report: Report) -> Baseline:
    """The baseline of a bench, from the cache if it is there. Call it inside a flow."""
    profile = bench.profile
    facts = {**baseline_facts(base, bench), "home": str(bench.home)}
    fingerprint = hardware.fingerprint(profile.device, profile.threads)
    key = cache.key("baseline", 7, **facts, hardware=fingerprint)
    machine = hardware.describe(profile.device, profile.threads)
    files, cached = cache.ensure(baseline_files, key, base, bench, machine, report)
    baseline = read_baseline(Path(files[0].path))
    get_run_logger().info(
        f"baseline: {'cached' if cached else 'measured'}: {baseline.val_bpb:.6f} bits per byte, "
        f"sd {Noise.pooled([baseline.scores]).sd:.6f} over 3 seeds"
    )
    return baseline
