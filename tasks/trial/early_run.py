"""A run that begins before its trial: smoke step and start-up while another candidate trains.

The run has a thread of its own from its first box to its last, as a box lives and ends in one
thread. Up to `ready` it goes on by itself, at a low CPU priority. There it rests, without data and
without a clock, until its trial begins or somebody ends it. A failure up
to then is the trial's result, unless the candidate beside it may have caused it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from configs import Profile
from tasks.judge import priority
from tasks.judge.box import Box
from tasks.judge.curve import Tenth
from tasks.records import Baseline, RunResult
from tasks.statuses import Status
from tasks.trial import hardware

# Of a run beside another one. Alone it may do better, so these decide nothing: it is begun again.
UNDECIDED: tuple[Status, ...] = ("startup_timeout", "out_of_memory")
# At a low priority a start-up may take so many times its usual limit by the clock.
PATIENCE = 3.0
JOIN_SECONDS = 10.0  # for the rest of an ended run, once its boxes are gone
MEMINFO = Path("/proc/meminfo")


def nothing() -> None:
    """For a night that has nothing else to do."""


class Ended(Exception):
    """Nobody wants this run any more."""


@dataclasses.dataclass(frozen=True)
class TrialStart:
    """What a run learns only when its trial begins."""

    worth_audit: Callable[[float], bool]
    report: Callable[[str], None]
    champion: tuple[Tenth, ...] = ()


class EarlyRun:
    """A run in its thread. `work` is the run itself, and is given this object to call `holding` and
    `await_trial`; `when_ready` is called in the thread before it rests.
    """

    def __init__(
        self, work: Callable[[EarlyRun], RunResult], when_ready: Callable[[], None]
    ) -> None:
        self.problem: str | None = None  # why its priority could not be lowered
        self.is_past_start_up = False  # set by the run at go
        self.meanwhile: Callable[[], None] = nothing  # what the night does once the trial has begun
        self._work, self._when_ready = work, when_ready
        self._state = threading.Condition()
        self._trial: TrialStart | None = None
        self._ended = False
        self._boxes: list[Box] = []
        self._result: RunResult | None = None
        self._error: BaseException | None = None
        # Not the thread's own `join` and `is_alive`: up to Python 3.12, an interrupt of the one
        # makes the other say that the thread has ended.
        self._has_ended = threading.Event()
        # A daemon: if this process ends without a word, its boxes end with it.
        self._thread = threading.Thread(target=self._run, name="early-run", daemon=True)
        self._thread.start()

    # What the run calls, in its thread.

    @contextlib.contextmanager
    def holding(self, box: Box) -> Iterator[None]:
        """A box that `end` ends, until it is gone. Raises Ended if that was asked for already."""
        with self._state:
            self._check()
            self._boxes.append(box)
        try:
            yield
        finally:
            with self._state:
                self._boxes.remove(box)

    def when_up(self, box: Box) -> None:
        """Lowers the priority of a box, unless the trial has begun."""
        with self._state:
            if self._trial is None and box in self._boxes:
                self.problem = priority.lower(box.watchdog.root)

    def await_trial(self, box: Box) -> float:
        """Rests until the trial begins; how long that took, in seconds. Raises Ended."""
        began = time.monotonic()
        with self._state:
            if self._trial is None and not self._ended:
                priority.rest(box.watchdog.root)
                self._when_ready()
            while self._trial is None and not self._ended:
                self._state.wait()
            self._check()
        return time.monotonic() - began

    def worth_audit(self, claimed: float) -> bool:
        assert self._trial is not None
        return self._trial.worth_audit(claimed)

    @property
    def champion(self) -> tuple[Tenth, ...]:
        assert self._trial is not None
        return self._trial.champion

    def report(self, phase: str) -> None:
        if self._trial is not None:
            self._trial.report(phase)

    # What the night calls.

    @property
    def is_alive(self) -> bool:
        """Whether it has no result yet."""
        return not self._has_ended.is_set()

    def finish(self, trial: TrialStart) -> RunResult | None:
        """Begins the trial and waits for the run's result.

        None if it has to be run from the start: it failed before the trial began, for a reason that
        may have been the other candidate's or ours. Raises what went wrong after that.
        """
        with self._state:
            self._trial = trial
            for box in self._boxes:
                priority.restore(box.watchdog.root)
                priority.wake(box.watchdog.root)
            self._state.notify_all()
        try:
            self.meanwhile()
            self._has_ended.wait()
        except BaseException:
            self.end()
            raise
        if self._error is not None and self.is_past_start_up:
            raise self._error
        if self._result is None or self.is_past_start_up:
            return self._result
        return None if self._result.status in UNDECIDED else self._result

    def end(self) -> None:
        """Ends the run; its boxes are gone when this returns."""
        with self._state:
            self._ended = True
            self._state.notify_all()
        while self.is_alive:
            with self._state:
                boxes = list(self._boxes)
            for box in boxes:
                box.interrupt()
            self._has_ended.wait(JOIN_SECONDS)
            if not boxes:  # it does something else, and opens no further box
                return

    def _run(self) -> None:
        try:
            self._result = self._work(self)
        except BaseException as error:
            self._error = error
        finally:
            self._has_ended.set()

    def _check(self) -> None:
        if self._ended:
            raise Ended


def obstacle(profile: Profile, baseline: Baseline) -> str | None:
    """Why two runs at a time are too much for this machine's memory; None if they fit.

    Twice the baseline's peak on the GPU must fit into it, and twice the memory limit of a box into
    what the machine has left.
    """
    if profile.device == "mps":
        return "a GPU that shares the machine's memory cannot tell how much of it is free"
    if profile.device == "cuda":
        peak = max(run.metrics.get("peak_vram_mb", 0.0) for run in baseline.runs) * 2**20
        card = hardware.first_gpu()
        if card is None or not card.memory_bytes:
            return "the driver does not say how much memory the GPU has"
        if not peak:
            return "the baseline does not report peak_vram_mb, its peak on the GPU"
        if 2 * peak > card.memory_bytes:
            return (
                f"twice the baseline's peak of {peak / 2**30:.1f} GiB does not fit into the GPU's "
                f"{card.memory_bytes / 2**30:.1f} GiB"
            )
    available = available_bytes()
    if available is None:
        return "this system does not say how much memory is available"
    if 2 * profile.limits.memory_gib * 2**30 > available:
        return (
            f"twice the memory limit of a box, {profile.limits.memory_gib:g} GiB, does not fit "
            f"into the {available / 2**30:.1f} GiB that are available"
        )
    return None


def available_bytes() -> int | None:
    """Memory that can be used without swapping; None on a system without /proc."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
