"""The next trial's run, begun while the trial before it trains: the GPU does not wait for imports.

At most one run is begun early, that of the waiting proposal. It begins once the proposal exists and
the present run is past its start-up, but only while that still trains. If the present trial is
kept, or the next one turns out to try something else, the early run is ended with all its boxes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from prefect import get_run_logger

from flows.night import interruption, studies
from flows.night.night import Night
from tasks.records import Candidate, Proposal
from tasks.trial import experiment
from tasks.trial.early_run import EarlyRun, nothing, obstacle
from tasks.trial.experiment import Report


class NextRun:
    """The run that is begun early, if there is one. `offer` may be called from any thread."""

    def __init__(self, night: Night, *, allowed: bool) -> None:
        self.allowed = allowed
        self._night = night
        self._lock = threading.Lock()
        self._proposed: Proposal | None = None
        self._is_training = False  # the present run
        self._run: EarlyRun | None = None
        self._present: EarlyRun | None = None  # one that was taken: ours to end if its trial fails
        self._is_closed = False
        self._aside: Callable[[], None] = nothing

    @classmethod
    def of(cls, night: Night) -> NextRun:
        """Allowed if the profile asks for it and the machine has the memory; the log says if not.

        Asked before the first box of the night's trials is open.
        """
        profile = night.bench.profile
        if not profile.limits.start_ahead:
            return cls(night, allowed=False)
        why = obstacle(profile, night.baseline)
        if why is not None:
            get_run_logger().info(f"[limits] start_ahead is off: {why}")
        return cls(night, allowed=why is None)

    @property
    def is_begun(self) -> bool:
        """Whether a run beside the present one has been begun."""
        return self._run is not None

    def offer(self, proposed: Proposal) -> None:
        """The next trial's proposal is there, if nothing changes."""
        with self._lock:
            self._proposed = None if proposed.problem else proposed
            self._begin_if_due()

    def watching(self, report: Report) -> Report:
        """The same report, of a run that begins now; from it follows when it trains."""
        with self._lock:
            self._is_training = False

        def enter(phase: str) -> None:
            report(phase)
            with self._lock:
                self._is_training = phase == "training"
                self._begin_if_due()

        return enter

    def aside(self, work: Callable[[], None]) -> None:
        """Does work that a trial need not wait for: now, or while the waiting run trains."""
        if self.is_begun:
            self._aside = work
        else:
            work()

    def take(self, candidate: Candidate) -> EarlyRun | None:
        """The early run of this candidate, for its trial; one of any other candidate is ended.

        What was put aside is done now if there is no such run.
        """
        work, self._aside = self._aside, nothing
        run = self._taken(candidate)
        if run is None:
            work()
        else:
            run.meanwhile = work
        return run

    def _taken(self, candidate: Candidate) -> EarlyRun | None:
        self._end_present()
        with self._lock:
            self._is_training = False  # a run that was stopped in its training has not said so
            run, proposed = self._run, self._proposed
            self._run, self._proposed, self._present = None, None, run
        if run is None:
            return None
        if proposed is not None and proposed.candidate.source == candidate.source:
            if run.problem:
                get_run_logger().info(f"started ahead at normal CPU priority: {run.problem}")
            return run
        self._end_present()
        return None

    def _end_present(self) -> None:
        run, self._present = self._present, None
        if run is not None:
            run.end()

    def end(self) -> None:
        """Ends the early run, with its proposal: a later one may follow."""
        with self._lock:
            run, self._run, self._proposed = self._run, None, None
        if run is not None:
            run.end()

    def close(self) -> None:
        """Ends every run that has begun early; none is begun any more."""
        self._is_closed = True
        self._end_present()
        self.end()

    def _begin_if_due(self) -> None:
        """Begins the run if its time has come; for a caller that holds the lock."""
        due = self.allowed and self._is_training and not self._is_closed
        if due and self._run is None and self._proposed is not None:
            self._run = experiment.start_early(
                self._proposed.candidate,
                studies.keeping(self._night),
                self._night.seed,
                lambda: interruption.reached("waiting"),
            )
