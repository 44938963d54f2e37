"""A night's notices, as a real receiver on loopback gets them, and what a bad receiver costs."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import NightlyError, UsageError
from tasks.views import notification
from tests.links import EVIL, links

ROOT = Path(__file__).resolve().parents[2]
SECRET = "services/T000/B000/x7secret?token=x7secret"
FACTS = {"champion": 1.25, "baseline": None, "trials": 3}


class Receiver:
    """Keeps what is posted to it and answers with `status`; if `hold`, once `released` is set."""

    def __init__(self) -> None:
        self.status, self.hold, self.released = 200, False, threading.Event()
        self.headers: dict[str, str] = {}
        self.posts: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"receiver": self})
        )
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}/{SECRET}"

    def close(self):
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    receiver: Receiver

    def do_POST(self):
        self.receiver.paths.append(self.path)
        self.receiver.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.receiver.hold:
            self.receiver.released.wait()
        self.send_response(self.receiver.status)
        for name, value in self.receiver.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def webhook(receiver, monkeypatch):
    monkeypatch.setenv("NIGHTLY_WEBHOOK", receiver.url)
    return receiver


def refused(monkeypatch):
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("NIGHTLY_WEBHOOK", f"http://127.0.0.1:{probe.getsockname()[1]}/{SECRET}")


def failure() -> NightlyError:
    with pytest.raises(NightlyError) as caught:
        notification.send("failed", "nov21", "no room", FACTS)
    return caught.value


def test_programs_get_kind_night_and_facts(webhook):
    notification.send("finished", "nov21", "all 3 trials are done", FACTS)
    [post] = webhook.posts
    assert (post["kind"], post["night"], post["facts"]) == ("finished", "nov21", FACTS)


def test_slack_and_discord_get_the_text(webhook):
    notification.send("finished", "nov21", "all 3 trials\nare done", FACTS)
    assert webhook.posts[0]["text"] == webhook.posts[0]["content"] == "all 3 trials\nare done"


def test_a_path_and_a_query_are_used_as_they_are(webhook):
    notification.send("finished", "nov21", "over", {})
    assert webhook.paths == [f"/{SECRET}"]


def test_a_candidate_can_mention_nobody(webhook):
    notification.send("new-champion", "nov21", "<!channel> @all @everyone & more", {})
    [post] = webhook.posts
    assert post["text"] == "&lt;!channel&gt; [@]all [@]everyone &amp; more"
    assert post["allowed_mentions"] == {"parse": []}


def test_a_candidate_makes_no_link(webhook):
    notification.send("new-champion", "nov21", " ".join(EVIL), {})
    [post] = webhook.posts
    assert links(post["text"]) == links(post["content"]) == []


def test_a_long_text_fits_into_discord(webhook):
    notification.send("failed", "nov21", "x" * 5000, {})
    assert len(webhook.posts[0]["content"]) == notification.LONGEST


def test_facts_without_a_json_form_are_text_or_null(webhook):
    notification.send(
        "failed", "nov21", "over", {"z": float("nan"), "path": Path("a"), "why": "a\udc80\nb"}
    )
    assert webhook.posts[0]["facts"] == {"z": None, "path": "a", "why": "a b"}


def test_nothing_is_posted_without_the_setting(receiver, monkeypatch):
    monkeypatch.delenv("NIGHTLY_WEBHOOK", raising=False)
    notification.send("finished", "nov21", "over", FACTS)
    assert receiver.posts == []


def test_a_receivers_error_is_reported(webhook):
    webhook.status = 500
    assert "127.0.0.1 answered 500" in str(failure())


def test_a_failed_post_is_not_repeated(webhook):
    webhook.status = 500
    failure()
    assert len(webhook.posts) == 1


def test_a_redirect_is_not_followed(webhook):
    elsewhere = Receiver()
    try:
        webhook.status, webhook.headers = 307, {"Location": elsewhere.url}
        assert "answered 307" in str(failure())
        assert elsewhere.posts == []
    finally:
        elsewhere.close()


def test_a_port_without_a_receiver_is_reported(monkeypatch):
    refused(monkeypatch)
    assert "could not be reached (ConnectionRefusedError)" in str(failure())


def test_a_receiver_that_never_answers_is_abandoned(webhook, monkeypatch):
    monkeypatch.setattr(notification, "PATIENCE", 0.3)  # or urllib's own limit comes first
    webhook.hold = True  # until the test ends: a send that waited for the answer would hang
    assert "no answer within 0.3 s" in str(failure())


def test_the_request_itself_gives_up(webhook, monkeypatch):
    monkeypatch.setattr(notification, "TIMEOUT", 0.3)
    webhook.hold = True
    assert "gave no answer in time" in str(failure())


def test_the_limit_is_five_seconds():
    assert notification.PATIENCE <= 5


@pytest.mark.parametrize("fault", ["refused", "500", "307", "held", "bad", "unexpected"])
def test_the_address_is_in_no_error_and_no_log(webhook, monkeypatch, caplog, capfd, fault):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(notification, "TIMEOUT", 0.3)
    if fault == "refused":
        refused(monkeypatch)
    elif fault == "bad":
        monkeypatch.setenv("NIGHTLY_WEBHOOK", f"http://[x7secret]:9999999/{SECRET}")
    elif fault == "unexpected":

        def fail(*_):
            raise RuntimeError(SECRET)

        monkeypatch.setattr("urllib.request.build_opener", fail)
    elif fault == "held":
        webhook.hold = True
    else:
        webhook.status, webhook.headers = int(fault), {"Location": f"http://127.0.0.1:1/{SECRET}"}
    error: BaseException | None = failure()
    while error:
        assert "x7secret" not in f"{error!r} {error}"
        error = error.__cause__ or error.__context__
    assert "x7secret" not in caplog.text + capfd.readouterr().err


def test_the_address_is_in_no_log_of_a_success(webhook, caplog):
    caplog.set_level(logging.DEBUG)
    notification.send("finished", "nov21", "over", {})
    assert len(webhook.posts) == 1
    assert "x7secret" not in caplog.text


@pytest.mark.parametrize(
    "address", ["https://hooks.example/a", " http://127.0.0.1:8080/x?y=z ", ""]
)
def test_a_good_address(monkeypatch, address):
    monkeypatch.setenv("NIGHTLY_WEBHOOK", address)
    notification.check()


@pytest.mark.parametrize(
    "address",
    [
        "hooks.example/a",
        "ftp://hooks.example/a",
        "https:///a",
        "http://h:99999/a",
        "http://[::1/a",
        "http://a b/c",
        "http://h/\u00e4",
    ],
)
def test_a_bad_address_is_a_usage_error(monkeypatch, address):
    monkeypatch.setenv("NIGHTLY_WEBHOOK", address)
    with pytest.raises(
        UsageError,
        match=r"NIGHTLY_WEBHOOK .* set it to a whole http:// or https:// address, or unset it",
    ):
        notification.check()


ALONE = """
import os, psutil
from tasks.views import notification
notification.send("finished", "nov21", "over", {})
print("CHILDREN", len(psutil.Process().children()), flush=True)
os._exit(0)  # an orderly exit waits for Prefect, which tries to reach its server for ten seconds
"""


@pytest.mark.parametrize("api", [None, "http://127.0.0.1:1/api"])
def test_a_prefect_server_is_neither_needed_nor_started(tmp_path, api):
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PREFECT_", "NIGHTLY_"))
    }
    environment = {
        **kept,
        "PREFECT_HOME": str(tmp_path),
        **({"PREFECT_API_URL": api} if api else {}),
    }
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "CHILDREN 0\n", done.stderr
