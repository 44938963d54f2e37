"""Downloads from a server on the loopback that fails in every way a real one does."""

import errno
import fcntl
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.data import fetch, web
from tasks.errors import DataError
from tests.origin import Cutter, Origin

ROOT = Path(__file__).resolve().parents[2]
NAME = "train_00000.parquet"
NOTE = f"{NAME}.origin.json"
CHUNK = 64 * 1024
CONTENT = random.Random(0).randbytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PART = 4 * CHUNK


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def origin():
    with Origin({NAME: CONTENT}) as server:
        yield server


@pytest.fixture
def few_tries(monkeypatch):
    """For tests of giving up: the pauses between tries are real time."""
    monkeypatch.setattr(web, "TRIES", 1)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_download_leaves_the_file_and_its_note(origin, tmp_path):
    ref = fetch.fetch(origin.url, NAME, tmp_path, SHA256)
    assert (ref.path, ref.sha256, ref.bytes) == (str(tmp_path / NAME), SHA256, len(CONTENT))
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert names(tmp_path) == [NAME, NOTE]


def test_a_first_download_without_a_checksum_is_trusted(origin, tmp_path):
    assert fetch.fetch(origin.url, NAME, tmp_path, None).sha256 == SHA256


def test_every_byte_is_reported(origin, tmp_path):
    calls = []
    fetch.fetch(origin.url, NAME, tmp_path, None, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert calls == sorted(calls)


def test_cut_connections_are_resumed_and_no_byte_is_sent_twice(origin, tmp_path):
    origin.cut = 2 * CHUNK
    assert fetch.fetch(origin.url, NAME, tmp_path, SHA256).bytes == len(CONTENT)
    assert len(origin.requests) == 8
    assert origin.sent == len(CONTENT)


def test_a_server_without_ranges_is_asked_for_the_whole_file_again(origin, tmp_path):
    origin.ranges, origin.cut = False, 400_000

    def repair(done, total):
        origin.cut = None

    assert fetch.fetch(origin.url, NAME, tmp_path, SHA256, repair).bytes == len(CONTENT)
    assert names(tmp_path) == [NAME, NOTE]


def test_a_server_that_makes_no_progress_is_given_up(origin, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "TRIES", 2)
    origin.ranges, origin.cut = False, 400_000
    with pytest.raises(fetch.Unreachable, match=r"train_00000\.parquet"):
        fetch.fetch(origin.url, NAME, tmp_path, SHA256)
    assert len(origin.requests) == 3  # one with new bytes, two without
    assert not (tmp_path / NAME).exists()


def leave_a_part(origin, folder, size=PART):
    """A download that ended half-way."""
    origin.cut = size
    origin.script = []

    def break_down(done, total):
        origin.script = [(404, {}, b"")]

    with pytest.raises(DataError, match="404"):
        fetch.fetch(origin.url, NAME, folder, SHA256, break_down)
    origin.cut, origin.script, origin.sent = None, [], 0
    origin.requests.clear()
    assert names(folder) == [NOTE, f"{NAME}.part"]


def test_a_later_call_continues_where_the_last_one_ended(origin, tmp_path):
    leave_a_part(origin, tmp_path)
    assert fetch.fetch(origin.url, NAME, tmp_path, SHA256).sha256 == SHA256
    assert origin.requests[0]["Range"] == f"bytes={PART}-"
    assert origin.requests[0]["If-Range"] == '"one"'
    assert origin.sent == len(CONTENT) - PART


def test_a_file_that_changed_on_the_server_is_downloaded_again(origin, tmp_path):
    leave_a_part(origin, tmp_path)
    changed = CONTENT[::-1]
    origin.files[NAME], origin.etag = changed, '"two"'
    assert (
        fetch.fetch(origin.url, NAME, tmp_path, None).sha256 == hashlib.sha256(changed).hexdigest()
    )
    assert origin.sent == len(changed)


def test_a_part_longer_than_the_file_is_discarded(origin, tmp_path):
    leave_a_part(origin, tmp_path)
    with (tmp_path / f"{NAME}.part").open("ab") as part:
        part.write(CONTENT)
    assert fetch.fetch(origin.url, NAME, tmp_path, SHA256).sha256 == SHA256


@pytest.mark.parametrize(
    "note", [None, "", "[]", '{"address": "http://elsewhere/", "version": "x"}']
)
def test_a_part_of_unknown_origin_is_discarded(origin, tmp_path, note):
    leave_a_part(origin, tmp_path)
    path = tmp_path / NOTE
    path.unlink() if note is None else path.write_text(note)
    assert fetch.fetch(origin.url, NAME, tmp_path, SHA256).sha256 == SHA256
    assert "Range" not in origin.requests[0]


def test_a_weak_etag_is_not_used_to_resume(origin, tmp_path):
    origin.etag = 'W/"one"'
    leave_a_part(origin, tmp_path)
    assert fetch.fetch(origin.url, NAME, tmp_path, SHA256).sha256 == SHA256
    assert "Range" not in origin.requests[0]


def test_an_answer_with_another_range_than_requested_is_refused(origin, tmp_path):
    leave_a_part(origin, tmp_path)
    origin.script = [(206, {"Content-Range": "bytes 5-9/1000000"}, b"wrong")]
    assert fetch.fetch(origin.url, NAME, tmp_path, SHA256).sha256 == SHA256


def test_a_part_of_another_version_than_the_answer_is_discarded(origin, tmp_path):
    leave_a_part(origin, tmp_path)
    answer = {"Content-Range": f"bytes {PART}-{len(CONTENT) - 1}/{len(CONTENT)}", "ETag": '"two"'}
    origin.script = [(206, answer, CONTENT[PART:])]  # the server ignored If-Range
    assert fetch.fetch(origin.url, NAME, tmp_path, SHA256).sha256 == SHA256
    assert "Range" not in origin.requests[1]


def test_a_part_is_discarded_when_the_server_refuses_its_range(origin, tmp_path):
    leave_a_part(origin, tmp_path)
    origin.script = [(416, {}, b"")]
    assert fetch.fetch(origin.url, NAME, tmp_path, SHA256).sha256 == SHA256
    assert origin.sent == len(CONTENT)


def test_twenty_cuts_and_a_busy_server_end_with_the_right_file(origin, tmp_path):
    with Cutter(int(origin.url.rpartition(":")[2]), cuts=20, after=50_000 + CHUNK) as cutter:
        origin.files[NAME] = CONTENT * 3
        origin.script = [(429, {"Retry-After": "1"}, b""), (302, {"Location": f"/{NAME}"}, b"")]
        ref = fetch.fetch(cutter.url, NAME, tmp_path, None)
    assert cutter.done == 20
    assert ref.sha256 == hashlib.sha256(CONTENT * 3).hexdigest()


def test_a_file_that_is_replaced_between_two_cuts_is_downloaded_again(origin, tmp_path):
    changed = CONTENT[::-1]

    def replace(number):
        if number == 6:
            origin.files[NAME], origin.etag = changed, '"two"'

    with Cutter(int(origin.url.rpartition(":")[2]), cuts=12, after=100_000) as cutter:
        cutter.on_cut = replace
        assert (
            fetch.fetch(cutter.url, NAME, tmp_path, None).sha256
            == hashlib.sha256(changed).hexdigest()
        )


def test_a_file_that_keeps_changing_is_given_up(origin, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "TRIES", 2)
    origin.cut = 2 * CHUNK

    def change(done, total):
        origin.etag = f'"{len(origin.requests)}"'

    with pytest.raises(fetch.Unreachable, match="peer closed connection"):
        fetch.fetch(origin.url, NAME, tmp_path, None, change)


def test_a_complete_file_is_recognized_without_a_checksum(origin, tmp_path):
    fetch.fetch(origin.url, NAME, tmp_path, None)
    origin.requests.clear()
    assert fetch.fetch(origin.url, NAME, tmp_path, None).sha256 == SHA256
    assert origin.requests == []


def test_a_file_of_another_source_is_not_mistaken_for_this_one(origin, tmp_path):
    fetch.fetch(origin.url, NAME, tmp_path, None)
    other = CONTENT[::-1]
    with Origin({NAME: other}) as elsewhere:
        assert (
            fetch.fetch(elsewhere.url, NAME, tmp_path, None).sha256
            == hashlib.sha256(other).hexdigest()
        )


def test_a_complete_part_is_not_requested_again(origin, tmp_path):
    fetch.fetch(origin.url, NAME, tmp_path, None)
    (tmp_path / NAME).rename(tmp_path / f"{NAME}.part")  # as a kill before the rename leaves it
    origin.requests.clear()
    assert fetch.fetch(origin.url, NAME, tmp_path, None).sha256 == SHA256
    assert origin.requests == []


KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.data import fetch
def report(done, total):
    if done >= int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
fetch.fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3]), None, report)
"""


def test_a_killed_download_continues_after_its_last_byte(origin, tmp_path):
    moments = sorted(random.Random(1).sample(range(len(CONTENT)), 4))
    for moment in moments:
        child = [sys.executable, "-c", KILLED, origin.url, NAME, str(tmp_path), str(moment)]
        assert subprocess.run(child, cwd=ROOT).returncode == -signal.SIGKILL
        assert (tmp_path / f"{NAME}.part").stat().st_size >= moment
    kept = (tmp_path / f"{NAME}.part").stat().st_size
    assert fetch.fetch(origin.url, NAME, tmp_path, None).sha256 == SHA256
    starts = [int(request.get("Range", "bytes=0-")[6:-1]) for request in origin.requests]
    assert starts == sorted(starts)
    assert starts[-1] == kept


def test_a_wrong_checksum_leaves_nothing(origin, tmp_path):
    with pytest.raises(DataError, match=f"sha256 is {SHA256}, expected is {'0' * 64}"):
        fetch.fetch(origin.url, NAME, tmp_path, "0" * 64)
    assert names(tmp_path) == []


def test_a_correct_file_is_not_requested(origin, tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT)
    assert fetch.fetch(origin.url, NAME, tmp_path, SHA256.upper()).sha256 == SHA256
    assert origin.requests == []


def test_a_damaged_file_is_downloaded_again(origin, tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT[:-1] + b"x")
    fetch.fetch(origin.url, NAME, tmp_path, SHA256)
    assert (tmp_path / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("code", "remedy"), [(401, "login"), (403, "denied"), (404, "no such file"), (410, "refuses")]
)
def test_a_refusal_is_final_and_has_a_reason(origin, tmp_path, code, remedy):
    origin.script = [(code, {}, b"no")]
    with pytest.raises(DataError, match=f"HTTP {code}.*{remedy}") as caught:
        fetch.fetch(origin.url, NAME, tmp_path, None)
    assert not isinstance(caught.value, fetch.Unreachable)
    assert len(origin.requests) == 1


def test_a_web_page_is_not_data(origin, tmp_path):
    origin.script = [(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>Sign in</html>")]
    with pytest.raises(DataError, match="web page"):
        fetch.fetch(origin.url, NAME, tmp_path, None)
    assert not (tmp_path / NAME).exists()


def test_a_web_page_in_disguise_is_not_data(origin, tmp_path):
    origin.files[NAME] = b"\n<!DOCTYPE html><title>Sign in</title>"
    with pytest.raises(DataError, match="web page"):
        fetch.fetch(origin.url, NAME, tmp_path, None)
    assert names(tmp_path) == []


def test_an_expired_signature_is_reported_and_not_shown(origin, tmp_path):
    origin.script = [(403, {}, b"<Error><Code>ExpiredToken</Code></Error>")]
    with pytest.raises(DataError, match=r"HTTP 403 ExpiredToken.*renew") as caught:
        fetch.fetch(f"{origin.url}/some?sig=secret", NAME, tmp_path, None)
    assert origin.requests[0]["path"] == f"/some/{NAME}?sig=secret"
    assert "secret" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_signature_is_in_no_note_and_a_new_one_resumes(origin, tmp_path):
    leave_a_part(origin, tmp_path)
    assert fetch.fetch(f"{origin.url}?sig=new", NAME, tmp_path, SHA256).sha256 == SHA256
    assert origin.sent == len(CONTENT) - PART
    assert "sig" not in (tmp_path / NOTE).read_text()


@pytest.mark.usefixtures("few_tries")
def test_a_signature_is_not_in_the_reason_of_a_broken_connection(tmp_path):
    with Origin({}) as gone:
        url = gone.url
    with pytest.raises(fetch.Unreachable) as caught:
        fetch.fetch(f"{url.replace('//', '//me:secret@')}?sig=secret", NAME, tmp_path, None)
    assert "secret" not in str(caught.value)


def test_too_many_redirects_show_no_signature(origin, tmp_path):
    origin.answers[NAME] = (302, {"Location": f"/{NAME}?sig=secret"}, b"")
    with pytest.raises(DataError, match="redirects") as caught:
        fetch.fetch(origin.url, NAME, tmp_path, None)
    assert "secret" not in str(caught.value)


def test_a_proxy_is_used_for_http(origin, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", origin.url)
    monkeypatch.setenv("NO_PROXY", "")
    origin.answers[f"http://data.invalid/{NAME}"] = (200, {}, CONTENT)
    assert fetch.fetch("http://data.invalid", NAME, tmp_path, SHA256).bytes == len(CONTENT)


@pytest.mark.usefixtures("few_tries")
def test_a_proxy_is_used_for_https(origin, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", origin.url.replace("//", "//me:secret@"))
    with pytest.raises(fetch.Unreachable, match="407") as caught:
        fetch.fetch("https://data.invalid", NAME, tmp_path, None)
    assert origin.requests[0]["path"] == "data.invalid:443"
    assert "secret" not in str(caught.value)


def test_a_source_that_is_not_a_hub_is_recorded_unchanged():
    assert fetch.resolve("s3://bucket/prefix") == "s3://bucket/prefix"


@pytest.mark.parametrize("code", [429, 503])
def test_a_busy_server_is_waited_for(origin, tmp_path, code):
    origin.script = [(code, {"Retry-After": "1"}, b"")]
    assert fetch.fetch(origin.url, NAME, tmp_path, SHA256).sha256 == SHA256
    assert len(origin.requests) == 2


@pytest.mark.parametrize("asked", ["600", "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_a_long_wait_is_left_to_the_caller(origin, tmp_path, asked):
    origin.script = [(429, {"Retry-After": asked}, b"")]
    with pytest.raises(fetch.Unreachable, match=r"HTTP 429.*asks to wait") as caught:
        fetch.fetch(origin.url, NAME, tmp_path, None)
    assert caught.value.wait >= 600
    assert len(origin.requests) == 1


@pytest.mark.usefixtures("few_tries")
def test_a_server_error_may_pass(origin, tmp_path):
    origin.script = [(500, {"Retry-After": "soon"}, b"")]
    with pytest.raises(fetch.Unreachable, match="HTTP 500"):
        fetch.fetch(origin.url, NAME, tmp_path, None)


@pytest.mark.usefixtures("few_tries")
def test_a_refused_connection_may_pass(origin, tmp_path):
    with Origin({}) as gone:
        url = gone.url
    with pytest.raises(fetch.Unreachable, match="Connection refused"):
        fetch.fetch(url, NAME, tmp_path, None)


def test_a_redirect_is_followed_and_resumed(origin, tmp_path):
    leave_a_part(origin, tmp_path)
    origin.script = [(302, {"Location": f"/{NAME}"}, b"")]
    assert fetch.fetch(origin.url, NAME, tmp_path, SHA256).sha256 == SHA256
    assert origin.sent == len(CONTENT) - PART


def test_a_password_in_the_address_is_not_shown(origin, tmp_path):
    with pytest.raises(DataError, match="HTTP 404") as caught:
        fetch.fetch(origin.url.replace("//", "//me:secret@"), "nowhere", tmp_path, None)
    assert "secret" not in str(caught.value)


def test_a_download_of_another_process_is_left_alone(origin, tmp_path):
    with (tmp_path / f"{NAME}.part").open("wb") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(fetch.Unreachable, match="another process"):
            fetch.fetch(origin.url, NAME, tmp_path, None)
    assert origin.requests == []


def test_an_unknown_scheme_names_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"give a folder, https://, http://, s3:// or hf://"):
        fetch.fetch("ftp://host/data", NAME, tmp_path, None)


@pytest.mark.parametrize("source", ["http:///", "http://[data/"])
def test_a_bad_address_is_reported(tmp_path, source):
    with pytest.raises(DataError, match=r"http:///|not an address"):
        fetch.fetch(source, NAME, tmp_path, None)


@pytest.mark.parametrize("setting", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_certificate_file_that_is_missing_is_named(tmp_path, monkeypatch, setting):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(setting, "/nowhere/ca.pem")
    with pytest.raises(DataError, match=r"^https://127.0.0.1:9/.*/nowhere/ca.pem"):
        fetch.fetch("https://127.0.0.1:9", NAME, tmp_path, None)


def test_a_local_file_is_used_in_place(tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT)
    ref = fetch.fetch(str(tmp_path), NAME, tmp_path / "unused", SHA256)
    assert (ref.path, ref.sha256) == (str(tmp_path / NAME), SHA256)
    assert names(tmp_path) == [NAME]


def test_a_damaged_local_file_is_reported(tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=f"expected is {SHA256}; restore the file"):
        fetch.fetch(str(tmp_path), NAME, tmp_path, SHA256)


def test_a_missing_local_file_is_named(tmp_path):
    with pytest.raises(DataError, match=f"{NAME}: No such file"):
        fetch.fetch(str(tmp_path), NAME, tmp_path, None)


def test_checksums_are_read_as_sha256sum_writes_them(tmp_path):
    (tmp_path / "a b").write_bytes(b"text")
    (tmp_path / "c").write_bytes(b"binary")
    listed = subprocess.run(
        ["sha256sum", "a b", "--binary", "c"], cwd=tmp_path, capture_output=True, check=True
    ).stdout
    (tmp_path / "SUMS").write_bytes(listed)
    assert fetch.checksums(tmp_path / "SUMS") == {
        "a b": hashlib.sha256(b"text").hexdigest(),
        "c": hashlib.sha256(b"binary").hexdigest(),
    }


@pytest.mark.parametrize("line", ["<html>", f"{'0' * 63} x", f"{'0' * 64}", f"{'z' * 64}  x"])
def test_a_bad_line_of_checksums_is_named(tmp_path, line):
    (tmp_path / "SUMS").write_text(f"{'0' * 64}  good\n{line}\n")
    with pytest.raises(DataError, match="line 2"):
        fetch.checksums(tmp_path / "SUMS")


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for 512 KiB, and a function that makes more.

    It is a tmpfs for root, else a limit on the size of files.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "small", folder]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def make_room():
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=4m", folder], check=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
    yield folder, make_room
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if mounted:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_keeps_the_part_and_the_next_call_continues(origin, small_disk):
    folder, make_room = small_disk
    full = rf"({os.strerror(errno.ENOSPC)}|{os.strerror(errno.EFBIG)})"
    with pytest.raises(DataError, match=f"{full}.*continues from there"):
        fetch.fetch(origin.url, NAME, folder, SHA256)
    assert NAME not in names(folder)
    kept = (folder / f"{NAME}.part").stat().st_size
    assert kept > 400_000
    make_room()
    assert fetch.fetch(origin.url, NAME, folder, SHA256).sha256 == SHA256
    assert origin.requests[-1]["Range"] == f"bytes={kept}-"
    assert names(folder) == [NAME, NOTE]


def test_a_folder_that_cannot_be_created_is_named(origin, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot write .*Not a directory"):
        fetch.fetch(origin.url, NAME, tmp_path / "file" / "folder", None)


@pytest.mark.parametrize("name", ["/tmp/shard.parquet", "../current.json", "data/../../x"])
def test_a_name_outside_the_folder_is_refused(origin, tmp_path, name):
    with pytest.raises(DataError, match="is no file below"):
        fetch.fetch(origin.url, name, tmp_path / "shards", None)
    assert origin.requests == []


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("https://me:pass@word@host/data?sig=secret", "https://host/data"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("hf://datasets/me/data@main/en", "hf://datasets/me/data@main/en"),
        ("/data/a?b@c", "/data/a?b@c"),
    ],
)
def test_a_source_is_shown_without_its_secrets(source, shown):
    assert fetch.shown(source) == shown


def test_an_unknown_scheme_shows_no_password(tmp_path):
    with pytest.raises(DataError, match="'ftp://host/data' is not known"):
        fetch.fetch("ftp://me:secret@host/data", NAME, tmp_path, None)


def test_names_of_checksums_may_begin_with_a_dot_and_a_slash(tmp_path):
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  ./data/train-0.parquet\n")
    assert fetch.checksums(tmp_path / "SHA256SUMS") == {"data/train-0.parquet": "0" * 64}
