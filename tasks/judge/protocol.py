"""The conversation between the judge and a box: messages, deadlines, the moment of go.

A message is one JSON object on one line, at most 64 KiB; raw bytes follow only where a message
announces them and the judge allows their number. Every read has a deadline on the judge's monotonic
clock. Nothing that a box says is believed beyond what is checked here; a violation becomes
`Stopped(status, reason)`. The sides take turns at each arrow, beginning with the box:

    train box   up, ready  ->  go    ->  log*, done + checkpoint [, cache + compiled kernels]
    smoke box   up, ready  ->  go    ->  log*, smoked       (smoked may come at any time after up)
    claim box   up, warm   ->  load  ->  ready  ->  nll + rows  ->  nats of every target
    audit box   up, warm   ->  load  ->  ready  ->  (logits + prefixes + positions  ->  logits)*
    study box   up         ->  study ->  studied

scoring.py has the rest of the claim box's part, audit.py that of the audit box. Nothing that a
study box says is part of a score: see study_box.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

from tasks.judge.box import Box
from tasks.judge.bwrap import BoxUnavailable, Gate
from tasks.judge.curve import Curve, Tenth
from tasks.judge.flop_count import FlopCount, number
from tasks.judge.wire import Closed, Malformed, Silent, Wire

LOG_MESSAGES = 100_000  # more are not a curve but an attack on our memory or time
EXIT_SECONDS = 5.0  # from the end of a box's socket to that of its process
SIGKILLED = (-9, 128 + 9)  # bubblewrap and docker return 128 + the signal that ended the box
MOST_METRICS = 30
GO_SECONDS = 30.0  # for a box that is ready to take a message
# What every view takes: MLflow refuses a name that is no plain file name, such as `..` or `a//b`.
METRIC_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,39}", re.ASCII)
UNREAD = 5  # tensors that are named
TENSOR_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}", re.ASCII)


class Stopped(Exception):
    """A candidate was stopped: a value on its way to a RunResult."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def ignore(box: Box) -> None:
    """For callers that do nothing with a box that is up."""


@dataclasses.dataclass(frozen=True)
class Budget:
    kind: str  # "flops" or "seconds"
    amount: float
    deadline_seconds: float  # from go to the checkpoint's last byte, by the judge's clock
    cpu_seconds: float | None  # in the same span; None is no limit
    # Of `seconds`: how the champion fared, which a candidate is compared with while it trains.
    champion: tuple[Tenth, ...] = ()


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a train box handed over. All but the first three figures are self-reported."""

    startup_seconds: float
    seconds: float
    cpu_seconds: float
    handover_seconds: float  # from `done` to the checkpoint's last byte, the end of `seconds`
    tokens: int | None
    metrics: dict[str, float]
    parameters: int | None  # elements of the checkpoint's tensors, self-reported
    flops_per_token: float | None  # its word; None if it gave none
    counted_flops_per_token: float | None  # None: not counted
    traffic_per_token: float | None


@dataclasses.dataclass(frozen=True)
class Smoked:
    """What a smoke step says of the model's state and its FLOPs; self-reported."""

    state_bytes: int | None  # of all parameters and buffers
    unread: tuple[str, ...]  # tensors of the checkpoint that no forward pass reads
    flops_per_token: float | None


@dataclasses.dataclass(frozen=True)
class Started:
    """A box that is ready, before go."""

    wire: Wire
    seconds: float  # from its start to ready
    cpu_seconds: float
    flops_per_token: float | None  # its word; None if it gave none


@dataclasses.dataclass(frozen=True)
class Begun:
    """A training after go: what `finish` needs."""

    wire: Wire
    startup_seconds: float
    go: float  # time.monotonic()
    budget: Budget
    cpu_before: float
    flops_per_token: float | None  # its word
    curve: Curve  # grows as it trains


PHASES = {  # the first part of a status, and what a box was doing
    "startup": ("startup", "starting up"),
    "smoke": ("startup", "in its smoke step, two steps and one evaluation before the budget"),
    "train": ("train", "training"),
    "eval_startup": ("eval_startup", "loading its checkpoint"),
    "eval": ("eval", "scoring"),
    "audit_startup": ("audit_startup", "loading its checkpoint for the audit"),
    "audit": ("audit", "being audited"),
    "study": ("startup", "being studied"),
    "probe": ("startup", "trying this"),
}
SAW_VALIDATION = ("eval", "audit_startup", "audit")  # their logs must not reach a proposer


@contextlib.contextmanager
def blaming(box: Box, phase: str, deadline_seconds: float) -> Iterator[None]:
    """Turns what goes wrong in the block into the phase's status: `<phase>_timeout`, `_crashed`."""
    status, doing = PHASES[phase]
    try:
        yield
    except Silent:
        _raise_verdict(box)
        raise Stopped(
            f"{status}_timeout", f"was still {doing} after {deadline_seconds:.0f} s, the limit"
        ) from None
    except Closed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            # If it only closed its socket, it is killed soon. A GPU's memory takes a while to free.
            box.process.wait(timeout=EXIT_SECONDS)
        box.watchdog.stop()
        _raise_verdict(box)
        why = "its log is withheld" if phase in SAW_VALIDATION else last_line(box)
        if box.process.returncode == errno.ENOMEM:  # see trainer/exhaustion.py
            raise Stopped("out_of_memory", f"ran out of memory while {doing}: {why}") from None
        if box.process.returncode in SIGKILLED:
            raise Stopped(
                "out_of_memory",
                f"was killed while {doing}: by the kernel for its memory, or by itself",
            ) from None
        raise Stopped(f"{status}_crashed", f"ended while {doing}: {why}") from None
    except Malformed as error:
        raise Stopped("protocol_error", f"sent {error} while {doing}") from None


def _raise_verdict(box: Box) -> None:
    """Raises what the watchdog ended the box for, if it did.

    From here that looks like a crash, or like silence as long as a process of the box still dies.
    """
    if box.watchdog.verdict:
        verdict, reason = box.watchdog.verdict
        if verdict == "sandbox_error":
            raise BoxUnavailable(reason) from None
        raise Stopped(verdict, reason) from None


def last_line(box: Box) -> str:
    """The log's last line, which is most often the exception, cut to a readable length."""
    lines = [line.strip() for line in box.log.text().splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"exit code {box.process.returncode} and no output"


def expect_up(box: Box, wire: Wire, deadline: float, *, warm: bool = False) -> None:
    """Waits until the fixed harness runs (and is warm), before any line of the candidate runs.

    Raises BoxUnavailable if it does not: bubblewrap or a mount failed, and no candidate did that.
    """
    try:
        up = wire.read(deadline)
        if warm:
            expect(wire.read(deadline), "warm")
    except (Silent, Closed, Malformed) as error:
        box.kill()
        raise BoxUnavailable(
            f"the box did not start ({type(error).__name__.lower()}): {last_line(box)}"
        ) from None
    if up.get("python") != sys.version:
        raise BoxUnavailable(
            f"the box has the wrong interpreter: Python {up.get('python')!r}, not {sys.version!r}"
        )


def begin(box: Box, gate: Gate, budget: Budget, *, startup_seconds: float) -> Begun:
    """Waits for `ready`, opens the data gate and starts the clock. Raises Stopped."""
    return go(box, gate, budget, start_up(box, startup_seconds=startup_seconds))


def start_up(
    box: Box, *, startup_seconds: float, when_up: Callable[[Box], None] = ignore
) -> Started:
    """Waits for `ready`. `when_up` is called before any line of the candidate runs.

    Raises Stopped.
    """
    wire, deadline = Wire(box.wire), box.started + startup_seconds
    expect_up(box, wire, deadline)
    when_up(box)
    with blaming(box, "startup", startup_seconds):
        ready = expect(wire.read(deadline), "ready")
    return Started(
        wire,
        time.monotonic() - box.started,
        box.watchdog.cpu_seconds(),
        number(ready.get("flops_per_token")),
    )


def go(box: Box, gate: Gate, budget: Budget, started: Started) -> Begun:
    """Opens the data gate and starts the clock, however long ago the box was ready.

    Raises Stopped.
    """
    with blaming(box, "startup", GO_SECONDS):
        cpu_before = box.watchdog.cpu_seconds()
        box.watchdog.limit_cpu(math.inf if budget.cpu_seconds is None else budget.cpu_seconds)
        gate.open()
        begun = time.monotonic()
        message = {"msg": "go", "kind": budget.kind, "amount": budget.amount}
        started.wire.send(message, begun + GO_SECONDS)
    curve = Curve(budget.amount if budget.kind == "seconds" else None, budget.champion)
    word = started.flops_per_token
    return Begun(started.wire, started.seconds, begun, budget, cpu_before, word, curve)


def finish(box: Box, begun: Begun, checkpoint: Path, *, max_bytes: int) -> Trained:
    """Reads the curve into `begun`, then the checkpoint, whose last byte must be inside the budget.

    `max_bytes` is the checkpoint's limit. Raises Stopped.
    """
    wire, allowed = begun.wire, begun.budget.deadline_seconds
    deadline = begun.go + allowed
    with blaming(box, "train", allowed):
        message = _read_logs(wire, "done", deadline, begun.curve, begun.go)
    done = time.monotonic()
    _take_checkpoint(box, wire, message, checkpoint, deadline, max_bytes)
    seconds = time.monotonic() - begun.go
    if problem := box.watchdog.cpu_problem():
        raise Stopped(*problem)
    count = _counted(begun.flops_per_token, message, begun.budget)
    tokens, parameters = message.get("tokens"), message.get("parameters")
    return Trained(
        startup_seconds=begun.startup_seconds,
        seconds=seconds,
        cpu_seconds=box.watchdog.cpu_seconds() - begun.cpu_before,
        handover_seconds=begun.go + seconds - done,
        tokens=tokens if is_whole(tokens, 0, 2**53 - 1) else None,
        metrics=_metrics(message.get("metrics")),
        parameters=parameters if is_whole(parameters, 0, 2**53 - 1) else None,
        flops_per_token=begun.flops_per_token,
        counted_flops_per_token=count.flops_per_token if count else None,
        traffic_per_token=count.traffic_per_token if count else None,
    )


def smoke(
    box: Box,
    gate: Gate,
    budget: Budget,
    *,
    startup_seconds: float,
    max_bytes: int,
    when_up: Callable[[Box], None] = ignore,
) -> tuple[dict[str, Any], Smoked] | None:
    """Waits until a box has made two steps and one evaluation. Raises Stopped.

    Everything is as in the run itself, but for the harness's own end of the budget. Returns what
    the box says of its shape, unchecked, and of its state; None if it gave up because it was not
    compiled, be it before `ready`: see `smoke` in trainer/roles.py. `when_up` as in `start_up`.
    """
    wire, deadline = Wire(box.wire), box.started + startup_seconds
    expect_up(box, wire, deadline)
    when_up(box)
    word = None
    with blaming(box, "smoke", startup_seconds):
        message = wire.read(deadline)
        if message["msg"] != "smoked":
            word = number(expect(message, "ready").get("flops_per_token"))
            gate.open()
            wire.send({"msg": "go", "kind": budget.kind, "amount": budget.amount}, deadline)
            message = _read_logs(wire, "smoked", deadline, Curve(), time.monotonic())
    if "bytes" not in message:
        return None
    _checkpoint_bytes(message, max_bytes)
    size, names = message.get("state_bytes"), message.get("unread")
    named = names if isinstance(names, list) else []
    smoked = Smoked(
        size if is_whole(size, 0, 2**53 - 1) else None,
        tuple(name for name in named[:UNREAD] if _is_tensor(name)),
        word,
    )
    _counted(word, message, dataclasses.replace(budget, amount=math.inf))
    return message, smoked


def _counted(word: float | None, message: dict[str, Any], budget: Budget) -> FlopCount | None:
    """What was counted in the box; None if nothing was. Raises Stopped."""
    count = FlopCount.read(word, message) if budget.kind == "flops" else None
    if count and (problem := count.problem(budget.amount)):
        raise Stopped("dishonest_flops", problem)
    return count


def _is_tensor(name: Any) -> bool:
    return isinstance(name, str) and TENSOR_NAME.fullmatch(name) is not None


def take_kernels(begun: Begun, path: Path, *, seconds: float, max_bytes: int) -> bool:
    """After `finish`: puts what the baseline's box compiled into a file; False if unusable."""
    deadline = time.monotonic() + seconds
    try:
        size = expect(begun.wire.read(deadline), "cache").get("bytes")
        if not is_whole(size, 1, max_bytes):
            return False
        part = path.with_suffix(".part")
        begun.wire.read_to_file(size, part, deadline)
        part.chmod(0o644)
        part.replace(path)
    except (Silent, Closed, Malformed):
        return False
    return True


def expect(message: dict[str, Any], kind: str) -> dict[str, Any]:
    """The message, if it is of this kind. Raises Malformed."""
    if message["msg"] != kind:
        raise Malformed(f"{message['msg'][:40]!r} where {kind!r} was due")
    return message


def is_whole(value: Any, least: int, most: int) -> TypeGuard[int]:
    """Whether this is an int of the range; a bool, which is an int to Python, is none here."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _read_logs(wire: Wire, end: str, deadline: float, curve: Curve, go: float) -> dict[str, Any]:
    """Reads `log` messages into `curve` until the message `end`, which is returned.

    Raises Stopped if the curve is hopeless.
    """
    for _ in range(LOG_MESSAGES):
        message = wire.read(deadline)
        if message["msg"] == end:
            return message
        expect(message, "log")
        if problem := curve.add(message, time.monotonic() - go):
            raise Stopped(*problem)
    raise Malformed(f"more than {LOG_MESSAGES} log messages")


def _checkpoint_bytes(message: dict[str, Any], max_bytes: int) -> int:
    size = message.get("bytes")
    if not is_whole(size, 1, max_bytes):
        raise Stopped(
            "bad_checkpoint",
            f"announced a checkpoint of {size!r:.40} bytes; it must have 1 to {max_bytes}",
        )
    return size


def _take_checkpoint(
    box: Box, wire: Wire, done: dict[str, Any], path: Path, deadline: float, max_bytes: int
) -> None:
    size = _checkpoint_bytes(done, max_bytes)
    try:
        wire.read_to_file(size, path, deadline)
    except Silent:
        _raise_verdict(box)
        raise Stopped(
            "train_timeout", f"its checkpoint of {size} bytes had not arrived at the deadline"
        ) from None
    except Closed:
        _raise_verdict(box)
        raise Stopped(
            "bad_checkpoint", f"ended before its checkpoint of {size} bytes had arrived"
        ) from None
    os.chmod(path, 0o444)


def _metrics(shown: Any) -> dict[str, float]:
    """At most MOST_METRICS finite numbers with good names; the rest is dropped.

    Of names that differ only in case, which are one name to some databases, the first stays.
    """
    if not isinstance(shown, dict):
        return {}
    good: dict[str, tuple[str, float]] = {}
    for name, value in shown.items():
        # Compared before it is converted, as a Python int may be too large for a float.
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if METRIC_NAME.fullmatch(name) and number and -1e18 < value < 1e18:
            good.setdefault(name.lower(), (name, float(value)))
    return dict(itertools.islice(good.values(), MOST_METRICS))
