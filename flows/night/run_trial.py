"""One trial: train the candidate, and again with new seeds while one more run can decide.

A plain function over the task `train-candidate`, called by the night's flow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from prefect import get_run_logger

from configs import Rule
from flows.night.next_run import NextRun
from flows.night.quarantine import Quarantine, SetAside
from tasks.judge.curve import Tenth
from tasks.noise import Noise
from tasks.records import Bench, Candidate, Conditions, RunResult, Verdict
from tasks.statuses import Status
from tasks.trial import conditions, verdict
from tasks.trial.early_run import EarlyRun
from tasks.trial.experiment import Report, ignore, naming, train_candidate


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a candidate's scores are compared with, in bits per byte."""

    champion: Candidate
    champion_scores: tuple[float, ...]
    champion_seeds: tuple[int, ...]
    noise: Noise
    statements_added: int  # by the candidate; negative if its code is smaller
    tenths: tuple[Tenth, ...] = ()  # of the champion's runs; none if they say nothing about it
    champion_runs: int = 0  # the champion is run afresh up to as many before the candidate is
    champion_conditions: tuple[Conditions, ...] = ()  # of its runs
    usual: tuple[Conditions, ...] = ()  # of the runs of the baseline and the champions
    rule: Rule = verdict.RULE

    def decide(self, scores: Sequence[float], fresh: Sequence[float] = ()) -> Verdict:
        """`fresh` are scores of the champion that this trial has made."""
        champion = (*self.champion_scores, *fresh)
        return verdict.decide(champion, scores, self.noise, self.statements_added, self.rule)

    def champion_is_due(self, fresh: int, runs: int) -> bool:
        """As `verdict.champion_is_due`, after so many fresh runs and so many of the candidate."""
        return verdict.champion_is_due(len(self.champion_scores) + fresh, runs, self.rule)


@dataclasses.dataclass(frozen=True)
class Tried:
    """A trial's runs and what follows from them."""

    runs: tuple[RunResult, ...]
    verdict: Verdict
    champion_runs: tuple[RunResult, ...] = ()  # made afresh, in between
    noise: Noise | None = None  # that the verdict took; None: nothing was run
    quarantined: tuple[SetAside, ...] = ()
    unusual: str | None = None  # about the conditions of a run that counts
    machine_change: str | None = None


@dataclasses.dataclass(frozen=True)
class _Trainer:
    """Makes the runs of one trial."""

    number: int
    bench: Bench
    report: Report
    next_run: NextRun | None
    quarantine: Quarantine
    tenths: tuple[Tenth, ...]  # of the champion's runs

    def candidate(
        self,
        candidate: Candidate,
        seed: int,
        worth_audit: Callable[[float], bool],
        early: EarlyRun | None,
        earlier: Sequence[RunResult],
    ) -> RunResult:
        """Its run; `earlier` are those of this trial, and `early` the first one if it has begun.

        It is made again if the machine was not as usual while it trained.
        """

        def train(again: bool) -> RunResult:
            is_first = not (earlier or again)
            begun = early if is_first else None
            return self._run_candidate(candidate, seed, worth_audit, begun, smoke=is_first)

        what = f"trial {self.number}"
        return self.quarantine.settled("candidate", what, train, conditions.of_runs(earlier))

    def _run_candidate(
        self,
        candidate: Candidate,
        seed: int,
        worth_audit: Callable[[float], bool],
        early: EarlyRun | None,
        *,
        smoke: bool,
    ) -> RunResult:
        """A run; again alone, if its end may be the fault of the next trial's beside it."""
        what = f"trial {self.number}"
        run = self._run(what, candidate, seed, worth_audit, early, smoke=smoke, tenths=self.tenths)
        if run.status in _excused(self.bench) and self.next_run and self.next_run.is_begun:
            get_run_logger().info(
                f"trial {self.number}: {run.status} beside the next trial: run again, alone"
            )
            self.next_run.end()
            return self._run_candidate(candidate, seed, worth_audit, None, smoke=smoke)
        return run

    def champion(
        self, champion: Candidate, seed: int, earlier: Sequence[Conditions]
    ) -> RunResult | None:
        """A fresh run of the champion, audited; None if it was stopped, which says nothing of it.

        A machine may be too busy for a moment, for the champion as for everybody. `earlier` are the
        conditions of its other runs.
        """
        what = f"trial {self.number}, the champion"

        def train(again: bool) -> RunResult:
            return self._run(what, champion, seed, lambda claimed: True, None)

        run = self.quarantine.settled("champion", what, train, earlier)
        if run.val_bpb is None:
            get_run_logger().warning(
                f"a fresh run of the champion was stopped, and does not count: {run.status}: "
                f"{run.reason}"
            )
            return None
        return run

    def _run(
        self,
        what: str,
        candidate: Candidate,
        seed: int,
        worth_audit: Callable[[float], bool],
        early: EarlyRun | None,
        *,
        smoke: bool = False,
        tenths: tuple[Tenth, ...] = (),
    ) -> RunResult:
        reported = naming(f"{what}, seed {seed}", self.report)
        return train_candidate(
            what,
            candidate,
            self.bench,
            seed,
            worth_audit=worth_audit,
            smoke=smoke,
            report=self.next_run.watching(reported) if self.next_run else reported,
            early=early,
            champion=tenths,
        )


def run_trial(
    number: int,
    candidate: Candidate,
    bench: Bench,
    first_seed: int,
    comparison: Comparison,
    report: Report = ignore,
    early: EarlyRun | None = None,
    next_run: NextRun | None = None,
    no_time: Callable[[], bool] = lambda: False,
) -> Tried:
    """Runs the candidate until the verdict is keep or discard; a stopped run is discarded at once.

    Before it is run again, so is the champion where the rule asks for it. A run that the rule would
    not discard is audited before anything is decided, so no unaudited score enters a keep. `early`
    is the first run, if it has begun already. `next_run` may begin while a run trains. A candidate
    that is undecided when `no_time` is left for another run is discarded.
    """
    quarantine = Quarantine(
        bench, comparison.usual, no_time, lambda: next_run is not None and next_run.is_begun
    )
    trainer = _Trainer(number, bench, report, next_run, quarantine, comparison.tenths)
    runs, champion_runs = list[RunResult](), list[RunResult]()
    scores, fresh = list[float](), list[float]()

    def tried(decided: Verdict) -> Tried:
        return Tried(
            tuple(runs),
            decided,
            tuple(champion_runs),
            comparison.noise,
            tuple(quarantine.runs),
            quarantine.unusual,
            quarantine.machine_change,
        )

    def run_champion() -> None:
        seed = max(comparison.champion_seeds, default=0) + 1 + len(champion_runs)
        earlier = (*comparison.champion_conditions, *conditions.of_runs(champion_runs))
        if again := trainer.champion(comparison.champion, seed, earlier):
            assert again.val_bpb is not None
            champion_runs.append(again)
            fresh.append(again.val_bpb)

    for _ in range(comparison.champion_runs - len(comparison.champion_scores)):
        if not no_time():
            run_champion()
    if not (comparison.champion_scores or fresh):
        return tried(verdict.failed("rejected_patch", "no fresh run of the champion has a score"))
    while True:
        run = trainer.candidate(
            candidate,
            first_seed + len(runs),
            lambda claimed: comparison.decide([*scores, claimed], fresh).decision != "discard",
            early,
            runs,
        )
        runs.append(run)
        if run.val_bpb is None:
            return tried(verdict.failed(run.status, run.reason))
        scores.append(run.val_bpb)
        decided = comparison.decide(scores, fresh)
        if decided.decision != "confirm":
            return tried(decided)
        if no_time():
            late = f"{decided.reason}, but the night has no time for another run"
            return tried(dataclasses.replace(decided, decision="discard", reason=late))
        if comparison.champion_is_due(len(fresh), len(runs)):
            run_champion()


def _excused(bench: Bench) -> tuple[Status, ...]:
    """What may be the fault of the next trial's start-up, beside which the run was made.

    A GPU's time is counted for both of them together.
    """
    if bench.profile.device == "cpu":
        return ("out_of_memory",)
    return ("out_of_memory", "eval_timeout", "audit_timeout")
