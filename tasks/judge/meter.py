"""What a scoring box spends, measured from outside and phase by phase, and the limits of it.

Loading a checkpoint and scoring come after the budget of the training, so neither may pay for
more of it. The phases of one box follow each other without a gap: what it does between two of
them is part of the second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

from tasks.judge.box import Box
from tasks.judge.nvml import BusyClock
from tasks.judge.protocol import PHASES, Stopped


@dataclasses.dataclass(frozen=True)
class Spent:
    """What a phase has cost, or may cost."""

    seconds: float  # by the judge's clock; infinite: without a limit
    cpu_seconds: float  # of the whole process tree
    gpu_seconds: float | None  # in which the GPU was busy; None: not measured, or without a limit


class Meter:
    """The account of one scoring box, from here on. `gpu` is a running clock, if there is a GPU."""

    def __init__(self, box: Box, gpu: BusyClock | None) -> None:
        self._box, self._gpu = box, gpu
        self._before = self._reading()

    @contextlib.contextmanager
    def phase(
        self, name: str, limit: Spent | None, note: Callable[[Spent], None]
    ) -> Iterator[None]:
        """Measures the block, and all since the phase before; `note` is told what it has cost.

        `name` is a key of PHASES. Raises Stopped if more is spent than `limit`. The watchdog ends
        a box at its limit of CPU-seconds, the rest is compared at the end of the phase.
        """
        status = f"{name.removesuffix('_startup')}_timeout"
        _, doing = PHASES[name]
        if limit is not None:
            used = self._box.watchdog.cpu_seconds() - self._before.cpu_seconds
            self._box.watchdog.limit_cpu(limit.cpu_seconds, used=used, status=status, doing=doing)
        yield
        now, before = self._reading(), self._before
        self._before = now
        spent = Spent(
            now.seconds - before.seconds,
            now.cpu_seconds - before.cpu_seconds,
            None if self._gpu is None else (now.gpu_seconds or 0.0) - (before.gpu_seconds or 0.0),
        )
        note(spent)
        ended = self._box.watchdog.verdict
        if ended is not None and ended[0] == status:  # after its last answer
            raise Stopped(*ended)
        if limit is not None and (problem := excess(spent, limit)):
            used, most, unit = problem
            raise Stopped(
                status,
                f"used {used:.2f} {unit} while {doing}, the limit is {most:.2f}, "
                "from what the baseline used",
            )

    def _reading(self) -> Spent:
        return Spent(
            time.monotonic(),
            self._box.watchdog.cpu_seconds(),
            self._gpu.seconds if self._gpu else None,
        )


def excess(spent: Spent, limit: Spent) -> tuple[float, float, str] | None:
    """The first figure above its limit: what was used, the limit and the unit; None if none is."""
    units = {"cpu_seconds": "CPU-seconds", "gpu_seconds": "GPU-seconds", "seconds": "s"}
    for field, unit in units.items():
        used, most = getattr(spent, field), getattr(limit, field)
        if used is not None and most is not None and used > most:
            return used, most, unit
    return None
