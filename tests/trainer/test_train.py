"""train.py at tiny settings on one CPU thread, loaded by path: no module imports it."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import configs
from trainer import prepare

FILE = Path(prepare.__file__).with_name("train.py")
Counters = Any  # torch._dynamo.utils.counters: by topic and name
RATES = {
    "EMBEDDING_LR",
    "UNEMBEDDING_LR",
    "MATRIX_LR",
    "SCALAR_LR",
    "NGRAM_LR",
    "WARMUP_RATIO",
    "WARMDOWN_RATIO",
    "FINAL_LR_FRAC",
}
SIZES = {
    "DEPTH",
    "ASPECT_RATIO",
    "HEAD_DIM",
    "MAX_SEQ_LEN",
    "VOCAB_SIZE",
    "TOTAL_BATCH_SIZE",
    "DEVICE_BATCH_SIZE",
}
DECAYS = {"WEIGHT_DECAY", "EMBEDDING_DECAY", "VALUE_EMBEDDING_DECAY", "UNEMBEDDING_DECAY"}
RECIPE = {
    "ROPE_BASE",
    "QK_SCALE",
    "VE_GATE_CHANNELS",
    "VE_GATE_MAX",
    "INIT_SCALE",
    "X0_LAMBDA_INIT",
    "MUON_MOMENTUM",
    "MUON_MOMENTUM_WARMUP",
    "MUON_MOMENTUM_DROP",
    "MUON_BETA2",
    "BIGRAM_TABLE",
    "TRIGRAM_TABLE",
    "NGRAM_BETA2",
    "DOCUMENT_MASK",
}
KNOBS = RATES | SIZES | DECAYS | RECIPE | {"WINDOW_PATTERN", "SHORT_WINDOW_DIVISOR", "ADAM_BETAS"}
VOCAB, LENGTH = 61, 16
BOS = VOCAB - 1
NGRAMS: dict[str, object] = {"BIGRAM_TABLE": 2, "TRIGRAM_TABLE": 3}
TINY = {
    "HEAD_DIM": 8,
    "ASPECT_RATIO": 8,
    "MAX_SEQ_LEN": LENGTH,
    "VOCAB_SIZE": VOCAB,
    "DEVICE_BATCH_SIZE": 4,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Any:
    """train.py with tiny knobs, under another name."""
    spec = importlib.util.spec_from_file_location("candidate_under_test", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    for knob, value in (TINY | {"TOTAL_BATCH_SIZE": 4 * LENGTH}).items():
        setattr(module, knob, value)
    monkeypatch.setattr(prepare, "meta", lambda: SimpleNamespace(bos={VOCAB: BOS}))
    return module


def build(train: Any, **knobs: object) -> Any:
    """An initialised model with its zero projections filled, so that every path has an effect."""
    for knob, value in knobs.items():
        setattr(train, knob, value)
    torch.manual_seed(0)
    model = train.build_model("cpu", train.local_attention)
    model.init_weights()
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():
                weight.normal_(std=0.2)
        model.lm_head.weight.normal_()
    return model


def tokens(rows: int = 2, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "recipe", [{}, NGRAMS, {"DOCUMENT_MASK": True}, {**NGRAMS, "DOCUMENT_MASK": True}]
)
@pytest.mark.parametrize("pattern", ["L", "S", "SSL", "TTTL"])
def test_no_logit_depends_on_a_later_token(
    train: Any, pattern: str, recipe: dict[str, object]
) -> None:
    model = build(train, WINDOW_PATTERN=pattern, **recipe)
    idx = tokens()
    idx[:, 5] = BOS
    before = model(idx)
    # One of them begins a document.
    for t, new in ((1, None), (7, None), (8, BOS), (9, None), (LENGTH - 1, None)):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCAB if new is None else new
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert (after[:, t] != before[:, t]).any()


@pytest.mark.parametrize("pattern", ["L", "S", "TTL"])
def test_no_logit_depends_on_the_document_before(train: Any, pattern: str) -> None:
    model = build(train, WINDOW_PATTERN=pattern, DOCUMENT_MASK=True, **NGRAMS)
    one, other = tokens(rows=1), tokens(rows=1).flip(1)
    for start in (1, 4, 9):
        one[:, start:] = other[:, start:]
        one[:, start] = other[:, start] = BOS
        assert torch.allclose(model(one)[:, start:], model(other)[:, start:], atol=1e-5)
        assert not torch.allclose(model(one)[:, :start], model(other)[:, :start], atol=1e-2)


def test_no_logit_depends_on_another_row(train: Any) -> None:
    model = build(train)
    idx = tokens(rows=3)
    others = torch.cat([idx[:1], tokens(rows=2)])
    assert torch.allclose(model(idx)[:1], model(others)[:1], atol=1e-5)


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
@pytest.mark.parametrize(
    ("T", "window"), [(32, 8), (32, 16), (29, 8), (7, 3), (16, 1), (16, 15), (16, 99)]
)
def test_local_attention_is_exact(train: Any, T: int, window: int, heads: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(T)
    q, k, v = (torch.randn(2, T, n, 8, generator=generator) for n in (heads[0], heads[1], heads[1]))
    distance = torch.arange(T)[:, None] - torch.arange(T)
    scores = torch.einsum(
        "bqhd,bkhd->bhqk", q, k.repeat_interleave(heads[0] // heads[1], 2)
    ) / math.sqrt(8)
    weights = scores.masked_fill((distance < 0) | (distance > window), -math.inf).softmax(-1)
    banded = torch.einsum("bhqk,bkhd->bqhd", weights, v.repeat_interleave(heads[0] // heads[1], 2))
    assert torch.allclose(train.local_attention(q, k, v, window), banded, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [1, 2, 5, 8, 31, 32])
def test_attention_stays_within_a_document(train: Any, window: int) -> None:
    T, generator = 32, torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, T, 2, 8, generator=generator) for _ in range(3))
    documents = (torch.rand(2, T, generator=generator) < 0.2).cumsum(1)
    distance = torch.arange(T)[:, None] - torch.arange(T)
    mask = (distance >= 0) & (distance <= window)
    mask = mask & (documents[:, :, None] == documents[:, None, :])
    expected = train._sdpa(q, k, v, mask[:, None])
    flex = train.flex_attention([window], T, "cpu")
    for attend in (train.local_attention, flex):
        assert torch.allclose(attend(q, k, v, window, documents), expected, atol=1e-5)


def test_local_attention_has_the_gradients_of_a_band_mask(train: Any) -> None:
    def gradients(attend: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        qkv = [torch.randn(1, 20, 1, 8, generator=generator, requires_grad=True) for _ in range(3)]
        attend(*qkv).square().sum().backward()
        return [x.grad for x in qkv if x.grad is not None]

    def banded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        distance = torch.arange(20)[:, None] - torch.arange(20)
        return train._sdpa(q, k, v, (distance >= 0) & (distance <= 6))

    for ours, theirs in zip(
        gradients(lambda *x: train.local_attention(*x, 6)), gradients(banded), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
@pytest.mark.parametrize("window", [1, 5, 8, LENGTH])
def test_flex_attention_equals_local_attention(
    train: Any, window: int, heads: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, LENGTH, n, 8, generator=generator) for n in (heads[0], heads[1], heads[1])
    )
    flex = train.flex_attention([window], LENGTH, "cpu")  # on a CPU torch has no backward of it
    assert torch.allclose(flex(q, k, v, window), train.local_attention(q, k, v, window), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flex_attention_passes_the_smoke_test_on_a_gpu(train: Any) -> None:
    train.HEAD_DIM, train.MAX_SEQ_LEN = 64, 256
    config = wide(train)
    attend = train.flex_attention(config.windows(), 256, "cuda")
    train.smoke_test(attend, config, "cuda", torch.bfloat16)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("scale", [1.0, 1.4])
def test_every_attention_scales_scores_the_same_way(train: Any, scale: float) -> None:
    train.QK_SCALE, (q, k, v) = scale, torch.randn(3, 1, LENGTH, 1, 8)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale / math.sqrt(8)
    weights = scores.masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -math.inf).softmax(-1)
    expected = torch.einsum("bhqk,bkhd->bqhd", weights, v)
    for attend in (train.local_attention, train.flex_attention([LENGTH], LENGTH, "cpu")):
        assert torch.allclose(attend(q, k, v, LENGTH), expected, atol=1e-5)


def wide(train: Any) -> Any:
    """A configuration with both windows."""
    train.WINDOW_PATTERN, train.DEPTH = "SL", 2
    return train.GPTConfig.from_knobs()


def test_a_correct_attention_passes_the_smoke_test(train: Any) -> None:
    def banded(q: Any, k: Any, v: Any, window: int, documents: None) -> torch.Tensor:
        distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
        attended: torch.Tensor = train._sdpa(q, k, v, (distance >= 0) & (distance <= window))
        return attended

    train.smoke_test(banded, wide(train), "cpu", torch.bfloat16)


def wrong_window(train: Any, q: Any, k: Any, v: Any, window: int, documents: Any) -> Any:
    return train.local_attention(q, k, v, LENGTH, documents)


def wrong_gradient(train: Any, q: Any, k: Any, v: Any, window: int, documents: Any) -> Any:
    return train.local_attention(q, k * 2 - k.detach(), v, window, documents)


def not_a_number(train: Any, q: Any, k: Any, v: Any, window: int, documents: Any) -> Any:
    return train.local_attention(q, k, v, window, documents) * math.nan


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (wrong_window, "y is off by .* at window 8"),
        (wrong_gradient, "k is off by"),
        (not_a_number, "y is off by nan%"),
    ],
)
def test_a_wrong_attention_fails_the_smoke_test(
    train: Any, broken: Callable[..., Any], said: str
) -> None:
    with pytest.raises(RuntimeError, match=said):
        train.smoke_test(functools.partial(broken, train), wide(train), "cpu", torch.float32)


def test_an_attention_that_ignores_documents_fails_the_smoke_test(train: Any) -> None:
    train.DOCUMENT_MASK, train.MAX_SEQ_LEN = True, 256

    def across(q: Any, k: Any, v: Any, window: int, documents: Any) -> Any:
        return train.local_attention(q, k, v, window)

    with pytest.raises(RuntimeError, match=r"y is off by .* at window 128"):
        train.smoke_test(across, wide(train), "cpu", torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_reason_is_printed_for_each_refused_attention(
    train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.choose_attention("cuda", wide(train)) is train.local_attention
    said = capsys.readouterr().err.splitlines()
    names = ["FlashAttention-3 for Hopper", "FlashAttention-3", "FlexAttention"]
    assert [line.split(":")[1] for line in said] == [f" no {name}" for name in names]
    assert all("CUDA" in line for line in said)


@pytest.mark.parametrize(
    ("card", "majors", "hip", "said"),
    [
        ((9, 0), (9,), None, "LOCAL_KERNELS names no a/b"),
        ((8, 9), (8, 9), None, "LOCAL_KERNELS names no a/b"),
        ((8, 0), (9,), None, r"compute capabilities \(9,\) and this is \(8, 0\)"),
        ((12, 0), (8, 9), None, r"compute capabilities \(8, 9\) and this is \(12, 0\)"),
        ((9, 4), (9,), "6.4", r"compute capabilities \(9,\) and this is \(9, 4\)"),
    ],
)
def test_flash_attention_is_for_the_gpus_it_was_built_for(
    train: Any,
    monkeypatch: pytest.MonkeyPatch,
    card: tuple[int, int],
    majors: tuple[int, ...],
    hip: str | None,
    said: str,
) -> None:
    monkeypatch.delenv("LOCAL_KERNELS", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: card)
    monkeypatch.setattr(torch.version, "hip", hip)
    with pytest.raises(RuntimeError, match=said):
        train.flash_attention_3("a/b", majors)


def test_the_initial_loss_is_that_of_a_uniform_guess(train: Any) -> None:
    torch.manual_seed(0)
    model = train.build_model("cpu", train.local_attention)
    model.init_weights()
    assert model(tokens(), tokens()).item() == pytest.approx(math.log(VOCAB), abs=1e-3)


def test_the_last_layer_is_always_long(train: Any) -> None:
    for knob, value in {"WINDOW_PATTERN": "SSL", "DEPTH": 5, "ASPECT_RATIO": 8}.items():
        setattr(train, knob, value)
    assert train.GPTConfig.from_knobs().windows() == [8, 8, 16, 8, 16]


def test_a_short_window_is_a_share_of_the_context(train: Any) -> None:
    for divisor, window in {1: 16, 8: 2, 99: 1}.items():
        train.WINDOW_PATTERN, train.SHORT_WINDOW_DIVISOR, train.DEPTH = "ST", divisor, 3
        assert train.GPTConfig.from_knobs().windows() == [window, LENGTH // 8, LENGTH]


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("ROPE_BASE", 100.0),
        ("QK_SCALE", 1.5),
        ("VE_GATE_CHANNELS", 4),
        ("VE_GATE_MAX", 3.0),
        ("INIT_SCALE", 0.5),
        ("X0_LAMBDA_INIT", 0.5),
    ],
)
def test_a_knob_of_the_model_changes_its_output(train: Any, knob: str, value: float) -> None:
    plain = build(train)(tokens())
    assert not torch.allclose(build(train, **{knob: value})(tokens()), plain, atol=1e-4)


def test_muons_second_moment_is_a_knob(train: Any) -> None:
    def stepped(beta: float) -> torch.Tensor:
        model = build(train, MUON_BETA2=beta)
        _, muon = train.build_optimizers(model, compiled=False)
        model(tokens(4), tokens(4)).backward()
        muon.step(1.0, 0.9, 0.1)
        weight: torch.Tensor = model.h[0].mlp.c_fc.weight.detach()
        return weight

    assert torch.equal(stepped(0.95), stepped(0.95))
    assert not torch.equal(stepped(0.95), stepped(0.5))


@pytest.mark.parametrize(
    ("knob", "name"),
    [
        ("EMBEDDING_DECAY", "wte.weight"),
        ("VALUE_EMBEDDING_DECAY", "value_embeds.0.weight"),
        ("UNEMBEDDING_DECAY", "lm_head.weight"),
    ],
)
def test_weight_decay_shrinks_only_its_own_table(train: Any, knob: str, name: str) -> None:
    def stepped(**knobs: float) -> dict[str, torch.Tensor]:
        model = build(train, DEPTH=1, **knobs)
        adamw, _ = train.build_optimizers(model, compiled=False)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        adamw.step(0.5)
        return {name: weight.detach() for name, weight in model.named_parameters()}

    plain, decayed = stepped(), stepped(**{knob: 0.01})
    rate = (train.UNEMBEDDING_LR if name == "lm_head.weight" else train.EMBEDDING_LR) * (
        8 / 768
    ) ** -0.5
    assert torch.allclose(decayed.pop(name), plain.pop(name) * (1 - 0.5 * rate * 0.01))
    assert all(torch.equal(weight, plain[other]) for other, weight in decayed.items())


@pytest.mark.parametrize("recipe", [{}, NGRAMS])
def test_every_weight_of_the_model_is_trained(train: Any, recipe: dict[str, object]) -> None:
    model = build(train, **recipe)
    adamw, muon = train.build_optimizers(model, compiled=False)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model(tokens(4), tokens(4).roll(-1, 1)).backward()
    adamw.step(1.0)
    muon.step(1.0, 0.9, 0.1)
    unmoved = [
        name for name, weight in model.named_parameters() if torch.equal(weight, before[name])
    ]
    assert unmoved == []


def test_accumulated_passes_give_the_gradient_of_one_large_batch(train: Any) -> None:
    model, idx = build(train), tokens(4)
    _, muon = train.build_optimizers(model, compiled=False)
    model(idx, idx).backward()
    whole = [grad.clone() for grad in muon.grads]
    for grad in muon.grads:
        grad.zero_()
    for half in idx.split(2):
        (model(half, half) / 2).backward()
    for one, other in zip(whole, muon.grads, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_polar_express_brings_singular_values_near_one(train: Any) -> None:
    for rows, cols in [(24, 24), (48, 12), (12, 48)]:
        u, _, v = torch.linalg.svd(torch.randn(2, rows, cols), full_matrices=False)
        g = u * torch.logspace(-2, 0, min(rows, cols)) @ v
        values = torch.linalg.svdvals(train.polar_express(g))
        assert values.min() > 0.7
        assert values.max() < 1.3


def test_a_model_with_empty_tables_of_ngrams_is_the_model_without_them(train: Any) -> None:
    plain = build(train)
    expected = plain(tokens())
    rich = build(train, **NGRAMS)
    for name, weight in rich.state_dict().items():
        with torch.no_grad():
            if name.startswith("ngrams"):
                weight.zero_()
            elif "ve_gate" in name:
                weight[: len(plain.state_dict()[name])] = plain.state_dict()[name]
            else:
                weight.copy_(plain.state_dict()[name])
    assert torch.allclose(rich(tokens()), expected, atol=1e-5)
    assert not list(plain.ngrams.parameters())


def test_ngrams_are_numbered_by_their_tokens_and_stop_at_a_documents_start(train: Any) -> None:
    idx = torch.tensor([[3, 4, BOS, 5, 6, 7]])
    bigrams, trigrams = train.ngram_numbers(idx, BOS)
    one = [BOS, 3, BOS, BOS, 5, 6]
    two = [BOS, BOS, BOS, BOS, BOS, 5]
    assert bigrams.tolist() == [[b << 16 | c for b, c in zip(one, idx[0].tolist(), strict=True)]]
    assert trigrams.tolist() == [
        [a << 32 | b << 16 | c for a, b, c in zip(two, one, idx[0].tolist(), strict=True)]
    ]


def test_ngrams_that_share_a_half_seldom_share_both(train: Any) -> None:
    table = train.HashedEmbedding(1000, 2)
    with torch.no_grad():
        table.weight.copy_(torch.arange(2000.0)[:, None])
    last = torch.arange(2000)
    halves = table(torch.stack([last << 16 | 5, last << 16 | 6])).flatten(0, 1)
    assert halves.unique(dim=0).size(0) > 3980  # of 4000 bigrams
    assert all(900 < halves[:, half].unique().numel() <= 1000 for half in (0, 1))


def stepped_tables(train: Any, sparse: bool) -> list[torch.Tensor]:
    """Tables after four steps; each touches some rows, once or twice."""
    model = build(train, **NGRAMS)
    adamw, _ = train.build_optimizers(model, compiled=False)
    for seed in range(4):
        idx = torch.randint(0, VOCAB, (2, 5), generator=torch.Generator().manual_seed(seed % 3))
        model(idx, idx.roll(1, 1)).backward()
        for table in model.ngrams.parameters():
            assert table.grad is not None
            if not sparse:
                table.grad = table.grad.to_dense()
        adamw.step(0.5)
    return [table.detach() for table in model.ngrams.parameters()]


def test_sparse_and_dense_gradients_of_ngrams_give_the_same_tables(train: Any) -> None:
    start = list(build(train, **NGRAMS).ngrams.parameters())
    sparse, dense = stepped_tables(train, True), stepped_tables(train, False)
    for before, one, other in zip(start, sparse, dense, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
        moved = (one != before).any(1).float().mean()
        assert 0 < moved < 0.5


def test_a_row_that_is_seen_for_the_first_time_moves_by_the_rate(train: Any) -> None:
    table, second = torch.zeros(3, 4), torch.zeros(3, 1)
    second[1] = 4.0
    grad = torch.tensor([[1e-6], [2.0], [0.0]]).expand(3, 4)
    train.rms_update(table, grad, second, 0.1)
    assert torch.allclose(table[:, 0], torch.tensor([-0.1, -0.1, 0.0]))
    assert second[2] == 0


def test_flops_count_matrices_and_the_keys_in_the_window(train: Any) -> None:
    model = build(train, WINDOW_PATTERN="SL", DEPTH=2, ASPECT_RATIO=8)  # width 16, two heads
    matrices = VOCAB * 16 + 2 * 12 * 16 * 16 + 2 * 16  # the head, two layers, the last one's gate
    assert model.flops_per_token() == 6 * matrices + 12 * 16 * (8 + 16)


def test_nats_are_the_cross_entropy_of_the_logits(train: Any) -> None:
    model, idx, targets = build(train), tokens(), tokens().roll(-1, 1)
    nats = model(idx, targets, reduction="none")
    expected = -model(idx).log_softmax(-1).gather(2, targets[..., None]).reshape(-1)
    assert torch.allclose(nats, expected, atol=1e-5)
    assert model(idx, targets).item() == pytest.approx(nats.mean().item(), abs=1e-5)
    scored, logits = model.eval()(idx, targets, reduction="none"), model(idx)
    exact = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1), reduction="none")
    assert torch.equal(scored, exact), "an audit finds no gap that is not there"


def test_the_fused_loss_and_its_gradients_equal_the_plain_ones(train: Any) -> None:
    torch.manual_seed(0)
    x, head = torch.randn(2, 5, 8), 5 * torch.randn(11, 8)  # logits to the cap
    targets, found = torch.randint(11, (2, 5)), []
    for loss in (train.fused_cross_entropy, train.cross_entropy):
        inputs = x.clone().requires_grad_(), head.clone().requires_grad_()
        nats = loss(*inputs, targets)
        pull = torch.linspace(-1, 2, 10)  # each target weighs differently
        found.append([nats, *torch.autograd.grad(nats, inputs, pull)])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_a_loaded_checkpoint_equals_the_saved_one(train: Any, tmp_path: Path) -> None:
    model = build(train, WINDOW_PATTERN="SL")
    train.build_optimizers(model, compiled=False)  # makes parameters views of stacks
    torch.save(model.state_dict(), tmp_path / "model.pt")
    loaded = train.load_model(str(tmp_path / "model.pt"), "cpu")
    assert torch.equal(loaded(tokens()), model(tokens()))


def test_batches_follow_the_packed_order_and_wrap_around(train: Any) -> None:
    train.DEVICE_BATCH_SIZE = 2
    rows = np.arange(3 * (LENGTH + 1), dtype=np.uint16).reshape(3, -1)
    stream = train.batches(rows, "cpu")
    seen = [next(stream) for _ in range(3)]
    assert torch.cat([x for x, _ in seen])[:, 0].tolist() == [0, 17, 34, 0, 17, 34]
    assert all(torch.equal(x[:, 1:], y[:, :-1]) for x, y in seen)


class OnlyReads:
    """All that a reader of rows has: a length, and rows by a slice or an array of numbers."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Any) -> Any:
        assert isinstance(chosen, slice | np.ndarray)
        return self.rows[chosen]


def test_batches_need_only_the_length_and_the_indexing_of_rows(train: Any) -> None:
    train.DEVICE_BATCH_SIZE = 2
    rows = np.arange(5 * (LENGTH + 1), dtype=np.uint16).reshape(5, -1)
    plain, read = (train.batches(source, "cpu") for source in (rows, OnlyReads(rows)))
    for _ in range(6):
        assert all(torch.equal(a, b) for a, b in zip(next(plain), next(read), strict=True))


@pytest.fixture
def compiled_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counters]:
    """The compiler's counts. Its cache is empty, and it need not try out vector instructions."""
    from torch._dynamo.utils import counters
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with config.patch({"cpp.vec_isa_ok": False}):
        yield counters


@pytest.mark.skipif(not shutil.which("g++"), reason="on a CPU torch.compile needs g++")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own, and as errors they would end it
def test_compiled_regions_equal_eager_ones_and_more_layers_compile_nothing(
    train: Any, compiled_graphs: Counters
) -> None:
    graphs = {}
    for depth in (3, 4):
        gradients = []
        for compiled in (False, True):
            model = build(train, DEPTH=depth, ASPECT_RATIO=2)  # one head of 8, whatever the depth
            # Parameters become views of stacks, so equal blocks begin at different places.
            train.build_optimizers(model, compiled=False)
            if compiled:
                model.compile_regions()
            compiled_graphs.clear()
            nats = model(tokens(4), tokens(4).roll(-1, 1), reduction="none")
            nats.mean().backward()
            gradients.append([nats.detach(), *(p.grad for p in model.parameters())])
        graphs[depth] = compiled_graphs["stats"]["unique_graphs"]
        for eager, regional in zip(*gradients, strict=True):
            assert torch.allclose(eager, regional, rtol=1e-4, atol=1e-5)
    assert graphs == {3: 3, 4: 0}  # a block with value embeddings, one without, the head


def optimizer_state(train: Any, compiled: bool) -> dict[str, torch.Tensor]:
    """All weights, moments and buffers after three steps, with gradients of a clear sign."""
    model = build(train)
    adamw, muon = train.build_optimizers(model, compiled)
    noise = torch.Generator().manual_seed(2)
    for step in range(3):
        for p in model.parameters():
            gradient = torch.randn(p.shape, generator=noise)
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad.copy_(gradient + gradient.sign())
        adamw.step(0.9**step)
        muon.step(0.9**step, 0.85 + 0.03 * step, 0.2 - 0.05 * step)
    state = {name: weight.detach() for name, weight in model.named_parameters()}
    state |= {
        f"moments {i}": torch.cat([x.flatten() for pair in group for x in pair])
        for i, group in enumerate(adamw.moments)
    }
    return state | {f"muon {i}": x for i, x in enumerate([*muon.buffers, *muon.seconds])}


@pytest.mark.skipif(not shutil.which("g++"), reason="on a CPU torch.compile needs g++")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_optimizers_equal_eager_ones_and_more_layers_compile_nothing(
    train: Any, compiled_graphs: Counters
) -> None:
    train.EMBEDDING_DECAY, train.VALUE_EMBEDDING_DECAY, train.UNEMBEDDING_DECAY = 0.01, 0.02, 0.03
    train.ASPECT_RATIO, graphs = 4, {}  # two heads of 8 at either depth
    for train.DEPTH in (3, 4):
        eager = optimizer_state(train, compiled=False)
        compiled_graphs.clear()
        compiled = optimizer_state(train, compiled=True)
        graphs[train.DEPTH] = compiled_graphs["stats"]["unique_graphs"]
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
    # A table, and Muon's four shapes: attention, both of the MLP, gates.
    assert graphs == {3: 5, 4: 0}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_whole_recipe_compiles_without_a_break_and_only_once(
    train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU compiles, by a backend that needs none: tables with dense gradients, too."""
    from torch._dynamo import config
    from torch._dynamo.utils import counters

    monkeypatch.setattr(
        torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    )
    train.WARMDOWN_RATIO, train.MUON_MOMENTUM_DROP = 0.9, 0.14
    recipe = {**NGRAMS, "WINDOW_PATTERN": "TTTL", "DOCUMENT_MASK": True}
    model = build(train, DEPTH=4, ASPECT_RATIO=2, **recipe)
    adamw, muon = train.build_optimizers(model, compiled=True)
    model.compile_regions()
    counters.clear()

    def step(number: int, done: float) -> None:
        idx = torch.randint(0, VOCAB, (4, LENGTH), generator=torch.Generator().manual_seed(number))
        model(idx, idx.roll(-1, 1)).backward()
        for table in model.ngrams.parameters():
            assert table.grad is not None
            table.grad = table.grad.to_dense()
        adamw.step(train.lr_multiplier(done))
        muon.step(train.lr_multiplier(done), train.muon_momentum(number, done), 0.2 * (1 - done))

    step(0, 0.0)
    compiled = counters["stats"]["unique_graphs"]
    model.init_weights()
    adamw.reset()
    muon.reset()
    with config.patch(error_on_recompile=True):
        for number in range(3):
            step(number, number / 3)
    assert not counters["graph_break"]
    # Blocks with and without value embeddings and the last, whose window is longer; the head; an
    # AdamW table, two sizes of n-gram tables, and Muon's four shapes.
    assert compiled == counters["stats"]["unique_graphs"] == 3 + 1 + 1 + 2 + 4


@pytest.mark.parametrize("name", configs.names())
def test_a_checkpoint_of_a_profile_can_be_handed_over(train: Any, name: str) -> None:
    profile = configs.load(name)
    for knob, value in profile.train.items():
        setattr(train, knob, value)
    with torch.device("meta"):
        model = train.GPT(train.GPTConfig.from_knobs(), train.local_attention, 0)
    bf16 = (model.wte, model.value_embeds, model.ngrams) if profile.device == "cuda" else ()
    halves = sum(p.numel() for tables in bf16 for p in tables.parameters())
    mib = (4 * sum(p.numel() for p in model.parameters()) - 2 * halves) / 2**20
    assert mib < 0.5 * profile.limits.checkpoint_mib
    # Seconds of a `seconds` budget: what is held back and the slack, at 200 MiB a second.
    assert profile.budget.kind == "flops" or mib < 200 * (1 + profile.budget.slack_seconds)


def test_every_matrix_begins_where_the_shared_graph_expects_it(train: Any) -> None:
    # Three heads: gates of 6 weights.
    model = build(train, DEPTH=4, ASPECT_RATIO=6, VE_GATE_CHANNELS=2)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train.build_optimizers(model, compiled=False)
    assert all(p.data_ptr() % 16 == 0 for p in model.h.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_rates_rise_stay_and_fall_to_the_final_share(train: Any) -> None:
    train.WARMUP_RATIO, train.WARMDOWN_RATIO, train.FINAL_LR_FRAC = 0.1, 0.5, 0.2
    rates = [train.lr_multiplier(done) for done in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.6, 0.2])


def test_muons_momentum_rises_stays_and_falls_with_the_rates(train: Any) -> None:
    train.MUON_MOMENTUM, train.MUON_MOMENTUM_WARMUP, train.WARMDOWN_RATIO = 0.95, 10, 0.5
    found = [train.muon_momentum(step, 0.9) for step in (0, 5, 10, 99)]
    assert found == pytest.approx([0.85, 0.9, 0.95, 0.95])
    train.MUON_MOMENTUM_DROP = 0.1
    found = [train.muon_momentum(99, done) for done in (0.0, 0.5, 0.75, 1.0)]
    assert found == pytest.approx([0.95, 0.95, 0.9, 0.85])
    train.MUON_MOMENTUM_WARMUP = train.WARMDOWN_RATIO = 0
    assert train.muon_momentum(1, 0.5) == 0.95


def test_it_can_be_read_from_top_to_bottom() -> None:
    assert len(FILE.read_text().splitlines()) < 800


@pytest.mark.parametrize(
    ("knob", "value", "message"),
    [
        ("TOTAL_BATCH_SIZE", 4 * LENGTH + 1, "TOTAL_BATCH_SIZE = 65 must be a multiple of"),
        ("WINDOW_PATTERN", "LX", "must be made of S, L and T"),
        ("HEAD_DIM", 7, "HEAD_DIM = 7 even"),
        ("DEPTH", 0, "DEPTH = 0 must be at least 1"),
        ("SHORT_WINDOW_DIVISOR", 0, "SHORT_WINDOW_DIVISOR = 0 must be at least 1"),
    ],
)
def test_knobs_that_do_not_fit_are_named(
    train: Any, knob: str, value: object, message: str
) -> None:
    setattr(train, knob, value)
    with pytest.raises(ValueError, match=message):
        (train.accumulation_steps(), train.GPTConfig.from_knobs())


@pytest.mark.parametrize("loss", [math.nan, math.inf, 100.5])
def test_a_diverged_loss_ends_the_run(train: Any, loss: float) -> None:
    with pytest.raises(RuntimeError, match="at step 3: training has diverged"):
        train.check(loss, 3)


def test_knobs_are_literals() -> None:
    assigned = {
        node.targets[0].id: node.value
        for node in ast.parse(FILE.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    values = {knob: ast.literal_eval(assigned[knob]) for knob in KNOBS}
    assert values["ADAM_BETAS"] == (0.8, 0.95)


def test_importing_it_has_no_effect() -> None:
    code = f"""
import importlib.util, sys, threading, torch
before = torch.get_num_threads(), torch.initial_seed(), threading.active_count()
spec = importlib.util.spec_from_file_location("trainer.train", {str(FILE)!r})
module = sys.modules["trainer.train"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert before == (torch.get_num_threads(), torch.initial_seed(), threading.active_count())
assert "torch._dynamo" not in sys.modules, "the compiler costs 2 s of every start"
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=FILE.parent.parent, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A prepared dataset whose text counts upwards: easy to learn with any seed."""
    data = tmp_path / "data"
    for part in ("public", "train", "validation"):
        (data / part).mkdir(parents=True)
    meta = prepare.Meta("f", (VOCAB,), LENGTH, {VOCAB: VOCAB - 1}, "none", prepare.METRIC_VERSION)
    (data / "public" / "meta.json").write_text(json.dumps(meta.to_dict()))
    np.save(
        data / "public" / f"token_bytes_{VOCAB}.npy", np.array([1] * (VOCAB - 1) + [0], np.int32)
    )
    rows = (np.arange(40)[:, None] * 7 + np.arange(LENGTH + 1)) % (VOCAB - 1)
    np.save(data / "train" / f"rows_{VOCAB}_{LENGTH}.npy", rows.astype(np.uint16))
    stream = np.concatenate([[VOCAB - 1], np.arange(200) % (VOCAB - 1)]).astype(np.uint16)
    np.save(data / "validation" / f"stream_{VOCAB}.npy", stream)
    (data / "validation" / "manifest.json").write_text(json.dumps({"documents": 1, "bytes": 200}))
    places = {part: str(data / part) for part in ("public", "train", "validation")}
    budget = {"kind": "flops", "amount": 5e8}
    (data / "current.json").write_text(
        json.dumps(places | {"budget": budget, "device": "cpu", "threads": 1})
    )
    return tmp_path


def run_alone(home: Path, seed: int = 1, **knobs: object) -> subprocess.CompletedProcess[str]:
    """Runs train.py alone, as `python -m trainer.train` does, with tiny knobs written into it."""
    source = FILE.read_text()
    for knob, value in (TINY | {"TOTAL_BATCH_SIZE": 8 * LENGTH} | knobs).items():
        line = next(line for line in source.splitlines() if line.startswith(f"{knob} = "))
        source = source.replace(line, f"{knob} = {value!r}")
    (home / "candidate.py").write_text(source)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(FILE.parent.parent),
        "NIGHTLY_HOME": str(home),
        "NIGHTLY_SEED": str(seed),
    }
    return subprocess.run(
        [sys.executable, "candidate.py"], cwd=home, env=environment, capture_output=True, text=True
    )


def figure(run: subprocess.CompletedProcess[str], name: str) -> str:
    assert run.returncode == 0, run.stderr
    return next(
        line.split(":")[1].strip()
        for line in run.stdout.splitlines()
        if line.startswith(f"{name}:")
    )


@pytest.mark.slow
def test_the_same_seed_gives_the_same_score_to_the_last_bit(home: Path) -> None:
    scores = [figure(run_alone(home, seed), "val_bpb") for seed in (1, 1, 2)]
    assert scores[0] == scores[1] != scores[2]
    # It has learned: a uniform guess costs log2(V) bits for each token of one byte.
    assert float(scores[0]) < 0.5 * math.log2(VOCAB)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_learns_on_a_gpu_with_everything_compiled(home: Path) -> None:
    current = json.loads((home / "data" / "current.json").read_text())
    current |= {"device": "cuda", "budget": {"kind": "flops", "amount": 5e10}}
    (home / "data" / "current.json").write_text(json.dumps(current))
    run = run_alone(home, HEAD_DIM=64, WINDOW_PATTERN="SL", TOTAL_BATCH_SIZE=8 * LENGTH)
    assert float(figure(run, "val_bpb")) < 0.5 * math.log2(VOCAB), run.stderr


def test_divergence_ends_the_process_with_its_reason(home: Path) -> None:
    run = run_alone(home, UNEMBEDDING_LR=1e300)
    assert run.returncode != 0
    assert "training has diverged" in run.stderr


def test_a_vocabulary_that_is_not_prepared_ends_the_process_with_its_reason(home: Path) -> None:
    run = run_alone(home, VOCAB_SIZE=99)
    assert run.returncode != 0
    assert "VOCAB_SIZE = 99 is not prepared; prepared: (61,)" in run.stderr
