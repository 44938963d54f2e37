"""One request for what is missing of a file, over http or https, and what a server's refusal means.

A resumed request is tied to the version that the part is of (RFC 9110, Range with If-Range or If-Match), and the answer
is checked against it as well, because some servers ignore the condition. No message holds a password or a signature.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import requests

from tasks.data.part import Note, Part, Unreachable
from tasks.errors import DataError
from tasks.text import one_line

CHUNK = (
    64 * 1024
)  # a larger one is thrown away half full on a link that drops often, and then nothing ever arrives
TRIES = 4  # in a row without a new byte
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two bytes
LONGEST_WAIT = 60.0  # seconds that a server's Retry-After is waited for
STATUS = {
    404: "there is no such file: correct [data] in the profile",
    416: "the server does not have that part of the file: try again, the download starts anew",
    429: "the server asks for fewer requests: try again later",
}
# The codes of S3's error documents, and those that Hugging Face sends in X-Error-Code.
CODES = {
    "NoSuchBucket": "there is no such bucket: correct [data] source in the profile, or AWS_ENDPOINT_URL",
    "NoSuchKey": "there is no such file in the bucket: correct [data] in the profile",
    "SignatureDoesNotMatch": "the secret is wrong: correct AWS_SECRET_ACCESS_KEY, it must belong to AWS_ACCESS_KEY_ID",
    "InvalidAccessKeyId": "the server does not know this key: correct AWS_ACCESS_KEY_ID, or AWS_ENDPOINT_URL",
    "ExpiredToken": "the credentials or the signed address have expired: renew them",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
    "RepoNotFound": "there is no such dataset, or it is private: correct [data] source in the profile, or set HF_TOKEN",
    "RevisionNotFound": "the dataset has no such revision: correct what follows the @ in [data] source of the profile",
    "EntryNotFound": "the dataset has no such file: correct [data] in the profile",
}
WRONG_REGION = {
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "AuthorizationQueryParametersError",
    "IllegalLocationConstraintException",
}
STALE = {
    "InvalidRange",
    "PreconditionFailed",
    "InvalidArgument",
}  # the last one from servers that know no 416

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if known
Result = TypeVar("Result")


class Changed(Unreachable):
    """The part is of another version than the file on the server."""


def unsigned(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """No login: a callable, as without one requests looks for a password in .netrc, which a signed address refuses."""
    return request


@dataclasses.dataclass(frozen=True)
class Address:
    """Where one file is."""

    shown: str  # for messages and notes: no password, no signature
    url: Callable[[], str]  # asked before each request: a signature holds for a while only
    login: str = "access is denied: a signed address has expired, or a login is needed that this fetch does not have"
    condition: Literal["If-Range", "If-Match"] = "If-Range"
    auth: Callable[[requests.PreparedRequest], requests.PreparedRequest] | None = None
    verify: str | bool = True  # a file of certificates to trust, in place of the usual ones


def address(source: str, name: str) -> Address:
    """The file `name` below an http or https address; a query of the source, a signature say, is put behind the name."""
    try:
        parts = urllib.parse.urlsplit(source)
    except ValueError as error:
        raise DataError(
            f"[data] source is no address: {error}. Correct it in the profile"
        ) from error
    path = f"{parts.path.rstrip('/')}/{urllib.parse.quote(name)}"
    url = urllib.parse.urlunsplit(parts._replace(path=path, fragment=""))
    return Address(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}", lambda: url)


def download(address: Address, part: Part, progress: Progress) -> None:
    """Requests until the part is whole, as long as every TRIES of them bring new bytes. Raises DataError, Unreachable."""
    patiently(lambda: _request(address, part, progress), part.has_grown)


def patiently(
    attempt: Callable[[], Result], has_gained: Callable[[], bool] = lambda: False
) -> Result:
    """Tries until `attempt` does not raise Unreachable, TRIES times in a row without a gain."""
    idle = 0
    while True:
        try:
            return attempt()
        except Unreachable as error:
            idle = 0 if has_gained() else idle + 1
            if idle >= TRIES or error.wait > LONGEST_WAIT:
                raise
            time.sleep(error.wait or (2**idle - 1) / 4)


def _request(address: Address, part: Part, progress: Progress) -> None:
    """One request for what is missing. Raises Unreachable when the part is not whole afterwards."""
    note, have, asked = part.note(address.shown), part.length, {}
    if note and have and have == note.bytes:
        return  # it was killed between the last byte and the rename
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
                    f"{address.shown}: the server sent another part of the file than was asked for"
                )
        else:
            have = 0
            part.restart(Note(address.shown, _version(answer), _length(answer), _promised(answer)))
        length = _length(answer)
        total = None if length is None else have + length
        for chunk in answer.iter_content(CHUNK):
            if not have and chunk.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
                part.restart(None)
                raise DataError(_page(address))
            part.append(chunk)
            have += len(chunk)
            progress(have, total)
    if total is not None and have != total:
        raise Unreachable(f"{address.shown}: the server ended after {have} of {total} bytes")


@contextlib.contextmanager
def answered(address: Address, headers: dict[str, str]) -> Iterator[requests.Response]:
    """The answer, whatever its status, not read yet. A break of the network, then or later, is raised as Unreachable."""
    given = {"Accept-Encoding": "identity", **headers}
    try:
        try:
            answer = requests.get(
                address.url(),
                headers=given,
                auth=address.auth,
                verify=address.verify,
                stream=True,
                timeout=TIMEOUT,
            )
        except requests.RequestException:
            raise
        except (
            OSError
        ) as error:  # REQUESTS_CA_BUNDLE names no file, say; one of the disk is not ours to explain
            raise DataError(f"{address.shown}: {safe(error)}") from error
        with answer:
            yield answer
    except (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    ) as error:
        cause = error.args[0] if error.args else error
        reason = getattr(cause, "reason", None) or (getattr(cause, "args", ()) or (cause,))[0]
        raise Unreachable(
            f"{address.shown}: {safe(reason)}. Check the network and the address"
        ) from error
    except requests.RequestException as error:
        raise DataError(f"{address.shown}: {safe(error)}") from error


def check(answer: requests.Response, address: Address, resumed: bool = False) -> None:
    """Raises Changed, Unreachable or DataError, one line with a remedy, unless the answer is what was asked for."""
    status = answer.status_code
    if status in (200, 206):
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise DataError(_page(address))
        return
    code = _code(answer)
    said = f"{address.shown}: HTTP {status}{f' {code}' if code else ''}"
    if resumed and (status in (412, 416) or code in STALE):
        raise Changed(f"{said}: the file on the server has changed: try again")
    if status in (408, 429) or status >= 500:
        wait = _seconds(answer.headers.get("Retry-After", ""))
        asked = f" (it asks to wait {wait:.0f} s)" if wait else ""
        raise Unreachable(
            f"{said}: {STATUS.get(status, 'the server has a problem: try again later')}{asked}",
            wait,
        )
    if code in WRONG_REGION:
        region = one_line(answer.headers.get("x-amz-bucket-region", "the bucket's region"))
        raise DataError(f"{said}: the bucket is in another region: set AWS_REGION to {region}")
    refused = address.login if status in (401, 403) else "the server refuses the request"
    raise DataError(f"{said}: {CODES.get(code) or STATUS.get(status, refused)}")


def _code(answer: requests.Response) -> str:
    """The code of an error, as S3 puts it in the body and Hugging Face in a header, or nothing. Reads the answer."""
    if given := re.match(r"\w{1,50}", answer.headers.get("X-Error-Code", "")):
        return given[0]
    found = re.search(rb"<Code>(\w{1,50})</Code>", next(answer.iter_content(4096), b""))
    return found[1].decode() if found else ""


def _page(address: Address) -> str:
    return f"{address.shown}: a web page came instead of data: the address is wrong, or needs a login in a browser"


def _fits(answer: requests.Response, have: int, note: Note | None) -> bool:
    """Whether a 206 goes on where the part ends, with the version that the part is of."""
    tag = answer.headers.get("ETag", "")
    same = (
        note is None
        or not tag.startswith('"')
        or not (note.version or "").startswith('"')
        or tag == note.version
    )
    return same and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _length(answer: requests.Response) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _version(answer: requests.Response) -> str | None:
    """What If-Range accepts: a strong ETag, else the date of the last change."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified")


def _promised(answer: requests.Response) -> str | None:
    """The sha256 that Hugging Face gives with the redirect to its store."""
    for each in (*answer.history, answer):
        if found := re.fullmatch(r'"?([0-9a-f]{64})"?', each.headers.get("X-Linked-ETag", "")):
            return found[1]
    return None


def _seconds(retry_after: str) -> float:
    """Retry-After, seconds or an HTTP date, as seconds from now; 0 when it says nothing."""
    if retry_after.isdigit():
        return float(retry_after)
    with contextlib.suppress(ValueError):
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    return 0.0


def safe(reason: object) -> str:
    """A reason as one line, without the password or the query of an address in it."""
    return one_line(re.sub(r"\?[^\s'\")]*", "", re.sub(r"//[^/\s]*@", "//", str(reason))))[:300]
