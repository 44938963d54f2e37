"""One run: a candidate trains in a box, a fresh box claims its losses, a third is audited.

`run_experiment` returns a RunResult whatever the candidate does and raises only when we fail. It is
never cached and never retried by Prefect: a crash is a result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from prefect import task
from prefect.cache_policies import NO_CACHE

from configs import Profile
from tasks import cache
from tasks.data import tokenization
from tasks.errors import BoxError, DataError
from tasks.files import FileRef
from tasks.judge import audit, flop_count, meter, nvml, protocol, scoring
from tasks.judge.box import Box, open_box
from tasks.judge.bwrap import BoxSpec, BoxUnavailable, Gate, Isolation
from tasks.judge.contention import Contention, ContentionWatch
from tasks.judge.curve import Tenth
from tasks.judge.effort import Effort
from tasks.judge.native_code import NativeCodeChanged, NativeKernel
from tasks.judge.reference import Reference
from tasks.judge.wire import Wire
from tasks.judge.workplace import assemble, read_whole, workplace
from tasks.records import Bench, Candidate, Conditions, Cost, Dataset, RunResult
from tasks.statuses import Status
from tasks.trial import allowance
from tasks.trial.early_run import PATIENCE, EarlyRun, TrialStart
from trainer import prepare

# What a baseline may take to hand over the kernels that it compiled.
KERNEL_SECONDS = 120.0
KERNEL_BYTES = 2**30
BOX_TRIES = 3  # a box that does not start is our failure: tried again, then the night ends

WorthAudit = Callable[[float], bool]  # whether a claimed score, bits per byte, may enter a keep
KeepClaims = Callable[[Reference], None]  # called with what a trusted source claimed
Report = Callable[[str], None]  # called with what the run is doing: "training", "scoring"


def ignore(phase: str) -> None:
    """A Report for callers that do not show progress."""


def naming(run: str, report: Report) -> Report:
    """Reports the same with the run's name in front: "trial 3, seed 1: training"."""
    return lambda phase: report(f"{run}: {phase}")


def run_experiment(
    candidate: Candidate,
    bench: Bench,
    seed: int,
    *,
    worth_audit: WorthAudit,
    smoke: bool = False,
    export_kernels: Path | None = None,
    keep_claims: KeepClaims | None = None,
    report: Report = ignore,
    early: EarlyRun | None = None,
    holdout: bool = False,
    champion: tuple[Tenth, ...] = (),
) -> RunResult:
    """Trains the candidate with one seed and scores it.

    With `smoke` it must first get through two steps. Runs that are worth it and a random share of
    the others are audited. `export_kernels` is where to put what a trusted source compiled; that
    file need not appear. `keep_claims` gets the claims of a run that is ok. A run that is `early`
    waits for its trial once it is ready. With `holdout`, a run that is ok is scored on the holdout,
    too, if the dataset has one. Where that is stopped, the run stays ok and its reason says why.
    With `champion`, the tenths of its runs, a training that falls far behind them is stopped.
    A bench that keeps checkpoints gets that of a run that is ok.

    Raises:
        BoxError: this machine cannot run boxes.
        DataError: a native kernel of the dataset, or what the baseline claimed, was changed.
    """
    started = time.monotonic()
    native = native_kernels(bench.dataset)
    reference = _reference(bench.caps.reference)
    knobs = candidate.knobs
    problem = tokenization.pack_if_missing(
        Path(bench.dataset.train), knobs.get("VOCAB_SIZE"), knobs.get("MAX_SEQ_LEN")
    )
    if problem:
        return without_figures("rejected_patch", problem, bench.profile, bench.isolation, seed)
    for _ in range(BOX_TRIES):
        attempt = _Attempt(bench, seed, report, reference, early, champion)
        try:
            with workplace(bench.home) as folder:
                spec = train_box(candidate, bench, seed, folder, native)
                if smoke:
                    attempt.smoke(spec, folder)
                spec = dataclasses.replace(spec, export_cache=export_kernels is not None)
                attempt.run(spec, folder, worth_audit, export_kernels)
                if holdout and bench.dataset.holdout:
                    attempt.score_holdout(spec, folder, Path(bench.dataset.holdout))
                if bench.checkpoints:
                    _keep(_checkpoint_in(folder), checkpoint_of(bench.checkpoints, candidate))
        except protocol.Stopped as end:
            problem = nvml.lost() if bench.profile.device == "cuda" else None
            if problem is not None:
                continue
            attempt.stop(end)
        except BoxUnavailable as error:
            problem = str(error)
            continue
        finally:
            started += attempt.waited_seconds  # for its trial to begin
        if keep_claims and attempt.claims:
            keep_claims(attempt.claims)
        wall_seconds = time.monotonic() - started
        return dataclasses.replace(attempt.result, wall_seconds=wall_seconds)
    raise BoxError(
        f"no box could be run, {BOX_TRIES} tries: {problem}. `./run doctor` looks closer"
    )


def checkpoint_of(checkpoints: Path, candidate: Candidate) -> Path:
    """Where a folder of checkpoints has this candidate's."""
    source = candidate.source.encode("utf-8", "surrogatepass")
    return checkpoints / f"{hashlib.sha256(source).hexdigest()[:16]}.pt"


def _checkpoint_in(folder: Path) -> Path:
    return folder / "checkpoint" / "model.pt"


def _keep(checkpoint: Path, kept: Path) -> None:
    """Moves it. On a full disk it is not kept: questions go without, and no run is lost by that."""
    with contextlib.suppress(OSError):
        shutil.move(checkpoint, kept)


def native_kernels(dataset: Dataset) -> tuple[NativeKernel, ...]:
    """The dataset's native code, as it was fetched. Raises DataError if a file has changed."""
    try:
        return tuple(
            NativeKernel.checked(Path(kernel.path), kernel.sha256)
            for kernel in dataset.attention_kernels
        )
    except NativeCodeChanged as error:
        raise DataError(str(error)) from error


def _reference(kept: FileRef | None) -> Reference | None:
    """What the baseline claimed, once its file is known to be what was written."""
    if kept is None:
        return None
    if problem := cache.damage(kept):
        raise DataError(
            f"what the baseline claimed: {problem}. The next night measures the baseline again"
        )
    return Reference.load(Path(kept.path))


def train_box(
    candidate: Candidate,
    bench: Bench,
    seed: int,
    folder: Path,
    native: tuple[NativeKernel, ...],
) -> BoxSpec:
    """The box of a training, with the profile's limits; its parts are made in `folder`."""
    profile, kernels = bench.profile, bench.caps.kernels
    return BoxSpec(
        role="train",
        code=assemble(candidate.source, folder),
        public=Path(bench.dataset.public),
        gate=Gate.closed(folder / "train-gate", Path(bench.dataset.train)),
        home=bench.home,
        isolation=cast(Isolation, bench.isolation),
        seed=seed,
        device=profile.device,
        threads=profile.threads,
        memory_bytes=int(profile.limits.memory_gib * 2**30),
        tasks=profile.limits.tasks,
        tmp_bytes=profile.limits.tmp_mib * 2**20,
        seed_cache=Path(kernels) if kernels else None,
        native=native,
    )


class _Attempt:
    """One attempt at a run. `result` grows as the run goes on and is valid wherever it stops."""

    def __init__(
        self,
        bench: Bench,
        seed: int,
        report: Report,
        reference: Reference | None,
        early: EarlyRun | None,
        champion: tuple[Tenth, ...],
    ) -> None:
        self.champion = champion
        self.bench = bench
        self.report = report
        self.reference = reference
        self.early = early
        self.claims: Reference | None = None
        self.waited_seconds = 0.0  # for its trial to begin
        self.result = without_figures(
            "ok", "trained and scored", bench.profile, bench.isolation, seed
        )

    def note(self, **figures: Any) -> None:
        self.result = dataclasses.replace(self.result, **figures)

    def stop(self, end: protocol.Stopped) -> None:
        """Notes how it was stopped. A run that has its score is ok: what stopped is the holdout."""
        if self.result.val_bpb is None:
            self.note(status=cast(Status, end.status), reason=end.reason)
        else:
            self.note(
                reason=f"{self.result.reason}, but not on the holdout: {end.status}: {end.reason}"
            )

    def smoke(self, spec: BoxSpec, folder: Path) -> None:
        """Two steps, the checkpoint and one evaluation in a box of their own.

        A candidate that cannot run at all stops within seconds, and not after a whole budget.
        """
        self.report("trying out")
        gate = Gate.closed(folder / "smoke-gate", spec.gate.content)
        with self._box(dataclasses.replace(spec, role="smoke", gate=gate)) as trying:
            found = protocol.smoke(
                trying,
                gate,
                budget_of(self.bench),
                startup_seconds=self._startup_seconds,
                max_bytes=self._checkpoint_bytes,
                when_up=self._when_up,
            )
        if found is not None:
            shape, smoked = found
            validation = self._text(Path(self.bench.dataset.validation))
            validation.rows(scoring.shape_of(shape, "bad_claims"))
            self.note(**dataclasses.asdict(smoked))
        self.note(log="")  # the log of the run itself is the one to read

    def _text(self, folder: Path) -> scoring.Validation:
        return scoring.Validation(Path(self.bench.dataset.public), folder)

    def _when_up(self, box: Box) -> None:
        """A box that starts up beside another run's has a low priority, and little CPU time."""
        if self.early is not None:
            self.early.when_up(box)
            if (most := self.bench.caps.startup_cpu_seconds) is not None:
                box.watchdog.limit_cpu(most, status="startup_timeout", doing="starting up")

    @property
    def _startup_seconds(self) -> float:
        # A GPU's kernels have no low priority: there the running trial would pay for more.
        is_patient = self.early is not None and self._device == "cpu"
        return self.bench.caps.startup_seconds * (PATIENCE if is_patient else 1.0)

    @property
    def _checkpoint_bytes(self) -> int:
        return self.bench.profile.limits.checkpoint_mib * 2**20

    def run(
        self,
        spec: BoxSpec,
        folder: Path,
        worth_audit: WorthAudit,
        export_kernels: Path | None,
    ) -> None:
        """Training, claims and audit. A scoring box imports torch while the one before it works."""
        checks = self._checks(spec, folder, Path(self.bench.dataset.validation), "validation")
        checks.checkpoint.parent.mkdir()
        checks.checkpoint.parent.chmod(0o755)
        with contextlib.ExitStack() as boxes:
            with self._box(spec) as training:
                begun = self._start(training, spec)
                claiming = boxes.enter_context(self._box(checks.claim))
                self._finish(training, begun, checks.checkpoint, export_kernels)
            claims = self._score(boxes, claiming, checks, worth_audit)
        scored = claims.nats[checks.text.scored(claims.shape, claims.rows)]
        self.claims = Reference(claims.shape.vocab_size, scored)

    def score_holdout(self, spec: BoxSpec, folder: Path, holdout: Path) -> None:
        """The same checkpoint on the holdout, in boxes of its own and always audited."""
        # The baseline's claims are of the validation: here all tokens are asked about alike.
        again = _Attempt(
            self.bench,
            spec.seed,
            naming("holdout", self.report),
            reference=None,
            early=None,
            champion=(),
        )
        again.result = dataclasses.replace(self.result, judge_log="")
        checks = self._checks(spec, folder, holdout, "holdout")
        try:
            with contextlib.ExitStack() as boxes:
                claiming = boxes.enter_context(again._box(checks.claim))
                again._score(boxes, claiming, checks, worth_audit=lambda claimed: True)
            self.note(holdout_bpb=again.result.val_bpb)
        finally:
            self.note(judge_log=self.result.judge_log + again.result.judge_log)

    def _checks(self, spec: BoxSpec, folder: Path, text: Path, name: str) -> _Checks:
        """How the checkpoint that is, or will be, in `folder` is scored on a text."""
        checkpoint = _checkpoint_in(folder)
        claim, again = (
            Gate.closed(folder / f"{name}-{role}-gate", checkpoint.parent)
            for role in ("claim", "audit")
        )
        return _Checks(
            self._text(text),
            checkpoint,
            _scoring_box(spec, "claim", claim),
            _scoring_box(spec, "audit", again),
        )

    def _score(
        self,
        boxes: contextlib.ExitStack,
        claiming: Box,
        checks: _Checks,
        worth_audit: WorthAudit,
    ) -> _Claims:
        """Claims and audit. The audit box is opened, in `boxes`, while the claim box works."""
        self.report("scoring")
        auditing = boxes.enter_context(self._box(checks.audit))
        claims = self._claim(claiming, checks.claim.gate, checks.text)
        read_whole(checks.checkpoint)
        score = checks.text.score(claims.shape, claims.rows, claims.nats)
        self.note(claimed_bpb=score)
        share = self.bench.profile.audit.share
        if worth_audit(score) or secrets.SystemRandom().random() < share:
            self.report("being audited")
            score += self._audit(auditing, checks.audit.gate, checks.text, claims)
        self.note(val_bpb=score)
        return claims

    @contextlib.contextmanager
    def _box(self, spec: BoxSpec) -> Iterator[Box]:
        """A box whose log is noted once it is gone: only then can nobody write to it any more."""
        log = "judge_log" if spec.role in ("claim", "audit") else "log"
        with open_box(spec) as box, self._held(box):
            try:
                yield box
            finally:
                box.kill()
                self.note(**{log: getattr(self.result, log) + box.log.text()})
                if spec.role == "train":
                    self.note(peak_memory_bytes=box.watchdog.peak_memory_bytes or None)

    def _held(self, box: Box) -> contextlib.AbstractContextManager[None]:
        return self.early.holding(box) if self.early else contextlib.nullcontext()

    def _start(self, box: Box, spec: BoxSpec) -> protocol.Begun:
        """Waits for the candidate's start-up, and for its trial, and starts the clock."""
        self.report("starting up")
        # Beside another run's box the GPU is busy all the time.
        clocked = spec.device == "cuda" and self.early is None
        with nvml.busy_clock() if clocked else contextlib.nullcontext() as gpu:
            started = protocol.start_up(
                box, startup_seconds=self._startup_seconds, when_up=self._when_up
            )
        self.note(
            startup_seconds=started.seconds,
            startup_cpu_seconds=started.cpu_seconds,
            startup_gpu_seconds=gpu.seconds if gpu else None,
            started_early=self.early is not None,
        )
        if self.bench.profile.budget.kind == "flops":
            before, now = self.result.flops_per_token, started.flops_per_token
            if problem := flop_count.other_word(before, now):
                raise protocol.Stopped("dishonest_flops", problem)
        budget = budget_of(self.bench)
        if self.early is not None:
            self.waited_seconds = self.early.await_trial(box)
            self.champion = self.early.champion
        budget = dataclasses.replace(budget, champion=self.champion)
        begun = protocol.go(box, spec.gate, budget, started)
        if self.early is not None:
            self.early.is_past_start_up = True
        self.report("training")
        return begun

    def _finish(
        self, box: Box, begun: protocol.Begun, checkpoint: Path, export_kernels: Path | None
    ) -> None:
        """Takes the checkpoint, and what was compiled where it is asked for."""
        on_gpu, pids = self._device == "cuda", box.watchdog.pids
        with (
            self._conditions_noted(box, begun),
            nvml.peak_memory(pids) if on_gpu else contextlib.nullcontext() as gpu,
        ):
            try:
                trained = protocol.finish(box, begun, checkpoint, max_bytes=self._checkpoint_bytes)
            finally:
                self.note(curve=tuple(begun.curve.points), tenths=begun.curve.tenths)
            self.note(**dataclasses.asdict(trained))
        self.note(peak_gpu_bytes=gpu.bytes if gpu else None)
        is_limited = begun.budget.cpu_seconds is not None  # by time of the GPU otherwise
        if is_limited and (problem := allowance.overspent(self.bench.caps, self.result)):
            raise protocol.Stopped("train_timeout", problem)
        if export_kernels:
            protocol.take_kernels(
                begun, export_kernels, seconds=KERNEL_SECONDS, max_bytes=KERNEL_BYTES
            )
        self.note(checkpoint_bytes=checkpoint.stat().st_size)

    @contextlib.contextmanager
    def _conditions_noted(self, box: Box, begun: protocol.Begun) -> Iterator[None]:
        """Notes what the machine was like during the block, in which the box trains."""
        on_gpu = self._device == "cuda"
        watch = ContentionWatch(box.watchdog)
        with nvml.pace(box.watchdog.pids) if on_gpu else contextlib.nullcontext() as gpu:
            try:
                yield
            finally:
                seen, used = watch.stop(), box.watchdog.cpu_seconds() - begun.cpu_before
                if gpu:
                    gpu.stop()
                pace = gpu.pace() if gpu else None
                self.note(conditions=_conditions(self.result, seen, used, pace))

    @contextlib.contextmanager
    def _warm(self, box: Box) -> Iterator[tuple[Wire, meter.Meter]]:
        """A scoring box once it is warm: its wire, and a meter of all that it does from now on."""
        wire = scoring.await_warm(box, self.bench.caps.startup_seconds)
        with nvml.busy_clock() if self._device == "cuda" else contextlib.nullcontext() as gpu:
            yield wire, meter.Meter(box, gpu)

    def _loading(self, metered: meter.Meter, phase: str) -> contextlib.AbstractContextManager[None]:
        work, usual = self.result.checkpoint_bytes or 0, self.bench.caps.usual
        limit = allowance.limit(usual, phase, work, self._device) if usual else None
        return metered.phase(phase, limit, self._noting(phase, work, 0))

    def _noting(self, phase: str, work: int, row: int) -> Callable[[meter.Spent], None]:
        """Notes what a phase has cost."""

        def note(spent: meter.Spent) -> None:
            cost = Cost(**dataclasses.asdict(spent), work=work, row=row)
            self.note(costs={**self.result.costs, phase: cost})

        return note

    @property
    def _device(self) -> str:
        return self.bench.profile.device

    def _claim(self, box: Box, gate: Gate, validation: scoring.Validation) -> _Claims:
        """What the claim box claims. It is gone before any question of the audit is drawn."""
        caps, eval_seconds = self.bench.caps, self.bench.profile.limits.eval_seconds
        with self._warm(box) as (wire, metered):
            with self._loading(metered, "eval_startup"):
                shape = scoring.load(box, wire, gate, "eval_startup", caps.startup_seconds)
            rows = validation.rows(shape)
            batches = -(-len(rows) // shape.batch_rows)
            passes = allowance.Passes(len(rows), shape.sequence_length, batches, shape.batch_rows)
            limit = None
            if caps.usual:
                limit = allowance.limit_of_claims(caps.usual, self.result, passes, self._device)
            with metered.phase("eval", limit, self._noting("eval", passes.work, passes.row)):
                nats = scoring.claim(box, wire, shape, rows, eval_seconds)
        box.kill()
        return _Claims(shape, rows, nats)

    def _audit(
        self, box: Box, gate: Gate, validation: scoring.Validation, claims: _Claims
    ) -> float:
        """By how much the claims are too low, bits per byte. Stopped if that cannot be honest."""
        caps, shape, rows = self.bench.caps, claims.shape, claims.rows
        tolerance = audit.Tolerance(caps.audit_gap, caps.audit_position)
        with self._warm(box) as (wire, metered):
            with self._loading(metered, "audit_startup"):
                again = scoring.load(box, wire, gate, "audit_startup", caps.startup_seconds)
            if again != shape:
                problem = f"told the audit another shape: {again}, not {shape}"
                raise protocol.Stopped("audit_failed", problem)
            scored = validation.scored(shape, rows)
            effort = Effort(self.bench.profile.audit.positions, tolerance.hits)
            odds = effort.odds(scored, claims.nats, self._expected(shape, validation))
            questions = audit.draw(
                odds, effort.questions(odds), shape.batch_rows, np.random.default_rng()
            )
            nats = self._answers(box, wire, metered, questions, validation, claims)
        finding = audit.Finding.of(questions, claims.nats, nats, tolerance)
        self.note(audit_gap=finding.gap, audit_worst=finding.worst)
        failure = finding.problem(tolerance)
        if failure:
            raise protocol.Stopped("audit_failed", failure)
        total_nats = max(0.0, finding.gap) * int(scored.sum())
        return prepare.bits_per_byte(total_nats, validation.documents_bytes)

    def _expected(
        self, shape: scoring.Shape, validation: scoring.Validation
    ) -> scoring.Nats | None:
        """What the baseline claimed for each scored target, nats float32."""
        if self.reference is None:
            return None
        ends, own_ends = map(validation.ends, (shape.vocab_size, self.reference.vocab_size))
        return self.reference.at(ends, own_ends)

    def _answers(
        self,
        box: Box,
        wire: Wire,
        metered: meter.Meter,
        questions: audit.Questions,
        validation: scoring.Validation,
        claims: _Claims,
    ) -> npt.NDArray[Any]:
        """The losses at the questions, nats float64 [n], within what answering may cost."""
        usual, shape = self.bench.caps.usual, claims.shape
        asked, batches = len(questions.rows), len(questions.in_batches())
        passes = allowance.Passes(asked, shape.sequence_length, batches, shape.batch_rows)
        limit = None
        if usual:
            dearer = allowance.dearness(usual, self.result, passes, self._device)
            limit = allowance.limit(usual, "audit", passes.work, self._device, dearer)
        bos, seconds = validation.bos[shape.vocab_size], self.bench.profile.limits.eval_seconds
        with metered.phase("audit", limit, self._noting("audit", passes.work, passes.row)):
            return audit.ask(box, wire, shape, claims.rows, bos, questions, seconds)


@dataclasses.dataclass(frozen=True)
class _Checks:
    """What a checkpoint is scored on, and the boxes for it."""

    text: scoring.Validation
    checkpoint: Path
    claim: BoxSpec
    audit: BoxSpec


@dataclasses.dataclass(frozen=True)
class _Claims:
    """What a claim box claimed: nats float32 [R, T] for rows uint16 [R, T+1]."""

    shape: scoring.Shape
    rows: scoring.Rows
    nats: scoring.Nats


def _scoring_box(train_box: BoxSpec, role: Literal["claim", "audit"], gate: Gate) -> BoxSpec:
    return dataclasses.replace(train_box, role=role, gate=gate, export_cache=False)


def budget_of(bench: Bench) -> protocol.Budget:
    """What a run on this bench may spend."""
    budget = bench.profile.budget
    if budget.kind == "seconds":
        slack = bench.caps.slack_seconds
        deadline = budget.amount + (budget.slack_seconds if slack is None else slack)
        return protocol.Budget(budget.kind, budget.amount, deadline, None)
    return protocol.Budget(
        budget.kind, budget.amount, bench.caps.wall_seconds, bench.caps.cpu_seconds
    )


def _conditions(
    result: RunResult, seen: Contention, cpu_used: float, pace: nvml.Pace | None
) -> Conditions:
    """The record of what was seen while a run trained.

    A container's output passes through the engine, a process outside of it: by printing it could
    make others work, and so ask for a second chance.
    """
    return Conditions(
        seconds=seen.seconds,
        tokens=result.tokens,
        steps=result.curve[-1][0] if result.curve else None,
        cpu_used=cpu_used,
        cpu_waited=seen.waited,
        cpu_others=None if result.isolation == "docker" else seen.others,
        cpu_stolen=seen.stolen,
        **(vars(pace) if pace else {}),
    )


def without_figures(
    status: Status, reason: str, profile: Profile, isolation: str, seed: int
) -> RunResult:
    """A result without figures: of a candidate that was not run, or has only started."""
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


def start_early(
    candidate: Candidate, bench: Bench, seed: int, when_ready: Callable[[], None]
) -> EarlyRun:
    """Begins a trial's first run before its trial: see early_run.py."""

    def work(early: EarlyRun) -> RunResult:
        worth_audit, report = early.worth_audit, early.report
        return run_experiment(
            candidate, bench, seed, worth_audit=worth_audit, smoke=True, report=report, early=early
        )

    return EarlyRun(work, when_ready)


@task(name="train-candidate", task_run_name="train {what}, seed {seed}", cache_policy=NO_CACHE)
def train_candidate(
    what: str,
    candidate: Candidate,
    bench: Bench,
    seed: int,
    *,
    worth_audit: WorthAudit,
    smoke: bool,
    report: Report = ignore,
    early: EarlyRun | None = None,
    holdout: bool = False,
    champion: tuple[Tenth, ...] = (),
) -> RunResult:
    """`run_experiment` as a Prefect task; `what` names it on Prefect's page.

    `early` is this run, if it has begun already; it is a trial's, and not scored on the holdout.
    """
    if early is not None and (found := early.finish(TrialStart(worth_audit, report, champion))):
        return found
    return run_experiment(
        candidate,
        bench,
        seed,
        worth_audit=worth_audit,
        smoke=smoke,
        report=report,
        holdout=holdout,
        champion=champion,
    )
