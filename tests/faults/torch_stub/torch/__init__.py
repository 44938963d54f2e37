"""What the fixed harness needs of torch, over numpy: importing the real one takes each box two
seconds."""

from __future__ import annotations

import contextlib
import io
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

_gradients = {"on": True}


class OutOfMemoryError(RuntimeError):
    pass


class Tensor:
    def __init__(self, array: Any) -> None:
        self.array = np.asarray(array)
        self.shape = self.array.shape

    def same(self, *_: Any) -> Tensor:
        return self

    to = contiguous = detach = float = cpu = same

    def numpy(self) -> Any:
        return self.array

    def numel(self) -> int:
        return int(self.array.size)

    def view(self, *shape: int) -> Tensor:
        return Tensor(self.array.reshape(shape))

    def __mod__(self, other: int) -> Tensor:
        return Tensor(self.array % other)

    def __getitem__(self, index: Any) -> Tensor:
        parts = index if isinstance(index, tuple) else (index,)
        return Tensor(
            self.array[tuple(part.array if isinstance(part, Tensor) else part for part in parts)]
        )


def arange(count: int, device: str = "cpu") -> Tensor:
    return Tensor(np.arange(count))


def from_numpy(array: Any) -> Tensor:
    return Tensor(array)


def inference_mode() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def set_grad_enabled(mode: bool) -> None:
    _gradients["on"] = mode


def is_grad_enabled() -> bool:
    return _gradients["on"]


class serialization:
    @staticmethod
    def set_crc32_options(compute: bool) -> None:
        pass


def save(tensors: dict[str, Tensor], file: BinaryIO) -> None:
    arrays: dict[str, Any] = {name: tensor.array for name, tensor in tensors.items()}
    blob = io.BytesIO()
    np.savez(blob, **arrays)
    file.write(blob.getbuffer())
    file.flush()


def load(path: str) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: Tensor(array) for name, array in arrays.items()}


class TorchDispatchMode:
    """Sees no operation: there is none of torch's own here."""

    def __enter__(self) -> TorchDispatchMode:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Names:
    """Any attribute: its own name."""

    def __getattr__(self, name: str) -> str:
        return name


class _Function:
    @classmethod
    def apply(cls) -> None:
        raise NotImplementedError


def _module(name: str, **contents: Any) -> ModuleType:
    module = sys.modules[f"{__name__}.{name}"] = ModuleType(f"{__name__}.{name}")
    vars(module).update(contents)
    return module


ops = SimpleNamespace(aten=_Names())
graph = SimpleNamespace(_engine_run_backward=save)
autograd = _module("autograd", graph=graph, Function=_Function)
utils = _module("utils", flop_counter=SimpleNamespace(flop_registry={}))
_module("utils._python_dispatch", TorchDispatchMode=TorchDispatchMode)
