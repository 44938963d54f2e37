"""One run: a candidate trains in a box, a fresh box claims its losses, another one is audited, and the judge scores it.

`run_experiment` returns a RunResult whatever the candidate does; it raises only when we fail. It is never cached and
never retried by Prefect: a crash is a result.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from configs import Profile, knobs
from tasks.data import tokenization
from tasks.errors import BoxError, DataError
from tasks.judge import audit, nvml, protocol, scoring
from tasks.judge.box import Box, open_box
from tasks.judge.bwrap import BoxSpec, BoxUnavailable, Gate, Isolation
from tasks.judge.native_code import NativeCodeChanged, NativeKernel
from tasks.judge.workplace import assemble, read_whole, workplace
from tasks.records import Caps, Dataset, RunResult
from tasks.statuses import Status
from trainer import prepare

KERNEL_SECONDS, KERNEL_BYTES = (
    120.0,
    2**30,
)  # what a baseline may take to hand over what it compiled, and its size
BOX_TRIES = (
    3  # a box that does not start is our failure: tried again, then the night ends with the reason
)

WorthAudit = Callable[[float], bool]  # whether a claimed score, bits per byte, may enter a keep
Tell = Callable[[str], None]  # told what the run is doing: "training", "scoring"


def naming(run: str, tell: Tell) -> Tell:
    """Tells the same with the run's name before it: "trial 3, seed 1: training"."""
    return lambda phase: tell(f"{run}: {phase}")


def run_experiment(
    source: str,
    profile: Profile,
    dataset: Dataset,
    home: Path,
    *,
    seed: int,
    caps: Caps,
    isolation: Isolation,
    worth_audit: WorthAudit,
    smoke: bool = False,
    export_kernels: Path | None = None,
    tell: Tell = lambda phase: None,
) -> RunResult:
    """Trains `source` (a whole train.py) with one seed and scores it; with `smoke` it must get through one step first.

    Audits what is worth it and a random share of the rest. `export_kernels` is where to put what a trusted source
    compiled, a file that need not appear. Raises BoxError when this machine cannot run boxes, DataError when a native
    kernel of the dataset is not what was fetched.
    """
    native, named, started = _native(dataset), knobs.read(source), time.monotonic()
    tokenization.pack_if_missing(
        Path(dataset.train), named.get("VOCAB_SIZE"), named.get("MAX_SEQ_LEN")
    )
    blank = without_figures("ok", "trained and scored", profile, seed, isolation)
    for _ in range(BOX_TRIES):
        seen: dict[
            str, Any
        ] = {}  # what is known of the run; it stays when the candidate is stopped
        try:
            with workplace(home) as work:
                spec = replace(
                    _train_box(source, profile, dataset, home, work, seed, caps, isolation),
                    native=native,
                )
                if smoke:
                    tell("trying out")
                    _smoke(spec, work, caps, seen)
                spec = replace(spec, export_cache=export_kernels is not None)
                _run(spec, profile, dataset, work, caps, worth_audit, export_kernels, seen, tell)
            return replace(blank, wall_seconds=time.monotonic() - started, **seen)
        except protocol.Stopped as end:
            problem = nvml.lost() if profile.device == "cuda" else None
            if problem is None:
                took = time.monotonic() - started
                return replace(
                    blank,
                    status=cast(Status, end.status),
                    reason=end.reason,
                    wall_seconds=took,
                    **seen,
                )
        except BoxUnavailable as error:
            problem = str(error)
    raise BoxError(
        f"no box could be run, {BOX_TRIES} tries: {problem}. `./run doctor` looks closer"
    )


def _train_box(
    source: str,
    profile: Profile,
    dataset: Dataset,
    home: Path,
    work: Path,
    seed: int,
    caps: Caps,
    isolation: Isolation,
) -> BoxSpec:
    return BoxSpec(
        role="train",
        code=assemble(source, work),
        public=Path(dataset.public),
        gate=Gate.closed(work / "train-gate", Path(dataset.train)),
        home=home,
        isolation=isolation,
        seed=seed,
        device=profile.device,
        threads=profile.threads,
        memory_bytes=int(profile.limits.memory_gib * 2**30),
        tasks=profile.limits.tasks,
        tmp_bytes=profile.limits.tmp_mib * 2**20,
        seed_cache=Path(caps.kernels) if caps.kernels else None,
    )


def _native(dataset: Dataset) -> tuple[NativeKernel, ...]:
    try:
        return tuple(
            NativeKernel.checked(Path(kept.path), kept.sha256) for kept in dataset.attention_kernels
        )
    except NativeCodeChanged as error:
        raise DataError(str(error)) from error


@contextlib.contextmanager
def _box(spec: BoxSpec, seen: dict[str, Any]) -> Iterator[Box]:
    """A box whose log is in `seen` when it is gone: only then can nobody write to it any more."""
    with open_box(spec) as running:
        try:
            yield running
        finally:
            running.kill()
            log = "judge_log" if spec.role in ("claim", "audit") else "log"
            seen[log] = seen.get(log, "") + running.log.text()
            if spec.role == "train":
                seen["peak_memory_bytes"] = running.watchdog.peak_memory_bytes or None


def _smoke(spec: BoxSpec, work: Path, caps: Caps, seen: dict[str, Any]) -> None:
    """One step and one evaluation in a box of their own: what cannot run at all is told in seconds, not after a budget."""
    gate = Gate.closed(work / "smoke-gate", spec.gate.content)
    gate.open()
    with _box(replace(spec, role="smoke", gate=gate), seen) as trying:
        protocol.smoke(trying, startup_seconds=caps.startup_seconds)
    seen.clear()  # the log of the run itself is the one to read


def _run(
    spec: BoxSpec,
    profile: Profile,
    dataset: Dataset,
    work: Path,
    caps: Caps,
    worth_audit: WorthAudit,
    export_kernels: Path | None,
    seen: dict[str, Any],
    tell: Tell,
) -> None:
    """Training, claims and audit. A scoring box imports torch while the box before it still works."""
    limits, checkpoint = profile.limits, work / "checkpoint" / "model.pt"
    checkpoint.parent.mkdir(mode=0o755)
    claim_box = replace(
        spec, role="claim", gate=Gate.closed(work / "claim-gate", checkpoint.parent)
    )
    audit_box = replace(
        claim_box, role="audit", gate=Gate.closed(work / "audit-gate", checkpoint.parent)
    )
    validation = scoring.Validation(Path(dataset.public), Path(dataset.validation))
    with contextlib.ExitStack() as later:
        tell("starting up")
        with _box(spec, seen) as training:
            with nvml.busy_clock() if spec.device == "cuda" else contextlib.nullcontext() as gpu:
                begun = protocol.begin(
                    training,
                    spec.gate,
                    _budget(profile, caps),
                    startup_seconds=caps.startup_seconds,
                )
            seen["startup_seconds"], seen["startup_gpu_seconds"] = (
                begun.startup_seconds,
                gpu.seconds if gpu else None,
            )
            tell("training")
            claiming = later.enter_context(_box(claim_box, seen))
            seen |= asdict(
                protocol.finish(
                    training, begun, checkpoint, max_bytes=limits.checkpoint_mib * 2**20
                )
            )
            if export_kernels:
                protocol.take_kernels(
                    begun, export_kernels, seconds=KERNEL_SECONDS, max_bytes=KERNEL_BYTES
                )
        tell("scoring")
        auditing = later.enter_context(_box(audit_box, seen))
        wire, shape = scoring.load(claiming, claim_box.gate, "eval_startup", caps.startup_seconds)
        rows = validation.rows(shape)
        claims = scoring.claim(claiming, wire, shape, rows, limits.eval_seconds)
        claiming.kill()  # before the questions are drawn
        read_whole(checkpoint)
        seen["claimed_bpb"] = claimed = validation.score(shape, rows, claims)
        if worth_audit(claimed) or secrets.SystemRandom().random() < profile.audit.share:
            tell("being audited")
            claimed += _audit(
                auditing, audit_box.gate, shape, rows, claims, validation, profile, caps, seen
            )
        seen["val_bpb"] = claimed


def _audit(
    box: Box,
    gate: Gate,
    shape: scoring.Shape,
    rows: scoring.Rows,
    claims: scoring.Nats,
    validation: scoring.Validation,
    profile: Profile,
    caps: Caps,
    seen: dict[str, Any],
) -> float:
    """What the claims are short of, bits per byte; Stopped when it is more than can be honest."""
    wire, again = scoring.load(box, gate, "audit_startup", caps.startup_seconds)
    if again != shape:
        raise protocol.Stopped(
            "audit_failed", f"told the audit another shape: {again}, not {shape}"
        )
    scored = validation.scored(shape, rows)
    questions = audit.draw(
        scored, profile.audit.positions, shape.batch_rows, np.random.default_rng()
    )
    bos = validation.bos[shape.vocab_size]
    nats = audit.ask(box, wire, shape, rows, bos, questions, profile.limits.eval_seconds)
    tolerance = audit.Tolerance(caps.audit_gap, caps.audit_position)
    finding = audit.Finding.of(questions, claims, nats, tolerance)
    seen |= {"audit_gap": finding.gap, "audit_worst": finding.worst}
    if problem := finding.problem(tolerance):
        raise protocol.Stopped("audit_failed", problem)
    return prepare.bits_per_byte(
        max(0.0, finding.gap) * int(scored.sum()), validation.documents_bytes
    )


def _budget(profile: Profile, caps: Caps) -> protocol.Budget:
    kind, amount = profile.budget.kind, profile.budget.amount
    if kind == "seconds":
        return protocol.Budget(kind, amount, amount + profile.budget.slack_seconds, None)
    return protocol.Budget(kind, amount, caps.wall_seconds, caps.cpu_seconds)


def without_figures(
    status: Status, reason: str, profile: Profile, seed: int, isolation: Isolation
) -> RunResult:
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


@task(name="train-candidate", task_run_name="train {what}, seed {seed}", cache_policy=NO_CACHE)
def train_candidate(
    what: str,
    source: str,
    profile: Profile,
    dataset: Dataset,
    home: Path,
    *,
    seed: int,
    caps: Caps,
    isolation: Isolation,
    worth_audit: WorthAudit,
    smoke: bool,
    tell: Tell = lambda phase: None,
) -> RunResult:
    """`run_experiment` as a Prefect task; `what` names it on Prefect's page."""
    run = functools.partial(
        run_experiment, source, profile, dataset, home, seed=seed, caps=caps, isolation=isolation
    )
    return run(worth_audit=worth_audit, smoke=smoke, tell=tell)
