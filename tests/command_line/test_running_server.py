"""Which `./run server` a command finds: the live one of its own state folder, by a real process and a real port."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows import state_home
from flows.command_line import server
from tasks.files import make_readable


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
    server.tell_where(tmp_path, prefect=api, mlflow="")
    assert server.running_server(tmp_path) == api


@pytest.mark.parametrize(
    "changes", [{"process": f"{os.getpid()}.1.x"}, {"process": "x"}, {"prefect": None}]
)
def test_word_of_a_process_that_is_gone_is_no_server_though_another_has_its_port(
    tmp_path, api, changes
):
    server.tell_where(tmp_path, prefect=api, mlflow="")
    told = json.loads((tmp_path / "server.json").read_text())
    (tmp_path / "server.json").write_text(json.dumps({**told, **changes}))
    assert server.running_server(tmp_path) is None


@pytest.mark.parametrize("word", ["", "[]", "{}", '{"prefect": "http://127.0.0.1:1/api"}'])
def test_damaged_word_is_none(tmp_path, word):
    (tmp_path / "server.json").write_text(word)
    assert server.running_server(tmp_path) is None


@pytest.mark.parametrize(
    ("mode", "then"), [(0o700, 0o755), (0o755, 0o755), (0o1777, 0o1777), (0o2770, 0o2775)]
)
def test_a_state_folder_lets_everybody_in_and_loses_nothing(tmp_path, monkeypatch, mode, then):
    tmp_path.chmod(mode)
    monkeypatch.setenv("NIGHTLY_HOME", str(tmp_path))
    assert state_home.locate() == tmp_path
    assert os.stat(tmp_path).st_mode & 0o7777 == then


def test_a_folder_of_somebody_else_that_lets_everybody_in_is_left_alone(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    monkeypatch.setattr("pathlib.Path.chmod", None)  # would fail
    make_readable(tmp_path)
