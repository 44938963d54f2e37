"""What a box does if it does not train: claim losses, answer the audit, or try a candidate out.

    claim role   load  ->  ready  ->  nll + rows  ->  nats of every target
    audit role   load  ->  ready  ->  (logits + prefixes + positions  ->  logits there)*
    smoke role   two training steps, the checkpoint loaded again, one batch evaluated  ->  smoked

The model always sees batches of one shape, [DEVICE_BATCH_SIZE, MAX_SEQ_LEN]: the same kernels run
in every role, so an honest model's claims and answers differ by rounding alone. Fixed, like the
harness. No torch at import.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer import exhaustion, gradients, prepare
from trainer.link import Link

# Of tensors that no forward pass reads, those above this share of their checkpoint are named.
UNREAD_SHARE = 0.01
UNREAD_NAMES = 5
COMPILED = "_orig_mod"  # what torch.compile calls the module in its wrapper


def warm_up(device: str) -> None:
    """What a scoring box does before a line of the candidate runs: it is on nobody's account.

    Gradients are off from here on, as scoring needs none, and on a CPU so is torch.compile: to
    import the compiler alone takes longer than to score.
    """
    import torch

    torch.set_grad_enabled(False)
    if device == "cpu":
        compile_nothing()


def compile_nothing() -> None:
    """Has torch.compile return the same function, eager, and a module under a compiled one's names.

    With TORCHDYNAMO_DISABLE a module would keep its own names, and a checkpoint of a compiled model
    could not be loaded.
    """
    import torch

    torch.compile = _uncompiled


def _uncompiled(model: Any = None, **_: Any) -> Any:
    if model is None:
        return _uncompiled
    if not hasattr(model, "named_parameters"):
        return model
    import torch

    class Eager(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._modules[COMPILED] = model
            del self.__dict__["training"]  # it is the model's

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(self, COMPILED)(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            inner = self._modules[COMPILED]
            return inner if name == COMPILED else getattr(inner, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(getattr(self, COMPILED), name, value)

    return Eager()


def _load(candidate: ModuleType, path: str, device: str) -> tuple[Any, dict[str, int]]:
    """The model of a checkpoint, and its shape as the judge needs it."""
    model = candidate.load_model(path, device)
    model.eval()
    return model, {
        "vocab_size": int(candidate.VOCAB_SIZE),
        "sequence_length": int(candidate.MAX_SEQ_LEN),
        "batch_rows": int(candidate.DEVICE_BATCH_SIZE),
    }


def _load_for_judge(link: Link, candidate: ModuleType, device: str) -> tuple[Any, int, int]:
    """Loads the model and sends its shape; the model, its context length and its rows per batch."""
    path = os.path.join(os.environ["NIGHTLY_CHECKPOINT"], "model.pt")
    model, shape = _load(candidate, path, device)
    link.send({"msg": "ready", **shape})
    return model, shape["sequence_length"], shape["batch_rows"]


def claim(link: Link, candidate: ModuleType, device: str) -> None:
    """Claims nats for every target of the judge's rows."""
    import torch

    model, T, batch_rows = _load_for_judge(link, candidate, device)
    count = int(link.read("nll")["rows"])
    rows = np.frombuffer(link.read_bytes(count * (T + 1) * 2), "<u2").reshape(count, T + 1)
    with torch.inference_mode():
        for nats in claim_nats(model, rows, batch_rows, device):
            link.send_bytes(nats.astype("<f4").tobytes())
    link.wait_for_the_end()


def claim_nats(
    model: Any, rows: prepare.Tokens, batch_rows: int, on: str
) -> Iterator[npt.NDArray[np.float32]]:
    """Nats of every target of `rows`, uint16 [n, T+1], in order: float32, one array per batch.

    Raises ValueError if the model gives another number of losses.
    """
    import torch

    expected = batch_rows * (rows.shape[1] - 1)
    for first in range(0, len(rows), batch_rows):
        batch = rows[first : first + batch_rows]
        tokens = torch.from_numpy(_filled(batch, batch_rows).astype(np.int64)).to(on)
        nats = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), reduction="none")
        losses = nats.float().cpu().numpy().reshape(-1)
        if losses.size != expected:
            raise ValueError(
                f'model(idx, targets, reduction="none") gave {losses.size} losses '
                f"for {expected} targets"
            )
        yield losses[: len(batch) * (rows.shape[1] - 1)]


def _filled(batch: prepare.Tokens, batch_rows: int) -> prepare.Tokens:
    """`batch` with its first row repeated up to `batch_rows`."""
    return np.concatenate([batch, np.repeat(batch[:1], batch_rows - len(batch), axis=0)])


def answer(link: Link, candidate: ModuleType, device: str) -> None:
    """Answers the audit until the judge hangs up: logits at one position of each prefix."""
    import torch

    model, T, batch_rows = _load_for_judge(link, candidate, device)
    V = int(candidate.VOCAB_SIZE)
    with torch.inference_mode():
        while True:
            count = int(link.read("logits")["rows"])
            prefixes = np.frombuffer(link.read_bytes(count * T * 2), "<u2").reshape(count, T)
            positions = np.frombuffer(link.read_bytes(count * 4), "<i4").astype(np.int64)
            asked = _logits(model, prefixes, positions, (batch_rows, T, V), device)
            link.send_bytes(asked.astype("<f4").tobytes())


def _logits(
    model: Any,
    prefixes: prepare.Tokens,
    positions: npt.NDArray[np.int64],
    shape: tuple[int, int, int],
    device: str,
) -> npt.NDArray[np.float32]:
    """Logits, float32 [n, V], at one position of each of `prefixes`, uint16 [n, T].

    `shape` is [B, T, V]. Raises ValueError if the model's logits have another.
    """
    import torch

    tokens = torch.from_numpy(_filled(prefixes, shape[0]).astype(np.int64)).to(device)
    logits = model(tokens)
    if tuple(logits.shape) != shape:
        raise ValueError(
            f"model(idx) gave logits of shape {tuple(logits.shape)}, not [B, T, V] = {shape}"
        )
    places = torch.arange(len(prefixes), device=device), torch.from_numpy(positions).to(device)
    asked: npt.NDArray[np.float32] = logits[places].float().cpu().numpy()
    return asked


def smoke(link: Link, candidate: ModuleType, device: str) -> None:
    """Runs `main` with a budget of two steps; its `harness.finish` calls `try_out` and reports.

    On a GPU without what takes most of its memory: see trainer/gradients.py.
    """
    try:
        with gradients.inference_only() if device == "cuda" else contextlib.nullcontext():
            candidate.main()
    except Exception as error:
        if device == "cpu" or not (exhaustion.is_exhaustion(error) or gradients.is_ours(error)):
            raise
        # A step that is not compiled may still take more memory than the compiled one of the real
        # start-up, which decides. It may run out at any point, before `ready` too.
        print(f"smoke step: given up, which says nothing of the training: {error}", file=sys.stderr)
        link.send({"msg": "smoked"})


def forget(candidate: ModuleType, as_imported: dict[str, Any]) -> None:
    """Takes back what `main` did to the candidate's own names: a scoring box never runs `main`."""
    names = vars(candidate)
    for name in names.keys() - as_imported.keys():
        del names[name]
    names.update(as_imported)


def try_out(
    candidate: ModuleType, checkpoint: memoryview, sizes: dict[str, int], device: str
) -> dict[str, Any]:
    """Loads a checkpoint, claims and answers as the scoring boxes would.

    `sizes` are the elements of the checkpoint's tensors. Returns the model's shape for the judge,
    and what is to be known of its state: its bytes, and the tensors of the checkpoint that no
    forward pass reads. Raises ValueError for output of a wrong shape.
    """
    import torch

    torch.set_grad_enabled(False)  # as in a scoring box
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        path.write_bytes(checkpoint)
        model, shape = _load(candidate, str(path), device)
    V, T, batch_rows = shape.values()
    rows = (np.arange(batch_rows * (T + 1)) % V).astype(np.uint16).reshape(batch_rows, T + 1)
    last = np.full(batch_rows, T - 1)
    state = _state(model)
    with torch.inference_mode(), _reading(state) as read:
        list(claim_nats(model, rows, batch_rows, device))
        _logits(model, rows[:, :-1], last, (batch_rows, T, V), device)
    if not state:
        return dict(shape)
    storages = {_address(x): x.untyped_storage().nbytes() for x in state.values()}
    return {**shape, "state_bytes": sum(storages.values()), "unread": _unread(sizes, read)}


def _unread(sizes: dict[str, int], read: set[str]) -> list[str]:
    """The larger tensors of a checkpoint that are not among those `read`, the largest first.

    A name may have a prefix that loading removes, such as torch.compile's.
    """
    known = tuple(f".{name}" for name in read)
    least = UNREAD_SHARE * sum(sizes.values())
    names = [name for name in sizes if sizes[name] > least and not f".{name}".endswith(known)]
    return sorted(names, key=lambda name: -sizes[name])[:UNREAD_NAMES]


def _state(model: Any) -> dict[str, Any]:
    """Parameters and buffers with memory, by name; none of a model that is no torch.nn.Module.

    The names are those of a model that is not compiled.
    """
    if not hasattr(model, "named_parameters"):
        return {}
    named = model.named_parameters, model.named_buffers
    return {
        name.replace(f"{COMPILED}.", ""): x
        for each in named
        for name, x in each(remove_duplicate=False)
        if _address(x) is not None
    }


def _address(tensor: Any) -> int | None:
    """Where its memory begins: the same for all tensors that share it.

    None of a sparse tensor and of one that only stands for others, as in torch.vmap.
    """
    try:
        return int(tensor.untyped_storage().data_ptr())
    except RuntimeError:
        return None


@contextlib.contextmanager
def _reading(state: dict[str, Any]) -> Iterator[set[str]]:
    """The names of those tensors that a function of torch is given in the block: filled at its end.

    Not seen: what is read in other ways, such as by TorchScript, and a tensor that vmap splits.
    """
    read: set[str] = set()
    if not state:
        yield read
        return
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._pytree import tree_leaves

    given: set[int | None] = set()

    class Reading(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, torch.Tensor):
                    given.add(_address(value))
            return function(*args, **(kwargs or {}))

    with Reading():
        yield read
    read |= {name for name, tensor in state.items() if _address(tensor) in given}


def compiled_kernels() -> bytes:
    """Everything that torch.compile made in this process, for others; empty if it made nothing."""
    import torch

    artifacts = torch.compiler.save_cache_artifacts()
    return artifacts[0] if artifacts else b""


def load_kernels(path: Path) -> None:
    """Puts another process's `compiled_kernels` into this box's cache, for torch.compile."""
    import torch

    if kernels := path.read_bytes():
        torch.compiler.load_cache_artifacts(kernels)
