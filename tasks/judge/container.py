"""The box where bubblewrap cannot make one: a container of its own, through the docker command line.

What is in it is what is in a bubblewrap box, at the same places. The image is only a skeleton: the host's /usr covers its
own, since the interpreter and its packages were built against the host's libraries (an older libc or a missing libffi in
the image would break them, another libm would move scores), and the compilers come along. That rules two options out:
`--init` mounts its binary below /usr, where nothing can be made (a shell is the first process and reaps), and `--gpus` puts
driver libraries where the host's own lie and fails on them ("file exists", NVIDIA/nvidia-container-toolkit #289), so the
device nodes are passed as bubblewrap gets them. Docker's default seccomp profile stays on.

The wire is a unix socket that the first process connects to: a container inherits no descriptor. The engine must run on
this kernel, as the judge's clock reads CPU-seconds from /proc; a remote one or one in a virtual machine is refused.
A container outlives a kill -9 of the judge, without network and within its limits, until `sweep` at the next start.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from tasks.judge import gpu
from tasks.judge.bwrap import BoxSpec, BoxUnavailable, box_name, environment, mounts
from tasks.judge.door import Door
from tasks.judge.processes import ProcessId

IMAGE = "debian:12.11-slim"  # NIGHTLY_DOCKER_IMAGE names another; any with glibc's /lib, /lib64 and /bin linked into /usr
USER = "65534:65534"
REPLY_SECONDS = 60.0  # of patience with the engine; a busy one removes a container slowly
PULL_SECONDS = 600.0
START_SECONDS = 60.0  # docker run to its first process, and to the connection
SPARE_TASKS = 8  # above the watchdog's limit, so that it is the watchdog that says why
# A shell that waits until it is found, and stays: it reaps orphans and passes 128 + signal on.
FIRST_PROCESS = 'while [ ! -S /wire/socket ]; do sleep 0.02; done; "$@"; exit $?'
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")


@dataclasses.dataclass(frozen=True)
class Container:
    """A running container."""

    name: str
    process: ProcessId  # its first process, as this machine sees it


def image() -> str:
    return os.environ.get("NIGHTLY_DOCKER_IMAGE") or IMAGE


def engine() -> str | None:
    """The engine's version; None where no engine answers."""
    try:
        found = _docker("version", "--format", "{{.Server.Version}}")
    except BoxUnavailable:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def prepare() -> str:
    """Sees to an engine and its image, and returns a line about them. Raises BoxUnavailable with the remedy."""
    version = engine()
    if version is None:
        raise BoxUnavailable(
            "no docker engine answers: install and start one on this machine and let this user reach its socket "
            "(`docker info` must work), or use isolation = 'bwrap'"
        )
    if not Path("/lib").is_symlink():
        raise BoxUnavailable(
            "/lib is a folder here: the docker level covers the image's /usr with a /usr that holds it all"
        )
    if _docker("image", "inspect", image()).returncode != 0:
        pulled = _docker("pull", "--quiet", image(), seconds=PULL_SECONDS)
        if pulled.returncode != 0:
            raise BoxUnavailable(
                f"the image {image()} is not here and cannot be pulled: {_last(pulled)}. "
                "`docker load` it, or name another in NIGHTLY_DOCKER_IMAGE"
            )
    volumes = _docker(
        "image",
        "inspect",
        "--format",
        "{{range $path, $_ := .Config.Volumes}}{{$path}} {{end}}",
        image(),
    )
    if volumes.returncode != 0:
        raise BoxUnavailable(f"the engine does not describe the image {image()}: {_last(volumes)}")
    if paths := volumes.stdout.strip():
        raise BoxUnavailable(
            f"the image {image()} declares volumes, {paths}: they would be writable disk. Name another"
        )
    return f"docker {version}, {image()}"


def new_name(home: Path) -> str:
    """A container's name: no two are equal, and all of one state folder begin with its box name."""
    return f"{box_name(home)}-{secrets.token_hex(6)}"


def command(spec: BoxSpec, name: str, door: Door, python: list[str]) -> list[str]:
    """The argv of one box. `python` is what its interpreter is given."""
    size = spec.tmp_bytes
    argv = [
        "docker",
        "run",
        "--rm",
        "--pull",
        "never",
        "--name",
        name,
        "--hostname",
        box_name(spec.home),
    ]
    argv += [
        "--label",
        f"nightly={box_name(spec.home)}",
        "--label",
        f"nightly-judge={ProcessId.current()}",
    ]
    argv += [
        "--network",
        "none",
        "--ipc",
        "private",
        "--cgroupns",
        "private",
        "--log-driver",
        "none",
    ]
    argv += [
        "--read-only",
        "--user",
        USER,
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
    ]
    memory = spec.memory_bytes + 3 * size  # what lies in a tmpfs counts here, not with the watchdog
    argv += [
        "--memory",
        str(memory),
        "--memory-swap",
        str(memory),
        "--pids-limit",
        str(spec.tasks + SPARE_TASKS),
    ]
    argv += [
        "--ulimit",
        "core=0",
        "--ulimit",
        "nofile=4096",
        "--ulimit",
        f"fsize={size}",
        "--shm-size",
        str(size),
    ]
    for target in (
        "/tmp",
        "/scratch",
    ):  # docker's own default is noexec, and compiled kernels are loaded from there
        argv += ["--tmpfs", f"{target}:rw,exec,nosuid,nodev,size={size},mode=1777"]
    argv += _mount_options(spec, door)
    if spec.device == "cuda":
        for node in gpu.nodes():
            argv += ["--device", str(node)]
    inside = environment(spec, -1) | {"NIGHTLY_SOCKET": "/wire/socket"}
    del inside["NIGHTLY_FD"]
    for proxy in PROXIES:  # the client would pass on those of its config.json, passwords and all
        inside |= {proxy: "", proxy.upper(): ""}
    for key, value in inside.items():
        argv += ["--env", f"{key}={value}"]
    argv += ["--workdir", "/scratch", "--entrypoint", "/bin/sh", image()]
    return [*argv, "-c", FIRST_PROCESS, name, "/venv/bin/python", *python]


def _mount_options(spec: BoxSpec, door: Door) -> list[str]:
    """Read-only binds: the host's /usr and what the loader needs of /etc, then a bubblewrap box's own, wire and venv."""
    binds = [(Path("/usr"), "/usr"), *mounts(spec), (door.wire, "/wire"), (door.venv, "/venv/bin")]
    for name in ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives"):
        if (path := Path("/etc", name)).exists():
            binds.append((path, str(path)))
    options: list[str] = []
    base = Path(sys.base_prefix).resolve()
    if not base.is_relative_to(
        "/usr"
    ):  # it may lie below what the image keeps to its root, as /root is
        options += ["--tmpfs", f"/{base.parts[1]}:rw,nosuid,nodev,size=1m,mode=0755"]
    for source, target in binds:
        line = (
            io.StringIO()
        )  # the option is a line of CSV; --volume could not hold a colon, and makes missing sources
        csv.writer(line, lineterminator="").writerow(
            ["type=bind", f"source={source}", f"target={target}", "readonly"]
        )
        options += ["--mount", line.getvalue()]
    return options


def find(name: str, client: subprocess.Popen[bytes], deadline: float) -> Container | None:
    """The container as this machine's /proc shows it, once it waits for its door; None if `client` ended before that.

    Nothing of a candidate's runs yet, so that one that crashes at once is still found. Raises BoxUnavailable.
    """
    said = "not there"
    while time.monotonic() < deadline:
        ended = client.poll() is not None
        found = _docker("container", "inspect", "--format", "{{.State.Pid}}", name)
        if found.returncode == 0 and (said := found.stdout.strip()).isdigit():
            with contextlib.suppress(OSError):  # no such process
                process = ProcessId.of(int(said))
                if name.encode() in Path(f"/proc/{said}/cmdline").read_bytes().split(b"\0"):
                    return Container(name, process)
        if ended:
            return None
        time.sleep(0.02)
    raise BoxUnavailable(
        f"to the engine the container's first process is {said}, which is no such process here: the judge cannot measure it. "
        "Use an engine on this machine, outside any virtual machine or container"
    )


def end(name: str) -> None:
    """Kills and removes a container and waits until it is gone. Raises BoxUnavailable if it is not."""
    deadline = time.monotonic() + REPLY_SECONDS
    while not _gone(name):
        if time.monotonic() > deadline:
            raise BoxUnavailable(
                f"the container {name} outlived `docker kill` by {REPLY_SECONDS:.0f} s: look at `docker ps`"
            )
        kill(name)
        _docker("rm", "--force", name)


def kill(name: str) -> None:
    """SIGKILL for all of it; one that has ended by itself is no error."""
    _docker("kill", name)


def _gone(name: str) -> bool:
    found = _docker("container", "inspect", "--format", "{{.State.Running}}", name)
    if found.returncode != 0 and "no such" not in found.stderr.lower():
        raise BoxUnavailable(
            f"the engine does not say whether the container {name} runs: {_last(found)}"
        )
    return found.returncode != 0


def sweep(home: Path) -> list[str]:
    """Ends the containers of this state folder whose judge is gone, and names them. Raises BoxUnavailable."""
    lines = (
        "--filter",
        f"label=nightly={box_name(home)}",
        "--format",
        '{{.Names}} {{.Label "nightly-judge"}}',
    )
    found = _docker("ps", "--all", *lines)
    if found.returncode != 0:
        raise BoxUnavailable(f"the engine does not list its containers: {_last(found)}")
    ended = []
    for line in found.stdout.splitlines():
        name, _, judge = line.partition(" ")
        if not ProcessId.parse(judge).is_alive:
            end(name)
            ended.append(name)
    return ended


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _docker(*arguments: str, seconds: float = REPLY_SECONDS) -> subprocess.CompletedProcess[str]:
    argv = ["docker", *arguments]
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=seconds
        )
    except FileNotFoundError:
        raise BoxUnavailable(
            "the command docker is not here: install Docker Engine, or use isolation = 'bwrap'"
        ) from None
    except subprocess.TimeoutExpired:
        raise BoxUnavailable(
            f"`docker {arguments[0]}` has not answered for {seconds:.0f} s: look at the engine"
        ) from None
