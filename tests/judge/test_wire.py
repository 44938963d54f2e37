"""The wire holds against whatever the other end sends, or does not."""

import json
import socket
import threading
import time

import pytest

from tasks.judge.wire import MESSAGE_BYTES, PIECE_BYTES, Closed, Malformed, Silent, Wire


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Wire(ours), theirs


def soon() -> float:
    return time.monotonic() + 5.0


def test_reads_messages_and_raw_bytes_that_arrive_in_one_piece(ends):
    wire, child = ends
    child.sendall(b'{"msg":"done","bytes":3}\nabc{"msg":"next"}\n')
    assert wire.read(soon()) == {"msg": "done", "bytes": 3}
    assert wire.read_bytes(3, soon()) == b"abc"
    assert wire.read(soon()) == {"msg": "next"}


@pytest.mark.parametrize(
    "line",
    [b"[" * 60_000, b"5", b"{}", b'{"msg": 1}', b"\xff\xfe", b'{"msg":"x"', b'{"a":' * 9000],
    ids=["brackets", "number", "no msg", "msg no string", "no text", "cut", "nested"],
)
def test_what_is_no_message_is_malformed(ends, line):
    wire, child = ends
    child.sendall(line + b"\n")
    with pytest.raises(Malformed):
        wire.read(soon())


def test_an_endless_line_is_cut_off(ends):
    wire, child = ends
    child.sendall(b"x" * (MESSAGE_BYTES + 2000))
    with pytest.raises(Malformed, match=str(MESSAGE_BYTES)):
        wire.read(soon())


def test_silence_ends_at_the_deadline(ends):
    wire, _ = ends
    with pytest.raises(Silent):
        wire.read(time.monotonic() + 0.01)


def test_a_deadline_holds_while_bytes_trickle(ends):
    wire, child = ends
    child.sendall(b"ab")
    with pytest.raises(Silent):
        wire.read_bytes(3, time.monotonic() + 0.01)


def test_the_end_of_the_other_side_is_seen(ends):
    wire, child = ends
    child.close()
    with pytest.raises(Closed):
        wire.read(soon())


def test_sending_to_one_who_does_not_read_ends_at_the_deadline(ends):
    wire, _ = ends
    with pytest.raises(Silent):
        wire.send({"msg": "nll"}, time.monotonic() + 0.05, b"x" * 10_000_000)


def test_payload_follows_its_message(ends):
    wire, child = ends
    wire.send({"msg": "nll", "rows": 1}, soon(), b"\x01\x02")
    head, _, payload = child.recv(1000).partition(b"\n")
    assert json.loads(head) == {"msg": "nll", "rows": 1}
    assert payload == b"\x01\x02"


def test_a_file_of_several_pieces_begins_with_what_came_with_its_message(ends, tmp_path):
    wire, child = ends
    content = bytes(range(256)) * (2 * PIECE_BYTES // 256) + b"end"
    sending = threading.Thread(target=child.sendall, args=(b'{"msg":"done"}\n' + content + b"{",))
    sending.start()
    assert wire.read(soon()) == {"msg": "done"}
    wire.read_to_file(len(content), tmp_path / "file", time.monotonic() + 60)
    sending.join()
    assert (tmp_path / "file").read_bytes() == content
    child.sendall(b'"msg":"next"}\n')
    assert wire.read(soon()) == {"msg": "next"}  # not a byte too many was read


def test_a_file_that_ends_early_is_seen(ends, tmp_path):
    wire, child = ends
    child.sendall(b"abc")
    child.close()
    with pytest.raises(Closed):
        wire.read_to_file(4, tmp_path / "file", soon())
