"""From text to tokens, with the real rustbpe and tiktoken."""

import contextlib
import json
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data import tokenization
from tasks.errors import DataError
from trainer import packing, prepare

MIXED = (
    "The price is 1234 \u20ac, na\u00efve \u6771\u4eac \U0001f642\U0001f642 "
    "<|bos|>\r\n\tan\u0301d so on.  "
)
TEXTS = [MIXED * 20, "", "plain English words, again and again and again. " * 40, "\U0001f600" * 50]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenization.train_tokenizer(TEXTS, 320, 10**9)


def documents(tokens: Path, lengths: Path, tokenizer: prepare.Tokenizer) -> list[str]:
    """The text of a token stream, document by document."""
    stream, ends = np.fromfile(tokens, np.uint16), np.cumsum(np.load(lengths))
    parts = np.split(stream, ends[:-1])
    assert all(part[0] == tokenizer.bos for part in parts)
    return [tokenizer.decode(part[1:].tolist()) for part in parts]


def test_the_vocabulary_has_the_requested_size_and_bos_is_last(tokenizer):
    assert tokenizer.size == 320
    assert tokenizer.bos == 319
    assert sorted(tokenizer.ranks.values()) == list(range(319))


def test_training_twice_gives_the_same_tokenizer(tokenizer):
    assert tokenization.train_tokenizer(TEXTS, 320, 10**9).to_dict() == tokenizer.to_dict()


def test_numbers_are_split_after_two_digits(tokenizer):
    assert [
        len(part) for part in map(tokenizer.decode, ([t] for t in tokenizer.encode("12345")))
    ] == [2, 2, 1]


def test_only_the_first_characters_train_the_tokenizer():
    cut = tokenization.train_tokenizer(
        ["first words " * 10, "other text entirely, unlike it"], 264, 120
    )
    assert (
        cut.to_dict() == tokenization.train_tokenizer(["first words " * 10], 264, 10**9).to_dict()
    )


def test_too_little_text_for_the_vocabulary_is_reported():
    with pytest.raises(DataError, match=r"gives 25\d tokens, vocab_sizes has 1000"):
        tokenization.train_tokenizer(["ab ab"], 1000, 10**9)


def test_token_bytes_are_those_of_the_merge_table(tokenizer):
    table = tokenization.token_bytes(tokenizer)
    assert table.dtype == np.int32
    assert table[tokenizer.bos] == 0
    assert {len(token) for token in tokenizer.ranks} == set(table[:-1].tolist())
    assert table[tokenizer.ranks[b"\xff"]] == 1, (
        "a byte that is not a character by itself counts once"
    )


@given(st.text())
def test_bytes_of_the_tokens_are_the_bytes_of_the_text(tokenizer, text):
    tokens = tokenizer.encode(text + MIXED)
    assert tokenization.token_bytes(tokenizer)[tokens].sum() == len((text + MIXED).encode("utf-8"))


def test_a_tokenizer_is_read_back_from_its_file(tokenizer, tmp_path):
    tokenization.write_tokenizer(tokenizer, tmp_path / "t.json")
    assert tokenization.read_tokenizer(tmp_path / "t.json").to_dict() == tokenizer.to_dict()


def test_a_shard_is_decoded_from_its_tokens(tokenizer, tmp_path):
    batches = [TEXTS, [], [f"number {i}" for i in range(2000)], TEXTS]
    tokens, lengths = tokenization.encode_shard(batches, tokenizer, tmp_path, 3)
    assert documents(Path(tokens.path), Path(lengths.path), tokenizer) == [
        text for batch in batches for text in batch
    ]
    assert np.load(lengths.path).dtype == np.int32
    assert (Path(tokens.path).name, Path(lengths.path).name) == (
        "tokens_320_00003.bin",
        "lengths_320_00003.npy",
    )


def test_threads_do_not_change_the_tokens(tokenizer, tmp_path):
    batches = [TEXTS * n for n in range(20)]
    one, many = (
        tokenization.encode_shard(batches, tokenizer, tmp_path / str(n), 0, n) for n in (1, 3)
    )
    assert [ref.sha256 for ref in one] == [ref.sha256 for ref in many]


def test_a_failure_between_batches_leaves_nothing(tokenizer, tmp_path):
    def failing():
        yield TEXTS
        raise DataError("the shard is broken")

    with pytest.raises(DataError, match="the shard is broken"):
        tokenization.encode_shard(failing(), tokenizer, tmp_path, 0, 2)
    assert list(tmp_path.iterdir()) == []


def test_256_tokens_are_the_bytes(tmp_path):
    tokenizer = tokenization.train_tokenizer([], 256, 1)
    stream = tokenizer.encode_documents([MIXED])
    assert (tokenizer.size, tokenizer.bos, len(stream)) == (256, 255, 1 + len(MIXED.encode()))
    assert bytes(stream[1:].tolist()) == MIXED.encode()


def test_65536_tokens_fit_into_16_bits():
    ranks = {bytes([byte]): byte for byte in range(256)}
    pairs = ((a, b, c) for a in range(256) for b in range(256) for c in range(256))
    for rank in range(256, 65535):
        a, b, c = next(pairs)
        ranks[bytes((a, b, c))] = rank
    assert prepare.Tokenizer(r".", ranks, {prepare.BOS: 65535}).encode_documents(
        ["", "a"]
    ).tolist() == [65535, 65535, 97]


def test_rows_are_packed_from_the_tokens_of_all_shards(tokenizer, tmp_path):
    for shard in range(3):
        tokenization.encode_shard([TEXTS[shard:]], tokenizer, tmp_path, shard)
    packed = tokenization.pack(tmp_path, 320, 16)
    rows = np.load(packed.file.path, mmap_mode="r")
    assert packed.file.path.endswith("rows_320_16.npy")
    stream = tokenizer.encode_documents([*TEXTS, *TEXTS[1:], *TEXTS[2:]])
    lengths = np.diff(np.append(np.flatnonzero(stream == tokenizer.bos), len(stream))).astype(
        np.int32
    )
    assert rows.tolist() == packing.pack_rows([stream], lengths, 16).tolist()
    assert (packed.count, packed.tokens) == (len(rows), len(stream))
    assert packed.share == packing.share_held(packing.plan_rows(lengths, 16), lengths) > 0.98


@pytest.mark.parametrize("T", [8, 64, 256])
def test_rows_of_every_length_hold_the_same_text(tokenizer, tmp_path, T):
    tokenization.encode_shard([[MIXED * 100] * 30], tokenizer, tmp_path, 0)
    assert tokenization.pack(tmp_path, 320, T).share > 0.99


def test_text_for_less_than_a_row_is_refused(tokenizer, tmp_path):
    tokenization.encode_shard([["ab"]], tokenizer, tmp_path, 0)
    with pytest.raises(DataError, match="fill no row of 101"):
        tokenization.pack(tmp_path, 320, 100)


def test_the_validation_stream_has_every_document_after_a_bos(tokenizer, tmp_path):
    small = tokenization.train_tokenizer(TEXTS, 300, 10**9)
    *streams, manifest = tokenization.encode_scored(TEXTS, [tokenizer, small], tmp_path)
    for ref, each in zip(streams, (tokenizer, small), strict=True):
        stream = np.load(ref.path)
        assert stream.dtype == np.uint16
        assert stream.tolist() == [
            token for text in TEXTS for token in (each.bos, *each.encode(text))
        ]
    written = json.loads(Path(manifest.path).read_text())
    assert written["documents"] == len(TEXTS)
    assert written["bytes"] == sum(len(text.encode("utf-8")) for text in TEXTS)


def test_tokens_that_lose_bytes_are_never_scored(tokenizer, tmp_path):
    lossy = prepare.Tokenizer(r"[a-z]+", tokenizer.ranks, tokenizer.specials)
    with pytest.raises(DataError, match=r"vocabulary 320: tokens of \d+ bytes for \d+ bytes"):
        tokenization.encode_scored([MIXED], [lossy], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_public_folder_is_what_a_candidate_reads(tokenizer, tmp_path, monkeypatch):
    meta = prepare.Meta("f" * 64, (320,), 16, {320: 319}, "public domain", prepare.METRIC_VERSION)
    tokenization.write_public(meta, [tokenizer], tmp_path)
    monkeypatch.setenv("NIGHTLY_ROLE", "train")
    monkeypatch.setenv("NIGHTLY_PUBLIC", str(tmp_path))
    assert prepare.meta() == meta
    assert prepare.Tokenizer.load(320).to_dict() == tokenizer.to_dict()
    assert prepare.token_bytes(320).tolist() == tokenization.token_bytes(tokenizer).tolist()


def test_another_user_can_read_the_files(tokenizer, tmp_path):
    ref = tokenization.write_tokenizer(tokenizer, tmp_path / "folder" / "t.json")
    assert Path(ref.path).stat().st_mode & 0o777 == 0o644
    assert Path(ref.path).parent.stat().st_mode & 0o777 == 0o755


@pytest.fixture
def encoded(tokenizer, tmp_path):
    tokenization.encode_shard([TEXTS * 20], tokenizer, tmp_path / "encoded", 0)
    return tmp_path / "encoded"


@contextlib.contextmanager
def full_disk():
    """No file of this process, a log included, can grow beyond 4 KiB: use it briefly."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_behind(tokenizer, tmp_path):
    message = r"cannot write .*tokens_320_00000\.bin: .* MiB are free.*NIGHTLY_HOME"
    with pytest.raises(DataError, match=message), full_disk():
        tokenization.encode_shard([TEXTS * 20], tokenizer, tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_old_file(encoded):
    (encoded / "rows_320_64.npy").write_bytes(b"old")
    before = sorted(path.name for path in encoded.iterdir())
    with pytest.raises(DataError, match=r"cannot write .*rows_320_64\.npy"), full_disk():
        tokenization.pack(encoded, 320, 64)
    assert (encoded / "rows_320_64.npy").read_bytes() == b"old"
    assert sorted(path.name for path in encoded.iterdir()) == before


BLANK = "a" + " " * 1_200_000 + "b"  # tiktoken and rustbpe fail on it in one piece


def test_a_very_long_run_of_white_space_is_encoded_and_trained_on(tokenizer):
    stream = tokenizer.encode_documents(["first", BLANK, "last"])
    assert np.flatnonzero(stream == tokenizer.bos).tolist() == [
        0,
        1 + len(tokenizer.encode("first")),
        len(stream) - 1 - len(tokenizer.encode("last")),
    ]
    assert tokenizer.decode(stream[stream != tokenizer.bos].tolist()) == f"first{BLANK}last"
    assert tokenization.train_tokenizer([*TEXTS, BLANK], 320, 10**9).size == 320


def test_a_text_that_spells_bos_is_encoded_as_text_and_changes_no_other(tokenizer):
    texts = ["before", f"{prepare.BOS} in {prepare.BOS}", "after"]
    expected = [token for text in texts for token in (tokenizer.bos, *tokenizer.encode(text))]
    stream = tokenizer.encode_documents(texts)
    assert (stream.tolist(), stream.dtype) == (expected, np.uint16)
    assert expected.count(tokenizer.bos) == 3


def test_a_shard_without_a_document_is_skipped(tokenizer, tmp_path):
    for shard, texts in enumerate((TEXTS, [], TEXTS)):
        tokenization.encode_shard([texts], tokenizer, tmp_path, shard)
    rows = np.load(tokenization.pack(tmp_path, 320, 16).file.path)
    (tmp_path / "without").mkdir()
    for shard in range(2):
        tokenization.encode_shard([TEXTS], tokenizer, tmp_path / "without", shard)
    without = tokenization.pack(tmp_path / "without", 320, 16)
    assert rows.tolist() == np.load(without.file.path).tolist()


@pytest.mark.parametrize("T", [131_073, 600_000_000])
def test_a_length_beyond_the_longest_row_is_refused_before_it_is_packed(encoded, T):
    before = sorted(encoded.iterdir())
    problem = tokenization.pack_if_missing(encoded, 320, T)
    assert problem == f"MAX_SEQ_LEN = {T} is beyond the longest row, 131072: lower it"
    assert sorted(encoded.iterdir()) == before


def test_a_length_of_too_many_rows_is_refused_before_they_are_packed(encoded, monkeypatch):
    tokens = len(np.fromfile(encoded / "tokens_320_00000.bin", np.uint16))
    monkeypatch.setattr(tokenization, "MOST_ROWS", 100)
    least = tokens // 100 + 1
    message = f"into more rows than the limit, 100: raise it to at least {least}"
    assert message in str(tokenization.pack_if_missing(encoded, 320, 3))
    assert not list(encoded.glob("rows_*"))
    assert tokenization.pack_if_missing(encoded, 320, least) is None
    assert list(encoded.glob("rows_*")) == [encoded / f"rows_320_{least}.npy"]
    with pytest.raises(DataError, match=f"raise sequence_length to at least {least}"):
        tokenization.pack(encoded, 320, 3)


@pytest.mark.parametrize(
    ("vocab_size", "T"),
    [(320, 0), (320, -5), (321, 16), (None, 16), (320, 16.0), (320, 100_000)],
)
def test_sizes_that_the_candidate_fails_on_are_left_to_it(encoded, vocab_size, T):
    assert tokenization.pack_if_missing(encoded, vocab_size, T) is None
    assert not list(encoded.glob("rows_*"))


def test_validation_documents_without_any_text_are_refused(tokenizer, tmp_path):
    with pytest.raises(DataError, match="the 2 validation documents are all empty"):
        tokenization.encode_scored(["", ""], [tokenizer], tmp_path)
