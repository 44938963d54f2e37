"""What a night tells people: one POST to the address in NIGHTLY_WEBHOOK, one Prefect event that automations can act on.

Both are for people who are not looking, so neither may hold the night up: the event is only queued, and the POST has five
seconds, whatever its receiver does. The address is a secret (Slack's has its token in the path): no message shows more of
it than the host. A receiver's answer is not read, and its redirects are not followed: they could lead anywhere.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, Literal

from tasks.errors import NightlyError, UsageError
from tasks.text import one_line

Kind = Literal["failed", "finished", "new-champion"]

SETTING = "NIGHTLY_WEBHOOK"
# Seconds for the whole POST: urllib limits neither the look-up of a name nor a slow drip of bytes.
PATIENCE = 5.0
TIMEOUT = 4.0  # seconds to connect, and for an answer; it usually ends first, and says more
LONGEST = 1900  # characters: Discord refuses a message of more than 2000
HEADERS = {"Content-Type": "application/json", "User-Agent": "nightly-research"}


def check() -> None:
    """Raises UsageError if NIGHTLY_WEBHOOK is set and is no address to send to; said when a night opens, not when it ends."""
    _address()


def send(kind: Kind, tag: str, text: str, facts: Mapping[str, object]) -> None:
    """Tells of a night: emits the event `nightly-research.night.<kind>`, then posts to NIGHTLY_WEBHOOK if it is set.

    Args:
        kind: what happened.
        tag: the night.
        text: for people; a line or a few. What a candidate or a proposer wrote may be in it: it can mention nobody.
        facts: for programs, JSON values by name. Scores are in bits per byte, None where there is none.

    Raises:
        NightlyError: the webhook did not take it, within five seconds; the text names its host only. The night goes on.
        UsageError: NIGHTLY_WEBHOOK is no http or https address.
    """
    plain = {name: _plain(value) for name, value in facts.items()}
    shown = "\n".join(map(one_line, text.splitlines()))
    shown = shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."
    _emit(kind, tag, {"night": tag, "text": shown, "facts": plain})
    if address := _address():
        _post(address, _body(kind, tag, shown, plain))


def _body(kind: Kind, tag: str, shown: str, facts: dict[str, Any]) -> bytes:
    """One JSON object that Slack and Mattermost (`text`), Discord (`content`) and a program (the rest) each understand.

    `text` is escaped as Slack asks for (api.slack.com/reference/surfaces/formatting), which Markdown reads the same, so that
    a candidate's "<!channel>" stays text; a zero-width space keeps Mattermost's "@all" one, `allowed_mentions` Discord's.
    """
    quiet = (
        shown.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace("@", "@\u200b")
    )
    body = {
        "text": quiet,
        "content": shown,
        "allowed_mentions": {"parse": []},
        "kind": kind,
        "night": tag,
        "facts": facts,
    }
    return json.dumps(body).encode()


def _plain(value: object) -> Any:
    """As JSON has it: no NaN, and of anything else than a number, a text or a truth value, its text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return one_line(str(value))


def _emit(kind: Kind, tag: str, payload: dict[str, Any]) -> None:
    """Queues the event. Prefect adds the flow run that this is called in, and drops the event if its server is away."""
    from prefect.events import (
        emit_event,  # here, because it takes seconds that `check` need not wait for
    )
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():  # without one, Prefect would start a server of its own for this
        resource = {
            "prefect.resource.id": f"nightly-research.night.{tag}",
            "prefect.resource.name": tag,
        }
        emit_event(f"nightly-research.night.{kind}", resource, payload=payload)


def _address() -> str | None:
    address = os.environ.get(SETTING, "").strip()
    if not address:
        return None
    try:
        parts = urllib.parse.urlsplit(address)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or not address.isascii() or any(character.isspace() for character in address):
        raise UsageError(
            f"{SETTING} is no address that a night could send to (it may hold a secret and is not shown): "
            "set it to a whole http:// or https:// address, or unset it"
        )
    return address


def _post(address: str, body: bytes) -> None:
    host, problems = (
        urllib.parse.urlsplit(address).hostname,
        [f"gave no answer within {PATIENCE:g} s"],
    )

    def attempt() -> None:
        problems[:] = _attempt(address, body)

    thread = threading.Thread(target=attempt, name="nightly-webhook", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if found := list(problems):
        remedy = f"correct {SETTING}, or see to the receiver; the night goes on"
        raise NightlyError(f"the webhook at {host} {found[0]}: {remedy}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """A redirect is answered like any other failure."""


def _attempt(address: str, body: bytes) -> list[str]:
    """One request, and what went wrong with it.

    urllib logs nothing, and the text of its errors is dropped, because it may hold the address.
    """
    request = urllib.request.Request(address, body, HEADERS)
    try:
        urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT).close()
        return []
    except urllib.error.HTTPError as error:
        error.close()
        return [f"answered {error.code}"]
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None)
        cause = reason if isinstance(reason, BaseException) else error
        if isinstance(cause, TimeoutError):
            return ["gave no answer in time"]
        return [f"could not be reached ({type(cause).__name__})"]
