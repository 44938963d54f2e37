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
import socket
import sys
import time
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

from trainer import prepare, roles, speed
from trainer.link import Link

SAVE_SECONDS = 1.0  # held back for the checkpoint of a `seconds` budget, at most 2% of it
CURVE_POINTS = 1000  # of the training curve: one for each thousandth of the budget

_STARTED = time.monotonic()


class Budget:
    """What a training may spend, and how much it has spent; made by `ready`."""

    def __init__(self, kind: str, amount: float, flops_per_token: float) -> None:
        self.kind = kind  # "flops" or "seconds"
        self.amount = amount
        self.tokens = 0  # last reported
        self.done = 0.0
        self.flops_per_token = flops_per_token
        self._steps: deque[float] = deque(maxlen=16)  # seconds between calls of `progress`
        self.started = self._called = time.monotonic()

    def progress(self, tokens: int) -> float:
        """The share of the budget spent after training on `tokens` tokens, in [0, 1]; never falls.

        From a `seconds` budget the longest of the last 16 steps and the time to save are held back:
        the checkpoint's last byte must reach the judge before the deadline.
        """
        self.tokens = tokens
        if self.kind == "flops":
            spent = tokens * self.flops_per_token / self.amount
        else:
            now = time.monotonic()
            self._steps.append(now - self._called)
            self._called = now
            held_back = max(self._steps) + min(SAVE_SECONDS, 0.02 * self.amount)
            usable = self.amount - held_back
            spent = (now - self.started) / usable if usable > 0 else 1.0
        self.done = max(self.done, min(spent, 1.0))
        return self.done


class _Run:
    """The state of this process's training."""

    budget: Budget | None = None  # set by `ready`
    logged: int = -1  # the last thousandth of the budget with a point in the curve


@functools.cache
def _link() -> Link | None:
    """The judge, or None outside a box."""
    if path := os.environ.get("NIGHTLY_SOCKET"):  # a container inherits no descriptor
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return Link(sock)
    if "NIGHTLY_FD" in os.environ:
        return Link(socket.socket(fileno=int(os.environ["NIGHTLY_FD"])))
    return None


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
    if role in ("claim", "audit"):
        roles.warm_up(device())
        link.send({"msg": "warm"})
        link.read("load")
    elif role == "train" and "NIGHTLY_SEED_CACHE" in os.environ:
        roles.load_kernels(Path(os.environ["NIGHTLY_SEED_CACHE"]))
    candidate = _load_candidate(Path(__file__).with_name("train.py"))
    if role == "claim":
        roles.claim(link, candidate, device())
    elif role == "audit":
        roles.answer(link, candidate, device())
    elif role == "smoke":
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


def ready(flops_per_token: float) -> Budget:
    """Reports that everything is built and waits for go: then data appears and the clock starts.

    `flops_per_token` is for one token forward and backward. Raises ValueError if it is not a
    positive finite number.
    """
    if not (math.isfinite(flops_per_token) and flops_per_token > 0):
        raise ValueError(
            f"flops_per_token is {flops_per_token}; it must be a positive finite number"
        )
    if link := _link():
        link.send({"msg": "ready", "flops_per_token": flops_per_token})
        go = link.read("go")
    else:
        print("not in a box: this run is unsandboxed and scores itself", file=sys.stderr)
        go = prepare.current()["budget"]
    _Run.budget = Budget(go["kind"], float(go["amount"]), flops_per_token)
    return _Run.budget


def log(*, step: int, tokens: int, loss: float) -> None:
    """A point of the curve, `loss` in nats per token; at most one per thousandth of the budget."""
    budget = _Run.budget
    if budget is None:
        raise RuntimeError("harness.log() before harness.ready()")
    thousandth = int(budget.done * CURVE_POINTS)
    if thousandth <= _Run.logged:
        return
    last, _Run.logged = _Run.logged, thousandth
    if link := _link():
        shown = float(loss) if math.isfinite(loss) else None
        link.send({"msg": "log", "step": step, "tokens": tokens, "loss": shown})
    elif thousandth * 20 // CURVE_POINTS > last * 20 // CURVE_POINTS:
        print(f"step {step:6d}  {budget.done:4.0%}  loss {loss:.4f}", file=sys.stderr)


def finish(state_dict: dict[str, Any], **metrics: float) -> None:
    """Hands over the checkpoint, inside the budget; in a box, then waits until the judge ends it.

    `metrics` are shown beside the score and never trusted; those that are not finite are left out.
    Outside a box it scores all validation rows in this process and prints a summary.
    """
    import torch

    budget = _Run.budget
    if budget is None:
        raise RuntimeError("harness.finish() before harness.ready()")
    gpu = torch.cuda.get_device_name() if device() == "cuda" else ""
    seconds = time.monotonic() - budget.started
    metrics |= speed.figures(budget.flops_per_token, budget.tokens, seconds, gpu)
    blob = io.BytesIO()
    torch.save({name: tensor.detach().to("cpu") for name, tensor in state_dict.items()}, blob)
    if link := _link():
        sizes = {name: tensor.numel() for name, tensor in state_dict.items()}
        _hand_over(link, blob, sizes, budget.tokens, metrics)
        return
    from trainer import alone  # not in a box: it reads the validation data

    metrics["training_seconds"] = time.monotonic() - budget.started
    metrics["val_bpb"] = alone.self_score(blob, device())
    metrics["total_tokens_M"] = budget.tokens / 1e6
    print(alone.summary(metrics | {"total_seconds": time.monotonic() - _STARTED}))


def _hand_over(
    link: Link, blob: io.BytesIO, sizes: dict[str, int], tokens: int, metrics: dict[str, float]
) -> None:
    """Sends the checkpoint, or in a smoke box tries it out, and waits for the judge to hang up."""
    if os.environ["NIGHTLY_ROLE"] == "smoke":
        state = roles.try_out(sys.modules["trainer.train"], blob.getbuffer(), sizes, device())
        link.send({"msg": "smoked", **state})
        return link.wait_for_the_end()
    shown = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    size = blob.getbuffer().nbytes
    done = {"msg": "done", "bytes": size, "tokens": tokens, "metrics": shown}
    link.send(done, blob.getbuffer())
    if "NIGHTLY_EXPORT_CACHE" in os.environ:
        kernels = roles.compiled_kernels()
        link.send({"msg": "cache", "bytes": len(kernels)}, kernels)
    link.wait_for_the_end()
