"""Where a training step goes: FLOPs, milliseconds and kept memory, module by module.

`Parts` follows a step by hooks on every module, and on the gradients of what a module takes and
gives: so it knows at any time which part of the model computes, forward or backward. Outside of
both is the optimizer, and whatever else a step does. Modules whose names differ only in a number
are one part: `h.*.attn`. What the outermost module does itself is its own part: in train.py that is
the head and the loss, which use the weights of `lm_head` without calling it.

Used in a study box alone, so nothing of it is part of a score. Imports torch.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.modules import module as hooks

from trainer import flops

OUTSIDE = "optimizer and the rest"
MODEL = "the model itself"  # what none of its modules does
MOST_PARTS, MOST_OPERATIONS = 14, 10
NAMES = 2  # of a nested module without a number in its name, outermost first


class Parts:
    """The account of one or more steps, part by part; see `followed` and `counted`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts: dict[str, flops.Counts] = defaultdict(flops.Counts)
        self.kept_bytes: dict[str, int] = defaultdict(int)
        self._names: dict[int, str] = {}  # of modules, by id
        self._weights: set[int] = set()  # addresses: what is kept is there anyway
        self._outer: list[str] = []  # parts that wait for the one within them
        self._now = OUTSIDE
        self._since = self._clock()
        self._counter: flops.Counter | None = None

    def switch(self, part: str) -> None:
        """From here on it is this part that computes."""
        now = self._clock()
        self.seconds[self._now] += now - self._since
        self._now, self._since = part, now
        if self._counter is not None:
            self._counter.counts = self.counts[part]

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Follows all modules in the block, and what it does backward."""
        self._now, self._since, self._outer = OUTSIDE, self._clock(), []
        handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
        ]
        backward = torch.autograd.backward
        torch.autograd.backward = self._backwards(backward)
        try:
            yield
        finally:
            self.switch(OUTSIDE)
            torch.autograd.backward = backward
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Counts FLOPs in the block, those without gradients too, and what is kept for backward."""
        seen: set[int] = set()

        def keep(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen | self._weights:
                seen.add(storage.data_ptr())
                self.kept_bytes[self._now] += storage.nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept),
            _EveryFlop() as self._counter,
        ):
            self.switch(self._now)
            try:
                yield
            finally:
                self._counter = None

    def found(self, steps: int) -> list[dict[str, Any]]:
        """The parts, those with most time first: `seconds` are of so many steps, FLOPs of one."""
        names = sorted(
            {*self.seconds, *self.counts},
            key=lambda name: (-self.seconds[name], -self.counts[name].flops),
        )
        return [
            {
                "name": name,
                "milliseconds": 1000 * self.seconds[name] / max(steps, 1),
                "flops": self.counts[name].flops,
                "kept_bytes": self.kept_bytes[name],
            }
            for name in names[:MOST_PARTS]
        ]

    def _enter(self, module: Any, given: Any) -> None:
        part = self._part(module)
        self._outer.append(self._now)
        self._on_gradients(given, self._now if self._outer[1:] else MODEL)
        self.switch(part)

    def _leave(self, module: Any, given: Any, out: Any) -> None:
        self._on_gradients(out, self._part(module))
        self.switch(self._outer.pop() if self._outer else OUTSIDE)

    def _on_gradients(self, tensors: Any, part: str) -> None:
        """When the gradient of one of these is there, it is this part that computes next."""
        for tensor in tensors if isinstance(tensors, (tuple, list)) else (tensors,):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda grad: self.switch(part))  # type: ignore[no-untyped-call]

    def _part(self, module: Any) -> str:
        name = self._names.get(id(module))
        if name is None:
            if not self._outer:  # the outermost one is the model
                found = {id(inner): collapsed(name) for name, inner in module.named_modules()}
                self._names.update(found)
                storages = (weight.untyped_storage() for weight in module.parameters())
                self._weights |= {storage.data_ptr() for storage in storages}
            else:
                self._names[id(module)] = type(module).__name__
            name = self._names[id(module)]
        return name

    def _backwards(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        def followed(*arguments: Any, **options: Any) -> Any:
            before = self._now
            self.switch(MODEL)
            try:
                return backward(*arguments, **options)
            finally:
                self.switch(before)

        return followed


def collapsed(name: str) -> str:
    """A module's name with `*` for numbers, up to the module within the innermost number.

    "h.0.attn.c_v" is h.*.attn, and "" the model itself.
    """
    names = starred(name).split(".")
    stars = [place for place, each in enumerate(names) if each == "*"]
    return ".".join(names[: stars[0] + 2 if stars else NAMES]) or MODEL


def starred(name: str) -> str:
    """A name with `*` for numbers."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


class _EveryFlop(flops.Counter):  # type: ignore[no-untyped-call]
    """Counts what has no gradient as forward: an optimizer computes, too."""

    def _purpose(self, is_autograds_own: bool) -> str | None:
        return super()._purpose(is_autograds_own) or "forward"


@contextlib.contextmanager
def operations(device: str, found: list[tuple[str, float]]) -> Iterator[None]:
    """Puts the dearest operations of the block into `found`, with their own milliseconds.

    On a GPU these are its kernels. Nothing is found where torch's profiler does not work.
    """
    on_gpu = device == "cuda"
    kind = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profiler:
        yield
        synchronize(device)
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = [(str(row.key), getattr(row, field) / 1000) for row in profiler.key_averages()]
    found += sorted(times, key=lambda pair: -pair[1])[:MOST_OPERATIONS]


def clock(device: str) -> Callable[[], float]:
    """CPU time where it is the CPU that computes: other programs are not on that account."""
    return time.process_time if device == "cpu" else time.perf_counter


def synchronize(device: str) -> None:
    """Waits for the GPU, if there is one."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
