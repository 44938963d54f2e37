"""One run of one file, for `./run trial` and `./run replay`: without a ledger or champion."""

from __future__ import annotations

from prefect import flow

from configs import Profile
from flows import state_home
from flows.night.isolation import check_device, choose_isolation, end_orphans
from flows.preparation import prepare_dataset
from tasks.proposers import proposal
from tasks.records import Bench, Candidate, RunResult
from tasks.trial import device_lock, experiment
from tasks.trial.baseline import first_caps


def check(profile: Profile) -> None:
    """Raises, without a flow run, UsageError for a device that is missing or in use."""
    check_device(profile)
    device_lock.check(state_home.locate(), profile, "a single run")


@flow(name="single-run", flow_run_name="run one file, seed {seed}")
def single_run(source: str, profile: Profile, seed: int, allow_unsandboxed: bool) -> RunResult:
    """Prepares the data, then trains, scores and audits `source` once.

    The static checks come first; duplicates of other candidates are not looked for.
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
        return experiment.train_candidate(
            "one file", candidate, bench, seed, worth_audit=lambda claimed: True, smoke=True
        )
