"""The doctor's checks against real files, repositories and HTTP servers."""

import contextlib
import http.server
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

import configs
from flows.command_line import doctor
from tasks.history import earlier_noise
from tasks.judge import nvml, probe
from tasks.trial import device_lock, device_readiness, hardware
from tasks.trial.baseline_facts import facts_before_data
from tests.made_up_gpu import Driver
from tests.trials import make_baseline, make_state

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-do-not-show"


@contextlib.contextmanager
def http_server(status=200, body="", headers=(), post=501):
    """An address that answers all GETs alike and all POSTs, and the requests that it got."""
    asked = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def do_POST(self):
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(post)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def nobody():
    """An address at which nobody listens."""
    with http_server() as (url, _):
        pass
    return url


def git(folder, *arguments):
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "train.py").write_text("DEPTH = 3\n")
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "start")
    return tmp_path


def test_too_little_disk_names_the_need(tmp_path):
    check = doctor.check_disk(tmp_path, 2**60)
    assert check.ok is False
    assert "1073741824 GiB are needed" in check.remedy


def test_a_home_that_cannot_be_written_fails(tmp_path):
    check = doctor.check_disk(tmp_path / "missing", 0)
    assert (check.ok, "cannot be written" in check.detail) == (False, True)


def test_enough_disk_is_ok_and_leaves_nothing(tmp_path):
    assert doctor.check_disk(tmp_path, 1).ok is True
    assert list(tmp_path.iterdir()) == []


def test_git_names_branch_and_state(repository):
    found = doctor.check_git(repository)
    assert (found.ok, found.detail[:8], found.detail[-7:]) == (True, "main at ", ", clean")


def test_a_dirty_detached_checkout_is_no_failure(repository):
    git(repository, "checkout", "-q", "--detach")
    (repository / "trainer" / "train.py").write_text("DEPTH = 4\n")
    found = doctor.check_git(repository)
    assert (found.ok, found.detail[:18]) == (True, "a detached HEAD at")
    assert found.detail.endswith("your uncommitted trainer/train.py")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_checkout_of_another_user_is_no_failure_as_it_is_none_for_a_night(repository):
    for path in (repository, *repository.rglob("*")):
        os.chown(path, 54321, 54321)
    assert doctor.check_git(repository).ok is True


def test_a_folder_without_git_fails(tmp_path):
    found = doctor.check_git(tmp_path)
    assert (found.ok, "Clone the project with git" in found.detail) == (False, True)


def test_a_store_that_does_not_exist_yet_is_ok(tmp_path):
    assert doctor.check_mlflow(f"sqlite:///{tmp_path}/mlflow.db").ok is True
    assert list(tmp_path.iterdir()) == []


def test_the_schema_of_a_store_is_shown(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        connection.execute("create table alembic_version (version_num text)")
        connection.execute("insert into alembic_version values ('abc123')")
    check = doctor.check_mlflow(f"sqlite:///{tmp_path}/mlflow.db")
    assert (check.ok, "abc123" in check.detail) == (True, True)


@pytest.mark.parametrize("content", [b"this is no database" * 100, b""])
def test_a_file_that_is_no_store_fails(tmp_path, content):
    (tmp_path / "mlflow.db").write_bytes(content)
    check = doctor.check_mlflow(f"sqlite:///{tmp_path}/mlflow.db")
    assert (check.ok, "move the file away" in check.remedy) == (False, True)


def test_an_mlflow_server_is_asked_for_its_health():
    with http_server(body="OK") as (url, asked):
        assert doctor.check_mlflow(url).ok is True
    assert asked == [("/health", None)]


def test_an_mlflow_server_that_is_down_fails_without_its_password(nobody):
    check = doctor.check_mlflow(nobody.replace("//", f"//me:{KEY}@"))
    assert check.ok is False
    assert KEY not in check.detail + check.remedy


def test_no_prefect_server_is_no_failure():
    assert doctor.check_prefect(None).ok is None


@pytest.mark.parametrize(("status", "ok"), [(200, True), (503, False)])
def test_a_prefect_server_is_asked_for_its_health(status, ok):
    with http_server(status, body="true") as (url, asked):
        check = doctor.check_prefect(f"{url}/api")
    assert (check.ok, "true" in check.detail) == (ok, False)
    assert asked == [("/api/health", None)]


def test_a_prefect_server_that_is_down_fails(nobody):
    check = doctor.check_prefect(f"{nobody}/api")
    assert (check.ok, "./run server" in check.remedy) == (False, True)


def test_what_earlier_nights_know_of_the_noise_is_shown(tmp_path):
    laptop = configs.load("laptop")
    (check,) = doctor.check_noise(tmp_path, laptop)
    assert check.detail.startswith("not measured yet with this profile")
    measured = make_baseline(
        hardware=hardware.describe(laptop.device, laptop.threads),
        facts={**facts_before_data(laptop), "train.py": "ab", "dataset": "d5"},
    )
    for tag in ("nov19", "nov20"):  # they share a cached baseline
        night = make_state(header={"tag": tag}, baseline=measured)
        earlier_noise.record(tmp_path, night)
    (tmp_path / "data" / "noise" / "nov18.json").write_text("{")
    damaged, known = doctor.check_noise(tmp_path, laptop)
    assert (damaged.ok, known.ok) == (None, None)
    assert "nov18.json cannot be read" in damaged.detail
    assert known.detail == "sd 0.01 of one run, 2 degrees of freedom, from 2 nights"


def test_no_endpoint_is_no_failure():
    assert doctor.check_llm(None, None).ok is None


def test_an_endpoint_is_asked_for_its_models_with_the_key():
    with http_server(body='{"data": [{"id": "small"}, {"id": "large"}]}') as (url, asked):
        check = doctor.check_llm(f"{url}/v1/", KEY)
    assert asked == [("/v1/models", f"Bearer {KEY}")]
    assert (check.ok, "2 models: small, large" in check.detail) == (True, True)


def test_an_endpoint_without_a_key_gets_none():
    with http_server(body='{"data": []}') as (url, asked):
        assert doctor.check_llm(url, None).ok is True
    assert asked == [("/models", None)]


@pytest.mark.parametrize(
    ("status", "body", "ok"),
    [
        (401, "", False),
        (500, "", False),
        (404, "", None),
        (200, "<html>", False),
        (200, "[]", False),
        (200, "{}", False),
    ],
)
def test_other_answers_of_an_endpoint(status, body, ok):
    with http_server(status, body) as (url, _):
        check = doctor.check_llm(url, KEY)
    assert check.ok is ok
    assert KEY not in check.detail + check.remedy


@pytest.mark.parametrize(
    ("listed", "ok", "said"),
    [
        ("gpt-a", True, "3 models, among them gpt-a"),
        ("models/gpt-a", True, "3 models, among them gpt-a"),
        ("gpt-a:latest", True, "3 models, among them gpt-a"),
        ("gpt-ab", False, "3 models, and gpt-a is not one of them: gpt-ab"),
        ("other\\u001b[2J", False, "not one of them: small, large, other [2J"),
    ],
)
def test_the_model_of_the_profile_must_be_on_the_list(listed, ok, said):
    with http_server(
        body=f'{{"data": [{{"id": "small"}}, {{"id": "large"}}, {{"id": "{listed}"}}]}}'
    ) as (url, _):
        check = doctor.check_llm(url, KEY, "gpt-a")
    assert (check.ok, check.detail.endswith(said)) == (ok, True), check.detail


def test_an_endpoint_without_models_fails_for_a_named_model():
    with http_server(body='{"data": []}') as (url, _):
        assert doctor.check_llm(url, KEY, "m").detail.endswith(
            "0 models, and m is not one of them: there are none"
        )


@pytest.mark.parametrize(
    ("path", "answered", "ok", "said"),
    [
        ("", 404, False, "has no chat completions, and its address does not end in /v1"),
        ("/v1", 404, False, "has no chat completions"),
        ("/v1", 405, False, "has no chat completions"),
        ("/v1", 400, None, "answers 404"),
        ("/v1", 401, None, "answers 404"),
    ],
)
def test_without_a_list_of_models_chat_completions_are_tried(path, answered, ok, said):
    with http_server(404, post=answered) as (url, asked):
        check = doctor.check_llm(f"{url}{path}", KEY)
    assert asked == [(f"{path}/{name}", f"Bearer {KEY}") for name in ("models", "chat/completions")]
    assert (check.ok, check.detail.endswith(said)) == (ok, True), check.detail


def checked(monkeypatch, url=None, key=None, **tables):
    """The checks of a profile's proposer in this environment."""
    for name, value in (("OPENAI_BASE_URL", url), ("OPENAI_API_KEY", key)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    profile = configs.load("laptop").model_dump()
    changed = {name: {**profile[name], **table} for name, table in tables.items()}
    return [
        (check.name, check.ok, check.detail)
        for check in doctor.check_proposer(configs.Profile(**{**profile, **changed}))
    ]


def test_a_night_of_tpe_needs_no_model_and_no_agent(monkeypatch):
    ((name, ok, _),) = checked(monkeypatch)
    assert (name, ok) == ("llm", None)


@pytest.mark.parametrize("proposer", ["llm", "mixed"])
def test_the_endpoint_must_have_the_model_of_the_profile(monkeypatch, proposer):
    with http_server(body='{"data": [{"id": "small"}]}') as (url, _):
        told = [
            checked(monkeypatch, url, night={"proposer": proposer}, llm={"model": model})
            for model in ("small", "big")
        ]
    assert [ok for ((_, ok, _),) in told] == [True, False]


def test_a_model_proposer_needs_a_model_and_a_key(monkeypatch):
    (first, second) = checked(monkeypatch, night={"proposer": "llm"})
    assert (first[:2], "no model to ask" in first[2], second[1]) == (
        ("proposer llm", False),
        True,
        None,
    )
    (first, _) = checked(monkeypatch, night={"proposer": "llm"}, llm={"model": "m"})
    assert (first[1], "OPENAI_API_KEY is not set" in first[2]) == (False, True)


@pytest.mark.parametrize(
    ("argv", "name", "ok", "said"),
    [
        (("sh", "-c", "true"), "command", True, "sh is installed"),
        (("no-such-agent",), "proposer command", False, "there is no program 'no-such-agent' here"),
        ((), "proposer command", False, "needs [command] argv"),
    ],
)
def test_the_program_of_an_agent_must_be_installed(monkeypatch, argv, name, ok, said):
    (found, _) = checked(monkeypatch, night={"proposer": "command"}, command={"argv": argv})
    assert (found[:2], said in found[2]) == ((name, ok), True)


def test_a_redirect_does_not_get_the_key():
    with (
        http_server(body='{"data": []}') as (elsewhere, asked),
        http_server(302, headers=[("Location", f"{elsewhere}/models")]) as (url, _),
    ):
        assert doctor.check_llm(url, KEY).ok is False
    assert asked == []


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "localhost:8000", "http://[", "http://127.0.0.1:99999", "http://a:b"],
)
def test_an_invalid_address_fails_without_a_traceback(url):
    assert doctor.check_llm(url, KEY).ok is False


def test_a_key_that_cannot_be_sent_is_not_shown(nobody):
    check = doctor.check_llm(nobody, f"{KEY}\n")
    assert check.ok is False
    assert KEY not in check.detail + check.remedy


def test_a_missing_device_fails_with_the_remedy():
    import torch

    device = "mps" if torch.cuda.is_available() else "cuda"
    check = doctor.check_torch(device)
    assert (check.ok, "TORCH_INDEX" in check.remedy) == (False, True)


def marks(home, wanted):
    """{name: ok} of the lines on isolation, and the detail of the last, which is on docker."""
    found = list(doctor.check_isolation(home, "cpu", wanted))
    return {check.name: check.ok for check in found}, found[-1].detail


@pytest.mark.usefixtures("docker")
def test_docker_is_not_needed_where_bubblewrap_holds(tmp_path):
    found, said = marks(tmp_path, "auto")
    assert found.pop("docker") is None
    assert set(found.values()) == {True}
    assert not any(name.startswith("docker, ") for name in found)
    assert said == "engine 0.0.fake answers; not needed: bubblewrap's box holds"


@pytest.mark.usefixtures("without_bwrap", "docker")
def test_bubblewrap_may_fail_where_a_container_holds_by_a_fake_docker(tmp_path):
    found, said = marks(tmp_path, "auto")
    assert found["isolation, a box starts"] is None
    assert found["docker, a box starts"] is True
    assert False not in found.values()
    assert said == "engine 0.0.fake answers"


@pytest.mark.usefixtures("without_bwrap", "no_engine")
def test_without_box_and_engine_there_is_one_failure(tmp_path):
    assert marks(tmp_path, "auto") == (
        {"isolation, a box starts": False, "docker": None},
        "no engine answers",
    )


@pytest.mark.usefixtures("no_engine")
def test_an_engine_that_the_profile_names_is_needed(tmp_path):
    assert marks(tmp_path, "docker") == (
        {"docker, a box starts": False, "docker": None},
        "no engine answers",
    )


@pytest.fixture
def gpu_profile(tmp_path, monkeypatch):
    """The laptop's profile for a GPU, which nothing here has."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return configs.load("laptop").model_copy(update={"device": "cuda"})


@pytest.fixture
def build(monkeypatch):
    """PyPI's build of torch, made up: its CUDA runtime needs driver 580.65.06."""
    made_up = device_readiness.TorchBuild("2.13.0", "13.0", None)
    monkeypatch.setattr(device_readiness, "torch_build", lambda: made_up)


def driver_and_compiler():
    return {check.name: check for check in doctor.check_driver_and_compiler()}


def test_no_driver_is_said_with_the_remedy_by_a_library_that_is_not_there(monkeypatch, build):
    monkeypatch.setattr(nvml, "LIBRARY", "libnothing-like-that.so.1")
    line = driver_and_compiler()["driver"]
    assert (line.ok, "libnothing-like-that.so.1" in line.detail) == (False, True)
    assert "install NVIDIA's driver" in line.remedy


def test_an_old_driver_is_told_the_torch_build_that_fits_by_a_made_up_one(
    monkeypatch, capsys, tmp_path, gpu_profile, build
):
    made_up = Driver(driver="535.183.01")
    monkeypatch.setattr(nvml, "driver", lambda ask=nvml.driver: ask(made_up))
    assert doctor.run(tmp_path, gpu_profile) == 1
    printed = capsys.readouterr().out
    line, remedy = printed[printed.index("FAIL  driver") :].splitlines()[:2]
    assert "NVIDIA 535.183.01 is too old" in line
    assert "CUDA runtime 13.0" in line
    assert "TORCH_INDEX=https://download.pytorch.org/whl/cu126 in .env" in remedy
    assert "ok    isolation, a box starts" in printed
    assert "GPU" not in printed  # torch has said already that it cannot use one


def test_no_gcc_is_said_with_the_remedy_by_an_empty_path(monkeypatch, tmp_path):
    monkeypatch.setattr(device_readiness, "COMMANDS", str(tmp_path))
    line = driver_and_compiler()["compiler"]
    assert (line.ok, line.remedy) == (False, "apt install gcc")


def test_a_gpu_that_a_box_cannot_use_is_said_with_the_remedy(gpu_profile, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (check,) = doctor.check_gpu(tmp_path, gpu_profile, "bwrap")
    assert (check.name, check.ok) == ("GPU, start", False)
    assert "CUDA" in check.detail
    assert check.remedy


def test_a_gpu_on_which_a_night_trains_is_left_alone(gpu_profile, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with device_lock.held(tmp_path, "cuda-0", "night nov21"):
        (check,) = doctor.check_gpu(tmp_path, gpu_profile, "bwrap")
    assert (check.name, check.ok) == ("GPU", None)
    assert "night nov21 is running" in check.detail


@pytest.fixture
def no_namespaces(monkeypatch):
    """A bubblewrap that fails as the real one does where there are no user namespaces."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a box's user can reach it
        bwrap = Path(folder, "bwrap")
        bwrap.write_text(
            "#!/bin/sh\necho 'bwrap: No permissions to create new namespace, likely because the "
            "kernel does not allow non-privileged user namespaces.' >&2\nexit 1\n"
        )
        for path, mode in ((Path(folder), 0o755), (bwrap, 0o755)):
            path.chmod(mode)
        monkeypatch.setattr("tasks.judge.bwrap.find_bwrap", lambda: bwrap)
        yield


@pytest.mark.usefixtures("no_namespaces", "no_engine")
@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("RUNPOD_POD_ID", "This is a container rented from RunPod"),
        ("VAST_CONTAINERLABEL", "This is a container rented from Vast.ai"),
    ],
)
def test_a_rented_container_is_told_what_remains_by_a_bubblewrap_that_always_fails(
    tmp_path, monkeypatch, variable, said
):
    for name in probe.RENTED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "x")
    (check, _) = doctor.check_isolation(tmp_path, "cpu", "auto")
    assert check.ok is False
    assert said in check.detail
    assert "a virtual machine or bare metal" in check.detail
    assert "--allow-unsandboxed" in check.remedy


@pytest.mark.usefixtures("no_namespaces", "no_engine")
def test_a_machine_without_user_namespaces_is_told_how_by_a_bubblewrap_that_always_fails(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(probe, "_container", lambda: None)
    (check, _) = doctor.check_isolation(tmp_path, "cpu", "auto")
    assert check.ok is False
    assert "kernel.apparmor_restrict_unprivileged_userns=0" in check.detail


@pytest.fixture
def environment(tmp_path):
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PREFECT_", "MLFLOW_", "NIGHTLY_", "OPENAI_"))
    }
    return {**kept, "NIGHTLY_HOME": str(tmp_path)}


def run_doctor(environment):
    argv = [sys.executable, "-m", "flows.command_line.cli", "doctor"]
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_command_passes_and_leaves_nothing(environment, tmp_path):
    done = run_doctor(environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in (
        "python",
        "torch",
        "isolation, a box starts",
        "disk",
        "git",
        "mlflow",
        "prefect",
        "llm",
    ):
        assert f"  {name}: " in done.stdout
    assert "FAIL" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_command_exits_1_and_gives_the_remedy(environment, nobody):
    done = run_doctor(
        {
            **environment,
            "PREFECT_API_URL": f"{nobody}/api",
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": nobody,
        }
    )
    assert done.returncode == 1
    assert done.stdout.endswith("2 failed\n")
    assert "      start it (./run server), or unset PREFECT_API_URL" in done.stdout
    assert KEY not in done.stdout + done.stderr
