"""Real commands in the places where people start them: behind a proxy, with a closed umask, with
low limits, with signals ignored or blocked."""

import contextlib
import http.server
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

import httpx
import pytest

from flows import state_home
from flows.command_line import process_state
from tasks.errors import UsageError
from tests.faults.stub_checkout import PROFILE, StubCheckout
from tests.other_user import as_user

ROOT = Path(__file__).resolve().parents[2]

DEAD = "http://127.0.0.1:9"  # the port of `discard`: nobody listens
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
# What a hardened machine, a scheduler or a script hands down.
INHERITED = """
import os, resource, runpy, signal, sys
os.umask(0o077)
os.nice(1)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT))
runpy.run_module("flows.command_line.cli", run_name="__main__", alter_sys=True)
"""
SETTLED = """
import json, resource, signal, subprocess
from flows.command_line import process_state
process_state.settle()
print(json.dumps({
    "blocked": [*signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    "ignored": [n for n in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
                if signal.getsignal(n) == signal.SIG_IGN],
    "child": subprocess.run(["false"]).returncode,
    "files": resource.getrlimit(resource.RLIMIT_NOFILE),
}))
"""


class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def healthy():
    """The address of a server on 127.0.0.1 that answers everything."""
    with http.server.HTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(monkeypatch):
    """Sets proxies for this process; as an environment, for a command."""
    for name in (*PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.setenv(name, "")  # or what the code sets would stay after the test
        monkeypatch.delenv(name)
    # urllib keeps the proxies that it read at its first request
    monkeypatch.setattr(urllib.request, "_opener", None)

    def use(**proxies):
        for name, value in proxies.items():
            monkeypatch.setenv(name, value)

    return use


def settled(*shell: str) -> dict:
    """What a process is after `settle` that started below this shell command."""
    argv = ["bash", "-c", f'{"; ".join(shell)}; exec "$0" -c "$1"', sys.executable, SETTLED]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_signals_that_end_a_server_or_tell_of_a_child_work_again():
    ignored = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    # The tests themselves may run below a `nohup` or a script's `&`.
    ignored += "[signal.signal(n, signal.SIG_DFL) for n in (signal.SIGHUP, signal.SIGINT)]; "
    ignored += "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    ignored += "signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGCHLD)); "
    ignored += "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    argv = [sys.executable, "-c", ignored, SETTLED]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["blocked"], found["ignored"], found["child"]) == ([], [], 1)


def test_a_signal_that_is_ignored_on_purpose_stays_so():
    assert settled("trap '' HUP INT")["ignored"] == [signal.SIGINT, signal.SIGHUP]


@pytest.mark.parametrize(
    ("shell", "files"),
    [("ulimit -Sn 32", 4096), ("ulimit -n 300", 300), ("ulimit -Sn 32; ulimit -Hn 64", 64)],
)
def test_open_files_are_as_many_as_a_box_may_have_or_as_the_hard_limit_allows(shell, files):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY:
        files = min(files, hard)
    assert settled(shell)["files"][0] == files


@pytest.mark.parametrize(
    ("given", "then"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        (
            {"NO_PROXY": "corp.example, 10.0.0.0/8"},
            "corp.example,10.0.0.0/8,127.0.0.1,localhost,::1",
        ),
        ({"no_proxy": "localhost"}, "localhost,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_this_machine_is_asked_without_a_proxy(proxy, given, then):
    proxy(http_proxy=DEAD, **given)
    process_state.exempt_loopback()
    assert urllib.request.getproxies()["no"] == then
    assert urllib.request.proxy_bypass("127.0.0.1:4200")
    assert bool(urllib.request.proxy_bypass("example.org")) == (then == "*")


@pytest.mark.parametrize("client", ["httpx", "httpx2", "requests", "urllib"])
def test_no_client_of_ours_asks_the_proxy_for_this_machine(proxy, client):
    proxy(http_proxy=DEAD, all_proxy=DEAD)
    process_state.exempt_loopback()
    with healthy() as url:
        if client == "urllib":
            assert state_home.is_healthy(url)
        else:
            assert importlib.import_module(client).get(f"{url}/health").status_code == 200


@pytest.mark.parametrize(
    ("proxies", "said"),
    [
        ({"all_proxy": "socks5://u:secret@h:1"}, "all_proxy names a SOCKS proxy"),
        ({"HTTP_PROXY": "socks5h://h:1", "https_proxy": DEAD}, "http_proxy names a SOCKS proxy"),
    ],
)
def test_a_socks_proxy_is_refused_in_one_line(proxy, proxies, said):
    proxy(**proxies)
    with pytest.raises(UsageError, match=said) as refused:
        process_state.settle()
    assert "secret" not in str(refused.value)


def test_a_socks_proxy_that_nothing_would_use_is_left_out(proxy):
    proxy(http_proxy=DEAD, https_proxy=DEAD, all_proxy="socks5://h:1")
    process_state.settle()
    assert "all" not in urllib.request.getproxies()


def test_a_socks_proxy_from_which_everything_is_exempt_is_no_reason_to_refuse(proxy):
    proxy(all_proxy="socks5://h:1", NO_PROXY="*")
    process_state.settle()
    with healthy() as url:
        assert httpx.get(url).status_code == 200


def test_what_may_stop_a_night_is_named():
    code = "from flows.command_line import process_state; print(*process_state.findings(2**30))"
    argv = [sys.executable, "-c", code]
    limits = "ulimit -n 100 -t 900 -v 9000000 -f 5000000; exec nice -n 5 " + '"$@"'
    found = subprocess.run(
        ["bash", "-c", limits, "bash", *argv], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for said in (
        "-Hn allows 100",
        "-t ends a process after 900",
        "-v refuses more than 9216000000",
    ):
        assert said in found
    assert ("-f refuses files" in found, "at nice " in found) == (True, True)


def test_a_cgroup_with_less_memory_than_a_box_is_named(tmp_path, monkeypatch):
    """By made-up files of both versions: no other cgroup can be made here."""
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{3 * 2**30}\n")
    monkeypatch.setattr(process_state, "CGROUPS", tmp_path)
    assert [found for found in process_state.findings(2**31) if "cgroup" in found] == []
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (found,) = (found for found in process_state.findings(2**31) if "cgroup" in found)
    assert "at 1.0 GiB of memory, and a box alone may use 2.0 GiB" in found


@pytest.mark.slow
def test_a_night_runs_behind_a_proxy_with_a_closed_umask_low_limits_and_blocked_signals(
    tmp_path, warm, empty_store
):
    checkout = StubCheckout(tmp_path, warm=warm, store=empty_store)
    arguments = ["-c", INHERITED, "night", "--profile", PROFILE, "--tag", "t", "--trials", "1"]
    proxies = dict.fromkeys(("http_proxy", "HTTPS_PROXY", "all_proxy"), DEAD)
    environment = checkout.environment(**proxies, no_proxy="corp.example")
    with (tmp_path / "log").open("w") as log:
        code = checkout.start_python(arguments, log, environment).wait()
    assert code == 0, (tmp_path / "log").read_text()
    assert [event["event"] for event in checkout.ledger("t")][-1] == "finished"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.skipif(
    not Path(sys.prefix, ".nightly-stamp").exists(), reason="needs the environment of ./run"
)
def test_a_user_without_account_and_home_prepares_data(tmp_path):
    checkout = StubCheckout(tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 54321, 54321, follow_symlinks=False)
    stash = Path(tempfile.mkdtemp(dir="/run"))
    enter = as_user(54321, stash, sys.base_prefix, sys.prefix, tmp_path)
    argv = [*enter, str(tmp_path / "run"), "prepare", "--profile", str(tmp_path / PROFILE)]
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/"}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True)
    stash.rmdir()
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout.startswith("prepared stub: ")
    assert (checkout.home / "home").is_dir()
