"""A night's notices: a POST to the address in NIGHTLY_WEBHOOK, and a Prefect event for automations.

Neither may delay the night: the event is only queued, and the POST has five seconds, whatever its
receiver does. The address is a secret (Slack's has its token in the path), so messages show no more
of it than the host. The receiver's answer is not read, and its redirects are not followed: they
could lead anywhere.
"""

from __future__ import annotations

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
from tasks.text import one_line, shortened, unlinked

Kind = Literal["failed", "finished", "new-champion"]

SETTING = "NIGHTLY_WEBHOOK"
# Seconds for the whole POST: urllib limits neither the look-up of a name nor a slow drip of bytes.
PATIENCE = 5.0
TIMEOUT = 4.0  # seconds to connect, and for an answer; it usually ends first, and says more
LONGEST = 1900  # characters: Discord refuses a message of more than 2000
HEADERS = {"Content-Type": "application/json", "User-Agent": "nightly-research"}


def check() -> None:
    """Raises UsageError if NIGHTLY_WEBHOOK is set and is not an address to send to.

    Called when a night opens, so that nobody learns of it at the night's end.
    """
    _address()


def send(kind: Kind, tag: str, text: str, facts: Mapping[str, object]) -> None:
    """Emits the event `nightly-research.night.<kind>`, then posts to NIGHTLY_WEBHOOK if it is set.

    Args:
        kind: what happened.
        tag: the night.
        text: for people, a line or a few. It may quote a candidate or a proposer, who can mention
            nobody with it and make no link.
        facts: for programs, JSON values by name. Scores are in bits per byte, None where there is
            none.

    Raises:
        NightlyError: the webhook did not accept it within five seconds; the text names its host.
        UsageError: NIGHTLY_WEBHOOK is not an http or https address.
    """
    plain = {name: _plain(value) for name, value in facts.items()}
    shown = shortened("\n".join(map(unlinked, text.splitlines())), LONGEST)
    _emit(kind, tag, {"night": tag, "text": shown, "facts": plain})
    if address := _address():
        _post(address, _body(kind, tag, shown, plain))


def _body(kind: Kind, tag: str, shown: str, facts: dict[str, Any]) -> bytes:
    """JSON that Slack and Mattermost (`text`), Discord (`content`) and programs understand.

    `text` is escaped as Slack asks for (api.slack.com/reference/surfaces/formatting), which
    Markdown reads the same, so that a candidate's "<!channel>" stays text. `unlinked` has done that
    to Mattermost's "@all", and `allowed_mentions` does it to Discord's.
    """
    escaped = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    body = {
        "text": escaped,
        "content": shown,
        "allowed_mentions": {"parse": []},
        "kind": kind,
        "night": tag,
        "facts": facts,
    }
    return json.dumps(body).encode()


def _plain(value: object) -> Any:
    """A JSON value: no NaN, and text for anything but a number or a truth value."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return one_line(str(value))


def _emit(kind: Kind, tag: str, payload: dict[str, Any]) -> None:
    """Queues the event. Prefect adds the current flow run, and drops it if its server is down."""
    from prefect.events import emit_event  # slow: `check` need not wait for it
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():  # Prefect would start a server of its own for this
        return
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
            f"{SETTING} is not an address that a night can send to (it may be a secret and is not "
            "shown): set it to a whole http:// or https:// address, or unset it"
        )
    return address


def _post(address: str, body: bytes) -> None:
    host = urllib.parse.urlsplit(address).hostname
    problem: str | None = f"gave no answer within {PATIENCE:g} s"

    def attempt() -> None:
        nonlocal problem
        problem = _attempt(address, body)

    thread = threading.Thread(target=attempt, name="nightly-webhook", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if found := problem:
        raise NightlyError(
            f"the webhook at {host} {found}: correct {SETTING} or repair the receiver; the night "
            "continues"
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """A redirect is answered like any other failure."""


def _attempt(address: str, body: bytes) -> str | None:
    """One request, and what went wrong with it.

    urllib logs nothing, and the text of its errors is dropped, because it may hold the address.
    """
    request = urllib.request.Request(address, body, HEADERS)
    try:
        urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT).close()
        return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"answered {error.code}"
    except Exception as error:  # anything else: Python would print it with the address
        reason = getattr(error, "reason", None)
        cause = reason if isinstance(reason, BaseException) else error
        if isinstance(cause, TimeoutError):
            return "gave no answer in time"
        return f"could not be reached ({type(cause).__name__})"
