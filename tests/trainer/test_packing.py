"""Rows equal those of a plain packer, in the same order, however the streams are cut."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.packer_reference import pack
from trainer import packing


def corpus(lengths: list[int]) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
    """Documents of these lengths with different tokens; the same as a stream and its lengths."""
    documents = [
        [65535] + [(31 * i + j) % 60000 for j in range(length - 1)]
        for i, length in enumerate(lengths)
    ]
    stream = np.array([token for document in documents for token in document], np.uint16)
    return documents, stream, np.array(lengths, np.int32)


@pytest.mark.parametrize("T", [1, 16, 128])
@pytest.mark.parametrize(("buffer", "batch"), [(1, 1), (50, 8), (1000, 128)])
@pytest.mark.parametrize("epochs", [1, 3])
def test_packed_rows_equal_those_of_the_plain_packer(
    T: int, buffer: int, batch: int, epochs: int
) -> None:
    lengths = (
        np.random.default_rng(T).lognormal(math.log(T + 2), 1.0, 400).astype(int).clip(1).tolist()
    )
    documents, stream, counts = corpus(lengths)
    rows = packing.pack_rows([stream], counts, T, buffer=buffer, batch=batch, epochs=epochs)
    assert rows.tolist() == pack(documents, T, buffer=buffer, batch=batch, epochs=epochs)
    assert len(rows) > 0


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), max_size=60),
    T=st.integers(1, 30),
    buffer=st.integers(1, 20),
    batch=st.integers(1, 9),
    epochs=st.integers(1, 3),
)
def test_packed_rows_equal_those_of_the_plain_packer_for_any_lengths(
    lengths: list[int], T: int, buffer: int, batch: int, epochs: int
) -> None:
    documents, stream, counts = corpus(lengths)
    rows = packing.pack_rows([stream], counts, T, buffer=buffer, batch=batch, epochs=epochs)
    assert rows.shape == (len(rows), T + 1)
    assert rows.tolist() == pack(documents, T, buffer=buffer, batch=batch, epochs=epochs)


def test_several_epochs_equal_one_until_it_drains_its_buffer() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 300).tolist()
    _, stream, counts = corpus(lengths)
    once = packing.pack_rows([stream], counts, 32, buffer=20, batch=4)
    twice = packing.pack_rows([stream], counts, 32, buffer=20, batch=4, epochs=2)
    undrained = len(once) - 20 * 60 // 33
    assert undrained > 50
    assert (once[:undrained] == twice[:undrained]).all()


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=60),
    T=st.integers(1, 30),
    buffer=st.integers(1, 20),
)
def test_every_token_is_a_target_after_the_one_before_it_exactly_once(
    lengths: list[int], T: int, buffer: int
) -> None:
    """But for a last row's worth that no row holds."""
    counts = np.array(lengths, np.int32)
    # Every token is its own place in the text.
    stream = np.arange(counts.sum(), dtype=np.uint16)
    rows = packing.pack_rows([stream], counts, T, buffer=buffer).astype(int)
    follows = rows[:, 1:][rows[:, 1:] == rows[:, :-1] + 1]
    begun = np.cumsum(counts) - counts
    targets = np.sort(follows[~np.isin(follows, begun)])
    assert (np.diff(targets) > 0).all()
    assert len(targets) >= counts.sum() - len(lengths) - T
    plan = packing.plan_rows(counts, T, buffer=buffer)
    assert packing.share_held(plan, counts) == len(np.unique(rows)) / counts.sum()


def test_a_document_that_is_far_longer_than_a_row_is_kept_whole() -> None:
    counts = np.array([5, 550_000, 70], np.int32)
    plan = packing.plan_rows(counts, 64)
    assert packing.rows_in(plan, 64) > 550_000 // 64
    assert packing.share_held(plan, counts) > 0.9998


def test_pieces_of_a_long_document_are_apart_while_others_wait() -> None:
    """Rows that follow each other would otherwise be one text."""
    counts = np.array([33 * 8, *[33] * 50], np.int32)
    firsts, _ = packing.plan_rows(counts, 32)
    long = np.flatnonzero(firsts < 33 * 8)
    assert long[0] == 0
    assert long[1] == 51


def test_a_row_far_longer_than_every_document_takes_no_bit_set_of_that_size() -> None:
    lengths = np.full(3000, 100, np.int32)
    tracemalloc.start()
    packing.plan_rows(lengths, 1 << 28)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("shards", [2, 7])
def test_shards_are_packed_as_one_stream(shards: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 300)
    _, stream, counts = corpus(lengths.tolist())
    ends = np.cumsum(counts)[
        np.sort(np.random.default_rng(1).choice(299, shards - 1, replace=False))
    ]
    parts = [part.copy() for part in np.split(stream, ends)]
    whole = packing.pack_rows([stream], counts, 32)
    assert (packing.pack_rows(parts, counts, 32) == whole).all()
    assert (packing.pack_rows([*parts, stream[:0]], counts, 32) == whole).all(), "an empty shard"


@pytest.mark.parametrize("size", [33, 34, 33 * 3, 1 << 20])
def test_blocks_hold_the_rows_in_order(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, stream, counts = corpus(np.random.default_rng(0).integers(1, 60, 300).tolist())
    monkeypatch.setattr(packing, "BLOCK_TOKENS", size)
    plan = packing.plan_rows(counts, 32)
    found = np.concatenate([block.copy() for block in packing.blocks([stream], plan, 32)])
    assert (found == packing.pack_rows([stream], counts, 32)).all()
    assert len(found) == packing.rows_in(plan, 32)


def test_less_text_than_a_row_gives_no_row() -> None:
    _, stream, counts = corpus([3, 4])
    assert packing.pack_rows([stream], counts, 20).shape == (0, 21)


def test_documents_longer_than_a_row_are_packed_as_by_the_plain_packer() -> None:
    lengths = np.random.default_rng(5).integers(10, 90, 300).tolist()
    documents, stream, counts = corpus(lengths)
    rows = packing.pack_rows([stream], counts, 16, buffer=30, batch=8, epochs=2)
    assert rows.tolist() == pack(documents, 16, buffer=30, batch=8, epochs=2)


def test_a_document_of_a_hundred_megabytes_takes_no_bit_set_of_that_size() -> None:
    lengths = np.full(3000, 100, np.int32)
    lengths[0] = 1 << 31 - 6
    tracemalloc.start()
    packing.plan_rows(lengths, 8192)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
