"""What a night is opened with: its header in the ledger, and from that header everything that stays the same to its end."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import get_run_logger, runtime

import configs
from configs import knobs
from flows import preparation, state_home
from flows.night import researcher
from flows.night.isolation import choose_isolation, end_orphans
from flows.night.night import Night, Request
from flows.night.session import Session
from tasks import cache
from tasks.errors import UsageError
from tasks.files import FileRef
from tasks.history import champion, night_folder
from tasks.history.llm_calls import CallLog
from tasks.judge.bwrap import Isolation
from tasks.records import TRAIN, Baseline, Dataset
from tasks.trial import hardware, verdict
from tasks.trial.baseline import baseline_facts, baseline_files, caps_after, read_baseline
from tasks.trial.experiment import Tell


def new_night(tag: str, request: Request) -> tuple[dict[str, Any], str]:
    """The ledger's first event, every choice of the night, the profile's where none was given; and the source of its baseline.

    Raises UsageError for whatever cannot become a night, BoxError where no box can be made: before any work is done.
    """
    home, settings = state_home.locate(), _settings(request)
    checkout = champion.open_checkout(state_home.ROOT)
    champion.check_tag(checkout.root, tag)
    trials, hours = request.trials, request.hours
    if not (trials or hours):  # eight hours asked for are not the profile's four trials
        trials, hours = settings.night.trials, settings.night.hours
    header = {
        "tag": tag,
        "began": datetime.now(UTC).isoformat(),
        "profile": request.profile,
        "proposer": request.proposer or settings.night.proposer,
        "patches": request.patches or settings.night.patches,
        "seed": request.seed,
        "trials": trials,
        "hours": hours,
        "head": checkout.head,
        "branch": checkout.branch,
        "dirty": checkout.dirty,
        "train_dirty": checkout.train_dirty,
        "isolation": choose_isolation(home, settings, request.allow_unsandboxed),
        "flow_run": str(runtime.flow_run.id),
        "deployment": runtime.deployment.name,
        "settings": settings.model_dump(
            mode="json"
        ),  # a profile that is edited later is another night's
    }
    if request.model and header["proposer"] not in configs.ASK_A_MODEL:
        raise UsageError(
            f"--model {request.model} is for the proposers llm and mixed, and this night's is {header['proposer']}"
        )
    researcher.check(
        header
    )  # a missing key or folder of patches is said now, not after the baseline
    header["program"] = researcher.program_facts(header)
    get_run_logger().info(f"night {tag}: profile {settings.name}, from {checkout.describe()}")
    return header, base_source(checkout.root, settings)


def _settings(request: Request) -> configs.Profile:
    """The profile with what the request says of it."""
    profile = configs.load(request.profile)
    llm = profile.llm.model_copy(update={"model": request.model} if request.model else {})
    return profile.model_copy(update={"llm": llm})


def base_source(root: Path, profile: configs.Profile) -> str:
    """The checkout's train.py with the profile's knobs written into it: what the night is measured against."""
    try:
        return knobs.write((root / TRAIN).read_text(encoding="utf-8"), profile.train)
    except knobs.KnobError as error:
        raise UsageError(f"profile {profile.name}, [train]: {error}") from error


def open_night(held: Session) -> Night:
    """Prepares data and baseline, from the cache where they are there, and puts the night together.

    One that goes on keeps the baseline that it began with. Raises UsageError where that is gone and cannot be had again.
    """
    header, home, began = held.state.header, state_home.locate(), held.state.baseline or {}
    settings = _profile(header)
    end_orphans(home, header["isolation"])
    held.pulse.enter("preparing the data")
    dataset = as_begun(preparation.prepare_dataset(settings, home), began)
    base = _base(held)
    kept = _kept_baseline(held.folder) if began else None
    baseline = kept or _baseline(
        base, settings, dataset, home, header["isolation"], held.pulse.enter
    )
    if began:
        _expect_same("a baseline of", began["scores"], list(baseline.scores), header["tag"])
    if kept is None:
        FileRef.write(
            held.folder / night_folder.BASELINE, json.dumps(dataclasses.asdict(baseline)).encode()
        )
    return Night(
        tag=header["tag"],
        folder=held.folder,
        home=home,
        root=state_home.ROOT,
        profile=settings,
        dataset=dataset,
        base=base,
        baseline=baseline,
        isolation=header["isolation"],
        seed=header["seed"],
        calls=CallLog(held.folder / night_folder.CALLS),
    )


def check_comparable(night: Night, began: dict[str, Any] | None) -> None:
    """Raises UsageError when trials would be measured otherwise than the baseline of that event was: with another harness,
    other data, on other hardware.
    """
    if began is None:
        return
    _expect_same(
        "hardware",
        began["hardware"],
        hardware.describe(night.profile.device, night.profile.threads),
        night.tag,
    )
    found = baseline_facts(night.base, night.profile, night.dataset, night.isolation)
    for what, was in began.get(
        "facts", {"dataset": began.get("dataset", night.dataset.fingerprint)}
    ).items():
        _expect_same(what, was, found.get(what, "none"), night.tag)


def as_begun(dataset: Dataset, began: dict[str, Any]) -> Dataset:
    """Without the attention kernels that could not be had when the night began: with them it would be another one."""
    facts = began.get("facts")
    if facts is None:
        return dataset
    kernels = tuple(
        kernel for kernel in dataset.attention_kernels if Path(kernel.path).stem in facts
    )
    return dataclasses.replace(dataset, attention_kernels=kernels)


def _kept_baseline(folder: Path) -> Baseline | None:
    try:
        baseline = read_baseline(folder / night_folder.BASELINE)
    except (OSError, ValueError, KeyError, TypeError):  # gone or damaged: the cache may have it
        return None
    compiled = baseline.kernels if baseline.kernels and Path(baseline.kernels).is_file() else None
    return dataclasses.replace(baseline, kernels=compiled)


def _profile(header: dict[str, Any]) -> configs.Profile:
    return (
        configs.Profile(**header["settings"])
        if "settings" in header
        else configs.load(header["profile"])
    )


def _base(held: Session) -> str:
    """The baseline's train.py: a file until git has it."""
    if held.state.start_commit:
        return champion.source_at(state_home.ROOT, held.state.start_commit)
    return (held.folder / night_folder.BASE).read_text(encoding="utf-8")


def _expect_same(what: str, began: object, found: object, tag: str) -> None:
    if began != found:
        raise UsageError(
            f"night {tag} was begun with {what} {began} and would go on with {found}: scores of the two are never compared. "
            f"Go on where it began, or start a new night with another --tag"
        )


def _baseline(
    base: str,
    profile: configs.Profile,
    dataset: Dataset,
    home: Path,
    isolation: Isolation,
    tell: Tell,
) -> Baseline:
    machine = hardware.describe(profile.device, profile.threads)
    facts = {**baseline_facts(base, profile, dataset, isolation), "home": str(home)}
    key = cache.key(
        "baseline", 2, **facts, hardware=hardware.fingerprint(profile.device, profile.threads)
    )
    files, cached = cache.ensure(
        baseline_files, key, base, profile, dataset, home, isolation, machine, tell
    )
    baseline = read_baseline(Path(files[0].path))
    sd = verdict.pooled_sd([baseline.scores])
    found = "cached" if cached else "measured"
    get_run_logger().info(
        f"baseline: {found}: {baseline.val_bpb:.6f} bits per byte, sd {sd:.6f} over 3 seeds"
    )
    return baseline


def baseline_event(night: Night) -> dict[str, Any]:
    """The ledger's event `baseline`."""
    scores, runs, caps = night.baseline.scores, night.baseline.runs, caps_after(night.baseline)
    return {
        "val_bpb": night.baseline.val_bpb,
        "scores": scores,
        "seeds": [run.seed for run in runs],
        "sd": verdict.pooled_sd([scores]),
        "audit_gaps": [run.audit_gap for run in runs],
        "audit_allowed": {"gap": caps.audit_gap, "position": caps.audit_position},
        "hardware": night.baseline.hardware,
        "dataset": night.dataset.fingerprint,
        "facts": baseline_facts(night.base, night.profile, night.dataset, night.isolation),
        "wall_seconds": max(run.wall_seconds or 0.0 for run in runs),
        "seconds": sum(run.seconds or 0.0 for run in runs) / len(runs),
        "peak_memory_bytes": max(run.peak_memory_bytes or 0 for run in runs) or None,
        "knobs": knobs.read(night.base),
    }
