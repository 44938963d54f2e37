"""Files of a source, a local folder or a web address, each whole and verified or not there at all.

A download goes to `<name>.part`; `<name>.part.json` ties it to one version of the file on the server, so that a later
try goes on where this one ended, and starts anew when the file has changed (RFC 9110, Range and If-Range). A broken
connection is mended here while bytes still arrive; `Unreachable` says that a later try may succeed.
"""

from __future__ import annotations

import contextlib
import email.utils
import fcntl
import hashlib
import json
import os
import time
import urllib.parse
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

import requests

from tasks.records import DataError, FileRef

CHUNK = 64 * 1024  # a larger one is thrown away half full on a link that drops often, and then nothing ever arrives
TRIES = 4  # in a row without a new byte
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two bytes
LONGEST_WAIT = 60.0  # seconds that a server's Retry-After is waited for
REMEDY = {
    401: "the address needs a login that this fetch does not have",
    403: "access is denied: a signed address has expired, or the licence must be accepted first",
    404: "there is no such file: correct [data] in the profile",
    429: "the server asks for fewer requests: try again later",
}

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if known


class Unreachable(DataError):
    """The source does not answer now; `wait` is how many seconds it asked for."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


def is_local(source: str) -> bool:
    return "://" not in source


def fetch(source: str, name: str, folder: Path, sha256: str | None, progress: Progress = lambda done, total: None) -> FileRef:
    """The file `name` of `source`: a local one where it lies, a remote one downloaded to `folder`.

    Without `sha256` (hex) a remote file is trusted on its first download. Raises DataError when there is no such file,
    its content is not what it should be, or the disk is full; Unreachable, a DataError, when a later try may succeed.
    """
    if is_local(source):
        return _verified(Path(source, name), sha256, "restore the file, or correct its checksum if it was meant to change")
    if not source.startswith(("https://", "http://")):
        raise DataError(f"source {source!r}: {source.partition('://')[0]}:// is not known; give https://, http:// or a folder")
    path = folder / name
    if sha256 and path.is_file():
        with contextlib.suppress(DataError):  # a damaged one is fetched again
            return _verified(path, sha256, "")
    return _download(f"{source.rstrip('/')}/{urllib.parse.quote(name)}", path, sha256, progress)


def checksums(path: Path) -> dict[str, str]:
    """File name -> sha256 in lower-case hex, of a SHA256SUMS file. Raises DataError for a line that is not of its form."""
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        digest, _, name = line.partition(" ")
        if len(digest) != 64 or not set(digest.lower()) <= set("0123456789abcdef") or not name.strip(" *"):
            raise DataError(
                f"{path}, line {number}: {line[:80]!r} is not `<64 hex digits>  <file name>`, as sha256sum writes it"
            )
        found[name.strip().removeprefix("*")] = digest.lower()
    return found


def _verified(path: Path, sha256: str | None, remedy: str) -> FileRef:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}. Correct [data] in the profile, or put the file there"
        ) from error
    if sha256 and found != sha256.lower():
        raise DataError(f"{path} is not the expected file: its sha256 is {found}, expected is {sha256.lower()}; {remedy}")
    return FileRef(str(path), found, size)


def _download(url: str, path: Path, sha256: str | None, progress: Progress) -> FileRef:
    partial, note = (path.with_name(path.name + end) for end in (".part", ".part.json"))
    with _locked(partial) as part:
        try:
            _complete(url, part, note, progress)
            os.fsync(part.fileno())
        except OSError as error:
            kept = os.fstat(part.fileno()).st_size
            raise DataError(
                f"cannot write {path}: {error.strerror} after {kept} bytes. They are kept in {partial.name} and the next "
                "try goes on from there: free some space, or set NIGHTLY_HOME to a larger disk"
            ) from error
        found = _verified(partial, None, "")
        if sha256 and found.sha256 != sha256.lower():
            partial.unlink()
            note.unlink(missing_ok=True)
            raise DataError(
                f"{_shown(url)} is not the expected file: its sha256 is {found.sha256}, expected is {sha256.lower()}. The "
                "download was removed; if the file was meant to change, correct its checksum"
            )
        partial.chmod(0o644)
        partial.replace(path)  # still locked: whoever opened it meanwhile sees that the partial file is another or gone
        note.unlink(missing_ok=True)
        return FileRef(str(path), found.sha256, found.bytes)


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[FileIO]:
    """The partial file, opened for reading and writing, unbuffered, ours alone."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise DataError(
            f"cannot write {part}: {error.strerror}. Free some space, or set NIGHTLY_HOME to a larger disk"
        ) from error
    with FileIO(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(file.fileno()), part.stat())
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            raise Unreachable(f"{part} is being written by another process: wait until it has ended", LONGEST_WAIT)
        yield file


def _complete(url: str, part: FileIO, note: Path, progress: Progress) -> None:
    """Requests until the partial file is whole, as long as every TRIES requests bring new bytes."""
    idle, longest = 0, os.fstat(part.fileno()).st_size
    while True:
        try:
            return _request(url, part, note, progress)
        except Unreachable as error:
            length = os.fstat(part.fileno()).st_size
            idle, longest = (0, length) if length > longest else (idle + 1, longest)
            if idle >= TRIES or error.wait > LONGEST_WAIT:
                raise
            time.sleep(error.wait or (2**idle - 1) / 4)


def _request(url: str, part: FileIO, note: Path, progress: Progress) -> None:
    """One request for what is missing. Raises Unreachable when the file is not whole afterwards."""
    headers, have = {"Accept-Encoding": "identity"}, part.seek(0, os.SEEK_END)
    if have and (version := _noted(note, url)):
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416 and "Range" in headers:
                part.truncate(0)  # the file on the server is no longer than the part: another one
                raise Unreachable(f"{_shown(url)}: the partial file does not fit any more")
            _check(answer, url)
            if answer.status_code == 206:
                if not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                    part.truncate(0)
                    raise Unreachable(f"{_shown(url)}: the server sent another part of the file than was asked for")
            else:
                part.truncate(0)
                have = part.seek(0)
                note.write_text(json.dumps({"url": url, "version": _version(answer)}), encoding="utf-8")
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else None
            for chunk in answer.iter_content(CHUNK):
                have += _write(part, chunk)
                progress(have, total)
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        reason = getattr(error.args[0], "reason", error) if error.args else error
        raise Unreachable(f"{_shown(url)}: {reason}. Check the network and the address") from error
    except requests.RequestException as error:
        raise DataError(f"{_shown(url)}: {error}") from error
    if total is not None and have != total:
        raise Unreachable(f"{_shown(url)}: the server ended after {have} of {total} bytes")


def _check(answer: requests.Response, url: str) -> None:
    code = answer.status_code
    if code in (408, 429) or code >= 500:
        wait = _seconds(answer.headers.get("Retry-After", ""))
        asked = f" (it asks to wait {wait:.0f} s)" if wait else ""
        raise Unreachable(
            f"{_shown(url)}: HTTP {code}: {REMEDY.get(code, 'the server has a problem: try again later')}{asked}", wait
        )
    if code not in (200, 206):
        raise DataError(f"{_shown(url)}: HTTP {code}: {REMEDY.get(code, 'the server refuses the request')}")
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise DataError(f"{_shown(url)}: a web page came instead of data: the address is wrong, or needs a login in a browser")


def _seconds(retry_after: str) -> float:
    """Retry-After, seconds or an HTTP date, as seconds from now; 0 when it says nothing."""
    if retry_after.isdigit():
        return float(retry_after)
    with contextlib.suppress(ValueError):
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    return 0.0


def _version(answer: requests.Response) -> str | None:
    """What If-Range accepts: a strong ETag, else the date of the last change."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified")


def _noted(note: Path, url: str) -> str | None:
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        return str(noted["version"]) if noted["url"] == url and noted["version"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # without it the download starts anew


def _write(part: FileIO, chunk: bytes) -> int:
    """Writes it all: an unbuffered write on a nearly full disk is a short one."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[part.write(rest) :]
    return len(chunk)


def _shown(url: str) -> str:
    """The address without a password or a signature in it."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
