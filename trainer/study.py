"""The study box: what a researcher may want to know of a candidate before it proposes another.

    up  ->  study + what is asked  ->  studied + figures

Where a training step goes (`profile`), the loss on training rows by token frequency and by position
(`loss`), and how a trained model continues a prompt (`sample`). A study box sees training rows and
perhaps a checkpoint, never what is scored, and nothing that it says enters a score: the candidate
runs in the same process. So all of it is the candidate's own word. A part that fails has a problem
in place of its figures. Beside the harness in such a box, and in no other. No torch at import.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainer import harness, prepare, roles
from trainer.link import open_link

if TYPE_CHECKING:
    from trainer import step_parts

WARM_STEPS, TIMED_STEPS = 2, 4  # then one whose FLOPs are counted, and one for the operations
# Ranks of tokens by their frequency in the training rows: a bin ends before each.
RANKS = (10, 50, 200, 1000)
HALVINGS = 5  # of a row: its second half, its second quarter, ...
RANKED_TOKENS = 1 << 24  # of the training rows, for the ranks
MOST_NAMES = 20  # of a checkpoint's tensors
PROBLEM = 300  # characters


class Over(BaseException):
    """The steps of a profile are made; nothing of the candidate is to catch this."""


def enter() -> None:
    """Entry of the box: answers one message and waits for the end."""
    link = open_link()
    if link is None:
        raise RuntimeError("study.enter() is for a box, and NIGHTLY_FD names no socket here")
    if harness.device() == "cpu":
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling would take longer than all the rest
    link.send({"msg": "up", "python": sys.version})
    asked = link.read("study")
    link.send({"msg": "studied", **answers(asked, harness.device())})
    link.wait_for_the_end()


def answers(asked: dict[str, Any], device: str) -> dict[str, Any]:
    """What is asked for, part by part; `problems` says why a part is missing.

    The model of the checkpoint comes first: the profile's steps leave the process changed.
    """
    if device == "cpu":
        roles.compile_nothing()
    elif "NIGHTLY_SEED_CACHE" in os.environ:
        roles.load_kernels(Path(os.environ["NIGHTLY_SEED_CACHE"]))
    watch = _StepWatch(device, asked["budget"])
    watch.put_into_harness()
    candidate = harness._load_candidate(Path(__file__).with_name("train.py"))
    parts: dict[str, Callable[[], Any]] = {
        "loss": lambda: _losses(candidate, asked["loss"], device),
        "sample": lambda: _samples(candidate, asked["sample"], device),
        "profile": lambda: watch.profile(candidate),
    }
    found: dict[str, Any] = {"problems": {}}
    for name, part in parts.items():
        if asked.get(name):
            try:
                found[name] = part()
            except Exception as error:
                traceback.print_exc()
                found["problems"][name] = f"{type(error).__name__}: {error}"[:PROBLEM]
    return found


# --------------------------------------------------------------------------------------------------
# Where a step goes.


class _StudyBudget(harness.Budget):
    """The real budget, which ends after a few steps."""

    watch: _StepWatch

    def progress(self, tokens: int) -> float:
        if self.tokens < int(tokens) or not self.watch.steps:
            self.watch.next_step()
        done = super().progress(tokens)
        return 1.0 if self.watch.is_over else min(done, 0.999)


class _StepWatch:
    """Takes the harness's place for a candidate's `main`, and watches each of its steps.

    On a CPU every step but those that warm up is followed module by module. On a GPU the modules
    are compiled: the steps are timed as they are.
    """

    def __init__(self, device: str, budget: dict[str, Any]) -> None:
        self.device = device
        self.budget = budget  # `kind` and `amount`, as in the judge's `go`
        self.steps = 0  # begun
        self.seconds: list[float] = []  # of the timed steps
        self.operations: list[tuple[str, float]] = []
        self.state: dict[str, int] = {}  # of the checkpoint: elements by name, numbers as `*`
        self.peak_gpu_bytes: int | None = None
        self._parts: step_parts.Parts | None = None
        self._step = contextlib.ExitStack()

    def put_into_harness(self) -> None:
        """Before the candidate is loaded: it may take the functions by name."""

        def ready(flops_per_token: float, checkpoint_bytes: int = 0) -> harness.Budget:
            kind, amount = self.budget["kind"], float(self.budget["amount"])
            budget = _StudyBudget(kind, amount, flops_per_token, checkpoint_bytes)
            budget.watch = self
            return budget

        def finish(state_dict: dict[str, Any], **metrics: float) -> None:
            from trainer import step_parts

            for name, tensor in state_dict.items():
                name = step_parts.starred(name)
                self.state[name] = self.state.get(name, 0) + tensor.numel()
            raise Over

        harness.ready, harness.finish = ready, finish
        harness.log = lambda **point: None

    @property
    def is_over(self) -> bool:
        return self.steps > WARM_STEPS + TIMED_STEPS + 2

    def profile(self, candidate: Any) -> dict[str, Any]:
        import torch

        from trainer import step_parts

        self._parts = step_parts.Parts(step_parts.clock(self.device))
        torch.set_grad_enabled(True)
        try:
            candidate.main()
        except Over:
            pass
        finally:
            self._step.close()
        if self.device == "cuda":
            self.peak_gpu_bytes = torch.cuda.max_memory_allocated()
        if not self.seconds:
            raise RuntimeError(f"main() has made {max(self.steps - 1, 0)} steps, too few to time")
        return {
            "milliseconds": 1000 * sum(self.seconds) / len(self.seconds),
            "parts": self._parts.found(len(self.seconds)),
            "operations": self.operations,
            "peak_gpu_bytes": self.peak_gpu_bytes,
            "state": sorted(self.state.items(), key=lambda pair: -pair[1])[:MOST_NAMES],
        }

    def next_step(self) -> None:
        """A step begins, and the one before it, if there was one, has ended."""
        from trainer import step_parts

        step_parts.synchronize(self.device)
        self._step.close()
        number, self.steps = self.steps, self.steps + 1
        self._step = contextlib.ExitStack()
        after = number - WARM_STEPS
        if after < 0:
            return
        assert self._parts is not None
        if after < TIMED_STEPS:
            self._step.enter_context(self._timed())
            if self.device == "cpu":
                self._step.enter_context(self._parts.followed())
        elif after == TIMED_STEPS and self.device == "cpu":
            # Counting takes time of its own.
            self._step.callback(self._parts.seconds.update, dict(self._parts.seconds))
            self._step.enter_context(self._parts.followed())
            self._step.enter_context(self._parts.counted())
        elif after == TIMED_STEPS + 1:
            self._step.enter_context(step_parts.operations(self.device, self.operations))

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        from trainer import step_parts

        clock = step_parts.clock(self.device)
        started = clock()
        yield
        step_parts.synchronize(self.device)
        self.seconds.append(clock() - started)


# --------------------------------------------------------------------------------------------------
# What a trained model makes of training text.


class _Trained:
    """The checkpoint's model and its shape."""

    def __init__(self, candidate: Any, device: str) -> None:
        path = os.environ.get("NIGHTLY_STUDIED")
        if path is None:
            raise FileNotFoundError("this candidate has no checkpoint")
        self.model, self.device = candidate.load_model(path, device), device
        self.model.eval()
        self.vocab_size = int(candidate.VOCAB_SIZE)
        self.length = int(candidate.MAX_SEQ_LEN)
        self.batch_rows = int(candidate.DEVICE_BATCH_SIZE)

    def logits(self, tokens: list[int]) -> Any:
        """For the token after these, of which there are fewer than a row has: float32 [V]."""
        import torch

        row = np.full((1, self.length), tokens[0], np.int64)
        row[0, : len(tokens)] = tokens
        batch = torch.from_numpy(np.repeat(row, self.batch_rows, axis=0)).to(self.device)
        return self.model(batch)[0, len(tokens) - 1].float().cpu()


def _losses(candidate: Any, asked: dict[str, Any], device: str) -> dict[str, Any]:
    """Mean nats of the targets of some rows, by the rank of the target and by its position.

    The rows are spread over those that come after `tokens_read`, as rows are read in order. If all
    were read, they are the last ones, and `unread_rows` is 0.
    """
    import torch

    trained = _Trained(candidate, device)
    T, V = trained.length, trained.vocab_size
    rows = prepare.train_rows(T, V)
    first, count = int(asked["tokens_read"]) // T, max(int(asked["tokens"]) // T, 1)
    unread = max(len(rows) - first, 0)
    places = np.linspace(first, len(rows) - 1, count) if unread else np.arange(-count, 0)
    chosen = np.asarray(rows[np.unique(places.astype(np.int64))[-len(rows) :]])
    with torch.inference_mode():
        nats = [*roles.claim_nats(trained.model, chosen, trained.batch_rows, device)]
    losses = np.concatenate(nats).astype(np.float64).reshape(-1, T)
    targets, length = chosen[:, 1:], prepare.token_bytes(V)
    scored = length[targets] > 0  # BOS is not
    ranks = _ranks(rows, V)[targets]
    return {
        # A GPU's steps are compiled, so the FLOPs of their parts are those of a forward pass here.
        "parts": [] if device == "cpu" else _forward_parts(trained, chosen),
        "rows": len(chosen),
        "rows_in_all": len(rows),
        "unread_rows": unread,
        "bits_per_byte": prepare.bits_per_byte(
            float(losses[scored].sum()), int(length[targets][scored].sum())
        ),
        "by_frequency": _binned(ranks, losses, scored, [0, *(r for r in RANKS if r < V), V]),
        "by_position": _binned(
            np.broadcast_to(np.arange(T), losses.shape),
            losses,
            scored,
            sorted({0, *(T >> n for n in range(HALVINGS + 1))}),
        ),
    }


def _forward_parts(trained: _Trained, rows: prepare.Tokens) -> list[dict[str, Any]]:
    """Where a forward pass of one batch goes."""
    import torch

    from trainer import step_parts

    parts = step_parts.Parts(step_parts.clock(trained.device))
    with torch.inference_mode(), parts.followed(), parts.counted():
        one = rows[: trained.batch_rows]
        list(roles.claim_nats(trained.model, one, trained.batch_rows, trained.device))
    return parts.found(1)


def _ranks(rows: prepare.Tokens, V: int) -> npt.NDArray[np.int64]:
    """Of each token by its frequency in the training rows, 0 for the most frequent one."""
    head = rows[: max(RANKED_TOKENS // rows.shape[1], 1)]
    counts = np.bincount(head.reshape(-1), minlength=V)
    ranks = np.empty(len(counts), np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return ranks


def _binned(
    values: npt.NDArray[np.int64],
    losses: npt.NDArray[np.float64],
    scored: npt.NDArray[np.bool_],
    edges: list[int],
) -> list[dict[str, Any]]:
    """Number and mean loss of the scored targets whose value is from one edge up to the next."""
    found = []
    for first, stop in itertools.pairwise(edges):
        inside = losses[scored & (first <= values) & (values < stop)]
        mean = float(inside.mean()) if inside.size else None
        found.append({"first": first, "stop": stop, "targets": int(inside.size), "nats": mean})
    return found


def _samples(candidate: Any, asked: dict[str, Any], device: str) -> list[str]:
    """How the model continues a prompt: the likeliest tokens, and drawn at each temperature.

    A prompt that is too long loses its beginning; a continuation ends with its document.
    """
    import torch

    trained, tokenizer = _Trained(candidate, device), prepare.Tokenizer.load(candidate.VOCAB_SIZE)
    most = min(int(asked["tokens"]), trained.length // 2)
    prompt = tokenizer.encode(asked["prompt"])[-(trained.length - most - 1) :]
    dice, texts = torch.Generator().manual_seed(harness.seed()), []
    for temperature in asked["temperatures"]:
        tokens = [tokenizer.bos, *prompt]
        with torch.inference_mode():
            while len(tokens) <= len(prompt) + most:
                logits = trained.logits(tokens)
                if temperature:
                    odds = (logits / temperature).softmax(0)
                    token = int(torch.multinomial(odds, 1, generator=dice))
                else:
                    token = int(logits.argmax())
                if token == tokenizer.bos:
                    break
                tokens.append(token)
        texts.append(tokenizer.decode(tokens[1 + len(prompt) :]))
    return texts
