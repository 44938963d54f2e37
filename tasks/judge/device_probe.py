"""Tries in a box what a training needs of its device, by the steps in trainer/device_steps.py."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from tasks.judge import protocol
from tasks.judge.box import Box, open_box
from tasks.judge.bwrap import BoxSpec
from tasks.judge.wire import Wire
from tasks.judge.workplace import TRAINER

STEPS = "device_steps.py"
STEP_SECONDS = 240.0  # for one step: the first start of CUDA and of its compiler may take minutes
CHECKPOINT_BYTES = 260_000_000  # about profile h100's without n-gram tables (1.1 GB with them)


@dataclasses.dataclass(frozen=True)
class Tried:
    """The outcome of one step: `holds` is None if training can do without it."""

    step: str
    holds: bool | None
    detail: str


def probe(spec: BoxSpec, checkpoint: Path, checkpoint_bytes: int = CHECKPOINT_BYTES) -> list[Tried]:
    """Every step up to the first that fails, in a box of this spec, and the memory that it took.

    The steps' file is put beside the candidate of `spec`, which does not run. What is handed over
    is written to `checkpoint`. Raises BoxUnavailable.
    """
    package = spec.code / "trainer"
    shutil.copyfile(TRAINER / STEPS, package / STEPS)
    (package / STEPS).chmod(0o644)
    entry = f"from trainer import device_steps; device_steps.main({checkpoint_bytes})"
    found: list[Tried] = []
    with open_box(spec, ["-u", "-c", entry]) as box:
        wire = Wire(box.wire)
        protocol.expect_up(box, wire, time.monotonic() + STEP_SECONDS)
        while not found or (found[-1].holds is not False and found[-1].step != "checkpoint"):
            found.append(_next(box, wire, checkpoint))
        box.kill()
    if found[-1].holds is False:
        return [*found[:-1], _with_compilers_line(found[-1], box.log.text())]
    peak, limit = box.watchdog.peak_memory_bytes / 2**30, spec.memory_bytes / 2**30
    return [*found, Tried("memory", True, f"at most {peak:.1f} GiB of the box's {limit:.0f} GiB")]


def _next(box: Box, wire: Wire, checkpoint: Path) -> Tried:
    """What comes of the next step. One that ends the box fails with the reason for that end."""
    step = "start"
    try:
        with protocol.blaming(box, "probe", STEP_SECONDS):
            deadline = time.monotonic() + STEP_SECONDS
            step = str(protocol.expect(wire.read(deadline), "trying")["step"])
            if step != "checkpoint":
                tried = protocol.expect(wire.read(deadline), "tried")
                return Tried(step, tried["holds"], str(tried["detail"]))
            saved = protocol.expect(wire.read(deadline), "saved")
            return _take(wire, saved, checkpoint, deadline)
    except protocol.Stopped as stopped:
        return Tried(step, False, stopped.reason)


def _take(wire: Wire, saved: dict[str, Any], checkpoint: Path, deadline: float) -> Tried:
    began = time.monotonic()
    wire.read_to_file(saved["bytes"], checkpoint, deadline)
    seconds = time.monotonic() - began
    return Tried(
        "checkpoint",
        True,
        f"{saved['bytes'] / 1e6:.0f} MB saved in {saved['seconds']:.1f} s, "
        f"handed over in {seconds:.1f} s",
    )


def _with_compilers_line(failed: Tried, log: str) -> Tried:
    """A compiler that torch calls writes its errors to the box's log alone."""
    lines = [line.strip() for line in log.splitlines() if " error: " in line]
    if not lines or lines[0] in failed.detail:
        return failed
    return dataclasses.replace(failed, detail=f"{failed.detail} ({lines[0][:200]})")
