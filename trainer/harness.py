"""The candidate's end of the socket to the judge; fixed, beside train.py in the box.

In a box the judge owns the seed, the clock, the data gate and the score; a candidate reaches them
through the few functions here. Outside a box (no NIGHTLY_FD) the same functions run the same
training without a sandbox and score it in this process with the judge's own arithmetic: the number
is the same, but nobody has checked it. No torch at import.

    train role          up, ready  ->  go    ->  log*, done + checkpoint [, cache + kernels]
    smoke role          up, ready  ->  go    ->  log*, smoked
    claim, audit role   up, warm   ->  load  ->  see trainer/roles.py
"""

from __future__ import annotations

import functools
import importlib.util
import io
import math
import os
import sys
import time
import traceback
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from trainer import exhaustion, prepare, roles, speed
from trainer.link import Link, open_link

if TYPE_CHECKING:
    from trainer import flops

SMOKE_STEPS = 2  # the first is unlike the others: schedules, states and what is logged one behind
MOST_METRICS = 30  # more are left out, here and by the judge
LONGEST_NAME = 40  # of a metric, characters
# Held back for the checkpoint of a `seconds` budget: these seconds, at most 2% of it, and the time
# for the checkpoint's bytes, at most 5% of it.
SAVE_SECONDS, SAVE_BYTES_A_SECOND = 0.75, 1e9
CURVE_POINTS = 1000  # of the training curve: one for each thousandth of the budget

_STARTED = time.monotonic()


class Budget:
    """What a training may spend, and how much it has spent; made by `ready`."""

    def __init__(
        self, kind: str, amount: float, flops_per_token: float, checkpoint_bytes: int = 0
    ) -> None:
        self.kind = kind  # "flops" or "seconds"
        self.amount = amount
        self.tokens = 0  # last reported
        self.done = 0.0
        self.flops_per_token = flops_per_token
        self._save_seconds = min(SAVE_SECONDS, 0.02 * amount)
        self._save_seconds += min(checkpoint_bytes / SAVE_BYTES_A_SECOND, 0.05 * amount)
        self.counted: flops.Steps | None = None  # of a budget of FLOPs in a box
        self._steps: deque[float] = deque(maxlen=16)  # seconds between calls of `progress`
        self.started = self._called = time.monotonic()

    def progress(self, tokens: int) -> float:
        """The share of the budget spent after training on `tokens` tokens, in [0, 1]; never falls.

        From a `seconds` budget the longest of the last 16 steps and the time to save are held back:
        the checkpoint's last byte must reach the judge before the deadline.
        """
        tokens = int(tokens)
        self.done = max(self.done, min(self._spent(tokens), 1.0))
        self.tokens = tokens
        if self.counted is not None:
            self.counted.report(tokens, self.done)
        return self.done

    def _spent(self, tokens: int) -> float:
        if self.kind == "flops":
            return tokens * self.flops_per_token / self.amount
        now = time.monotonic()
        self._steps.append(now - self._called)
        self._called = now
        usable = self.amount - max(self._steps) - self._save_seconds
        return (now - self.started) / usable if usable > 0 else 1.0


class _SmokeBudget(Budget):
    """A budget of SMOKE_STEPS steps, whatever its amount. It looks like the real one."""

    def __init__(
        self, kind: str, amount: float, flops_per_token: float, checkpoint_bytes: int = 0
    ) -> None:
        super().__init__(kind, amount, flops_per_token, checkpoint_bytes)
        self._taken = 0

    def _spent(self, tokens: int) -> float:
        # Time passes with each call but the first, and FLOPs with tokens alone: a training that
        # never ends in its budget must not end here.
        self._taken += tokens > self.tokens if self.kind == "flops" else bool(self._steps)
        super()._spent(tokens)
        return self._taken / SMOKE_STEPS


class _Run:
    """The state of this process's training."""

    budget: Budget | None = None  # set by `ready`
    logged: int = -1  # the last thousandth of the budget with a point in the curve
    as_imported: ClassVar[dict[str, Any]] = {}  # smoke role: the candidate's names before `main`


@functools.cache
def _link() -> Link | None:
    """The judge, or None outside a box."""
    return open_link()


def enter() -> None:
    """Entry of a box: reports that Python runs, loads the candidate, and plays its role.

    A scoring box imports torch first, and no line of the candidate runs before the judge says load:
    so it can warm up while the candidate still trains elsewhere.
    """
    link = _link()
    if link is None:
        raise RuntimeError("harness.enter() is for a box, and NIGHTLY_FD names no socket here")
    role = os.environ["NIGHTLY_ROLE"]
    if role == "smoke":
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling would take longer than all the rest
    link.send({"msg": "up", "python": sys.version})
    try:
        _play(role, link)
    except Exception as error:
        if not exhaustion.is_exhaustion(error):
            raise
        traceback.print_exc()
        raise SystemExit(exhaustion.EXIT_CODE) from None


def _play(role: str, link: Link) -> None:
    if role in ("claim", "audit"):
        roles.warm_up(device())
        link.send({"msg": "warm"})
        link.read("load")
    elif role == "smoke":
        roles.compile_nothing()
    elif role == "train" and "NIGHTLY_SEED_CACHE" in os.environ:
        roles.load_kernels(Path(os.environ["NIGHTLY_SEED_CACHE"]))
    candidate = _load_candidate(Path(__file__).with_name("train.py"))
    if role == "claim":
        roles.claim(link, candidate, device())
    elif role == "audit":
        roles.answer(link, candidate, device())
    elif role == "smoke":
        _Run.as_imported.update(vars(candidate))
        roles.smoke(link, candidate, device())
    else:
        candidate.main()


def _load_candidate(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("trainer.train", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["trainer.train"] = module  # before it runs: dataclasses and torch.compile need it
    spec.loader.exec_module(module)
    return module


def seed() -> int:
    """The judge's seed; outside a box NIGHTLY_SEED, or 1."""
    return int(os.environ.get("NIGHTLY_SEED", "1"))


def device() -> str:
    """cpu, cuda or mps."""
    return os.environ.get("NIGHTLY_DEVICE") or str(prepare.current()["device"])


def ready(flops_per_token: float, checkpoint_bytes: int = 0) -> Budget:
    """Reports that everything is built and waits for go: then data appears and the clock starts.

    `flops_per_token` is for one token forward and backward, as trainer/flops.py counts them; where
    steps differ, in the dearest of them. The time to hand over `checkpoint_bytes`, those of the
    state dict, is held back from a budget of seconds. Raises ValueError if `flops_per_token` is not
    a positive finite number.
    """
    if not (math.isfinite(flops_per_token) and flops_per_token > 0):
        raise ValueError(
            f"flops_per_token is {flops_per_token}; it must be a positive finite number"
        )
    counts = device() == "cpu"
    if link := _link():
        if counts:
            from trainer import flops  # before the clock starts
        free_cache()
        link.send({"msg": "ready", "flops_per_token": flops_per_token})
        go = link.read("go")
    else:
        print("not in a box: this run is unsandboxed and scores itself", file=sys.stderr)
        go = prepare.current()["budget"]
    is_smoke = os.environ.get("NIGHTLY_ROLE") == "smoke"
    made = _SmokeBudget if is_smoke else Budget
    budget = made(go["kind"], float(go["amount"]), flops_per_token, checkpoint_bytes)
    if link and counts and budget.kind == "flops":
        budget.counted = flops.Steps(every=is_smoke)
    _Run.budget = budget
    return budget


def free_cache() -> None:
    """Gives back GPU memory that only start-up used: another run may train while this one waits."""
    torch = sys.modules.get("torch")
    if torch is not None and device() == "cuda":
        torch.cuda.empty_cache()


def log(*, step: int, tokens: int, loss: float) -> None:
    """A point of the curve, `loss` in nats per token; at most one per thousandth of the budget.

    The judge leaves out a point with a value that is no finite number.
    """
    budget = _Run.budget
    if budget is None:
        raise RuntimeError("harness.log() before harness.ready()")
    thousandth = int(budget.done * CURVE_POINTS)
    if thousandth <= _Run.logged:
        return
    last, _Run.logged = _Run.logged, thousandth
    if link := _link():
        point = {"step": _whole(step), "tokens": _whole(tokens), "loss": _number(loss)}
        link.send({"msg": "log", **point})
    elif thousandth * 20 // CURVE_POINTS > last * 20 // CURVE_POINTS:
        print(f"step {step:6d}  {budget.done:4.0%}  loss {loss:.4f}", file=sys.stderr)


def _number(value: Any) -> float | None:
    """As a finite float, also a tensor or an array of one element; None if it is none."""
    if isinstance(value, (str, bytes)):  # "3" is a text
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor of several
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _shown(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics that are numbers, the first MOST_METRICS of them: they fit in one message."""
    numbers = {name: _number(value) for name, value in metrics.items()}
    good = [
        (name, number)
        for name, number in numbers.items()
        if number is not None and len(name) <= LONGEST_NAME
    ]
    return dict(good[:MOST_METRICS])


def finish(state_dict: dict[str, Any], **metrics: float) -> None:
    """Hands over the checkpoint, inside the budget; in a box, then waits until the judge ends it.

    `metrics` are shown beside the score and never trusted; what is no finite number is left out.
    Outside a box it scores all validation rows in this process and prints a summary.
    """
    import torch

    budget = _Run.budget
    if budget is None:
        raise RuntimeError("harness.finish() before harness.ready()")
    counted = budget.counted.found() if budget.counted is not None else {}
    gpu = torch.cuda.get_device_name() if device() == "cuda" else ""
    seconds = time.monotonic() - budget.started
    figures = speed.figures(budget.flops_per_token, budget.tokens, seconds, gpu)
    shown = _shown(figures | {k: v for k, v in metrics.items() if k not in figures})
    state = {name: tensor.detach().to("cpu") for name, tensor in state_dict.items()}
    if link := _link():
        _hand_over(link, state, {"tokens": budget.tokens, "metrics": shown, **counted})
        return
    from trainer import alone  # not in a box: it reads the validation data

    blob = io.BytesIO()
    _save(state, blob)
    shown["training_seconds"] = time.monotonic() - budget.started
    shown["val_bpb"] = alone.self_score(blob, device())
    shown["total_tokens_M"] = budget.tokens / 1e6
    print(alone.summary(shown | {"total_seconds": time.monotonic() - _STARTED}))


def _save(state: dict[str, Any], file: Any) -> None:
    """Writes the checkpoint to whatever has `write` and `flush`, without a copy of it in memory.

    Without checksums, which torch.load ignores: so counting the bytes with `_Counter` does not read
    the tensors.
    """
    import torch

    torch.serialization.set_crc32_options(False)
    torch.save(state, file)


class _Counter:
    """A file that keeps nothing but the number of bytes that are written to it."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Does nothing: torch.save expects it of a file."""


def _hand_over(link: Link, state: dict[str, Any], figures: dict[str, Any]) -> None:
    """Sends the checkpoint, or in a smoke box tries it out, and waits for the judge to hang up."""
    size = _Counter()  # the judge is told it in advance
    _save(state, size)
    sizes = {name: tensor.numel() for name, tensor in state.items()}
    done = {"bytes": size.bytes, "parameters": sum(sizes.values()), **figures}
    if os.environ["NIGHTLY_ROLE"] == "smoke":
        blob = io.BytesIO()
        _save(state, blob)
        candidate = sys.modules["trainer.train"]
        roles.forget(candidate, _Run.as_imported)
        found = roles.try_out(candidate, blob.getbuffer(), sizes, device())
        link.send({"msg": "smoked", **found, **done})
        return link.wait_for_the_end()
    link.send({"msg": "done", **done})
    _save(state, link)
    if "NIGHTLY_EXPORT_CACHE" in os.environ:
        kernels = roles.compiled_kernels()
        link.send({"msg": "cache", "bytes": len(kernels)}, kernels)
    link.wait_for_the_end()
