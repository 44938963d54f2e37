"""The night: prepare, measure the baseline, then propose, train, judge, keep or discard, until the trials or hours are over.

Git and the ledger are the truth; Prefect and MLflow are views of it. The order for a trial: ledger `started`, runs, ledger
`decided` (the commit point), git, ledger `applied`, MLflow.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from prefect import flow, get_client, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

import configs
from configs import knobs
from flows import preparation, server
from flows.gpu_trial import run_trial
from tasks import champion, experiment, hardware, ledger, proposal, report, tracking, verdict
from tasks.judge import box, probe
from tasks.judge.bwrap import Isolation
from tasks.proposers.replay import ReplayProposer
from tasks.proposers.tpe import TpeProposer
from tasks.records import Baseline, BoxError, Dataset, NightSoFar, Proposal, RunResult, Trial, UsageError


@dataclasses.dataclass(frozen=True)
class Night:
    """What stays the same from the first trial to the last."""

    tag: str
    folder: Path
    home: Path
    root: Path  # the checkout
    profile: configs.Profile
    dataset: Dataset
    baseline: Baseline
    isolation: Isolation
    seed: int
    proposer: proposal.Proposer


@flow(name="nightly-research", flow_run_name="{tag}", persist_result=False)
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
        allow_unsandboxed: go on without a sandbox where none can be made. Every trial says so.

    Raises:
        NightlyError: a subclass that says who must act, with the value, the limit and the remedy.
    """
    settings = configs.load(profile)
    home = server.state_home()
    checkout = champion.open_checkout(server.ROOT)
    tag = tag or _default_tag(home, checkout.root)
    champion.check_tag(checkout.root, tag)
    header = {
        "tag": tag,
        "profile": profile,
        "proposer": proposer or settings.night.proposer,
        "patches": patches or settings.night.patches,
        "seed": seed,
        "trials": trials or settings.night.trials,
        "hours": hours or settings.night.hours,
        "head": checkout.head,
        "branch": checkout.branch,
        "dirty": checkout.dirty,
        "train_dirty": checkout.train_dirty,
        "allow_unsandboxed": allow_unsandboxed,
    }
    return _run_night(header, settings, home, checkout.root)


def _default_tag(home: Path) -> str:
    """Today as in nov21; nov21-2 where that night exists."""
    today = date.today().strftime("%b%d").lower()
    taken = {path.name for path in (home / "nights").glob("*")}
    return next(name for name in (today, *(f"{today}-{i}" for i in range(2, 1000))) if name not in taken)
