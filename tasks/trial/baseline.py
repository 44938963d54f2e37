"""The baseline: the unpatched train.py with three seeds, and what a run may use and deviate, measured by it."""

from __future__ import annotations

import hashlib
import json
import secrets
import statistics
from dataclasses import asdict, replace
from pathlib import Path

from prefect import task

from configs import Profile
from tasks.errors import BaselineStopped
from tasks.files import FileRef
from tasks.judge import audit
from tasks.judge.bwrap import Isolation
from tasks.judge.workplace import FIXED_FILES, TRAINER
from tasks.records import Baseline, Caps, Dataset, RunResult
from tasks.trial.experiment import Tell, naming, run_experiment
from trainer import prepare

SEEDS = (1, 2, 3)
CPU_TIMES, WALL_TIMES, STARTUP_TIMES = 1.5, 3.0, 2.0  # of the baseline's own
LOG_SHOWN = 2000  # characters, of a baseline that does not get through
UNUSUAL_TIMES, UNUSUAL_SECONDS = (
    1.5,
    5.0,
)  # a start-up longer than this many times the baseline's and so much more
MIN_STARTUP_SECONDS = (
    60.0  # of which most is importing torch on a machine that has just become busy
)


def first_caps(profile: Profile) -> Caps:
    """The caps of a run before there is a baseline: the profile's limits, and on a CPU the strict tolerance."""
    tolerance = audit.STRICT if profile.device == "cpu" else audit.LAX
    return Caps(
        None,
        profile.limits.train_seconds,
        profile.limits.startup_seconds,
        tolerance.gap,
        tolerance.position,
    )


def caps_after(baseline: Baseline) -> Caps:
    """The caps of a candidate: multiples of what the baseline used and of what its audits were off by."""
    runs = baseline.runs
    tolerance = audit.calibrate(
        [run.audit_gap or 0.0 for run in runs], [run.audit_worst or 0.0 for run in runs]
    )
    return Caps(
        cpu_seconds=CPU_TIMES * statistics.median(run.cpu_seconds or 0.0 for run in runs),
        wall_seconds=WALL_TIMES * statistics.median(run.seconds or 0.0 for run in runs),
        startup_seconds=max(
            STARTUP_TIMES * max(run.startup_seconds or 0.0 for run in runs), MIN_STARTUP_SECONDS
        ),
        audit_gap=tolerance.gap,
        audit_position=tolerance.position,
        kernels=baseline.kernels,
    )


def unusual(baseline: Baseline, run: RunResult) -> str | None:
    """What is out of the ordinary about a run's start-up, which no budget pays for; None if nothing is."""
    for what, field in (
        ("start-up took", "startup_seconds"),
        ("the GPU was busy before go for", "startup_gpu_seconds"),
    ):
        usual = [seconds for base in baseline.runs if (seconds := getattr(base, field)) is not None]
        took = getattr(run, field)
        if usual and took is not None and took > UNUSUAL_TIMES * max(usual) + UNUSUAL_SECONDS:
            return f"{what} {took:.0f} s, the baseline's {max(usual):.0f} s"
    return None


def baseline_facts(
    source: str, profile: Profile, dataset: Dataset, isolation: Isolation
) -> dict[str, str]:
    """What a baseline's scores depend on besides the hardware: its cache key is made of it."""
    return {
        **{name: hashlib.sha256((TRAINER / name).read_bytes()).hexdigest() for name in FIXED_FILES},
        "train.py": hashlib.sha256(source.encode()).hexdigest(),
        "dataset": dataset.fingerprint,
        **{Path(kernel.path).stem: kernel.sha256 for kernel in dataset.attention_kernels},
        "budget": profile.budget.model_dump_json(),
        "metric": str(prepare.METRIC_VERSION),
        "isolation": isolation,
    }


def measure_baseline(
    source: str,
    profile: Profile,
    dataset: Dataset,
    home: Path,
    isolation: Isolation,
    hardware: str,
    kernels: Path,
    tell: Tell = lambda phase: None,
) -> Baseline:
    """Runs the unpatched train.py with seeds 1, 2 and 3, each audited. Raises BaselineStopped when one does not get through.

    On a GPU a run leaves what it compiled in the new file `kernels`, and whoever runs next starts from a copy. The second
    run does so again: torch names its kernels otherwise where some were loaded first, as for every run after it.
    """
    runs: list[RunResult] = []
    caps = replace(first_caps(profile), audit_gap=audit.LAX.gap, audit_position=audit.LAX.position)
    for seed in SEEDS:
        exported = kernels if profile.device == "cuda" and len(runs) < 2 else None
        run = run_experiment(
            source,
            profile,
            dataset,
            home,
            seed=seed,
            caps=caps,
            isolation=isolation,
            worth_audit=lambda claimed: True,
            export_kernels=exported,
            tell=naming(f"baseline, seed {seed}", tell),
        )
        if run.val_bpb is None:
            raise BaselineStopped(
                f"the baseline itself was stopped: {run.status}: {run.reason}. Mend trainer/train.py or the table [train] of "
                f"profile {profile.name!r}\nIts log ends:\n{run.log[-LOG_SHOWN:]}"
            )
        runs.append(run)
        caps = replace(caps, kernels=str(kernels) if kernels.is_file() else None)
    return Baseline(runs=tuple(runs), hardware=hardware, kernels=caps.kernels)


def read_baseline(path: Path) -> Baseline:
    """The baseline that `baseline_files` wrote."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    return Baseline(**{**saved, "runs": tuple(map(RunResult.from_json, saved["runs"]))})


@task(
    name="measure-baseline",
    persist_result=True,
    cache_key_fn=lambda _, parameters: str(parameters["key"]),
)
def baseline_files(
    key: str,
    source: str,
    profile: Profile,
    dataset: Dataset,
    home: Path,
    isolation: Isolation,
    hardware: str,
    tell: Tell,
) -> tuple[FileRef, ...]:
    """`measure_baseline` as a cached Prefect task: a JSON file under data/baselines, and beside it what was compiled."""
    path = home / "data" / "baselines" / f"{key.rpartition(':')[2][:16]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kernels = path.with_name(
        f"{path.stem}-{secrets.token_hex(4)}.kernels"
    )  # a night on another GPU may measure the same
    found = measure_baseline(source, profile, dataset, home, isolation, hardware, kernels, tell)
    saved = FileRef.write(path, json.dumps(asdict(found)).encode())
    return (saved, _reference(Path(found.kernels))) if found.kernels else (saved,)


def _reference(path: Path) -> FileRef:
    with path.open("rb") as file:
        return FileRef(
            str(path), hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
        )
