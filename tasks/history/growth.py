"""How large a model is compared with another: parameters, checkpoint, and the memory it took.

A lookup in a table costs no FLOPs and little time, but memory. The score alone does not show that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from tasks.records import RunResult

TIMES = 1.5  # a figure is named if it is more than this many times what it was before
REPORTED_GPU_MIB = "peak_vram_mb"  # train.py's own metric


class Sized(Protocol):
    """A record with the figures of a Size."""

    @property
    def parameters(self) -> int | None: ...
    @property
    def checkpoint_bytes(self) -> int | None: ...
    @property
    def peak_memory_bytes(self) -> int | None: ...
    @property
    def peak_gpu_bytes(self) -> int | None: ...


@dataclasses.dataclass(frozen=True)
class Size:
    """Each figure is the largest of a few runs; None is unknown."""

    parameters: int | None  # self-reported
    checkpoint_bytes: int | None
    peak_memory_bytes: int | None  # of the host
    peak_gpu_bytes: int | None  # by NVIDIA's driver; where that does not say, self-reported

    @classmethod
    def of_runs(cls, runs: Sequence[RunResult]) -> Size:
        return cls(
            _largest(run.parameters for run in runs),
            _largest(run.checkpoint_bytes for run in runs),
            _largest(run.peak_memory_bytes for run in runs),
            _largest(map(_gpu_bytes, runs)),
        )

    @classmethod
    def of(cls, record: Sized) -> Size:
        return cls(**{field.name: getattr(record, field.name) for field in dataclasses.fields(cls)})

    def __str__(self) -> str:
        """As in "parameters 0.53 M, checkpoint 2.1 MiB"; empty if nothing is known."""
        return ", ".join(f"{noun} {show(value)}" for noun, show, value in self._figures() if value)

    def growth(self, before: Size) -> str | None:
        """What is much larger: "parameters 0.53 M -> 33 M, checkpoint 2.1 MiB -> 132 MiB"."""
        pairs = zip(self._figures(), before._figures(), strict=True)
        grown = [
            f"{noun} {show(old)} -> {show(new)}"
            for (noun, show, new), (_, _, old) in pairs
            if new and old and new > TIMES * old
        ]
        return ", ".join(grown) or None

    def _figures(self) -> Iterator[tuple[str, Callable[[int], str], int | None]]:
        yield "parameters", _count, self.parameters
        yield "checkpoint", _bytes, self.checkpoint_bytes
        yield "host memory", _bytes, self.peak_memory_bytes
        yield "GPU memory", _bytes, self.peak_gpu_bytes


def _gpu_bytes(run: RunResult) -> int | None:
    return run.peak_gpu_bytes or int(run.metrics.get(REPORTED_GPU_MIB, 0.0) * 2**20)


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value and value > 0), default=None)


def _count(number: int) -> str:
    """In millions with two or three digits, or whole where that says more."""
    if number < 100_000:
        return f"{number:,}"
    return f"{_digits(number / 1e6)} M"


def _bytes(size: int) -> str:
    unit, name = next(
        (unit, name) for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (1, "B")) if size >= unit
    )
    return f"{_digits(size / unit) if unit > 1 else size} {name}"


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
