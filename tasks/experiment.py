"""One run: a candidate trains in a box, a fresh box claims its losses, the judge scores them.

`run_experiment` returns a RunResult whatever the candidate does; it raises only when we fail. It is never cached and
never retried by Prefect: a crash is a result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from prefect import task
from prefect.cache_policies import NO_CACHE

from configs import Profile
from tasks.judge import protocol, scoring, watchdog
from tasks.judge.box import open_box
from tasks.judge.bwrap import BoxSpec, BoxUnavailable, Gate, Isolation
from tasks.records import Baseline, BaselineStopped, BoxError, Caps, Dataset, FileRef, RunResult, Status
from trainer import prepare

TRAINER = Path(prepare.__file__).parent
FIXED_FILES = ("__init__.py", "prepare.py", "harness.py")  # beside the candidate in a box
BASELINE_SEEDS = (1, 2, 3)
BOX_TRIES = 3  # a box that does not start is our failure: tried again, then the night ends with the reason


def run_experiment(
    source: str, profile: Profile, dataset: Dataset, home: Path, *, seed: int, caps: Caps | None, isolation: Isolation
) -> RunResult:
    """Trains `source` (a whole train.py) with one seed and scores it. `caps` is None for a baseline, which sets them.

    Raises BoxError when this machine cannot run boxes.
    """
    for attempt in range(1, BOX_TRIES + 1):
        try:
            with _workplace(home) as work:
                return _run(source, profile, dataset, home, work, seed, caps, isolation)
        except BoxUnavailable as error:
            if attempt == BOX_TRIES:
                raise BoxError(f"no box could be run, {BOX_TRIES} tries: {error}. `./run doctor` looks closer") from error
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _workplace(home: Path) -> Iterator[Path]:
    """A folder for one run's box, gates and checkpoint, removed afterwards: what is kept of a run is in its RunResult.

    Its name says whose it is, so that the folder of a process that was killed is removed by the next run.
    """
    boxes, host, pid = home / "boxes", platform.node(), os.getpid()
    boxes.mkdir(parents=True, exist_ok=True)
    for left in boxes.glob(f"{host}-*-*-*"):
        owner, born = map(int, left.name.rsplit("-", 3)[1:3])
        if not watchdog.is_alive(owner, born):
            with contextlib.suppress(FileNotFoundError):  # another run removes it at the same time
                _remove(left)
    work = Path(tempfile.mkdtemp(prefix=f"{host}-{pid}-{watchdog.started_at(pid)}-", dir=boxes))
    work.chmod(0o755)
    try:
        yield work
    finally:
        _remove(work)


def _remove(work: Path) -> None:
    for gate in work.glob("*-gate"):
        gate.chmod(0o755)
    shutil.rmtree(work)


def _run(
    source: str,
    profile: Profile,
    dataset: Dataset,
    home: Path,
    work: Path,
    seed: int,
    caps: Caps | None,
    isolation: Isolation,
) -> RunResult:
    limits = profile.limits
    checkpoint = work / "checkpoint" / "model.pt"
    checkpoint.parent.mkdir(mode=0o755)
    spec = BoxSpec(
        role="train",
        code=_assemble(source, work),
        public=Path(dataset.public),
        gate=Gate.closed(work / "train-gate", Path(dataset.train)),
        home=home,
        isolation=isolation,
        seed=seed,
        device=profile.device,
        threads=profile.threads,
        memory_bytes=int(limits.memory_gib * 2**30),
        tasks=limits.tasks,
        tmp_bytes=limits.tmp_mib * 2**20,
    )
    result = without_figures("ok", "trained and scored", profile, seed, isolation)
    try:
        with open_box(spec) as running:
            try:
                trained = protocol.train(
                    running,
                    spec.gate,
                    _budget(profile, caps),
                    checkpoint,
                    startup_seconds=limits.startup_seconds,
                    max_bytes=limits.checkpoint_mib * 2**20,
                )
            finally:
                running.kill()  # the log is whole only once nobody can write to it any more
                peak = running.watchdog.peak_memory_bytes or None
                result = replace(result, log=running.log.text(), peak_memory_bytes=peak)
        result = replace(result, **{name: getattr(trained, name) for name in asdict(trained)})
        spec = replace(spec, role="claim", gate=Gate.closed(work / "claim-gate", checkpoint.parent))
        validation = scoring.Validation(Path(dataset.public), Path(dataset.validation))
        with open_box(spec) as running:  # its log reaches nobody: it could print validation text
            shape, rows, nats = protocol.claims(
                running,
                spec.gate,
                validation.streams,
                prepare.cut_rows,
                startup_seconds=limits.startup_seconds,
                eval_seconds=limits.eval_seconds,
            )
        claimed = validation.score(shape, rows, nats)
        return replace(result, val_bpb=claimed, claimed_bpb=claimed)
    except protocol.Stopped as end:
        return replace(result, status=cast(Status, end.status), reason=end.reason)


def without_figures(status: Status, reason: str, profile: Profile, seed: int, isolation: Isolation) -> RunResult:
    """A result without figures: of a candidate that was never run, or has only started."""
    return RunResult(
        status=status,
        reason=reason,
        val_bpb=None,
        claimed_bpb=None,
        audit_gap=None,
        seconds=None,
        cpu_seconds=None,
        tokens=None,
        startup_seconds=None,
        isolation=isolation,
        metric_version=prepare.METRIC_VERSION,
        profile=profile.name,
        seed=seed,
    )


def _assemble(source: str, work: Path) -> Path:
    """The package `trainer` as the box sees it: our fixed files and the candidate, readable by the box's uid."""
    package = work / "code" / "trainer"
    package.mkdir(parents=True)
    for name in FIXED_FILES:
        shutil.copyfile(TRAINER / name, package / name)
    (package / "train.py").write_text(source, encoding="utf-8", errors="surrogatepass", newline="")
    for path in (package.parent, package, *package.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return package.parent


def _budget(profile: Profile, caps: Caps | None) -> protocol.Budget:
    kind, amount = profile.budget.kind, profile.budget.amount
    if kind == "seconds":
        return protocol.Budget(kind, amount, amount + profile.budget.slack_seconds, None)
    if caps is None:
        return protocol.Budget(kind, amount, profile.limits.train_seconds, None)
    return protocol.Budget(kind, amount, caps.wall_seconds, caps.cpu_seconds)


@task(name="train-candidate", task_run_name="train {what}, seed {seed}", cache_policy=NO_CACHE)
def train_candidate(
    what: str,
    source: str,
    profile: Profile,
    dataset: Dataset,
    home: Path,
    *,
    seed: int,
    caps: Caps | None,
    isolation: Isolation,
) -> RunResult:
    """`run_experiment` as a Prefect task; `what` names it on Prefect's page."""
    return run_experiment(source, profile, dataset, home, seed=seed, caps=caps, isolation=isolation)


def baseline_facts(source: str, profile: Profile, dataset: Dataset, isolation: Isolation) -> dict[str, str]:
    """What a baseline's scores depend on besides the hardware: its cache key is made of it."""
    return {
        **{name: hashlib.sha256((TRAINER / name).read_bytes()).hexdigest() for name in FIXED_FILES},
        "train.py": hashlib.sha256(source.encode()).hexdigest(),
        "dataset": dataset.fingerprint,
        "budget": profile.budget.model_dump_json(),
        "metric": str(prepare.METRIC_VERSION),
        "isolation": isolation,
    }


def measure_baseline(
    source: str, profile: Profile, dataset: Dataset, home: Path, isolation: Isolation, hardware: str
) -> Baseline:
    """Runs the unpatched train.py with seeds 1, 2 and 3. Raises BaselineStopped when one does not get through."""
    runs = []
    for seed in BASELINE_SEEDS:
        run = run_experiment(source, profile, dataset, home, seed=seed, caps=None, isolation=isolation)
        if run.val_bpb is None:
            raise BaselineStopped(
                f"the baseline itself was stopped: {run.status}: {run.reason}. Mend trainer/train.py or the profile "
                f"{profile.name!r}; `./run trial trainer/train.py --profile {profile.name}` shows its log"
            )
        runs.append(run)
    return Baseline(runs=tuple(runs), hardware=hardware)


def saved_run(saved: dict[str, Any]) -> RunResult:
    """A run from its JSON, in which the curve's tuples have become lists."""
    return RunResult(**{**saved, "curve": tuple(map(tuple, saved["curve"]))})


def read_baseline(path: Path) -> Baseline:
    """The baseline that `baseline_file` wrote."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    return Baseline(runs=tuple(map(saved_run, saved["runs"])), hardware=saved["hardware"])


@task(name="measure-baseline", persist_result=True, cache_key_fn=lambda _, parameters: str(parameters["key"]))
def baseline_file(
    key: str, source: str, profile: Profile, dataset: Dataset, home: Path, isolation: Isolation, hardware: str
) -> FileRef:
    """`measure_baseline` as a cached Prefect task: a JSON file under data/baselines."""
    baseline = measure_baseline(source, profile, dataset, home, isolation, hardware)
    folder = home / "data" / "baselines"
    folder.mkdir(parents=True, exist_ok=True)
    return FileRef.write(folder / f"{key.rpartition(':')[2][:16]}.json", json.dumps(asdict(baseline)).encode())
