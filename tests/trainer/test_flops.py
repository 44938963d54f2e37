"""The count of FLOPs, beside what pencil and paper give for small models."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from trainer import flops, prepare

TRAIN = Path(prepare.__file__).with_name("train.py")
ROWS, WIDTH = 16, 8
PRODUCT = 2 * ROWS * WIDTH * WIDTH  # of [16, 8] and [8, 8]
B, H, T, D = 2, 3, 10, 4
SCORES = 2 * B * H * T * T * D  # of all queries and keys; the weighted values take the same


def matrix(*shape: int, **kind: Any) -> torch.Tensor:
    return torch.ones(*shape or (WIDTH, WIDTH), requires_grad=True, **kind)


def counted(compute: Callable[[], object]) -> float:
    with flops.Counter() as counter:
        compute()
    return counter.counts.flops


class Product(torch.autograd.Function):
    """x @ w, differentiated by hand."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any) -> Any:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, w = ctx.saved_tensors
        return grad @ w.T, x.T @ grad


class Recomputed(torch.autograd.Function):
    """tanh(x @ w) @ w, whose forward pass is done again by hand."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any) -> Any:
        ctx.save_for_backward(x, w)
        return torch.tanh(x @ w) @ w

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        with torch.enable_grad():
            x, w = (saved.detach().requires_grad_() for saved in ctx.saved_tensors)
            y = torch.tanh(x @ w) @ w
        return torch.autograd.grad(y, (x, w), grad)


def two_layers(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x @ w) @ w


def without_gradients() -> None:
    x, w = matrix(ROWS, WIDTH), matrix()
    with torch.no_grad():
        Product.apply(x, w) @ w
    with torch.inference_mode():
        F.linear(x, w)


def twice_differentiated() -> None:
    x, w = matrix(ROWS, WIDTH), matrix()
    gradient = torch.autograd.grad((x @ w).square().sum(), x, create_graph=True)[0]
    gradient.square().sum().backward()


def experts() -> None:
    """Half of the rows to each of two matrices."""
    rows, matrices = (torch.ones(shape, dtype=torch.bfloat16) for shape in ((ROWS, 8), (2, 8, 8)))
    F.grouped_mm(rows, matrices, offs=torch.tensor([ROWS // 2, ROWS], dtype=torch.int32))


def optimizer_in_a_hook() -> None:
    w = matrix()

    def step(p: torch.Tensor) -> None:
        p.data @ p.data

    w.register_post_accumulate_grad_hook(step)
    (matrix(ROWS, WIDTH) @ w).sum().backward()


CASES: dict[str, tuple[Callable[[], object], float]] = {
    "product": (lambda: (matrix(ROWS, WIDTH) @ matrix()).sum().backward(), 3 * PRODUCT),
    "bias": (
        lambda: F.linear(matrix(ROWS, WIDTH), matrix(), matrix(WIDTH)).sum().backward(),
        3 * PRODUCT,
    ),
    "no gradient for the input": (
        lambda: (torch.ones(ROWS, WIDTH) @ matrix()).sum().backward(),
        2 * PRODUCT,
    ),
    "einsum": (
        lambda: torch.einsum("btd,de->bte", matrix(2, 8, WIDTH), matrix()).sum().backward(),
        3 * PRODUCT,
    ),
    "in place": (
        lambda: (matrix(ROWS, WIDTH) * 1).addmm_(matrix(ROWS, WIDTH), matrix()).sum().backward(),
        3 * PRODUCT,
    ),
    "into another tensor": (
        lambda: torch.mm(torch.ones(ROWS, WIDTH), torch.ones(WIDTH, WIDTH), out=torch.empty(0)),
        PRODUCT,
    ),
    "sum of products": (
        lambda: torch.addbmm(matrix(), matrix(3, WIDTH, ROWS), matrix(3, ROWS, WIDTH)),
        3 * PRODUCT,
    ),
    "experts": (experts, PRODUCT),
    "vector": (lambda: (matrix(ROWS, WIDTH) @ matrix(WIDTH)).sum(), 2 * ROWS * WIDTH),
    "complex": (
        lambda: matrix(ROWS, WIDTH, dtype=torch.cfloat) @ matrix(dtype=torch.cfloat),
        4 * PRODUCT,
    ),
    "convolution": (
        lambda: F.conv1d(matrix(1, WIDTH, ROWS + 2), matrix(WIDTH, WIDTH, 3)).sum().backward(),
        9 * PRODUCT,
    ),
    "LSTM": (
        lambda: torch.nn.LSTM(WIDTH, WIDTH)(matrix(ROWS, 1, WIDTH))[0].sum().backward(),
        3 * 8 * PRODUCT,
    ),
    "embedding": (
        lambda: F.embedding(torch.arange(WIDTH), matrix()).square().sum().backward(),
        0,
    ),
    "own function": (
        lambda: Product.apply(matrix(ROWS, WIDTH), matrix()).sum().backward(),
        3 * PRODUCT,
    ),
    "checkpointing": (
        lambda: (
            checkpoint(two_layers, matrix(ROWS, WIDTH), matrix(), use_reentrant=False)
            .sum()
            .backward()
        ),
        6 * PRODUCT,
    ),
    "reentrant checkpointing": (
        lambda: (
            checkpoint(two_layers, matrix(ROWS, WIDTH), matrix(), use_reentrant=True)
            .sum()
            .backward()
        ),
        6 * PRODUCT,
    ),
    "own checkpointing": (
        lambda: Recomputed.apply(matrix(ROWS, WIDTH), matrix()).sum().backward(),
        6 * PRODUCT,
    ),
    "without gradients": (without_gradients, 0),
    # x @ w and its gradient for x, and for each of these two its own pair of gradients
    "twice differentiated": (twice_differentiated, 6 * PRODUCT),
    "optimizer in a hook": (optimizer_in_a_hook, 3 * PRODUCT),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_the_count_of(case: str) -> None:
    compute, expected = CASES[case]
    assert counted(compute) == expected


def attention(**how: Any) -> Callable[[], object]:
    def attend() -> None:
        keys = matrix(B, 1 if how.get("enable_gqa") else H, T, D)
        y = F.scaled_dot_product_attention(matrix(B, H, T, D), keys, keys, **how)
        y.sum().backward()

    return attend


WINDOW = torch.ones(T, T).tril().triu(-3).bool()
ATTENTION: dict[str, tuple[dict[str, Any], float]] = {
    "causal": ({"is_causal": True}, 1.0),
    "full": ({}, 1.0),
    "dropout, which is not fused": ({"is_causal": True, "dropout_p": 0.1}, 1.0),
    "groups of queries": ({"is_causal": True, "enable_gqa": True}, 1.0),
    "window": ({"attn_mask": WINDOW}, WINDOW.double().mean().item()),
    "a mask a head": (
        {"attn_mask": WINDOW.expand(B, H, T, T)},
        WINDOW.double().mean().item(),
    ),
    "a bias that is learned": ({"attn_mask": torch.zeros(T, T, requires_grad=True)}, 1.0),
}


@pytest.mark.parametrize("how", ATTENTION)
def test_attention_counts_12_for_each_channel_and_key(how: str) -> None:
    arguments, share = ATTENTION[how]
    assert counted(attention(**arguments)) == pytest.approx(6 * SCORES * share)


@pytest.mark.parametrize("length", [1, T])
def test_attention_by_hand_counts_the_same(length: int) -> None:
    def attend() -> None:
        q, k, v = (matrix(B, H, T, D) for _ in range(3))
        mask = torch.ones(T, T, dtype=torch.bool).tril()
        ((q @ k.mT).masked_fill(~mask, float("-inf")).softmax(-1) @ v).sum().backward()

    assert counted(attend) == 6 * SCORES


def test_what_is_compiled_is_counted_and_compiled_again_afterwards() -> None:
    seen = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        return graph.forward

    product = torch.compile(lambda x, w: x @ w, backend=backend)
    x, w = matrix(ROWS, WIDTH), matrix()
    product(x, w)
    assert counted(lambda: product(x, w).sum().backward()) == 3 * PRODUCT
    product(x, matrix(WIDTH, 3))
    assert len(seen) == 2


def test_a_counter_leaves_no_trace() -> None:
    apply = torch.autograd.Function.__dict__["apply"]
    counted(lambda: None)
    assert torch.autograd.Function.__dict__["apply"] is apply
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


# --------------------------------------------------------------------------------------------------
# Which steps are counted


def work(products: int) -> None:
    for _ in range(products):
        matrix(ROWS, WIDTH) @ matrix()


def test_the_dearest_step_is_told_with_its_tokens() -> None:
    steps = flops.Steps(every=True)
    steps.report(0, 0.0)
    for products, tokens in ((1, 10), (3, 20), (2, 30)):
        work(products)
        steps.report(tokens, 0.1)
    traffic = 3 * (flops.CALL + ROWS * WIDTH * 4) + 6 * flops.CALL
    assert steps.found() == {
        "counted_flops": 3 * PRODUCT,
        "counted_tokens": 10,
        "counted_traffic": pytest.approx(traffic, rel=0.1),
        "late_flops": 0.0,
    }


def test_a_step_ends_where_tokens_are_reported_however_often_progress_is_asked_for() -> None:
    steps = flops.Steps(every=True)
    for tokens in (0, 0, 10, 10, 20):
        work(1)
        steps.report(tokens, 0.1)
    found = steps.found()
    assert (found["counted_flops"], found["counted_tokens"]) == (3 * PRODUCT, 10)


@pytest.mark.parametrize("every", [False, True])
def test_what_is_computed_after_the_last_report_is_told_apart(every: bool) -> None:
    steps = flops.Steps(every=every)
    work(1)
    steps.report(10, 1.0)
    work(5)
    found = steps.found()
    assert (found["counted_flops"], found["counted_tokens"]) == (PRODUCT, 10)
    assert found["late_flops"] == 5 * PRODUCT


def test_a_report_may_come_from_another_thread() -> None:
    def run(compute: Callable[[], object]) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(compute).result()

    def train() -> None:
        steps = flops.Steps(every=True)
        for tokens in (10, 20):
            run(functools.partial(steps.report, tokens, 0.1))
        assert steps.found()["counted_tokens"] == 10

    run(train)  # a thread that ends, and with it what it has counted with


def test_without_any_report_all_is_late() -> None:
    steps = flops.Steps(every=False)
    work(2)
    assert steps.found()["late_flops"] == 2 * PRODUCT


def test_the_first_step_and_one_in_each_part_of_the_budget_are_counted() -> None:
    counted_steps = set()
    for _ in range(20):
        steps, on = flops.Steps(every=False), []
        for step in range(100):
            if steps._counter is not None:
                on.append(step)
            steps.report(step + 1, (step + 1) / 100)
        steps.found()
        assert on[0] == 0
        assert 4 <= len(on) <= 1 + flops.PARTS
        counted_steps.update(on)
    assert len(counted_steps) > 20


# --------------------------------------------------------------------------------------------------
# train.py


def load_train(knobs: dict[str, Any]) -> Any:
    spec = importlib.util.spec_from_file_location("counted_train", TRAIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    vars(module).update(knobs)
    return module


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"DEPTH": 2, "DEVICE_BATCH_SIZE": 3},
        {"DEPTH": 4, "WINDOW_PATTERN": "SSSL"},
        {"DEPTH": 4, "WINDOW_PATTERN": "S", "SHORT_WINDOW_DIVISOR": 4},
        {"MAX_SEQ_LEN": 100, "HEAD_DIM": 16, "ASPECT_RATIO": 30},
    ],
    ids=str,
)
def test_train_py_says_what_is_counted(knobs: dict[str, Any]) -> None:
    train = load_train({"VOCAB_SIZE": 128, **knobs})
    config = train.GPTConfig.from_knobs()
    model = train.build_model("cpu", train.choose_attention("cpu", config))
    model.init_weights()
    shape = (train.DEVICE_BATCH_SIZE, train.MAX_SEQ_LEN)
    tokens = torch.zeros(shape, dtype=torch.int64)
    found = counted(lambda: model(tokens, tokens).backward()) / tokens.numel()
    # Queries with few keys before them cost less than their window, which is what the word counts.
    assert 0.98 * model.flops_per_token() <= found <= 1.001 * model.flops_per_token()


def test_a_counted_step_computes_the_same_to_the_last_bit() -> None:
    """So that a run can be repeated although nobody knows which of its steps were counted."""
    train = load_train({"VOCAB_SIZE": 128, "WINDOW_PATTERN": "S"})
    config = train.GPTConfig.from_knobs()
    tokens = torch.arange(8 * 128).view(8, 128) % 128

    def trained(count: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model = train.build_model("cpu", train.choose_attention("cpu", config))
        model.init_weights()
        adamw, muon = train.build_optimizers(model, False)
        steps = flops.Steps(every=count)
        for step in range(3):
            model(tokens, tokens.roll(-1)).backward()
            adamw.step(1.0)
            muon.step(1.0, 0.9, 0.1)
            steps.report(step + 1, 0.0)
        steps.found()
        return dict(model.state_dict())

    once, again = trained(True), trained(False)
    assert all(torch.equal(once[name], again[name]) for name in once)
