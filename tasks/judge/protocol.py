"""The conversation between the judge and a box: messages, deadlines, the moment of go.

A message is one JSON object on one line, at most 64 KiB; raw bytes follow only where a message announces them and the judge
allows their number. Every read has a deadline on the judge's monotonic clock. Nothing that a box says is believed beyond
what is checked here; what it does wrong becomes `Stopped(status, reason)`.

    train box   up, ready  ->  go  ->  log*, done + checkpoint
    claim box   up, warm   ->  load  ->  ready  ->  nll + rows  ->  nats of every target
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.judge.box import Box
from tasks.judge.bwrap import BoxUnavailable, Gate
from tasks.judge.wire import Closed, Malformed, Silent, Wire

CURVE_POINTS = 2000
LOG_MESSAGES = 100_000  # more than this is no curve but an attack on our memory or time
Rows = npt.NDArray[np.uint16]
METRIC_NAME = re.compile(r"[A-Za-z0-9_./-]{1,40}")


class Stopped(Exception):
    """A candidate was stopped: a value on its way to a RunResult. `status` is one of records.Status."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Budget:
    kind: str  # "flops" or "seconds"
    amount: float
    deadline_seconds: float  # go to the checkpoint's last byte, by the judge's clock
    cpu_seconds: float | None  # ... and on its CPU account; None is no limit


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a train box handed over. `metrics`, `tokens` and `curve` are its own word."""

    startup_seconds: float
    seconds: float
    cpu_seconds: float
    tokens: int | None
    metrics: dict[str, float]
    curve: tuple[tuple[int, int, float], ...]


@dataclasses.dataclass(frozen=True)
class Shape:
    """The candidate's free choices that the metric must know."""

    vocab_size: int
    sequence_length: int


@contextlib.contextmanager
def _blaming(box: Box, phase: str, deadline_seconds: float) -> Iterator[None]:
    """Turns what went wrong inside the block into the status of this phase: `<phase>_timeout`, `<phase>_crashed`."""
    names = {"startup": "starting up", "train": "training", "eval_startup": "loading its checkpoint", "eval": "scoring"}
    doing = names[phase]
    try:
        yield
    except Silent:
        raise Stopped(f"{phase}_timeout", f"was still {doing} after {deadline_seconds:.0f} s, the limit") from None
    except Closed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            box.process.wait(timeout=2.0)  # it may have closed its socket and live on: it is killed a moment later
        box.watchdog.stop()
        if box.watchdog.verdict:  # a kill by the watchdog and a crash look alike from here
            raise Stopped(*box.watchdog.verdict) from None
        # A box that scores has seen the validation text: not one word of its log may reach a proposer.
        said = "its log is withheld" if phase == "eval" else last_line(box)
        raise Stopped(f"{phase}_crashed", f"ended while {doing}: {said}") from None
    except Malformed as error:
        raise Stopped("protocol_error", f"sent {error} while {doing}") from None


def last_line(box: Box) -> str:
    """The log's last line, most often the exception, cut to a readable length."""
    lines = [line.strip() for line in box.log.text().splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"exit code {box.process.returncode} and no output"


def expect_up(box: Box, wire: Wire, deadline: float) -> None:
    """Waits for the fixed harness to say that it runs, before any line of the candidate does.

    Raises BoxUnavailable if it does not: then bubblewrap or the mounts failed, and the candidate is not to blame.
    """
    try:
        up = wire.read(deadline)
    except (Silent, Closed, Malformed) as error:
        box.kill()
        raise BoxUnavailable(f"the box did not start ({type(error).__name__.lower()}): {last_line(box)}") from None
    if up.get("python") != sys.version:
        raise BoxUnavailable(f"the box runs Python {up.get('python')!r}, not {sys.version!r}: its interpreter is a wrong one")


def train(box: Box, gate: Gate, budget: Budget, checkpoint: Path, *, startup_seconds: float, max_bytes: int) -> Trained:
    """One training: waits for ready, opens the data gate, starts the clock, takes the checkpoint. Raises Stopped."""
    wire, deadline = Wire(box.wire), box.started + startup_seconds
    expect_up(box, wire, deadline)
    with _blaming(box, "startup", startup_seconds):
        _expect(wire.read(deadline), "ready")
        started_up = time.monotonic() - box.started
        cpu_before = box.watchdog.cpu_seconds()
        if budget.cpu_seconds is not None:
            box.watchdog.limit_cpu(budget.cpu_seconds)
        gate.open()
        go = time.monotonic()
        wire.send({"msg": "go", "kind": budget.kind, "amount": budget.amount}, deadline)
    deadline = go + budget.deadline_seconds
    curve: list[tuple[int, int, float]] = []
    with _blaming(box, "train", budget.deadline_seconds):
        for _ in range(LOG_MESSAGES):
            message = wire.read(deadline)
            if message["msg"] == "done":
                break
            _expect(message, "log")
            if len(curve) < CURVE_POINTS and (point := _point(message)):
                curve.append(point)
        else:
            raise Malformed(f"more than {LOG_MESSAGES} log messages")
    _take_checkpoint(wire, message, checkpoint, deadline, max_bytes)
    seconds = time.monotonic() - go
    tokens = message.get("tokens")
    return Trained(
        startup_seconds=started_up,
        seconds=seconds,
        cpu_seconds=box.watchdog.cpu_seconds() - cpu_before,
        tokens=tokens if isinstance(tokens, int) and 0 <= tokens < 2**53 else None,
        metrics=_metrics(message.get("metrics")),
        curve=tuple(curve),
    )


def claims(
    box: Box,
    gate: Gate,
    streams: Mapping[int, tuple[Rows, int]],
    cut: Callable[[Rows, int, int], Rows],
    *,
    startup_seconds: float,
    eval_seconds: float,
) -> tuple[Shape, Rows, npt.NDArray[np.float32]]:
    """Shows a fresh box the checkpoint and the validation rows; returns its shape, the rows and its claims.

    `streams` maps each prepared vocabulary size to its validation stream (uint16 [N]) and BOS id; `cut(stream, T, bos)`
    gives the rows, uint16 [R, T+1]. Claims are nats per target, float32 [R, T]: checked for nothing but their number.
    Raises Stopped.
    """
    wire, deadline = Wire(box.wire), box.started + startup_seconds
    expect_up(box, wire, deadline)
    with _blaming(box, "eval_startup", startup_seconds):
        _expect(wire.read(deadline), "warm")
        gate.open()
        wire.send({"msg": "load"}, deadline)
        ready = _expect(wire.read(deadline), "ready")
    vocab, length = ready.get("vocab_size"), ready.get("sequence_length")
    if not isinstance(vocab, int) or vocab not in streams:
        raise Stopped("bad_claims", f"VOCAB_SIZE = {vocab!r} is not prepared; prepared: {sorted(streams)}")
    if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= 2**17:
        raise Stopped("bad_claims", f"MAX_SEQ_LEN = {length!r}; it must be a whole number from 1 to {2**17}")
    stream, bos = streams[vocab]
    rows = cut(stream, length, bos)
    deadline = time.monotonic() + eval_seconds
    with _blaming(box, "eval", eval_seconds):
        wire.send({"msg": "nll", "rows": len(rows)}, deadline, rows.astype("<u2").tobytes())
        data = wire.read_bytes(len(rows) * length * 4, deadline)
    return Shape(vocab, length), rows, np.frombuffer(data, dtype="<f4").reshape(len(rows), length)


def _expect(message: dict[str, Any], kind: str) -> dict[str, Any]:
    if message["msg"] != kind:
        raise Malformed(f"{message['msg'][:40]!r} where {kind!r} was due")
    return message


def _take_checkpoint(wire: Wire, done: dict[str, Any], path: Path, deadline: float, max_bytes: int) -> None:
    size = done.get("bytes")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= max_bytes:
        raise Stopped("bad_checkpoint", f"announced a checkpoint of {size!r} bytes; it must be 1 to {max_bytes}")
    try:
        wire.read_to_file(size, path, deadline)
    except Silent:
        raise Stopped("train_timeout", f"its checkpoint of {size} bytes had not arrived when the time was up") from None
    except Closed:
        raise Stopped("bad_checkpoint", f"ended before its checkpoint of {size} bytes had arrived") from None
    os.chmod(path, 0o444)


def _point(message: dict[str, Any]) -> tuple[int, int, float] | None:
    step, tokens, loss = message.get("step"), message.get("tokens"), message.get("loss")
    if not (isinstance(step, int) and isinstance(tokens, int) and isinstance(loss, (int, float))):
        return None
    if not (0 <= step < 2**53 and 0 <= tokens < 2**53 and abs(loss) < 1e18 and math.isfinite(loss)):
        return None
    return step, tokens, float(loss)


def _metrics(shown: Any) -> dict[str, float]:
    """At most 30 well-named finite numbers; the rest is dropped. A Python int may be too large for a float: compared first."""
    if not isinstance(shown, dict):
        return {}
    good: dict[str, float] = {}
    for name, value in shown.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if len(good) < 30 and METRIC_NAME.fullmatch(name) and number and -1e18 < value < 1e18:
            good[name] = float(value)
    return good
