"""The baseline: the unpatched train.py with three seeds, and the limits that follow from it."""

from __future__ import annotations

import dataclasses
import json
import secrets
import statistics
from collections.abc import Sequence
from pathlib import Path

from prefect import task

from configs import Budget, Profile
from tasks import cache
from tasks.errors import BaselineStopped
from tasks.files import FileRef
from tasks.judge import audit, meter
from tasks.judge.protocol import PHASES
from tasks.judge.reference import Reference
from tasks.judge.workplace import workplace
from tasks.records import Baseline, Bench, Candidate, Caps, RunResult
from tasks.trial import allowance, inspection
from tasks.trial.early_run import PATIENCE
from tasks.trial.experiment import (
    Report,
    checkpoint_of,
    ignore,
    naming,
    run_experiment,
)

SEEDS = (1, 2, 3)
# Multiples of the baseline's own wall clock and start-up that a candidate may use.
WALL_TIMES = 3.0
MIN_WALL_SECONDS = 30.0  # a machine that has just become busy: what hangs may take so long
STARTUP_TIMES = 2.0
MIN_STARTUP_SECONDS = 60.0  # importing torch on a machine that has just become busy
# Beyond a `seconds` budget: a last step may be that much longer than those before it.
MIN_SLACK_SECONDS = 1.0
HANDOVER_TIMES = 2.0
LOG_SHOWN = 2000  # characters, of a baseline that is stopped
# A start-up is unusual if it takes this many times the baseline's, and so many seconds more.
UNUSUAL_TIMES = 1.5
UNUSUAL_SECONDS = 5.0
UNUSUAL_BYTES = 2**16  # of a checkpoint, above as many times what parameters and buffers need


def first_caps(profile: Profile) -> Caps:
    """The limits of a run before there is a baseline: the profile's, strict audits on a CPU."""
    tolerance = audit.STRICT if profile.device == "cpu" else audit.LAX
    return Caps(
        cpu_seconds=None,
        wall_seconds=profile.limits.train_seconds,
        startup_seconds=profile.limits.startup_seconds,
        audit_gap=tolerance.gap,
        audit_position=tolerance.position,
    )


def caps_after(baseline: Baseline, profile: Profile) -> Caps:
    """A candidate's limits: multiples of what the baseline used and of its audits' differences."""
    runs = baseline.runs
    tolerance = audit.calibrate(
        [run.audit_gap or 0.0 for run in runs], [run.audit_worst or 0.0 for run in runs]
    )
    traffic = [bytes_ for run in runs if (bytes_ := allowance.traffic_per_flop(run))]
    longest_startup = max(run.startup_seconds or 0.0 for run in runs)
    return Caps(
        cpu_seconds=allowance.most_of_training(runs),
        wall_seconds=max(
            WALL_TIMES * statistics.median(run.seconds or 0.0 for run in runs), MIN_WALL_SECONDS
        ),
        startup_seconds=max(STARTUP_TIMES * longest_startup, MIN_STARTUP_SECONDS),
        audit_gap=tolerance.gap,
        audit_position=tolerance.position,
        kernels=baseline.kernels,
        usual_cpu_seconds=allowance.usual_training(runs),
        traffic_per_flop=min(traffic) if traffic else None,
        slack_seconds=_slack_seconds(runs, profile.budget),
        startup_cpu_seconds=_startup_cpu_seconds(runs),
        usual=allowance.usual_costs(runs),
        reference=baseline.reference,
    )


def _slack_seconds(runs: Sequence[RunResult], budget: Budget) -> float | None:
    """What a candidate may take beyond a `seconds` budget; None for another budget.

    A trainer ends early by its longest recent step and what a small checkpoint takes, so what the
    baseline took beyond the budget is what its own checkpoint needs. Its hand-over may take twice
    as long for a candidate. Everything above that could be spent on training.
    """
    if budget.kind != "seconds" or not all(run.seconds and run.handover_seconds for run in runs):
        return None
    beyond = max((run.seconds or 0.0) - budget.amount for run in runs)
    handover = max(run.handover_seconds or 0.0 for run in runs)
    needed = max(beyond, 0.0) + HANDOVER_TIMES * handover
    return min(max(needed, MIN_SLACK_SECONDS), budget.slack_seconds)


def _startup_cpu_seconds(runs: Sequence[RunResult]) -> float | None:
    used = [run.startup_cpu_seconds for run in runs if run.startup_cpu_seconds is not None]
    return max(STARTUP_TIMES * max(used), MIN_STARTUP_SECONDS) if used else None


def unusual(baseline: Baseline, run: RunResult, device: str) -> str | None:
    """What is unusual about a run where no budget pays; None if nothing is.

    Its start-up, the cost of loading and scoring, and what its checkpoint holds.
    """
    found = (
        _unusual_startup(baseline, run),
        _unusual_scoring(baseline, run, device),
        _unusual_state(run),
        _unusual_count(run),
    )
    return "; ".join(filter(None, found)) or None


def _unusual_startup(baseline: Baseline, run: RunResult) -> str | None:
    fields = {
        "start-up took": "startup_seconds",
        "the GPU was busy before go for": "startup_gpu_seconds",
    }
    if run.started_early:  # at a low priority, beside a busy GPU: the clock says little
        fields = {
            "start-up's CPU time was": "startup_cpu_seconds",
            "start-up took": "startup_seconds",
        }
    for what, field in fields.items():
        usual = [seconds for base in baseline.runs if (seconds := getattr(base, field)) is not None]
        took = getattr(run, field)
        slow = run.started_early and field == "startup_seconds"
        times = PATIENCE if slow else UNUSUAL_TIMES
        if usual and took is not None and took > times * max(usual) + UNUSUAL_SECONDS:
            return f"{what} {took:.0f} s, the baseline's {max(usual):.0f} s"
    return None


def _unusual_scoring(baseline: Baseline, run: RunResult, device: str) -> str | None:
    """A phase that cost more than a model as dear as the baseline's may use."""
    usual = allowance.usual_costs(baseline.runs)
    for phase, cost in run.costs.items() if usual else ():
        spent = meter.Spent(cost.seconds, cost.cpu_seconds, cost.gpu_seconds)
        limit = allowance.limit(usual, phase, cost.work, device)
        if problem := meter.excess(spent, limit):
            used, most, unit = problem
            _, doing = PHASES[phase]
            return f"used {used:.1f} {unit} while {doing}, a model like the baseline {most:.1f}"
    return None


def _unusual_state(run: RunResult) -> str | None:
    if run.unread:
        return f"no forward pass reads {', '.join(run.unread)} of its checkpoint"
    held, needed = run.checkpoint_bytes, run.state_bytes
    if held and needed and held > UNUSUAL_TIMES * needed + UNUSUAL_BYTES:
        return f"its checkpoint has {held:,} bytes, its parameters and buffers need {needed:,}"
    return None


def _unusual_count(run: RunResult) -> str | None:
    said, counted = run.flops_per_token, run.counted_flops_per_token
    if said is None or counted is None or counted >= said / UNUSUAL_TIMES:
        return None
    return f"said {said:.4g} FLOPs a token, where only {counted:.4g} could be counted"


def measure_baseline(
    candidate: Candidate,
    bench: Bench,
    hardware: str,
    kernels: Path,
    reference: Path,
    report: Report = ignore,
) -> Baseline:
    """Runs the unpatched train.py with seeds 1, 2 and 3, each audited.

    A study box looks at the last one's checkpoint; where that fails, the study says why. What they
    claim on average is left in the new file `reference`. On a GPU a run leaves what it
    compiled in the new file `kernels`, and each later run starts from a copy. The second run writes
    it again: torch gives its kernels other names where some were loaded before, as for every run
    after it.

    Raises BaselineStopped if a run is stopped.
    """
    runs: list[RunResult] = []
    claims: list[Reference] = []
    caps = dataclasses.replace(
        first_caps(bench.profile),
        audit_gap=audit.LAX.gap,
        audit_position=audit.LAX.position,
    )
    with workplace(bench.home) as place:
        bench = dataclasses.replace(bench, checkpoints=place)
        for seed in SEEDS:
            exported = kernels if bench.profile.device == "cuda" and len(runs) < 2 else None
            run = run_experiment(
                candidate,
                dataclasses.replace(bench, caps=caps),
                seed,
                worth_audit=lambda claimed: True,
                export_kernels=exported,
                keep_claims=claims.append,
                report=naming(f"baseline, seed {seed} of {len(SEEDS)}", report),
            )
            if run.val_bpb is None:
                raise BaselineStopped(
                    f"the baseline itself was stopped: {run.status}: {run.reason}. "
                    f"Fix trainer/train.py or the table [train] of profile {bench.profile.name!r}\n"
                    f"Its log ends:\n{run.log[-LOG_SHOWN:]}"
                )
            runs.append(run)
            caps = dataclasses.replace(caps, kernels=str(kernels) if kernels.is_file() else None)
        report("baseline: being studied")
        trained = inspection.Checkpoint(checkpoint_of(place, candidate), runs[-1].tokens or 0)
        study = inspection.study(candidate, dataclasses.replace(bench, caps=caps), trained)
    kept = FileRef.write(reference, Reference.mean(claims).save)
    return Baseline(tuple(runs), hardware, caps.kernels, kept, study)


def read_baseline(path: Path) -> Baseline:
    """The baseline that `baseline_files` wrote."""
    return Baseline.from_json(json.loads(path.read_text(encoding="utf-8")))


@task(
    name="measure-baseline",
    task_run_name="measure the baseline",
    persist_result=True,
    cache_key_fn=cache.given_key,
)
def baseline_files(
    key: str, candidate: Candidate, bench: Bench, hardware: str, report: Report
) -> tuple[FileRef, ...]:
    """`measure_baseline` as a cached task: a JSON file, and beside it claims and kernels."""
    path = bench.home / "data" / "baselines" / f"{cache.short(key)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A unique name: a night on another GPU may measure the same baseline at the same time.
    beside = path.with_name(f"{path.stem}-{secrets.token_hex(4)}.kernels")
    found = measure_baseline(
        candidate, bench, hardware, beside, beside.with_suffix(".claims"), report
    )
    saved = FileRef.write(path, json.dumps(dataclasses.asdict(found)).encode())
    kernels = FileRef.of(Path(found.kernels)) if found.kernels else None
    return tuple(filter(None, (saved, found.reference, kernels)))
