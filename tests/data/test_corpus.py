"""The embedded corpus and the script that rebuilds it."""

import hashlib
import io
import tarfile

import pyarrow.parquet
import pytest

from configs.corpus import rebuild

CHECKSUMS = {
    line.split()[1]: line.split()[0]
    for line in (rebuild.FOLDER / "SHA256SUMS").read_text().splitlines()
}


def read(name: str) -> list[str]:
    return pyarrow.parquet.read_table(rebuild.FOLDER / name)["text"].to_pylist()


@pytest.mark.parametrize("name", CHECKSUMS)
def test_file_has_its_checksum(name):
    assert hashlib.sha256((rebuild.FOLDER / name).read_bytes()).hexdigest() == CHECKSUMS[name]


def test_every_parquet_file_has_a_checksum():
    assert {path.name for path in rebuild.FOLDER.glob("*.parquet")} == set(CHECKSUMS)


def test_no_document_is_in_two_splits():
    train = {document for name in CHECKSUMS if name.startswith("train") for document in read(name)}
    validation, holdout = set(read("val_00000.parquet")), set(read("holdout_00000.parquet"))
    assert not train & validation
    assert not train & holdout
    assert not validation & holdout


def test_a_file_that_is_written_again_is_bit_identical():
    """If this fails, pyarrow was upgraded: constraints.txt and SHA256SUMS no longer agree."""
    name = "train_00003.parquet"  # two row groups
    assert hashlib.sha256(rebuild.encode(read(name))).hexdigest() == CHECKSUMS[name]


def test_documents_are_cut_at_sentence_ends():
    sentence = "x" * 698 + "."
    assert list(rebuild.cut(f"{' '.join('A' + sentence for _ in range(5))}")) == [
        f"A{sentence} A{sentence}",
        f"A{sentence} A{sentence}",
        f"A{sentence}",
    ]


def test_a_long_sentence_is_a_document_of_its_own():
    long = f"B{'y' * 3000}."
    assert list(rebuild.cut(f"A short one. {long} An end.")) == ["A short one.", long, "An end."]


def test_cut_loses_only_white_space_and_closing_marks():
    address = 'He said: "It is so." (And it was.) So be it! ' * 200
    kept = " ".join(rebuild.cut(address))
    assert [c for c in kept if c.isalpha()] == [c for c in address if c.isalpha()]


def test_splits_hold_out_whole_addresses():
    addresses = [f"Address {number}." for number in range(24)]
    files = rebuild.split(addresses)
    assert sorted(files["val_00000.parquet"]) == ["Address 19.", "Address 7."]
    assert sorted(files["holdout_00000.parquet"]) == ["Address 15.", "Address 3."]
    assert sum(map(len, files.values())) == 24


def test_another_tarball_is_refused(tmp_path, capsys):
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("package/data/1790.txt"), io.BytesIO())
    arguments = ["--out", str(tmp_path / "out"), "--package", str(tmp_path / "other.tgz")]
    assert rebuild.main(arguments) == 1
    assert rebuild.PACKAGE_SHA256 in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_check_tells_documents_from_bytes(tmp_path):
    same, order, bytes_only = ["a", "b"], ["b", "a"], ["a", "b"]
    for name, documents in (("same", same), ("order", order)):
        (tmp_path / name).write_bytes(rebuild.encode(documents))
    pyarrow.parquet.write_table(pyarrow.table({"text": bytes_only}), tmp_path / "bytes")
    wanted = {"same": same, "order": same, "bytes": same, "missing": same}
    assert list(rebuild.check(wanted, tmp_path)) == [
        ("same", True, True),
        ("order", False, False),
        ("bytes", True, False),
        ("missing", False, False),
    ]


@pytest.mark.slow
@pytest.mark.network
def test_the_package_gives_these_files(tmp_path):
    try:
        package = rebuild.fetch(tmp_path)
    except rebuild.RebuildError as error:
        pytest.skip(str(error))
    rebuild.write(rebuild.split(rebuild.read_addresses(package)), tmp_path)
    for name in ("SHA256SUMS", *CHECKSUMS):
        assert (tmp_path / name).read_bytes() == (rebuild.FOLDER / name).read_bytes()
