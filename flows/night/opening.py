"""The opening of a night: its header, and from that everything that stays the same to its end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import get_run_logger, runtime

import configs
from flows import preparation, state_home
from flows.night import calibration, researcher
from flows.night.isolation import check_device, choose_isolation, end_orphans
from flows.night.night import Night, Request
from flows.night.session import Session
from tasks import cache
from tasks.errors import UsageError
from tasks.files import FileRef
from tasks.history import champion, earlier_noise, night_folder
from tasks.history.growth import Size
from tasks.history.llm_calls import CallLog
from tasks.noise import Noise
from tasks.records import (
    TRAIN,
    Baseline,
    BaselineEvent,
    Bench,
    Candidate,
    Contender,
    Dataset,
    NightHeader,
)
from tasks.search import bandit
from tasks.text import score
from tasks.trial import conditions, hardware
from tasks.trial.baseline import caps_after, first_caps, read_baseline
from tasks.trial.baseline_facts import baseline_facts
from tasks.trial.experiment import Report


def new_night(tag: str, request: Request) -> tuple[NightHeader, str]:
    """The header of a new night and the source of its baseline.

    Raises, before any work is done, UsageError like `plan` and BoxError if no box can be made.
    """
    header, source = plan(tag, request)
    settings, home = header.settings, state_home.locate()
    isolation = choose_isolation(home, settings, request.allow_unsandboxed)
    checkout = champion.Checkout(
        state_home.ROOT, header.head, header.branch, header.dirty, header.train_dirty
    )
    get_run_logger().info(f"night {tag}: profile {settings.name}, from {checkout.describe()}")
    return dataclasses.replace(header, isolation=isolation), source


def plan(tag: str, request: Request) -> tuple[NightHeader, str]:
    """The header of a new night but for its isolation, and the source of its baseline.

    The header has every choice of the night: the profile's where none was asked for. Needs no flow
    run. Raises UsageError if the request cannot become a night.
    """
    settings = _settings(request)
    checkout = champion.open_checkout(state_home.ROOT)
    champion.check_tag(checkout.root, tag)
    trials, hours = request.trials, request.hours
    if not (trials or hours):  # eight hours asked for are not the profile's four trials
        trials, hours = settings.night.trials, settings.night.hours
    proposer = request.proposer or settings.night.proposer
    if request.contenders:
        proposer = configs.TOURNAMENT
        _check_trials(request.contenders, trials)
    asking = {contender.proposer for contender in request.contenders} or {proposer}
    if request.model and not any(configs.traits(name).asks_a_model for name in asking):
        takers = [name for name, traits in configs.PROPOSERS.items() if traits.asks_a_model]
        raise UsageError(
            f"--model {request.model} is for the proposers {' and '.join(takers)}; "
            f"this night's is {proposer}"
        )
    header = NightHeader(
        tag=tag,
        began=datetime.now(UTC).isoformat(),
        profile=request.profile,
        settings=settings,
        proposer=proposer,
        patches=request.patches or settings.night.patches,
        seed=request.seed,
        trials=trials,
        hours=hours,
        head=checkout.head,
        branch=checkout.branch,
        dirty=checkout.dirty,
        train_dirty=checkout.train_dirty,
        isolation="",
        flow_run=str(runtime.flow_run.id),
        deployment=runtime.deployment.name,
        program=None,
        notes_of=request.notes,
        contenders=request.contenders,
    )
    researcher.check(header)  # a missing key or folder is reported now, not after the baseline
    researcher.read_notes(header)
    check_device(settings)
    return researcher.with_programs(header), base_source(checkout.root, settings)


def _check_trials(contenders: Sequence[Contender], trials: int | None) -> None:
    fewest = bandit.FIRST_ROUNDS * len(contenders)
    if trials is not None and trials < fewest:
        raise UsageError(
            f"{trials} trials are too few for {len(contenders)} contenders, each of which gets "
            f"at least {bandit.FIRST_ROUNDS}: ask for --trials {fewest} or more, or for --hours"
        )


def _settings(request: Request) -> configs.Profile:
    """The profile with what the request changes in it."""
    profile = configs.load(request.profile)
    llm = profile.llm.model_copy(update={"model": request.model} if request.model else {})
    return profile.model_copy(update={"llm": llm})


def base_source(root: Path, profile: configs.Profile) -> str:
    """The checkout's train.py with the profile's knobs written into it, all else as it is."""
    return calibration.with_knobs((root / TRAIN).read_bytes().decode("utf-8"), profile)


def open_night(held: Session, *, continues: bool = True) -> Night:
    """Prepares data and baseline, from the cache if they are there, and puts the night together.

    A resumed night keeps the baseline that it started with; on other hardware it gets a new one
    if it `continues`. Raises UsageError if it is gone and cannot be measured again.
    """
    header, home, began = held.state.header, state_home.locate(), held.state.baseline
    end_orphans(home, header.isolation)
    held.pulse.enter("preparing the data")
    dataset = preparation.prepare_dataset(header.settings, home)
    if began:
        dataset = without_later_kernels(dataset, began)
    base = Candidate.parse(_base_source(held))
    bench = Bench(header.settings, dataset, home, header.isolation, first_caps(header.settings))
    here = hardware.describe(header.settings.device, header.settings.threads)
    wanted = began.hardware if began and not continues else here
    file = held.folder / night_folder.baseline_file(held.state, wanted)
    kept = _kept_baseline(file) if began else None
    baseline = kept or calibration.measured(base, bench, _logging(held.pulse.enter))
    if began and began.hardware == wanted:
        _expect_same("a baseline of", began.scores, baseline.scores, header.tag, _listed)
    if kept is None:
        FileRef.write(file, json.dumps(dataclasses.asdict(baseline)).encode())
    return Night(
        tag=header.tag,
        folder=held.folder,
        root=state_home.ROOT,
        bench=dataclasses.replace(bench, caps=caps_after(baseline, header.settings)),
        base=base,
        baseline=baseline,
        seed=header.seed,
        calls=CallLog(held.folder / night_folder.CALLS),
    )


def check_comparable(night: Night, began: BaselineEvent | None) -> None:
    """Raises UsageError if trials would not be comparable with the baseline of that event.

    The harness and the data must be the same. On other hardware the night measures again.
    """
    if began is None:
        return
    facts = baseline_facts(night.base, night.bench)
    for name, fact in began.facts.items():
        _expect_same(name, fact, facts.get(name, "none"), night.tag)


def without_later_kernels(dataset: Dataset, began: BaselineEvent) -> Dataset:
    """The dataset without attention kernels that were unavailable when the night started."""
    kernels = tuple(
        kernel for kernel in dataset.attention_kernels if Path(kernel.path).stem in began.facts
    )
    return dataclasses.replace(dataset, attention_kernels=kernels)


def _kept_baseline(file: Path) -> Baseline | None:
    try:
        baseline = read_baseline(file)
    except (OSError, ValueError, KeyError, TypeError):  # gone or damaged: the cache may have it
        return None
    compiled = baseline.kernels if baseline.kernels and Path(baseline.kernels).is_file() else None
    problem = cache.damage(baseline.reference)
    if problem:
        get_run_logger().warning(f"{problem}: audits of this night ask about all tokens alike")
    claims = None if problem else baseline.reference
    return dataclasses.replace(baseline, kernels=compiled, reference=claims)


def _base_source(held: Session) -> str:
    """The baseline's train.py: a file until git has it."""
    if held.state.start_commit:
        return champion.source_at(state_home.ROOT, held.state.start_commit)
    return (held.folder / night_folder.BASE).read_bytes().decode("utf-8")


def _expect_same(
    what: str, began: object, found: object, tag: str, shown: Callable[[Any], str] = str
) -> None:
    if began != found:
        raise UsageError(
            f"night {tag} started with {what} {shown(began)} and would resume with {shown(found)}: "
            "scores of the two are never compared. Resume it where it started, or start a new "
            "night with another --tag"
        )


def _listed(scores: Iterable[float]) -> str:
    return ", ".join(map(score, scores))


def _logging(report: Report) -> Report:
    """The same, and a line in the log when a run begins: on a GPU each takes minutes."""
    begun: set[str] = set()
    log = get_run_logger()  # the flow's: inside the task of the baseline it would be the task's

    def enter(phase: str) -> None:
        run = phase.partition(":")[0]
        if run not in begun:
            begun.add(run)
            log.info(run)
        report(phase)

    return enter


def baseline_event(night: Night, start_commit: str) -> BaselineEvent:
    """The ledger's event `baseline`; `start_commit` is the first commit of the night's branch.

    The noise that earlier nights have measured is looked up here, once.
    """
    scores, runs, caps = night.baseline.scores, night.baseline.runs, night.bench.caps
    facts, size = baseline_facts(night.base, night.bench), Size.of_runs(runs)
    earlier, problems = earlier_noise.find(
        night.bench.home, night.tag, night.baseline.hardware, facts, size.parameters
    )
    for problem in problems:
        get_run_logger().warning(problem)
    return BaselineEvent(
        val_bpb=night.baseline.val_bpb,
        scores=scores,
        seeds=tuple(run.seed for run in runs),
        sd=Noise.pooled([scores]).sd,
        audit_gaps=tuple(run.audit_gap for run in runs),
        audit_allowed={"gap": caps.audit_gap, "position": caps.audit_position},
        hardware=night.baseline.hardware,
        dataset=night.bench.dataset.fingerprint,
        facts=facts,
        wall_seconds=max(run.wall_seconds or 0.0 for run in runs),
        seconds=sum(run.seconds or 0.0 for run in runs) / len(runs),
        **vars(size),
        knobs=night.base.knobs,
        start_commit=start_commit,
        rows="; ".join(rows.describe() for rows in night.bench.dataset.rows),
        earlier_repeats=earlier,
        conditions=conditions.of_runs(runs),
    )
