"""Whether a machine was as usual while a run trained. Pure, no I/O.

With a `seconds` budget a run that is slowed makes fewer steps and gets a worse score, and no patch
did that. What is usual is learned from the runs of the baseline and of the champions: of each
figure the mean and the standard deviation, with a floor. A run whose conditions are off by more is
made again with the same seed, and the second result counts, whatever it is.

A candidate must not get a second chance by conditions of its own making. So nothing counts that it
reports, or that its own processes do: threads that wait for a CPU count only while others use more
CPU time than usual, and a low clock only while the driver holds it back for heat or hardware. What
the champion's runs report is compared with its own earlier runs: it cannot know that it is one.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence

from configs import Budget
from tasks.records import Conditions, FreshRun, RunResult

MOST_REPEATS = 2  # of one run: then it counts, and is marked
SPREADS = 4.0  # standard deviations of the usual runs
# With any other status a run did not end by its own time.
TIMED = ("ok", "train_timeout", "eval_timeout", "audit_timeout")


@dataclasses.dataclass(frozen=True)
class _Figure:
    """What is compared, and by how much it may differ on a machine that is as usual."""

    of: Callable[[Conditions], float | None]
    floor: float
    of_mean: bool = False  # the floor is a share of the usual mean

    def usual(self, runs: Sequence[Conditions]) -> float:
        return statistics.fmean(self._known(runs))

    def off(self, run: Conditions, usual: Sequence[Conditions]) -> float:
        """Deviation from the usual mean, as a share of the allowed: beyond -1 or 1 it is unusual.

        0 if it is not known, of this run or of the usual ones.
        """
        value, known = self.of(run), self._known(usual)
        if value is None or not known:
            return 0.0
        mean = statistics.fmean(known)
        spread = statistics.stdev(known) if len(known) > 1 else 0.0
        return (value - mean) / max(
            self.floor * (mean if self.of_mean else 1.0), SPREADS * spread, 1e-9
        )

    def _known(self, runs: Sequence[Conditions]) -> list[float]:
        return [value for run in runs if (value := self.of(run)) is not None]


def _stolen_share(run: Conditions) -> float | None:
    """Of the CPU time that was asked for: a box that asks for more does not raise it."""
    if run.cpu_stolen is None or run.cpu_used is None or run.cpu_others is None:
        return None
    return run.cpu_stolen / max(run.cpu_stolen + run.cpu_used + run.cpu_others, 1e-9)


def _per_second(amount: float | None, run: Conditions) -> float | None:
    return None if amount is None else amount / max(run.seconds, 1e-9)


WAITED = _Figure(lambda run: _per_second(run.cpu_waited, run), 0.03)
OTHERS = _Figure(lambda run: _per_second(run.cpu_others, run), 0.1)
STOLEN = _Figure(_stolen_share, 0.02)
CLOCK = _Figure(lambda run: run.sm_clock, 0.01, of_mean=True)
HELD_BACK = _Figure(
    lambda run: None if run.sm_clock is None else max(run.held_back.values(), default=0.0), 0.05
)
STRANGERS = _Figure(lambda run: run.gpu_others, 0.5)
TOKENS = _Figure(lambda run: run.tokens, 0.02, of_mean=True)


def of_runs(runs: Iterable[RunResult | FreshRun]) -> tuple[Conditions, ...]:
    """Those of the runs that began to train."""
    return tuple(run.conditions for run in runs if run.conditions)


def is_repeatable(budget: Budget, run: RunResult) -> bool:
    """Whether its conditions may have changed its result. They cannot change a score by FLOPs."""
    return budget.kind == "seconds" and run.conditions is not None and run.status in TIMED


def disturbance(run: Conditions, usual: Sequence[Conditions]) -> str | None:
    """What others did that is not usual and slowed the run; None if they did nothing."""
    found = []
    if WAITED.off(run, usual) > 1 and OTHERS.off(run, usual) > 1:
        found.append(
            f"its threads waited {WAITED.of(run):.2f} s a second for a CPU (usually "
            f"{WAITED.usual(usual):.2f}) while other processes used {OTHERS.of(run):.2f} CPUs "
            f"(usually {OTHERS.usual(usual):.2f})"
        )
    if STOLEN.off(run, usual) > 1:
        found.append(
            f"the hypervisor took {STOLEN.of(run):.0%} of the CPU time (usually "
            f"{STOLEN.usual(usual):.0%})"
        )
    if CLOCK.off(run, usual) < -1 and HELD_BACK.off(run, usual) > 1:
        reasons = [f"{why} {share:.0%} of the time" for why, share in run.held_back.items()]
        found.append(f"{_clock(run, usual)}, held back by {', '.join(reasons)}")
    if STRANGERS.off(run, usual) > 1:
        found.append(
            f"processes of others on the GPU: {run.gpu_others} (usually "
            f"{STRANGERS.usual(usual):.1g})"
        )
    return "; ".join(found) or None


def slower(run: Conditions, own: Sequence[Conditions]) -> str | None:
    """How it differs from earlier runs of the same file, which did more; None if it does not.

    Other tenants of a GPU may be seen by nothing else. The file itself may be the cause, and the
    number of tokens is its own word.
    """
    found = []
    if CLOCK.off(run, own) < -1:
        found.append(_clock(run, own))
    if TOKENS.off(run, own) < -1:
        found.append(
            f"it trained on {run.tokens:,} tokens (the same file usually on "
            f"{TOKENS.usual(own):,.0f})"
        )
    return "; ".join(found) or None


def relief(run: Conditions, usual: Sequence[Conditions]) -> str | None:
    """What slowed the usual runs and not this one; None if nothing did.

    Compared with a champion that was slowed, a candidate looks better than it is.
    """
    found = []
    if WAITED.off(run, usual) < -1 and OTHERS.off(run, usual) < -1:
        found.append("other processes use fewer CPUs")
    if STOLEN.off(run, usual) < -1:
        found.append("less CPU time is stolen")
    if CLOCK.off(run, usual) > 1 and HELD_BACK.off(run, usual) < -1:
        found.append("the GPU is no longer held back")
    if STRANGERS.off(run, usual) < -1:
        found.append("other processes have left the GPU")
    return f"since the champion was measured, {' and '.join(found)}" if found else None


def _clock(run: Conditions, usual: Sequence[Conditions]) -> str:
    return f"the GPU ran at {run.sm_clock:.0f} MHz (usually {CLOCK.usual(usual):.0f})"
