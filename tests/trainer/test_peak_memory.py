"""How much of a GPU's memory the smoke step takes beside the training, at the shapes of `h100`.

There is no GPU where the tests run: FakeTensor, which has shapes and no memory, stands in on a CPU
with a GPU's autocast. Attention is one opaque operator, as FlashAttention-3 is.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import configs
from trainer import gradients, harness, prepare, roles

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the compiler's own, and as errors they would end it
]

FILE = Path(prepare.__file__).with_name("train.py")
GIB = 2**30


class Peak(TorchDispatchMode):
    """Counts the bytes of every storage that is alive, and the most that were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self.alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            # A sparse tensor holds others, which were counted as they were made.
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self.count(tensor.untyped_storage())
        return found

    def count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage.nbytes()
            self.bytes += storage.nbytes()
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self.free, storage._cdata)

    def free(self, address: int) -> None:
        self.bytes -= self.alive.pop(address)


@pytest.fixture(scope="module")
def attend() -> Any:
    """Attention whose backward needs its inputs, its output and one number for each query."""

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
        return [torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)]

    def backward(grad: torch.Tensor, *saved: torch.Tensor) -> list[torch.Tensor]:
        return [torch.empty_like(tensor) for tensor in saved[:3]]

    inputs = "Tensor q, Tensor k, Tensor v"
    operator = torch.library.custom_op(
        "made_up::attention", forward, mutates_args=(), schema=f"({inputs}) -> Tensor[]"
    )
    inputs = f"Tensor grad, {inputs}, Tensor y, Tensor norms"
    gradient = torch.library.custom_op(
        "made_up::gradient", backward, mutates_args=(), schema=f"({inputs}) -> Tensor[]"
    )
    operator.register_fake(forward)
    gradient.register_fake(backward)

    def keep(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs, *output)

    operator.register_autograd(
        lambda ctx, grads: tuple(gradient(grads[0], *ctx.saved_tensors)), setup_context=keep
    )
    return lambda q, k, v, window, documents: operator(q, k, v)[0]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, attend: Any) -> Any:
    """train.py with the knobs of `h100`, on a made-up GPU."""
    spec = importlib.util.spec_from_file_location("candidate_on_a_made_up_gpu", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    for knob, value in configs.load("h100").train.items():
        monkeypatch.setattr(module, knob, value)
    on_a_gpu = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: on_a_gpu())
    monkeypatch.setattr(module.GPT, "to", lambda model, device: model)
    monkeypatch.setattr(torch.nn.Module, "_apply", apply)
    monkeypatch.setattr(module, "choose_attention", lambda *_: attend)
    meta = SimpleNamespace(vocab_sizes=(module.VOCAB_SIZE,), bos={module.VOCAB_SIZE: 0})
    monkeypatch.setattr(prepare, "meta", lambda: meta)
    return module


def apply(module: Any, convert: Any, recurse: bool = True) -> Any:
    """`Module._apply`, which cannot convert a fake parameter in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(convert(parameter).detach())
    return module


def batch(train: Any) -> torch.Tensor:
    return torch.zeros(train.DEVICE_BATCH_SIZE, train.MAX_SEQ_LEN, dtype=torch.int64)


def kept(train: Any) -> int:
    """Bytes of activations that a forward pass keeps for its backward pass."""
    held: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held[storage._cdata] = storage.nbytes(), tensor
        return tensor

    with FakeTensorMode():
        model = train.build_model("cuda", train.choose_attention())
        model.compile_regions()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(batch(train), batch(train))
    for tensor in (*model.parameters(), *model.buffers()):
        held.pop(tensor.untyped_storage()._cdata, None)
    return sum(size for size, _ in held.values())


def smoke(train: Any, monkeypatch: pytest.MonkeyPatch, lean: bool = True) -> int:
    """The most bytes that were alive while `main` made its steps and a loaded model was tried."""

    def finish(state_dict: dict[str, torch.Tensor], **_: float) -> None:
        assert state_dict
        model = train.build_model("cuda", train.local_attention).eval()
        with torch.inference_mode():
            model(batch(train), batch(train), reduction="none")
            model(batch(train))

    def batches(*_: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield batch(train), batch(train)

    made_up = {
        "device": lambda: "cuda",
        "ready": lambda **_: harness._SmokeBudget("seconds", 300.0, 1.0),
        "log": lambda **_: None,
        "finish": finish,
    }
    for name, function in made_up.items():
        monkeypatch.setattr(harness, name, function)
    monkeypatch.setattr(prepare, "train_rows", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    collector = SimpleNamespace(**dict.fromkeys(("collect", "freeze", "disable"), int))
    monkeypatch.setattr(train, "gc", collector)
    monkeypatch.setattr(train, "batches", batches)
    monkeypatch.setattr(train, "on_its_way", lambda loss: lambda: 1.0)
    monkeypatch.setattr(torch, "compile", roles._uncompiled)
    mode = gradients.inference_only() if lean else contextlib.nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), Peak() as peak, mode:
        train.main()
    return peak.most


def test_a_smoke_step_takes_no_more_than_compiled_training_by_faketensor(train, monkeypatch):
    """What training keeps for backward is less than its peak."""
    with monkeypatch.context() as compiling:
        compiling.setattr(
            torch, "compile", functools.partial(torch.compile, backend="aot_eager_decomp_partition")
        )
        training = kept(train)
    before = smoke(train, monkeypatch, lean=False)
    now = smoke(train, monkeypatch)
    print(
        f"training keeps {training / GIB:.1f} GiB; smoke: {before / GIB:.1f}, now {now / GIB:.1f}"
    )
    assert now <= 1.1 * training
    assert before > 1.1 * training
