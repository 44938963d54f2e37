"""Which `./run server` a command finds: the live one of its own state folder.

With a real process and a real port.
"""

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
