"""Files that are complete or absent."""

import hashlib
import threading

import pytest

from tasks.files import FileRef, locked, sign


def test_a_file_is_identified_by_its_content(tmp_path):
    ref = FileRef.write(tmp_path / "a", b"content")
    assert ref == FileRef(str(tmp_path / "a"), hashlib.sha256(b"content").hexdigest(), 7)
    assert (tmp_path / "a").read_bytes() == b"content"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_content_may_be_written_piece_by_piece(tmp_path):
    ref = FileRef.write(tmp_path / "a", lambda file: [file.write(b"one"), file.write(b"two")])
    assert (tmp_path / "a").read_bytes() == b"onetwo"
    assert ref.bytes == 6


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    FileRef.write(tmp_path / "a", b"old")
    with pytest.raises(ZeroDivisionError):
        FileRef.write(tmp_path / "a", lambda file: file.write(b"new" * (1 // 0)))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_the_leftovers_of_a_killed_process_are_overwritten(tmp_path):
    (tmp_path / ".a.part").write_bytes(b"half of something that was longer")
    FileRef.write(tmp_path / "a", b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"whole")]


def test_concurrent_writers_take_turns(tmp_path):
    contents = [bytes([letter]) * 50_000 for letter in range(8)]
    halves = [
        lambda file, c=c: [file.write(c[:25_000]), file.flush(), file.write(c[25_000:])]
        for c in contents
    ]
    threads = [
        threading.Thread(target=FileRef.write, args=(tmp_path / "a", fill)) for fill in halves * 5
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_waiter_for_a_file_that_was_moved_gets_a_new_one(tmp_path):
    got = []

    def wait():
        with locked(tmp_path / "lock") as file:
            got.append(file.tell())

    with locked(tmp_path / "lock") as file:
        waiting = threading.Thread(target=wait)
        waiting.start()
        file.write(b"mine")
        file.flush()
        (tmp_path / "lock").rename(tmp_path / "moved")
    waiting.join()
    assert got == [0]
    assert (tmp_path / "moved").read_bytes() == b"mine"


def test_a_lock_can_be_signed_on_a_full_disk():
    with open("/dev/full", "a+") as lock:
        sign(lock, "its owner")


def test_a_lock_has_the_name_of_its_last_owner(tmp_path):
    for owner in ("a longer name", "me"):
        with (tmp_path / "lock").open("a+") as lock:
            sign(lock, owner)
    assert (tmp_path / "lock").read_text() == "me"
