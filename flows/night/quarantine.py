"""Runs that are repeated because the machine was not as usual while they trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from prefect import get_run_logger

from tasks.records import Bench, Conditions, Quarantined, RunResult
from tasks.trial import conditions


@dataclasses.dataclass(frozen=True)
class SetAside:
    """A run in quarantine: it is on record, and counts nowhere."""

    run: RunResult
    of: Literal["candidate", "champion"]
    disturbance: str

    def on_record(self) -> Quarantined:
        run = self.run
        return Quarantined(self.of, run.seed, self.disturbance, run.status, run.val_bpb)


class Quarantine:
    """The runs of one trial as far as the machine disturbed them.

    Nothing is repeated when there is `no_time`. A run that has the next trial's start-up beside it
    (`is_beside`) is slower because of us: it is not compared with earlier runs of its file.
    """

    def __init__(
        self,
        bench: Bench,
        usual: Sequence[Conditions],
        no_time: Callable[[], bool],
        is_beside: Callable[[], bool],
    ) -> None:
        self.runs: list[SetAside] = []
        self.unusual: str | None = None  # what a human should look at
        self.machine_change: str | None = None  # why the champion's scores may not hold any more
        self._bench, self._usual = bench, usual
        self._no_time, self._is_beside = no_time, is_beside

    def settled(
        self,
        of: Literal["candidate", "champion"],
        what: str,
        train: Callable[[bool], RunResult],
        own: Sequence[Conditions],
    ) -> RunResult:
        """Repeats a run until nothing disturbs it, a few times at most; the last one counts.

        `train` gets whether it is a repeat. `own` are earlier runs of the file.
        """
        for repeats in range(conditions.MOST_REPEATS + 1):
            run = train(repeats > 0)
            found = self._disturbance(run, of, own)
            if found is None:
                break
            if repeats == conditions.MOST_REPEATS:
                self.machine_change = (
                    f"a run was slowed at each of its {repeats + 1} attempts: {found}"
                )
            if self.machine_change or self._no_time():
                self.unusual = f"a run counts although {found}"
                break
            get_run_logger().info(f"{what}, seed {run.seed}: repeated, because {found}")
            self.runs.append(SetAside(run, of, found))
        if run.conditions and conditions.is_repeatable(self._bench.profile.budget, run):
            relief = conditions.relief(run.conditions, self._usual)
            self.machine_change = relief or self.machine_change
        return run

    def _disturbance(
        self, run: RunResult, of: Literal["candidate", "champion"], own: Sequence[Conditions]
    ) -> str | None:
        if not conditions.is_repeatable(self._bench.profile.budget, run):
            return None
        assert run.conditions is not None
        found = conditions.disturbance(run.conditions, self._usual)
        slower = None if self._is_beside() else conditions.slower(run.conditions, own)
        if of == "champion":
            return found or slower
        if slower and not found:
            self.unusual = slower
        return found
