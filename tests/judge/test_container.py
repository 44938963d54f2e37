"""The docker level: its argv, and its boxes by a fake docker and by the engine of this machine.

Without an engine the tests of the real one skip; tests/fake_docker.py says what the fake cannot
show.
"""

import io
import itertools
import os
import platform
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.judge import container, probe, seccomp
from tasks.judge.box import open_box
from tasks.judge.bwrap import BoxUnavailable, box_name, mounts
from tasks.judge.door import open_door
from tasks.judge.processes import process_tree
from tasks.records import Candidate, Caps
from tasks.trial import experiment
from tests import fake_docker
from tests.boxes import (
    HONEST,
    SAY,
    alive,
    answer,
    make_bench,
    make_dataset,
    make_spec,
    verdict,
)
from tests.faults.stub_torch import assemble_with_stub
from tests.judge.test_box import GATE

OWN_PATH = os.environ["PATH"]


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """An image of folders and links alone, in the engine of this machine."""
    if container.engine() is None:
        pytest.skip("no docker engine answers here")
    content, name = io.BytesIO(), f"nightly-test-{os.getpid()}"
    with tarfile.open(fileobj=content, mode="w") as tar:
        for folder in ("usr", "root", "tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o700 if folder == "root" else 0o755
            tar.addfile(entry)
        for link in ("bin", "sbin", "lib", "lib64"):
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{link}"
            tar.addfile(entry)
    made = ["docker", "import", "-", name]
    subprocess.run(made, input=content.getvalue(), check=True, capture_output=True)
    yield name
    subprocess.run(["docker", "image", "rm", name], check=True, capture_output=True)


@pytest.fixture(params=["a_fake_docker", "a_real_engine"])
def engine(request, monkeypatch) -> None:
    """Docker's stand-in, and the engine of this machine where it has one."""
    if request.param == "a_fake_docker":
        request.getfixturevalue("docker")
    else:
        monkeypatch.setenv("NIGHTLY_DOCKER_IMAGE", request.getfixturevalue("image"))


def containers(home: Path) -> str:
    """The containers that the engine has for a state folder, one a line."""
    ours = ["--filter", f"label=nightly={box_name(home)}", "--format", "{{.Names}}"]
    found = ["docker", "ps", "--all", *ours]
    return subprocess.run(found, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Puts a shell script on the PATH as docker."""

    def write(text: str) -> None:
        path = tmp_path / "scripts" / "docker"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{OWN_PATH}")

    return write


def argv_of(folder: Path, **changes) -> list[str]:
    with open_door(folder) as door:
        return container.command(
            make_spec(folder, isolation="docker", **changes), "a-name", door, ["-c", "pass"]
        )


def values(argv: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(argv) if name == option]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--network", ["none"]),
        ("--user", ["65534:65534"]),
        ("--cap-drop", ["ALL"]),
        ("--ipc", ["private"]),
        ("--pull", ["never"]),
        ("--log-driver", ["none"]),
        ("--pids-limit", ["40"]),
        ("--memory", [str((512 + 48) * 2**20)]),
        ("--memory-swap", [str((512 + 48) * 2**20)]),
        ("--shm-size", [str(16 * 2**20)]),
        ("--ulimit", ["core=0", "nofile=4096", f"fsize={16 * 2**20}"]),
        ("--workdir", ["/scratch"]),
        ("--name", ["a-name"]),
        ("--entrypoint", ["/bin/sh"]),
    ],
)
def test_the_argv_has_every_option_not_run_here(folder, option, value):
    assert values(argv_of(folder), option) == value


def test_the_filter_is_ours_not_run_here(folder):
    with open_door(folder, "cuda") as door:
        argv = container.command(make_spec(folder, isolation="docker"), "a-name", door, [])
        assert door.seccomp is not None
        assert door.seccomp.read_text() == seccomp.docker_profile(platform.machine(), "cuda")
    assert values(argv, "--security-opt") == ["no-new-privileges", f"seccomp={door.seccomp}"]


def test_the_root_is_read_only_and_removed_afterwards_not_run_here(folder):
    assert {"--rm", "--read-only"} <= set(argv_of(folder))


def test_every_tmpfs_has_a_size_not_run_here(folder):
    found = values(argv_of(folder), "--tmpfs")
    assert {line.partition(":")[0] for line in found} >= {"/tmp", "/scratch"}
    assert all("size=" in line for line in found)


def test_every_mount_is_a_read_only_bind_not_run_here(folder):
    found = values(argv_of(folder), "--mount")
    assert found
    assert all(line.startswith("type=bind,") and line.endswith(",readonly") for line in found)


def test_what_bubblewrap_mounts_is_mounted_at_the_same_places_not_run_here(folder):
    spec = make_spec(folder, isolation="docker")
    with open_door(folder) as door:
        argv = container.command(spec, "a-name", door, [])
    asked = {
        f"type=bind,source={source},target={target},readonly" for source, target in mounts(spec)
    }
    assert asked < set(values(argv, "--mount"))


def test_a_comma_in_a_path_stays_in_its_field_not_run_here(folder):
    (folder / "a,b").mkdir()
    argv = argv_of(folder / "a,b")
    assert f'type=bind,"source={folder}/a,b/code",target=/box,readonly' in values(argv, "--mount")


def test_no_variable_of_ours_gets_in_not_run_here(folder, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    found = values(argv_of(folder), "--env")
    assert all("=" in line for line in found)  # a bare name would pass on the host's value
    assert not any("sk-secret" in line or line.startswith("NIGHTLY_FD=") for line in found)
    assert "NIGHTLY_SOCKET=/wire/socket" in found


def test_proxies_of_the_clients_own_settings_are_blanked_not_run_here(folder):
    assert {"http_proxy=", "HTTP_PROXY=", "ALL_PROXY="} <= set(values(argv_of(folder), "--env"))


@pytest.mark.parametrize(("device", "nodes"), [("cpu", []), ("cuda", ["nvidia0", "nvidiactl"])])
def test_gpu_nodes_go_in_for_cuda_alone_not_run_here(folder, monkeypatch, device, nodes):
    monkeypatch.setattr("tasks.judge.gpu.DEV", folder)
    for name in ("nvidiactl", "nvidia0"):
        (folder / name).touch()
    found = values(argv_of(folder, device=device), "--device")
    assert found == [str(folder / name) for name in nodes]


def test_another_image_is_named_by_the_environment_not_run_here(folder, monkeypatch):
    monkeypatch.setenv("NIGHTLY_DOCKER_IMAGE", "registry.example/slim:1")
    assert "registry.example/slim:1" in argv_of(folder)
    assert container.IMAGE not in argv_of(folder / "code")


def caller(path: Path, then: str = "") -> "subprocess.Popen[bytes]":
    """A process that waits for a socket, connects, and ends."""
    code = (
        "import os, socket, sys, time\nwhile not os.path.exists('socket'): time.sleep(0.01)\n"
        f"wire = socket.socket(socket.AF_UNIX); wire.connect('socket'); {then}"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=path)


def test_a_door_opens_once(tmp_path):
    with open_door(tmp_path) as door, caller(door.wire, "wire.recv(1)") as client:
        wire = door.admit(client, time.monotonic() + 20)
        assert wire is not None
        assert list(door.wire.iterdir()) == []
        wire.close()


def test_a_caller_that_ends_at_once_is_let_in(tmp_path):
    for _ in range(5):
        with open_door(tmp_path) as door, caller(door.wire) as client:
            wire = door.admit(client, time.monotonic() + 20)
            assert wire is not None
            wire.close()


def test_nobody_is_let_in_for_a_client_that_ended(tmp_path):
    with open_door(tmp_path) as door, subprocess.Popen(["true"]) as client:
        assert door.admit(client, time.monotonic() + 20) is None


def test_the_path_of_a_door_may_be_longer_than_a_socket_address(tmp_path):
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    with open_door(deep) as door, caller(door.wire) as client:
        assert len(str(door.wire / "socket")) > 108
        wire = door.admit(client, time.monotonic() + 20)
        assert wire is not None
        wire.close()


def test_other_users_cannot_reach_the_door_and_nothing_of_it_is_left(tmp_path):
    with open_door(tmp_path) as door:
        assert door.folder.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == []


def test_the_probe_passes_by(folder, engine):
    found = probe.probe(folder / "home", isolation="docker")
    assert [(name, detail) for name, holds, detail in found if not holds] == []


def test_the_fixed_harness_connects_from_its_container_by(folder, engine):
    code = "import sys; from trainer import harness; harness.enter()"
    spec = make_spec(folder, isolation="docker", code=Path(__file__).resolve().parents[2])
    with open_box(spec, ["-c", code]) as box:
        assert answer(box)["msg"] == "up"


def test_the_gate_opens_for_a_running_container_by(folder, engine):
    spec = make_spec(folder, isolation="docker")
    with open_box(spec, ["-c", GATE]) as box:
        assert answer(box) == "closed"
        spec.gate.open()
        box.wire.send(b"g")
        assert answer(box) == "rows"


def test_a_container_ends_with_its_block_by(folder, engine):
    with open_box(
        make_spec(folder, isolation="docker"), ["-c", SAY + "say(1); time.sleep(600)"]
    ) as box:
        answer(box)
        tree = process_tree(box.watchdog.root)
        assert len(tree) >= 2
    assert alive(tree) == []
    assert containers(folder) == ""
    assert list(folder.glob("door-*")) == []


def test_the_client_passes_on_the_log_and_the_exit_code_by(folder, engine):
    with open_box(
        make_spec(folder, isolation="docker"), ["-c", SAY + "print('last words'); sys.exit(7)"]
    ) as box:
        assert box.process.wait() == 7
        box.kill()
        assert box.log.text() == "last words\n"


def test_the_exit_code_of_a_killed_interpreter_is_137_by(folder, engine):
    with open_box(
        make_spec(folder, isolation="docker"), ["-c", SAY + "os.kill(os.getpid(), 9)"]
    ) as box:
        assert box.process.wait() == 137


def test_the_watchdog_ends_the_container_and_gives_the_reason_by(folder, engine):
    code = SAY + (
        "\nfor _ in range(60):\n    try:\n        if os.fork() == 0: break\n"
        "    except BlockingIOError: break  # the engine's own limit is a little higher\n"
        "time.sleep(600)"
    )
    with open_box(make_spec(folder, isolation="docker"), ["-c", code]) as box:
        assert verdict(box)[0] == "too_many_tasks"


def test_cpu_seconds_are_the_containers_and_not_the_clients_by(folder, engine):
    code = SAY + (
        "\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass\n"
        "say(1); wire.recv(1)"
    )
    with open_box(make_spec(folder, isolation="docker"), ["-c", code]) as box:
        answer(box)
        assert box.watchdog.cpu_seconds() >= 0.5


def test_a_container_that_survives_is_an_error_by_a_fake_docker(folder, docker, monkeypatch):
    monkeypatch.setattr(container, "REPLY_SECONDS", 1.0)
    with open_box(
        make_spec(folder, isolation="docker"), ["-c", SAY + "say(1); time.sleep(600)"]
    ) as box:
        answer(box)
        (docker / "deaf").touch()
        with pytest.raises(BoxUnavailable, match="survived `docker kill`"):
            box.kill()
        (docker / "deaf").unlink()


@pytest.mark.parametrize("said", ["0", "1", "99999999", "<no value>"])
def test_an_engine_with_processes_of_another_machine_is_refused_by_a_fake_docker(script, said):
    script(f"echo '{said}'")  # process 1 exists here, but is not the container's
    with subprocess.Popen(["sleep", "60"]) as client:
        with pytest.raises(BoxUnavailable, match="Use an engine on this machine"):
            container.find("a-name", client, time.monotonic() + 0.3)
        client.kill()


def test_the_error_of_a_container_that_does_not_start_has_dockers_reason_by_a_fake_docker(
    folder, script
):
    script(
        'case $1 in run) echo "invalid mount config" >&2; exit 125;; esac\n'
        'echo "No such container" >&2; exit 1'
    )
    with (
        pytest.raises(BoxUnavailable, match="invalid mount config"),
        open_box(make_spec(folder, isolation="docker")),
    ):
        pass
    assert list(folder.glob("door-*")) == []


CAPS = Caps(
    cpu_seconds=None, wall_seconds=60.0, startup_seconds=60.0, audit_gap=1e-3, audit_position=0.05
)


@pytest.fixture
def stub_torch(monkeypatch):
    monkeypatch.setattr(experiment, "assemble", assemble_with_stub)


def run(source, folder):
    """An audited run of a candidate in containers."""
    return experiment.run_experiment(
        Candidate.parse(source),
        make_bench(
            make_dataset(folder / "dataset"), folder / "home", caps=CAPS, isolation="docker"
        ),
        seed=1,
        worth_audit=lambda _: True,
        smoke=True,
    )


@pytest.mark.usefixtures("stub_torch")
def test_an_honest_candidate_is_trained_scored_and_audited_by(folder, engine):
    result = run(HONEST, folder)
    assert (result.status, result.isolation) == ("ok", "docker"), result.reason
    assert result.val_bpb == pytest.approx(8.0, rel=1e-6)
    assert containers(folder / "home") == ""


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("def (", "startup_crashed"),
        ("import os; os._exit(3)", "startup_crashed"),
        ("import os; os.kill(os.getpid(), 9)", "out_of_memory"),
    ],
)
def test_a_candidate_that_ends_at_once_is_blamed_by(folder, engine, source, status):
    assert run(source, folder).status == status


def test_sweep_ends_containers_whose_judge_was_killed_and_no_others_by(folder, engine):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom tasks.judge.box import open_box\n"
        "from tests.boxes import make_spec\n"
        "spec = make_spec(Path(sys.argv[1]), isolation='docker')\n"
        "with open_box(spec, ['-c', sys.argv[2]]) as box:\n"
        "    box.wire.recv(1); print(box.container.name, flush=True); time.sleep(600)"
    )
    sleeper = SAY + "say(1); time.sleep(600)"
    lost = folder / "lost"
    lost.mkdir()
    argv = [sys.executable, "-c", code, str(lost), sleeper]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=fake_docker.ROOT) as judge:
        assert judge.stdout is not None
        name = judge.stdout.readline().strip()
        assert container.sweep(lost) == []  # its judge lives
        judge.kill()
    try:
        assert container.sweep(folder) == []  # another state folder's
    finally:
        assert container.sweep(lost) == [name]
        (lost / "gate").chmod(0o755)
    assert container.sweep(lost) == []


def test_names_are_unique_and_begin_with_that_of_the_state_folder(tmp_path):
    names = {container.new_name(tmp_path) for _ in range(10)}
    assert len(names) == 10
    assert all(name.startswith(f"{box_name(tmp_path)}-") for name in names)


def test_the_error_without_an_engine_names_the_remedy_by_a_fake_docker(folder, script):
    script('echo "Cannot connect to the Docker daemon" >&2; exit 1')
    assert container.engine() is None
    ((name, holds, detail),) = probe.probe(folder / "home", isolation="docker")
    assert (name, holds) == ("a box starts", False)
    assert "docker info" in detail


def test_without_docker_there_is_no_engine(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert container.engine() is None


def test_an_image_that_cannot_be_pulled_is_an_error_by_a_fake_docker(script):
    script('case $1 in version) echo 1;; *) echo "manifest unknown" >&2; exit 1;; esac')
    with pytest.raises(BoxUnavailable, match=r"manifest unknown.*NIGHTLY_DOCKER_IMAGE"):
        container.prepare()


def test_an_image_with_volumes_is_refused_by_a_fake_docker(script):
    script("case $1 in version) echo 1;; *) echo /var/lib/x;; esac")
    with pytest.raises(BoxUnavailable, match="/var/lib/x"):
        container.prepare()


def test_an_engine_that_hangs_is_an_error_by_a_fake_docker(script, monkeypatch):
    script("exec sleep 60")
    with pytest.raises(BoxUnavailable, match="has not answered for 0 s"):
        container._docker("ps", seconds=0.1)
