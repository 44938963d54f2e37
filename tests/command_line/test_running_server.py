"""The servers that a command starts, and which `./run server` it finds: that of its state folder.

With real processes and real ports.
"""

import contextlib
import json
import os
import shutil
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows import state_home
from flows.command_line import server
from tasks.errors import NightlyError
from tasks.files import make_readable
from tests.waiting import wait_for


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def api():
    with HTTPServer(("127.0.0.1", 0), Healthy) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/api"
        listening.shutdown()
        thread.join()


def test_a_live_server_is_found(tmp_path, api):
    assert server.running_server(tmp_path) is None
    server.write_address(tmp_path, prefect=api, mlflow="")
    assert server.running_server(tmp_path) == api


@pytest.mark.parametrize(
    "changes", [{"process": f"{os.getpid()}.1.x"}, {"process": "x"}, {"prefect": None}]
)
def test_a_dead_server_is_not_found_though_another_answers_at_its_port(tmp_path, api, changes):
    server.write_address(tmp_path, prefect=api, mlflow="")
    written = json.loads((tmp_path / "server.json").read_text())
    (tmp_path / "server.json").write_text(json.dumps({**written, **changes}))
    assert server.running_server(tmp_path) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"prefect": "http://127.0.0.1:1/api"}'])
def test_a_damaged_address_file_is_no_server(tmp_path, content):
    (tmp_path / "server.json").write_text(content)
    assert server.running_server(tmp_path) is None


@pytest.mark.parametrize(
    ("mode", "then"), [(0o700, 0o755), (0o755, 0o755), (0o1777, 0o1777), (0o2770, 0o2775)]
)
def test_the_state_folder_is_opened_to_all_users_and_keeps_its_other_bits(
    tmp_path, monkeypatch, mode, then
):
    tmp_path.chmod(mode)
    monkeypatch.setenv("NIGHTLY_HOME", str(tmp_path))
    assert state_home.locate() == tmp_path
    assert os.stat(tmp_path).st_mode & 0o7777 == then


@pytest.mark.slow
def test_a_private_server_starts_in_a_state_folder_of_any_name(tmp_path, warm):
    home = tmp_path / "of%2Fall? #1 \u00e9"
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    argv = ["-m", "flows.command_line.cli", "prepare", "--profile", "tests/profiles/small.toml"]
    done = warm.run(argv, cwd=state_home.ROOT, env={**settings, "NIGHTLY_HOME": str(home)})
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert (home / "prefect" / "prefect.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [home.name]


def test_the_address_of_prefects_database_is_left_alone_where_it_works(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    with monkeypatch.context() as each:
        each.setattr(os, "environ", {**os.environ})
        state_home.configure(tmp_path)
        assert "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in os.environ
    with monkeypatch.context() as each:
        url = "postgresql+asyncpg://a/b"
        each.setattr(os, "environ", {**os.environ, "PREFECT_API_DATABASE_CONNECTION_URL": url})
        state_home.configure(tmp_path / "a b")
        assert "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in os.environ


def test_a_folder_that_is_open_already_is_not_changed(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    monkeypatch.setattr("pathlib.Path.chmod", None)  # would fail
    make_readable(tmp_path)


TALKS = """
import signal, sys, time
def end(*_):
    print("Traceback\\n" * 100, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("up", file=sys.stderr, flush=True)
time.sleep(600)
"""


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("NIGHTLY_HOME", str(tmp_path))
    return tmp_path


def test_a_server_is_heard_until_it_is_ended(state, capfd):
    child = server.spawn([sys.executable, "-c", TALKS])
    wait_for(lambda: capfd.readouterr().err == "up\n", "its first line")
    child.end()
    assert capfd.readouterr() == ("", "")


def test_the_last_words_of_a_server_that_ends_by_itself_are_heard(state, capfd):
    child = server.spawn([sys.executable, "-c", "print('the disk is full'); exit(3)"])
    with pytest.raises(NightlyError, match=r"exited at start-up \(exit code 3\)"):
        server.wait_for_prefect("http://127.0.0.1:1/api", child)
    assert capfd.readouterr().err == "the disk is full\n"


@pytest.mark.slow
def test_a_prefect_server_with_open_requests_ends_silently(
    state, empty_prefect, monkeypatch, capfd
):
    """On a busy machine a command ends before its last requests are answered."""
    (state / "prefect").mkdir()
    shutil.copy(empty_prefect, state / "prefect" / "prefect.db")
    monkeypatch.setenv("PREFECT_HOME", str(state / "prefect"))
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    port = server.free_port()
    child = server.start_prefect(port, ui=False)
    head = b"POST /api/logs/ HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
    with contextlib.ExitStack() as open_requests:
        open_requests.callback(child.end)
        server.wait_for_prefect(f"http://127.0.0.1:{port}/api", child)
        for _ in range(3):
            request = open_requests.enter_context(socket.create_connection(("127.0.0.1", port)))
            request.sendall(head)
        assert state_home.is_healthy(f"http://127.0.0.1:{port}/api")  # so it has read those
        capfd.readouterr()
        child.end()
    assert capfd.readouterr().err == ""
