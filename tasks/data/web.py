"""Downloads over http and https: requests for the missing bytes of a file, and what an error means.

A request that resumes a download names the version of the file that the bytes on disk belong to
(RFC 9110: Range with If-Range or If-Match). The answer is checked as well, because some servers
ignore the condition. No message contains a password or a signature.

This is our own code because libraries in its place failed its tests. fsspec's http (32 of 97) and
s3fs (20 of 23) start over after every broken connection. huggingface_hub 2.4 (30 of 97) resumes
without a condition, so a file that is replaced meanwhile becomes a mix of two versions; it never
compares the sha256 that the hub promises, waits as long as a server asks, and deletes the partial
file when a call fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import functools
import logging
import os
import re
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, TypeVar

import httpx2

from tasks.data.part import Note, Part, Unreachable
from tasks.data.progress import Report
from tasks.errors import DataError
from tasks.text import one_line

TRIES = 4  # in a row without a new byte
TIMEOUT = httpx2.Timeout(60.0, connect=10.0)  # seconds; 60 is the longest pause between two pieces
LONGEST_WAIT = 60.0  # seconds: a longer Retry-After is left to the caller
STATUS = {
    404: "there is no such file: correct [data] in the profile",
    416: "the server does not have that part of the file: try again, the download starts over",
    429: "the server asks for fewer requests: try again later",
}
# The codes of S3's error documents, and those that Hugging Face sends in X-Error-Code.
CODES = {
    "NoSuchBucket": "there is no such bucket: correct [data] source, or AWS_ENDPOINT_URL",
    "NoSuchKey": "there is no such file in the bucket: correct [data] in the profile",
    "SignatureDoesNotMatch": "the secret is wrong: correct AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "the server does not know this key: "
    "correct AWS_ACCESS_KEY_ID, or AWS_ENDPOINT_URL",
    "ExpiredToken": "the credentials or the signed address have expired: renew them",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
    "RepoNotFound": "there is no such dataset, or it is private: "
    "correct [data] source, or set HF_TOKEN",
    "RevisionNotFound": "there is no such revision: correct what follows the @ in [data] source",
    "EntryNotFound": "the dataset has no such file: correct [data] in the profile",
}
WRONG_REGION = {
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "AuthorizationQueryParametersError",
    "IllegalLocationConstraintException",
}
# The last one comes from servers that do not know status 416.
STALE = {"InvalidRange", "PreconditionFailed", "InvalidArgument"}
LOGIN = (
    "access is denied: a signed address has expired, "
    "or a login is needed that this download does not have"
)

PAGE = "a web page came instead of data: the address is wrong, or needs a login in a browser"

Result = TypeVar("Result")


class Changed(Unreachable):
    """The bytes on disk belong to another version of the file than the server has."""


@dataclasses.dataclass(frozen=True)
class Address:
    """Where one file is."""

    shown: str  # for messages and notes: without a password or a signature
    url: Callable[[], str]  # called before each request, because a signature expires
    login: str = LOGIN  # the remedy where the server denies access
    condition: Literal["If-Range", "If-Match"] = "If-Range"
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    certificates: str | None = None  # a file to trust instead of the system's


def address(source: str, name: str) -> Address:
    """The file `name` below an http or https address, whose query (a signature, say) is kept.

    Raises DataError when `source` is not an address.
    """
    try:
        parts = urllib.parse.urlsplit(source)
    except ValueError as error:
        raise DataError(f"[data] source is not an address: {error}. Correct it") from error
    path = f"{parts.path.rstrip('/')}/{urllib.parse.quote(name)}"
    url = urllib.parse.urlunsplit(parts._replace(path=path, fragment=""))
    return Address(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}", lambda: url)


def download(address: Address, part: Part, report: Report) -> None:
    """Sends requests until the part is complete; gives up after TRIES in a row without a new byte.

    Raises DataError, and Unreachable when a later try may succeed.
    """
    patiently(lambda: _request(address, part, report), part.has_grown)


def patiently(
    attempt: Callable[[], Result], has_gained: Callable[[], bool] = lambda: False
) -> Result:
    """Repeats `attempt` while it raises Unreachable, up to TRIES times in a row without a gain."""
    idle = 0
    while True:
        try:
            return attempt()
        except Unreachable as error:
            idle = 0 if has_gained() else idle + 1
            if idle >= TRIES or error.wait > LONGEST_WAIT:
                raise
            time.sleep(error.wait or (2**idle - 1) / 4)


def _request(address: Address, part: Part, report: Report) -> None:
    """One request for the missing bytes. Raises Unreachable unless the part is complete then."""
    note, have, asked = part.note(address.shown), part.length, {}
    if note and have and have == note.bytes:
        return  # killed between the last byte and the rename
    if note and have and note.version:
        asked = {"Range": f"bytes={have}-", address.condition: note.version}
    with answered(address, asked) as answer:
        try:
            check(answer, address, bool(asked))
        except Changed:
            part.restart(None)
            raise
        if answer.status_code == 206:
            if not _fits(answer, have, note):
                part.restart(None)
                raise Unreachable(
                    f"{address.shown}: the server sent another part of the file than requested"
                )
        else:
            have = 0
            part.restart(Note(address.shown, _version(answer), _length(answer), _promised(answer)))
        length = _length(answer)
        total = None if length is None else have + length
        for piece in answer.iter_bytes():
            if not have and piece.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
                part.restart(None)
                raise DataError(f"{address.shown}: {PAGE}")
            part.append(piece)
            have += len(piece)
            report(have, total)
    if total is not None and have != total:
        raise Unreachable(f"{address.shown}: the server stopped after {have} of {total} bytes")


@contextlib.contextmanager
def answered(address: Address, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
    """The answer, whatever its status, before its body is read.

    A network failure, now or while the body is read, is raised as Unreachable; DataError is raised
    for what no later try can help.
    """
    # At level INFO it logs whole addresses, with their signatures.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    try:
        with httpx2.stream(
            "GET",
            address.url(),
            headers={"Accept-Encoding": "identity", **address.headers, **headers},
            timeout=TIMEOUT,
            verify=_trusted(address),
            follow_redirects=True,
        ) as answer:
            yield answer
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        text = f"{address.shown}: {safe(str(error) or type(error).__name__)}"
        if isinstance(error, httpx2.TransportError) and not isinstance(
            error, httpx2.UnsupportedProtocol
        ):
            raise Unreachable(f"{text}. Check the network and the address") from error
        raise DataError(text) from error


def _trusted(address: Address) -> ssl.SSLContext:
    """The certificates to trust."""
    settings = (os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"))
    file = next(filter(None, (address.certificates, *settings)), None)
    try:
        return _context(file)
    except OSError as error:
        raise DataError(
            f"{address.shown}: cannot read certificates from {file}: {error}"
        ) from error


@functools.cache
def _context(file: str | None) -> ssl.SSLContext:
    """Making one takes 30 ms; None stands for the system's certificates."""
    return ssl.create_default_context(cafile=file) if file else httpx2.create_ssl_context()


def check(answer: httpx2.Response, address: Address, resumed: bool = False) -> None:
    """Returns when the answer is what was asked for.

    Raises Changed, Unreachable or DataError: one line with a remedy.
    """
    status = answer.status_code
    if status in (200, 206):
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise DataError(f"{address.shown}: {PAGE}")
        return
    code = _code(answer)
    problem = f"{address.shown}: HTTP {status}{f' {code}' if code else ''}"
    if resumed and (status in (412, 416) or code in STALE):
        raise Changed(f"{problem}: the file on the server has changed: try again")
    if status in (408, 429) or status >= 500:
        wait = _seconds(answer.headers.get("Retry-After", ""))
        asked = f" (it asks to wait {wait:.0f} s)" if wait else ""
        remedy = STATUS.get(status, "the server has a problem: try again later")
        raise Unreachable(f"{problem}: {remedy}{asked}", wait)
    if code in WRONG_REGION:
        region = one_line(answer.headers.get("x-amz-bucket-region", "the bucket's region"))
        raise DataError(f"{problem}: the bucket is in another region: set AWS_REGION to {region}")
    refused = address.login if status in (401, 403) else "the server refuses the request"
    raise DataError(f"{problem}: {CODES.get(code) or STATUS.get(status, refused)}")


def _code(answer: httpx2.Response) -> str:
    """The code of an error: Hugging Face sends it in a header, S3 in the body, others do not."""
    if given := re.match(r"\w{1,50}", answer.headers.get("X-Error-Code", "")):
        return given[0]
    found = re.search(rb"<Code>(\w{1,50})</Code>", next(answer.iter_bytes(4096), b""))
    return found[1].decode() if found else ""


def _fits(answer: httpx2.Response, have: int, note: Note | None) -> bool:
    """Whether a 206 continues where the part ends, with the version that the part is of."""
    tags = {answer.headers.get("ETag", ""), (note and note.version) or ""}
    strong = [tag for tag in tags if tag.startswith('"')]
    resumes = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    return bool(resumes and len(strong) < 2)


def _length(answer: httpx2.Response) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _version(answer: httpx2.Response) -> str | None:
    """What If-Range accepts: a strong ETag, else the date of the last change."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified")


def _promised(answer: httpx2.Response) -> str | None:
    """The sha256 that Hugging Face sends along with the redirect to its store."""
    for each in (*answer.history, answer):
        if found := re.fullmatch(r'"?([0-9a-f]{64})"?', each.headers.get("X-Linked-ETag", "")):
            return found[1]
    return None


def _seconds(retry_after: str) -> float:
    """Retry-After, seconds or an HTTP date, as seconds from now; 0 when it is neither."""
    if retry_after.isdigit():
        return float(retry_after)
    with contextlib.suppress(ValueError):
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    return 0.0


def safe(reason: object) -> str:
    """A reason as one line, without passwords and queries of the addresses in it."""
    return one_line(re.sub(r"\?[^\s'\")]*", "", re.sub(r"//[^/\s]*@", "//", str(reason))))[:300]
