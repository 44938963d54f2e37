"""The night: prepare, measure the baseline, then propose, train, judge, keep or discard, until the trials or hours are over.

Git and the ledger are the truth; Prefect and MLflow are views of it. The order for a trial: ledger `started`, its runs,
ledger `decided` (the commit point), git, ledger `applied`, MLflow. So a night that was killed goes on where it stopped.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger

import configs
from configs import knobs
from flows import preparation, server, views
from flows.gpu_trial import run_trial
from tasks import cache, champion, experiment, hardware, ledger, proposal, verdict
from tasks.judge import box, probe
from tasks.judge.bwrap import Isolation
from tasks.proposers.replay import ReplayProposer
from tasks.proposers.tpe import TpeProposer
from tasks.records import BoxError, Caps, Dataset, NightSoFar, Proposal, RunResult, Trial, UsageError, Verdict


@dataclasses.dataclass(frozen=True)
class Night:
    """What stays the same from the first trial to the last."""

    tag: str
    folder: Path
    home: Path
    root: Path  # the checkout
    profile: configs.Profile
    dataset: Dataset
    caps: Caps
    isolation: Isolation
    seed: int
    proposer: proposal.Proposer


@flow(name="nightly-research", flow_run_name=views.flow_run_name)
def nightly_research(
    tag: str | None = None,
    profile: str = "laptop",
    trials: int | None = None,
    hours: float | None = None,
    proposer: str | None = None,
    patches: str | None = None,
    seed: int = 1,
    allow_unsandboxed: bool = False,
) -> str:
    """Runs a research night and returns its tag.

    Args:
        tag: the night's name; its branch is autoresearch/TAG. Default: today, as in nov21.
        profile: a name from configs/ or the path of a .toml file.
        trials: end after this many trials. Default: the profile's.
        hours: start no trial after this many hours. Default: the profile's.
        proposer: tpe or replay. Default: the profile's.
        patches: replay only: the folder of patches.
        seed: first training seed of every candidate, and the proposer's.
        allow_unsandboxed: go on without a sandbox where none can be made; every trial says so.

    Raises:
        NightlyError: a subclass says who must act; the text has the value, the limit and the remedy.
    """
    started, home, settings = time.time(), server.state_home(), configs.load(profile)
    checkout = champion.open_checkout(server.ROOT)
    tag = tag or _free_tag(home)
    champion.check_tag(checkout.root, tag)
    header = {
        **dataclasses.asdict(checkout),
        "tag": tag,
        "profile": profile,
        "proposer": proposer or settings.night.proposer,
        "patches": patches or settings.night.patches,
        "seed": seed,
        "trials": trials or settings.night.trials,
        "hours": hours or settings.night.hours,
        "isolation": _isolation(home, settings, allow_unsandboxed),
    }
    make_proposer(header, settings)  # a bad folder of patches is said now, not after the baseline
    log = get_run_logger()
    log.info(f"night {tag}: profile {profile}, started from {checkout.describe()}")
    dataset = preparation.prepare_dataset(settings, home)
    source = knobs.write((checkout.root / champion.TRAIN).read_text(encoding="utf-8"), settings.train)
    baseline = measure_baseline(source, settings, dataset, home, header["isolation"])
    with ledger.Ledger.create(home / "nights" / tag / "ledger.jsonl") as book:
        (book.path.parent / "base.py").write_text(source, encoding="utf-8")
        book.append("night", **header, dataset=dataset.fingerprint, started=started)
        book.append("baseline", **baseline)
        return go_on(book)


@flow(name="resume-night", flow_run_name="resume {tag}")
def resume_night(tag: str) -> str:
    """Goes on with an interrupted night: finishes what was decided, runs again only the trial that was in flight."""
    path = server.state_home() / "nights" / tag / "ledger.jsonl"
    with ledger.Ledger.open(path) as book:
        if finished := ledger.fold(book.events()).finished:
            raise UsageError(f"night {tag} is finished ({finished}); start a new one with another --tag")
        return go_on(book)


def go_on(book: ledger.Ledger) -> str:
    """The loop, from wherever the ledger says the night is, to its end and its report."""
    night, log = _night(book), get_run_logger()
    state = ledger.fold(book.events())
    if not state.champion:
        base = (night.folder / "base.py").read_text(encoding="utf-8")
        champion.start_branch(night.root, night.tag, state.header["head"], base, f"night {night.tag}: the baseline")
    views.show_baseline(night.home, night.folder, state)
    while not (reason := _over(night, ledger.fold(book.events()))):
        if not one_trial(night, book):
            reason = f"the {night.proposer.name} proposer has nothing left to propose"
            break
    book.append("finished", reason=reason)
    state = ledger.fold(book.events())
    log.info(f"night {night.tag} is over: {reason}")
    views.show_end(night.home, night.folder, state)
    return night.tag


def one_trial(night: Night, book: ledger.Ledger) -> bool:
    """Proposes and takes one trial to its end. False when nothing was proposed."""
    log, state = get_run_logger(), ledger.fold(book.events())
    if state.pending:  # killed between decided and applied
        _apply(night, book, state.pending)
        return True
    number, parent = len(state.trials) + 1, state.champion
    current = champion.source_at(night.root, parent)
    proposed = proposal.propose_patch(night.proposer, _so_far(night, state, current), _seen(state))
    if proposed is None:
        return False
    folder = _keep_proposal(night.folder / "trials" / str(number), current, proposed)
    book.append("started", trial=number, proposer=proposed.proposer, summary=proposed.summary, parent=parent)
    log.info(f"trial {number}: {proposed.summary}")
    runs, decided = _run_and_judge(night, state, current, proposed)
    trial = _trial(night, number, parent, proposed, runs, decided)
    _keep_runs(folder, runs, trial)
    book.append("decided", trial=_without_commit(trial))
    _apply(night, book, trial)
    score = "no score" if trial.val_bpb is None else f"{trial.val_bpb:.6f} bits per byte"
    log.info(f"trial {number}: {trial.verdict}: {trial.reason} ({trial.status}, {score})")
    return True


def _run_and_judge(
    night: Night, state: ledger.NightState, current: str, proposed: Proposal
) -> tuple[tuple[RunResult, ...], Verdict]:
    if proposed.problem:
        return (), verdict.failed("rejected_patch", proposed.problem)
    return run_trial(
        proposed.source,
        lines_added=_code_lines(proposed.source) - _code_lines(current),
        champion_scores=state.champion_scores,
        sd=verdict.pooled_sd(state.groups),
        profile=night.profile,
        dataset=night.dataset,
        home=night.home,
        seed=night.seed,
        caps=night.caps,
        isolation=night.isolation,
    )


def _apply(night: Night, book: ledger.Ledger, trial: Trial) -> None:
    """Git, then ledger `applied`, then the views: each may be done again after a kill and changes nothing then."""
    source = (night.folder / "trials" / str(trial.number) / "train.py").read_text(encoding="utf-8")
    commit = champion.commit_candidate(night.root, night.tag, trial, source)
    if trial.verdict == "keep":
        champion.advance(night.root, night.tag, commit, trial.parent)
    book.append("applied", trial=trial.number, commit=commit)
    views.show_trial(night.home, night.folder, ledger.fold(book.events()))


def _over(night: Night, state: ledger.NightState) -> str | None:
    """Why the night ends now, or None."""
    trials, hours = state.header["trials"], state.header["hours"]
    if state.pending is None and trials and len(state.trials) >= trials:
        return f"all {trials} trials are done"
    if hours and time.time() - state.header["started"] >= hours * 3600:
        return f"the {hours:g} hours are over"
    if (night.folder / "stop").exists():
        return "stopped by ./run stop"
    return None
