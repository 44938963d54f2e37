"""One run of one file, for `./run trial` and `./run replay`: without a ledger or champion."""

from __future__ import annotations

import dataclasses

from prefect import flow, get_run_logger

from configs import Profile
from flows import state_home
from flows.night import calibration
from flows.night.isolation import check_device, choose_isolation, end_orphans
from flows.preparation import prepare_dataset
from tasks.proposers import proposal
from tasks.records import Bench, Candidate, RunResult
from tasks.trial import device_lock, experiment
from tasks.trial.baseline import caps_after, first_caps


def check(profile: Profile) -> None:
    """Raises, without a flow run, UsageError for a device that is missing or in use."""
    check_device(profile)
    device_lock.check(state_home.locate(), profile, "a single run")


@flow(name="single-run", flow_run_name="run one file, seed {seed}")
def single_run(
    source: str, profile: Profile, seed: int, allow_unsandboxed: bool, baseline: bool
) -> RunResult:
    """Prepares the data, then trains, scores and audits `source` once.

    With `baseline` its limits are those of a night: multiples of what the baseline needed, which is
    measured first unless it is in the cache. The static checks come before all else; duplicates of
    other candidates are not looked for.
    """
    home = state_home.locate()
    candidate = Candidate.parse(source)
    isolation = choose_isolation(home, profile, allow_unsandboxed)
    end_orphans(home, isolation)
    if problem := proposal.check(candidate, {}):
        return experiment.without_figures("rejected_patch", problem, profile, isolation, seed)
    dataset = prepare_dataset(profile, home)
    bench = Bench(profile, dataset, home, isolation, first_caps(profile))
    with device_lock.held(home, device_lock.device_of(profile), "a single run"):
        if baseline:
            base = calibration.unpatched(state_home.ROOT, profile)
            found = calibration.measured(base, bench, get_run_logger().info)
            bench = dataclasses.replace(bench, caps=caps_after(found, profile))
        return experiment.train_candidate(
            "one file", candidate, bench, seed, worth_audit=lambda claimed: True, smoke=True
        )
