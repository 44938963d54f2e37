"""The dataset as a candidate reads it, and the metric."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.test_packing import corpus
from trainer import packing, prepare

BOS_ID = 258
ROOT = Path(prepare.__file__).parent.parent


def tokenizer() -> prepare.Tokenizer:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257}
    return prepare.Tokenizer(r"\p{L}+|\s+|[^\s\p{L}]+", ranks, {prepare.BOS: BOS_ID})


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small prepared dataset in a new $NIGHTLY_HOME; the folder of its parts."""
    folder = tmp_path / "data" / "d"
    for part in ("public", "train"):
        (folder / part).mkdir(parents=True)
    meta = prepare.Meta("f" * 64, (259,), 8, {259: BOS_ID}, "public domain", prepare.METRIC_VERSION)
    (folder / "public" / "meta.json").write_text(json.dumps(meta.to_dict()))
    (folder / "public" / "tokenizer_259.json").write_text(json.dumps(tokenizer().to_dict()))
    np.save(folder / "public" / "token_bytes_259.npy", np.array([1] * 256 + [2, 3, 0], np.int32))
    _, stream, lengths = corpus([3, 40, 7, 9, 2, 12])
    stream.tofile(folder / "train" / "tokens_259_00000.bin")
    np.save(folder / "train" / "lengths_259_00000.npy", lengths)
    places = {"public": str(folder / "public"), "train": str(folder / "train"), "device": "cpu"}
    (tmp_path / "data" / "current.json").write_text(json.dumps(places))
    monkeypatch.delenv("NIGHTLY_ROLE", raising=False)
    monkeypatch.setenv("NIGHTLY_HOME", str(tmp_path))
    return folder


@given(tokens=st.lists(st.integers(0, 9), max_size=50), T=st.integers(1, 60))
def test_every_token_but_the_first_bos_is_a_target_of_cut_rows_exactly_once(
    tokens: list[int], T: int
) -> None:
    stream = np.array([BOS_ID, *tokens], np.uint16)
    rows = prepare.cut_rows(stream, T, BOS_ID)
    targets = rows[:, 1:].reshape(-1)
    assert targets[: len(tokens)].tolist() == tokens
    assert (targets[len(tokens) :] == BOS_ID).all()
    assert len(targets) - len(tokens) < T
    assert (rows[1:, 0] == rows[:-1, -1]).all()


def test_the_score_is_the_cross_entropy_of_the_scored_targets() -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 259, (5, 9), generator=generator)
    logits = torch.randn(5, 8, 259, generator=generator, dtype=torch.float64)
    nll = torch.nn.functional.cross_entropy(
        logits.view(-1, 259), rows[:, 1:].reshape(-1), reduction="none"
    )
    scored = rows[:, 1:].reshape(-1) != BOS_ID
    table = np.array([1] * 256 + [2, 3, 0], np.int32)
    bpb = prepare.score(nll.float().numpy(), rows.numpy().astype(np.uint16), table, 40)
    assert bpb == pytest.approx(nll[scored].sum().item() / math.log(2) / 40, rel=1e-6)


def test_targets_without_bytes_are_not_scored() -> None:
    rows = np.array([[BOS_ID, 7, BOS_ID]], np.uint16)
    table = np.array([1] * 258 + [0], np.int32)
    assert prepare.score(
        np.array([math.log(2), 99.0], np.float32), rows, table, 1
    ) == pytest.approx(1.0)


def test_a_wrong_number_of_losses_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 losses for 2 targets"):
        prepare.score(np.zeros(3, np.float32), np.zeros((1, 3), np.uint16), np.ones(1, np.int32), 1)


def test_a_uniform_model_scores_the_entropy_of_its_vocabulary() -> None:
    assert prepare.bits_per_byte(10 * math.log(256), 10) == pytest.approx(8.0)


def test_a_tokenizer_is_the_same_after_a_round_trip_through_json() -> None:
    first = tokenizer()
    again = prepare.Tokenizer.from_dict(json.loads(json.dumps(first.to_dict())))
    assert (again.pattern, again.ranks, again.specials) == (
        first.pattern,
        first.ranks,
        first.specials,
    )


def test_text_is_the_same_after_a_round_trip_through_a_tokenizer() -> None:
    text = "the th\N{LATIN SMALL LETTER E WITH ACUTE}\N{SNOWMAN} \n" + prepare.BOS
    tokens = tokenizer().encode(text)
    assert tokenizer().decode(tokens) == text
    assert tokens[0] == 257
    assert BOS_ID not in tokens  # text never becomes a special token


@given(st.lists(st.text(st.sampled_from("the cat<|bos|>\N{SNOWMAN}\n"))))
def test_each_document_is_encoded_on_its_own_behind_a_bos(texts: list[str]) -> None:
    one_by_one = [token for text in texts for token in (BOS_ID, *tokenizer().encode(text))]
    stream = tokenizer().encode_documents(texts)
    assert stream.dtype == np.uint16
    assert stream.tolist() == one_by_one


def test_a_text_that_spells_bos_is_encoded_as_text() -> None:
    assert tokenizer().encode_documents([f"the{prepare.BOS}the"]).tolist().count(BOS_ID) == 1


def test_prepared_parts_are_read(prepared: Path) -> None:
    assert prepare.meta().bos == {259: BOS_ID}
    assert (prepare.Tokenizer.load().bos, prepare.Tokenizer.load(259).size) == (BOS_ID, 259)
    assert prepare.token_bytes().tolist()[-3:] == [2, 3, 0]


def test_train_rows_are_packed_if_there_is_no_packed_file(prepared: Path) -> None:
    _, stream, lengths = corpus([3, 40, 7, 9, 2, 12])
    assert (prepare.train_rows(5) == packing.pack_rows([stream], lengths, 5)).all()


def test_train_rows_are_a_memory_map_of_a_packed_file(prepared: Path) -> None:
    np.save(prepared / "train" / "rows_259_8.npy", np.arange(18, dtype=np.uint16).reshape(2, 9))
    rows = prepare.train_rows(8)
    assert isinstance(rows, np.memmap)
    assert rows.shape == (2, 9)


def test_a_vocabulary_that_is_not_prepared_is_named(prepared: Path) -> None:
    with pytest.raises(ValueError, match="512 is not prepared: choose one of 259"):
        prepare.train_rows(8, 512)


def test_a_sequence_length_of_0_is_refused(prepared: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        prepare.train_rows(0)


def test_without_prepared_data_the_error_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTLY_HOME", str(tmp_path))
    monkeypatch.delenv("NIGHTLY_ROLE", raising=False)
    with pytest.raises(FileNotFoundError, match=r"Run \./run prepare first"):
        prepare.meta()


def test_importing_it_imports_neither_torch_nor_tiktoken() -> None:
    code = (
        "import sys, trainer.prepare, trainer.harness\n"
        "print({'torch', 'tiktoken'} & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert shown.stdout == "set()\n"
