"""The automations on a real Prefect server: registered repeatedly, and acting on dead nights."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cached_property, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.command_line import automations, server
from tasks.errors import NightlyError

ROOT = Path(__file__).resolve().parents[2]
MARK = "nightly-research: mark crashed"
SILENCE = 12  # seconds without a heartbeat, not the file's 300; nights here send one every two
NIGHT = """
import sys
import prefect.flow_engine as engine
from prefect import flow, runtime
from tasks.views import notification

engine.MINIMUM_HEARTBEAT_INTERVAL = 2
# Prefect's setting allows no less than 30.
engine.BaseFlowRunEngine.heartbeat_seconds = property(lambda self: 2)

@flow(name=sys.argv[1], flow_run_name=sys.argv[2])
def night():
    print(runtime.flow_run.id, flush=True)
    for kind in sys.stdin.readline().split():
        notification.send(kind, "nov21", f"text of {kind}", {"champion": 1.25})

night()
"""


@pytest.fixture(scope="module")
def api(tmp_path_factory) -> Iterator[str]:
    """A Prefect server of our own that looks for silent nights every second."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("PREFECT_", "NIGHTLY_"))]:
            patch.delenv(name)
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        patch.setenv("PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY", "PT1S")
        patch.setenv("PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER", "PT1S")
        port = server.free_port()
        url, child = f"http://127.0.0.1:{port}/api", server.start_prefect(port, ui=False)
        try:
            server.wait_for_prefect(url, child)
            patch.setenv("PREFECT_API_URL", url)
            with temporary_settings({PREFECT_API_URL: url}):
                yield url
        finally:
            child.end()


@pytest.fixture
def client(api) -> Iterator[Any]:
    """A client of that server, which has no automation and no block `nightly` before and after."""
    from prefect import get_client

    with get_client(sync_client=True) as made:
        yield made
        for automation in made.read_automations():
            made.delete_automation(automation.id)
        for block in made.read_block_documents():
            if block.name == "nightly":
                made.delete_block_document(block.id)


@pytest.fixture
def inbox() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The address of a receiver, and the list of what was posted to it."""
    posts: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{receiver.server_port}/x", posts
    receiver.shutdown()
    thread.join()
    receiver.server_close()


def make_block(url: str) -> None:
    """What a person does once, in the UI or in a shell; a real Prefect block."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    said = {"subject": "{{subject}}", "body": "{{body}}"}
    block = CustomWebhookNotificationBlock.model_validate(
        {"name": "nightly", "url": url, "json_data": said}
    )
    block.save("nightly")


def names(client: Any) -> list[str]:
    return sorted(automation.name for automation in client.read_automations())


def until(what: str, true: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


def marking() -> Any:
    return next(each for each in automations.read(automations.FILE) if each.name == MARK)


def test_one_missed_heartbeat_marks_no_night_crashed():
    # Prefect's own period, where ours is not set
    assert marking().trigger.within > timedelta(seconds=180)


def test_every_flow_of_a_night_is_watched():
    from prefect import Flow

    from flows import nightly_research

    flows = {found.name for found in vars(nightly_research).values() if isinstance(found, Flow)}
    assert flows
    assert flows <= set(marking().trigger.match_related["prefect.resource.name"])


@pytest.mark.slow
def test_prefect_accepts_the_file(client):
    argv = [
        sys.executable,
        "-m",
        "prefect",
        "automation",
        "create",
        "--from-file",
        str(automations.FILE),
    ]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert names(client) == sorted(each.name for each in automations.read(automations.FILE))
    assert [each.name for each in client.read_automations() if each.enabled] == [MARK]


@pytest.mark.slow
def test_without_a_block_there_is_no_notice(client):
    assert automations.register() == [MARK]
    assert names(client) == [MARK]


@pytest.mark.slow
def test_a_block_named_nightly_switches_the_notices_on(client):
    make_block("http://127.0.0.1:1/x")
    assert sorted(automations.register()) == names(client)
    assert len(names(client)) == 5
    assert all(each.enabled for each in client.read_automations())


@pytest.mark.slow
def test_removing_the_block_removes_the_notices(client):
    make_block("http://127.0.0.1:1/x")
    automations.register()
    [block] = [each for each in client.read_block_documents() if each.name == "nightly"]
    client.delete_block_document(block.id)
    automations.register()
    assert names(client) == [MARK]


@pytest.mark.slow
def test_registering_twice_changes_nothing(client):
    make_block("http://127.0.0.1:1/x")
    automations.register()
    before = client._client.post(
        "/automations/filter", json={}
    ).json()  # with the time of each one's last change
    automations.register()
    assert client._client.post("/automations/filter", json={}).json() == before
    assert len(before) == 5


@pytest.mark.slow
def test_an_older_automation_is_updated(client, tmp_path):
    older = tmp_path / "older.yaml"
    older.write_text(automations.FILE.read_text().replace("within: 300", "within: 77"))
    automations.register(older)
    [before] = client.read_automations()
    automations.register()
    [after] = client.read_automations()
    assert (before.trigger.within, after.trigger.within) == (
        timedelta(seconds=77),
        timedelta(seconds=300),
    )
    assert after.id == before.id


@pytest.mark.slow
def test_an_automation_switched_off_stays_off(client, tmp_path):
    automations.register()
    client.pause_automation(client.read_automations()[0].id)
    newer = tmp_path / "newer.yaml"
    newer.write_text(automations.FILE.read_text().replace("within: 300", "within: 333"))
    automations.register(newer)
    [after] = client.read_automations()
    assert (after.enabled, after.trigger.within) == (False, timedelta(seconds=333))


@pytest.mark.slow
def test_a_duplicate_name_is_removed(client):
    client.create_automation(marking())
    client.create_automation(marking())
    automations.register()
    assert names(client) == [MARK]


@pytest.mark.slow
def test_other_automations_are_left_alone(client):
    theirs = client.create_automation(
        marking().model_copy(update={"name": "nightly-research: my own"})
    )
    before = client.read_automation(theirs)
    automations.register()
    assert client.read_automation(theirs) == before


@pytest.mark.slow
def test_a_refusal_names_the_automation_and_the_http_status(client, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text(automations.FILE.read_text().replace("{{ event.payload.text }}", "{% for %}"))
    make_block("http://127.0.0.1:1/x")
    with pytest.raises(
        NightlyError,
        match=r"refused the automation 'nightly-research: notify of a failed night' \(HTTP 422\)",
    ):
        automations.register(bad)


class Night:
    """A flow in its own process, with heartbeats until `end` or `kill`."""

    def __init__(self, flow: str, name: str) -> None:
        argv = [sys.executable, "-c", NIGHT, flow, name]
        self.process = subprocess.Popen(
            argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @cached_property
    def id(self) -> str:
        """Of its flow run. The first read waits for the flow's start: several may start at once."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def state(self, client: Any) -> str:
        return str(client.read_flow_run(self.id).state.type.value)

    def beats(self, client: Any) -> int:
        events = {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{self.id}"]},
        }
        return int(client._client.post("/events/filter", json={"filter": events}).json()["total"])

    def end(self, kinds: str = "") -> None:
        self.process.communicate(f"{kinds}\n")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def nights() -> Iterator[Callable[[str, str], Night]]:
    with contextlib.ExitStack() as stack:

        def start(flow: str, name: str) -> Night:
            night = Night(flow, name)
            stack.callback(night.kill)
            return night

        yield start


@pytest.mark.slow
def test_a_dead_night_is_marked_crashed_and_reported(client, nights, inbox, tmp_path):
    """One test, because each part must hold while the others happen."""
    from prefect.states import Crashed

    url, posts = inbox
    make_block(url)
    quick = tmp_path / "quick.yaml"
    quick.write_text(automations.FILE.read_text().replace("within: 300", f"within: {SILENCE}"))
    automations.register(quick)
    alive, ended = nights("nightly-research", "alive"), nights("nightly-research", "ended")
    theirs, dead = nights("somebody-elses", "theirs"), nights("nightly-research", "dead")
    for night in (alive, ended, theirs):
        until("a heartbeat", partial(night.beats, client))
    ended.end("finished new-champion new-champion failed")
    theirs.kill()
    seen = dead.beats(client)
    until("a heartbeat later than the last of the others", lambda: dead.beats(client) > seen + 1)
    dead.kill()

    until("the dead night is marked", lambda: dead.state(client) == "CRASHED")
    assert "./run resume" in client.read_flow_run(dead.id).state.message
    assert ended.state(client) == "COMPLETED"
    assert alive.state(client) == "RUNNING"
    assert theirs.state(client) == "RUNNING"  # it is dead too, and not ours to judge

    until("the notices", lambda: len(posts) >= 5)
    assert sorted(post["subject"] for post in posts) == [
        "nightly-research: dead crashed",
        "nightly-research: new champion in night nov21",
        "nightly-research: new champion in night nov21",
        "nightly-research: night nov21 failed",
        "nightly-research: night nov21 is over",
    ]
    bodies = {post["subject"].removeprefix("nightly-research: "): post["body"] for post in posts}
    assert bodies["night nov21 is over"] == "text of finished"
    assert bodies["dead crashed"].strip() == client.read_flow_run(dead.id).state.message

    # A night wrongly marked, because the server was down for long, is Completed when it ends.
    client.set_flow_run_state(alive.id, Crashed())
    alive.end()
    assert alive.state(client) == "COMPLETED"
