"""Reading shards, and keeping training and validation apart."""

from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import dataset
from tasks.records import DataError, FileRef


def write(path, texts, **options):
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, **options)
    return path


def ref(name, sha256):
    return FileRef(f"/data/{name}", sha256 * 64, 1)


def test_documents_come_in_order_from_every_row_group(tmp_path):
    texts = [f"document {i} \u00e9\n" for i in range(25)]
    path = write(tmp_path / "shard", texts, row_group_size=10)
    assert pq.ParquetFile(path).num_row_groups == 3
    assert list(dataset.documents(path)) == texts


def test_other_columns_are_left_alone(tmp_path):
    pq.write_table(pa.table({"id": [1, 2], "text": pa.array(["a", "b"], pa.large_string())}), tmp_path / "shard")
    assert list(dataset.documents(tmp_path / "shard")) == ["a", "b"]


@pytest.mark.parametrize("content", [b"", b"<html>", b"PAR1 and then nothing"])
def test_a_file_that_is_no_parquet_is_named(tmp_path, content):
    (tmp_path / "shard").write_bytes(content)
    with pytest.raises(DataError, match=r"shard cannot be read as parquet"):
        list(dataset.documents(tmp_path / "shard"))


def test_a_damaged_page_is_said_to_be(tmp_path):
    path = write(tmp_path / "shard", [f"text {i}" for i in range(500)], compression="zstd", use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    with pytest.raises(DataError, match="cannot be read as parquet"):
        list(dataset.documents(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        list(dataset.documents(tmp_path / "nowhere"))


def test_a_file_without_text_names_the_columns_it_has(tmp_path):
    pq.write_table(pa.table({"body": ["a"], "title": ["b"]}), tmp_path / "shard")
    with pytest.raises(DataError, match=r"no column `text`, only body, title"):
        list(dataset.documents(tmp_path / "shard"))


def test_text_that_is_no_string_is_refused(tmp_path):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "shard")
    with pytest.raises(DataError, match="holds int64, not strings"):
        list(dataset.documents(tmp_path / "shard"))


def test_a_file_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no documents"):
        list(dataset.documents(write(tmp_path / "shard", [])))


def test_a_row_without_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="row group 1 has a row without a text"):
        list(dataset.documents(write(tmp_path / "shard", ["a", "b", None], row_group_size=2)))


def test_the_scored_documents_are_the_first_ones(tmp_path):
    assert dataset.scored(write(tmp_path / "shard", ["a", "b", "c"]), 2) == ["a", "b"]


def test_too_few_documents_to_score_are_counted(tmp_path):
    with pytest.raises(DataError, match=r"has 3 documents, validation_documents = 4"):
        dataset.scored(write(tmp_path / "shard", ["a", "b", "c"]), 4)


def test_no_training_shard_is_refused():
    with pytest.raises(DataError, match="no training shard"):
        dataset.check_shards([], ref("val", "a"))


def test_a_training_shard_with_the_validation_shards_content_is_refused():
    with pytest.raises(DataError, match="/data/copy is the validation shard /data/val"):
        dataset.check_shards([ref("train", "a"), ref("copy", "b")], ref("val", "b"))


def test_different_shards_pass():
    dataset.check_shards([ref("train", "a")], ref("val", "b"))


def test_shared_documents_are_counted():
    with pytest.raises(DataError, match="2 of 3 validation documents"):
        dataset.check_overlap(iter(["x", "b", "c", "c"]), iter(["a", "b", "c"]))


def test_documents_that_differ_in_one_character_are_different():
    dataset.check_overlap(["a ", "b"], ["a", "B"])


def test_the_fingerprint_tells_everything_apart_that_a_score_depends_on():
    a, b, c = (ref(name, name) for name in "abc")
    datasets = [
        ([a], b, [c], 10, 64),
        ([b], a, [c], 10, 64),
        ([a, a], b, [c], 10, 64),
        ([a], b, [a], 10, 64),
        ([a], b, [c, c], 10, 64),
        ([a], b, [c], 11, 64),
        ([a], b, [c], 10, 65),
    ]
    found = sorted(dataset.fingerprint(*each) for each in datasets)
    assert all(one != other for one, other in pairwise(found))


def test_the_fingerprint_is_of_content_not_of_places():
    one, other = (FileRef(path, "a" * 64, 1) for path in ("/here/x", "/there/y"))
    assert dataset.fingerprint([one], one, [one], 1, 1) == dataset.fingerprint([other], other, [other], 1, 1)
