"""Reading shards, and keeping training and held-out documents apart."""

from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data import dataset
from tasks.data.dataset import Shard
from tasks.errors import DataError
from tasks.files import FileRef


def write(path, texts, **options):
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, **options)
    return path


def shard(path, groups=""):
    return Shard.of(f"{path}{groups}", FileRef(str(path), "0" * 64, 1))


def ref(name, sha256, groups=""):
    return Shard.of(f"{name}{groups}", FileRef(f"/data/{name}", sha256 * 64, 1))


def test_documents_come_in_order_from_every_row_group(tmp_path):
    texts = [f"document {i} \u00e9\n" for i in range(25)]
    path = write(tmp_path / "shard", texts, row_group_size=10)
    assert pq.ParquetFile(path).num_row_groups == 3
    assert list(dataset.documents(shard(path))) == texts


def test_other_columns_are_ignored(tmp_path):
    pq.write_table(
        pa.table({"id": [1, 2], "text": pa.array(["a", "b"], pa.large_string())}),
        tmp_path / "shard",
    )
    assert list(dataset.documents(shard(tmp_path / "shard"))) == ["a", "b"]


@pytest.mark.parametrize("content", [b"", b"<html>", b"PAR1 and then nothing"])
def test_a_file_that_is_not_parquet_is_named(tmp_path, content):
    (tmp_path / "shard").write_bytes(content)
    with pytest.raises(DataError, match=r"shard cannot be read as parquet"):
        list(dataset.documents(shard(tmp_path / "shard")))


def test_a_damaged_page_is_reported(tmp_path):
    path = write(
        tmp_path / "shard",
        [f"text {i}" for i in range(500)],
        compression="zstd",
        use_dictionary=False,
    )
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    with pytest.raises(DataError, match="cannot be read as parquet"):
        list(dataset.documents(shard(path)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        list(dataset.documents(shard(tmp_path / "nowhere")))


def test_a_file_without_text_is_reported_with_its_columns(tmp_path):
    pq.write_table(pa.table({"body": ["a"], "title": ["b"]}), tmp_path / "shard")
    with pytest.raises(DataError, match=r"no column `text`, only body, title"):
        list(dataset.documents(shard(tmp_path / "shard")))


def test_text_that_is_not_a_string_is_refused(tmp_path):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "shard")
    with pytest.raises(DataError, match="holds int64, not strings"):
        list(dataset.documents(shard(tmp_path / "shard")))


def test_a_file_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no documents"):
        list(dataset.documents(shard(write(tmp_path / "shard", []))))


def test_a_row_without_text_is_refused(tmp_path):
    path = write(tmp_path / "shard", ["a", "b", None], row_group_size=2)
    with pytest.raises(DataError, match="shard has a row without a text, row 2 "):
        list(dataset.documents(shard(path)))


def test_the_scored_documents_are_the_first_ones(tmp_path):
    assert dataset.scored(shard(write(tmp_path / "shard", ["a", "b", "c"])), 2) == ["a", "b"]


def test_too_few_documents_to_score_are_reported(tmp_path):
    with pytest.raises(DataError, match=r"has 3 documents, .* validation_documents = 4"):
        dataset.scored(shard(write(tmp_path / "shard", ["a", "b", "c"])), 4)


GROUPS = [f"document {i}" for i in range(25)]  # in row groups of ten, the last one of five


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("", GROUPS),
        ("#1:", GROUPS[10:]),
        ("#:1", GROUPS[:10]),
        ("#1:2", GROUPS[10:20]),
        ("#2:9", GROUPS[20:]),
        ("#:", GROUPS),
    ],
)
def test_row_groups_are_selected_like_a_slice(tmp_path, groups, expected):
    part = shard(write(tmp_path / "shard", GROUPS, row_group_size=10), groups)
    assert list(dataset.documents(part)) == expected
    assert dataset.count(part) == len(expected)


def test_missing_row_groups_are_reported(tmp_path):
    with pytest.raises(DataError, match=r"has 3 row groups, none in 3:"):
        list(dataset.documents(shard(write(tmp_path / "shard", GROUPS, row_group_size=10), "#3:")))


def test_few_documents_are_in_memory_however_large_a_row_group_is(tmp_path):
    path = write(tmp_path / "shard", [str(i) for i in range(3000)], row_group_size=3000)
    assert [len(batch) for batch in dataset.batches(shard(path))] == [1024, 1024, 952]


def test_no_training_shard_is_refused():
    with pytest.raises(DataError, match="no training shard"):
        dataset.check_shards([], [ref("val", "a")])


def test_a_training_shard_with_a_held_out_shards_content_is_refused():
    with pytest.raises(DataError, match="/data/copy and held-out shard /data/val"):
        dataset.check_shards(
            [ref("train", "a"), ref("copy", "b")], [ref("holdout", "c"), ref("val", "b")]
        )


def test_different_shards_pass():
    dataset.check_shards([ref("train", "a")], [ref("val", "b")])


@pytest.mark.parametrize(
    ("train", "validation", "shared"),
    [
        ("#20:", "#:20", False),
        ("#20:30", "#30:", False),
        ("#19:", "#:20", True),
        ("", "#:20", True),
        ("#5:9", "", True),
    ],
)
def test_row_groups_of_one_file_may_not_overlap(train, validation, shared):
    parts = [ref("all", "a", train)], [ref("all", "a", validation)]
    if shared:
        with pytest.raises(DataError, match="share content"):
            dataset.check_shards(*parts)
    else:
        dataset.check_shards(*parts)


def held_out(tmp_path, validation, holdout=None):
    parts = [
        shard(write(tmp_path / name, texts))
        for name, texts in (("val", validation), ("hold", holdout))
        if texts
    ]
    return dataset.held_out(parts[0], parts[1] if holdout else None)


def test_held_out_documents_are_not_trained_on(tmp_path):
    digests = set(held_out(tmp_path, ["a", "b"], ["c"]).tolist())
    assert list(dataset.unseen(["x", "b", "c", "a ", "B", "c"], digests)) == ["x", "a ", "B"]


def test_a_holdout_of_validation_documents_is_refused(tmp_path):
    with pytest.raises(
        DataError, match="2 of 3 distinct holdout documents are also validation documents"
    ):
        held_out(tmp_path, ["a", "b", "c"], ["b", "c", "d"])


def test_two_held_out_shards_may_share_a_document_by_chance(tmp_path):
    assert len(held_out(tmp_path, ["a", "a"], ["a", *map(str, range(200))])) == 201


def left_out(tmp_path, train, validation):
    return dataset.left_out(
        [shard(write(tmp_path / f"train{i}", texts)) for i, texts in enumerate(train)],
        held_out(tmp_path, validation),
    )


def test_more_shared_documents_than_chance_explains_are_refused(tmp_path):
    own, shared = [f"own {i}" for i in range(692)], [f"shared {i}" for i in range(8)]
    assert left_out(tmp_path, [own, shared[:7], ["own"]], shared) == (
        "7 training documents, 7 of them distinct, are also held out: they are not trained on"
    )
    message = "8 of 700 distinct training documents are held-out documents too"
    with pytest.raises(DataError, match=message):
        left_out(tmp_path, [own, shared], shared)


def test_one_document_that_repeats_is_named_and_no_wrong_split(tmp_path):
    """40 texts and 60 empty rows, against 40 others and an empty one."""
    train = [[f"trained on {i}" for i in range(40)] + [""] * 30, [""] * 30]
    line = left_out(tmp_path, train, ["", *(f"scored {i}" for i in range(40))])
    assert line == (
        "60 training documents, 1 of them distinct, are also held out: they are not trained on. "
        "One of them 60 times: ''"
    )


def test_repeats_do_not_hide_a_wrong_split(tmp_path):
    train = [["own"] * 1000, ["a", "b"]]
    with pytest.raises(DataError, match="2 of 3 distinct training documents"):
        left_out(tmp_path, train, ["a", "b", "c"])


def test_one_document_that_two_held_out_shards_share_is_chance(tmp_path):
    assert len(held_out(tmp_path, ["", "a"], ["", "b", "c"])) == 4


def test_the_fingerprint_changes_with_everything_that_a_score_depends_on():
    a, b, c = (ref(name, name) for name in "abc")
    x, y = (FileRef(f"/t/{name}", name * 64, 1) for name in "xy")
    datasets = [
        ([a], b, None, [x], 10, 64),
        ([b], a, None, [x], 10, 64),
        ([a, a], b, None, [x], 10, 64),
        ([ref("a", "a", "#1:")], b, None, [x], 10, 64),
        ([ref("a", "a", "#:1")], b, None, [x], 10, 64),
        ([a], ref("b", "b", "#:1"), None, [x], 10, 64),
        ([a], b, c, [x], 10, 64),
        ([a], b, None, [y], 10, 64),
        ([a], b, None, [x, x], 10, 64),
        ([a], b, None, [x], 11, 64),
        ([a], b, None, [x], 10, 65),
    ]
    found = [dataset.fingerprint(*each) for each in datasets]
    found = sorted([*found, dataset.fingerprint([a], b, c, [x], 10, 64, holdout_documents=9)])
    assert all(one != other for one, other in pairwise(found))


def test_the_fingerprint_depends_on_content_and_not_on_paths():
    one, other = (Shard(FileRef(path, "a" * 64, 1)) for path in ("/here/x", "/there/y"))
    tokenizers = [one.file], [other.file]
    assert dataset.fingerprint([one], one, None, tokenizers[0], 1, 1) == dataset.fingerprint(
        [other], other, None, tokenizers[1], 1, 1
    )


@pytest.mark.parametrize("is_stored_once", [False, True])
def test_few_documents_are_in_memory_where_they_are_long(tmp_path, is_stored_once):
    texts = [f"{i}" * (1 << 20) for i in range(3)] * 10
    path = write(tmp_path / "shard", texts, use_dictionary=is_stored_once)
    assert [len(batch) for batch in dataset.batches(shard(path))] == [8, 8, 8, 6]
    assert dataset.count(shard(path)) == len(list(dataset.documents(shard(path))))


def decoded_at_a_time(path, monkeypatch):
    """How many rows pyarrow is asked for at a time."""
    asked, iter_batches = [], pq.ParquetFile.iter_batches

    def spy(self, size, *args, **kwargs):
        asked.append(size)
        return iter_batches(self, size, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    list(dataset.documents(shard(path)))
    return asked[0]


def test_the_size_of_the_documents_is_not_that_of_a_field_of_the_same_name(tmp_path, monkeypatch):
    long = [f"{i}" * (1 << 20) for i in range(9)]
    meta = pa.array([{"text": "short"}] * len(long))
    pq.write_table(pa.table({"meta": meta, "text": long}), tmp_path / "shard", use_dictionary=False)
    assert decoded_at_a_time(tmp_path / "shard", monkeypatch) == 7
    assert list(dataset.documents(shard(tmp_path / "shard"))) == long


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
)
def test_every_kind_of_string_is_text(tmp_path, kind):
    pq.write_table(pa.table({"text": pa.array(["a", "b", "a"], kind)}), tmp_path / "shard")
    assert list(dataset.documents(shard(tmp_path / "shard"))) == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [([b"a"], "binary"), ([["a"]], "list"), ([{"text": "a"}], "struct"), ([None], "null")],
)
def test_what_holds_strings_or_bytes_is_no_string(tmp_path, values, kind):
    pq.write_table(pa.table({"text": pa.array(values)}), tmp_path / "shard")
    with pytest.raises(DataError, match=f"holds {kind}.*, not strings"):
        list(dataset.documents(shard(tmp_path / "shard")))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_text_that_is_not_utf8_is_named_by_file_and_row(tmp_path, kind):
    texts = [b"a"] * 70 + [b"caf\xe9 au lait"] + [b"b"] * 70
    bytes_kind = pa.binary() if kind == pa.string() else pa.large_binary()
    table = pa.table({"text": pa.array(texts, bytes_kind).view(kind)})
    pq.write_table(table, tmp_path / "shard", row_group_size=50)
    message = r"shard, row 70 \(the first is row 0\): the text is not UTF-8, .* at byte 3\. "
    for groups in ("", "#1:"):
        with pytest.raises(DataError, match=message) as refused:
            list(dataset.documents(shard(tmp_path / "shard", groups)))
        assert "Fetch it again" not in str(refused.value)


def test_two_columns_of_text_are_refused(tmp_path):
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]),
        tmp_path / "shard",
    )
    with pytest.raises(DataError, match="has 2 columns `text`"):
        list(dataset.documents(shard(tmp_path / "shard")))


@pytest.mark.parametrize("train", [["a", "a"], ["a#:3", "a#2:"], ["a", "a#5:6"]])
def test_training_shards_that_share_content_are_refused(train):
    with pytest.raises(DataError, match="training shards /data/a and /data/a share content"):
        dataset.check_shards([ref("a", "a", each[1:]) for each in train], [ref("val", "b")])
