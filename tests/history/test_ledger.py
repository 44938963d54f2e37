"""The ledger as real files: kills, a full disk, a second writer, damaged lines."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import NightlyError, UsageError
from tasks.history import ledger
from tasks.history.ledger import Ledger, read
from tasks.history.night_state import FORMAT
from tests.trials import night_event

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import pathlib, sys
from tasks.history.ledger import Ledger
from tests.trials import night_event
with Ledger.create(pathlib.Path(sys.argv[1])) as book:
    book.append("night", **night_event())
    for number in range(1, 10**9):
        book.append("started", trial=number, summary="x" * 5000)
        print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "home" / "nights" / "nov21" / "ledger.jsonl"


@pytest.fixture
def ended(path):
    """A ledger of two events whose writer has gone."""
    with Ledger.create(path) as book:
        book.append("night", **night_event())
        book.append("started", trial=1)
    return path


def test_events_come_back_in_order_with_their_fields(ended):
    first, second = read(ended)
    assert (first["event"], first["tag"], first["v"]) == ("night", "nov21", FORMAT)
    assert (second["event"], second["trial"]) == ("started", 1)
    assert first["time"] < second["time"]
    assert first["time"].endswith("+00:00")


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists
    )
)
def test_any_value_comes_back_and_stays_on_its_line(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("night") / "ledger.jsonl"
    with Ledger.create(path) as book:
        book.append("night", **night_event(), value=value)
    assert [event["value"] for event in read(path)] == [value]


def test_half_a_surrogate_pair_and_a_path_are_no_obstacle(path):
    with Ledger.create(path) as book:
        book.append("night", **night_event(), summary="\ud800\n", root=path)
    assert (read(path)[0]["summary"], read(path)[0]["root"]) == ("\ud800\n", str(path))


def test_an_unknown_event_is_refused(path):
    with Ledger.create(path) as book, pytest.raises(ValueError, match="unknown event 'decide'"):
        book.append("decide")


def test_a_night_is_created_once(ended):
    with pytest.raises(UsageError, match=r"run resume nov21.*another --tag"), Ledger.create(ended):
        pass
    assert len(read(ended)) == 2


def test_a_ledger_without_a_whole_line_is_no_night_yet(path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"event": "nig')
    with pytest.raises(UsageError, match="no night 'nov21'"), Ledger.open(path):
        pass
    with Ledger.create(path) as book:
        book.append("night", **night_event())
    assert len(read(path)) == 1


def test_opening_goes_on_where_it_ended(ended):
    with Ledger.open(ended) as book:
        book.append("finished", reason="done")
        assert [event["event"] for event in read(ended)] == ["night", "started", "finished"]


def test_a_cleared_ledger_starts_the_night_again(ended, monkeypatch):
    monkeypatch.setattr(ledger, "time", SimpleNamespace(monotonic=lambda: 100.0))
    with Ledger.open(ended) as book:
        book.count_used(3600.0)
        book.clear()
        assert (book.has_night, book.used_seconds(), ended.read_bytes()) == (False, 0.0, b"")
        book.append("night", **night_event())
    assert [(event["event"], event["used"]) for event in read(ended)] == [("night", 0.0)]


def test_a_second_writer_is_told_who_has_it(ended):
    code = (
        "import pathlib, sys; from tasks.history.ledger import Ledger\n"
        "with Ledger.open(pathlib.Path(sys.argv[1])): pass"
    )
    with Ledger.open(ended):
        done = subprocess.run(
            [sys.executable, "-c", code, ended], cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode == 1
    assert f"UsageError: night nov21 is running (pid {os.getpid()})" in done.stderr.replace(
        "tasks.errors.", ""
    )


def test_a_second_writer_in_the_same_process_is_refused_too(ended):
    with Ledger.open(ended), pytest.raises(UsageError, match="is running"), Ledger.open(ended):
        pass


def test_reading_does_not_wait_for_the_writer(ended):
    with Ledger.open(ended) as book:
        book.append("finished", reason="done")
        assert len(read(ended)) == 3


@pytest.mark.parametrize("kept", range(0, 40, 13))
def test_a_torn_last_line_is_passed_over_and_cut_off_by_the_next_writer(ended, kept):
    whole = ended.read_bytes()
    ended.write_bytes(whole + b'{"event": "applied", "time": "2026", "commit": "\x00\xff'[:kept])
    assert len(read(ended)) == 2
    with Ledger.open(ended) as book:
        assert ended.read_bytes() == whole
        book.append("finished", reason="done")
    assert [event["event"] for event in read(ended)] == ["night", "started", "finished"]


def test_a_line_that_lacks_only_its_newline_does_not_count(ended):
    ended.write_bytes(ended.read_bytes()[:-1])
    assert len(read(ended)) == 1


@pytest.mark.parametrize("line", [b"{", b"\x00\x00\xff", b"[]", b"3", b"", b'{"event": "x"}'])
def test_a_damaged_line_is_named(ended, line):
    first, second, _ = ended.read_bytes().split(b"\n")
    ended.write_bytes(first + b"\n" + line + b"\n" + second + b"\n")
    with pytest.raises(NightlyError, match="line 2 is damaged"):
        read(ended)
    with pytest.raises(NightlyError, match="line 2 is damaged"), Ledger.open(ended):
        pass


def test_a_killed_writer_loses_nothing_that_it_was_told_is_there(path):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    told = [int(writer.stdout.readline()) for _ in range(20)]
    writer.send_signal(signal.SIGKILL)
    told += [int(line) for line in writer.stdout.read().splitlines()]
    writer.stdout.close()
    writer.wait()
    found = [event["trial"] for event in read(path)[1:]]
    assert found[: len(told)] == told
    assert len(found) <= len(told) + 1
    with Ledger.open(path) as book:  # its lock went with it
        book.append("finished", reason="done")


def test_a_full_disk_leaves_the_ledger_as_it_was(ended):
    before = ended.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Ledger.open(ended) as book:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
        try:
            with pytest.raises(
                NightlyError, match=r"'started' could not be written.*run resume nov21"
            ):
                book.append("started", trial=2, summary="x" * 1000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert ended.read_bytes() == before
        book.append("started", trial=2)
    assert [event.get("trial") for event in read(ended)] == [None, 1, 2]
