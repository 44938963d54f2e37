"""The box where bubblewrap cannot make one: a container, by docker's command line.

A container holds what a bubblewrap box holds, at the same paths. The image is only a skeleton: the
host's /usr covers its own, because the interpreter and its packages were built against the host's
libraries (an older libc or a missing libffi would break them, another libm would change scores),
and the compilers come with it. That rules two options out: `--init` mounts its binary below /usr,
where nothing can be created (so a shell is the first process and reaps), and `--gpus` puts driver
libraries where the host's own are and fails ("file exists", NVIDIA/nvidia-container-toolkit #289),
so device nodes are passed as bubblewrap gets them. The seccomp filter is bubblewrap's, too.

The first process connects to a unix socket: a container inherits no descriptor. The engine must run
on this kernel, as the judge reads CPU time from /proc; a remote engine or one in a virtual machine
is refused. A container survives a kill -9 of the judge, without network and within its limits,
until `sweep` ends it at the next start.
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

from tasks.judge import gpu, kernel_limits
from tasks.judge.bwrap import BoxSpec, BoxUnavailable, box_name, environment, mounts
from tasks.judge.door import Door
from tasks.judge.processes import ProcessId

# NIGHTLY_DOCKER_IMAGE names another: any with glibc and with /lib, /lib64, /bin linked into /usr.
IMAGE = "debian:12.11-slim"
USER = "65534:65534"
REPLY_SECONDS = 60.0  # that the engine may take to answer; a busy one removes containers slowly
PULL_SECONDS = 600.0
START_SECONDS = 60.0  # from docker run to the connection
SPARE_TASKS = 8  # above the watchdog's limit, so that the watchdog acts first and gives the reason
# A shell that waits until we have found it. It stays: it reaps orphans and returns 128 + signal.
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
    """The engine's version; None if no engine answers."""
    try:
        found = _docker("version", "--format", "{{.Server.Version}}")
    except BoxUnavailable:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def prepare() -> str:
    """Pulls the image if it is missing; a line about engine and image. Raises BoxUnavailable."""
    version = engine()
    if version is None:
        raise BoxUnavailable(
            "no docker engine answers: install and start one on this machine and give this user "
            "access to its socket (`docker info` must work), or use isolation = 'bwrap'"
        )
    if not Path("/lib").is_symlink():
        raise BoxUnavailable(
            "/lib is a folder on this machine and not a link into /usr, so the host's libraries "
            "cannot cover the image's: use isolation = 'bwrap'"
        )
    if _docker("image", "inspect", image()).returncode != 0:
        pulled = _docker("pull", "--quiet", image(), seconds=PULL_SECONDS)
        if pulled.returncode != 0:
            raise BoxUnavailable(
                f"the image {image()} is missing and cannot be pulled: {_last(pulled)}. "
                "`docker load` it, or name another in NIGHTLY_DOCKER_IMAGE"
            )
    names = "{{range $path, $_ := .Config.Volumes}}{{$path}} {{end}}"
    volumes = _docker("image", "inspect", "--format", names, image())
    if volumes.returncode != 0:
        raise BoxUnavailable(f"the engine does not describe the image {image()}: {_last(volumes)}")
    if paths := volumes.stdout.strip():
        raise BoxUnavailable(
            f"the image {image()} declares volumes, {paths}, which would be writable disk: name "
            "another in NIGHTLY_DOCKER_IMAGE"
        )
    return f"docker {version}, {image()}"


def new_name(home: Path) -> str:
    """A unique name for a container, which begins with the box name of the state folder."""
    return f"{box_name(home)}-{secrets.token_hex(6)}"


def command(spec: BoxSpec, name: str, door: Door, python: list[str]) -> list[str]:
    """The argv of one box; `python` is its interpreter's arguments."""
    box, size = box_name(spec.home), spec.tmp_bytes
    memory = spec.memory_bytes + 3 * size  # what is in a tmpfs counts here, not for the watchdog
    tasks = spec.tasks + SPARE_TASKS
    argv = ["docker", "run", "--rm", "--pull", "never", "--name", name, "--hostname", box]
    argv += ["--label", f"nightly={box}", "--label", f"nightly-judge={ProcessId.current()}"]
    argv += ["--network", "none", "--ipc", "private", "--cgroupns", "private"]
    argv += ["--read-only", "--user", USER, "--cap-drop", "ALL", "--log-driver", "none"]
    argv += ["--security-opt", "no-new-privileges", "--pids-limit", str(tasks)]
    if door.seccomp:
        argv += ["--security-opt", f"seccomp={door.seccomp}"]
    argv += ["--memory", str(memory), "--memory-swap", str(memory), "--shm-size", str(size)]
    argv += ["--ulimit", "core=0", "--ulimit", f"nofile={kernel_limits.OPEN_FILES}"]
    argv += ["--ulimit", f"fsize={size}"]
    # Docker's default is noexec, and compiled kernels are loaded from there. The user owns them:
    # the engine gives a tmpfs the mode of the image's folder below it, whatever mode is asked for.
    user, group = USER.split(":")
    for target in ("/tmp", "/scratch"):
        owner = f"uid={user},gid={group},mode=0755"
        argv += ["--tmpfs", f"{target}:rw,exec,nosuid,nodev,size={size},{owner}"]
    argv += _mount_options(spec, door)
    nodes = gpu.nodes() if spec.device == "cuda" else []
    for node in nodes:
        argv += ["--device", str(node)]
    for needed in gpu.groups(nodes):
        argv += ["--group-add", str(needed)]
    for key, value in _environment(spec).items():
        argv += ["--env", f"{key}={value}"]
    argv += ["--workdir", "/scratch", "--entrypoint", "/bin/sh", image()]
    return [*argv, "-c", FIRST_PROCESS, name, "/venv/bin/python", *python]


def _environment(spec: BoxSpec) -> dict[str, str]:
    inside = environment(spec, -1) | {"NIGHTLY_SOCKET": "/wire/socket"}
    del inside["NIGHTLY_FD"]
    for proxy in PROXIES:  # the client would add those of its config.json, passwords included
        inside |= {proxy: "", proxy.upper(): ""}
    return inside


def _mount_options(spec: BoxSpec, door: Door) -> list[str]:
    """Read-only binds: /usr, what the loader needs of /etc, a bubblewrap box's mounts, the door."""
    binds = [(Path("/usr"), "/usr"), *mounts(spec), (door.wire, "/wire"), (door.venv, "/venv/bin")]
    if spec.device != "cuda":
        binds.append((Path("/dev/full"), "/dev/zero"))  # as in bwrap.py: it cannot be mapped
    for name in ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives"):
        if (path := Path("/etc", name)).exists():
            binds.append((path, str(path)))
    base = Path(sys.base_prefix).resolve()
    if not base.is_relative_to("/usr") and len(base.parts) > 2:
        binds.append((door.above_base, f"/{base.parts[1]}"))
    options: list[str] = []
    for source, target in binds:
        # --mount takes a line of CSV. --volume could not hold a colon, and creates missing sources.
        line = io.StringIO()
        fields = ["type=bind", f"source={source}", f"target={target}", "readonly"]
        csv.writer(line, lineterminator="").writerow(fields)
        options += ["--mount", line.getvalue()]
    return options


def find(name: str, client: subprocess.Popen[bytes], deadline: float) -> Container | None:
    """The container, once it waits for its door; None if `client` ended first.

    The candidate does not run yet, so even one that crashes at once is found. Raises BoxUnavailable
    if the engine's process is not one of this machine.
    """
    pid = "unknown"
    while time.monotonic() < deadline:
        ended = client.poll() is not None
        found = _docker("container", "inspect", "--format", "{{.State.Pid}}", name)
        if found.returncode == 0 and (pid := found.stdout.strip()).isdigit():
            with contextlib.suppress(OSError):  # no such process
                process = ProcessId.of(int(pid))
                if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    return Container(name, process)
        if ended:
            return None
        time.sleep(0.02)
    raise BoxUnavailable(
        f"the engine says that the container's first process is {pid}, which is no such process "
        "here: the judge cannot measure it. Use an engine on this machine, outside any virtual "
        "machine or container"
    )


def end(name: str) -> None:
    """Kills and removes a container, waits until it is gone; BoxUnavailable if it survives."""
    deadline = time.monotonic() + REPLY_SECONDS
    while not _gone(name):
        if time.monotonic() > deadline:
            raise BoxUnavailable(
                f"the container {name} survived `docker kill` for {REPLY_SECONDS:.0f} s: "
                "look at `docker ps`"
            )
        kill(name)
        _docker("rm", "--force", name)


def kill(name: str) -> None:
    """Sends SIGKILL to all of it; does nothing if it has ended."""
    _docker("kill", name)


def _gone(name: str) -> bool:
    found = _docker("container", "inspect", "--format", "{{.State.Running}}", name)
    if found.returncode != 0 and "no such" not in found.stderr.lower():
        raise BoxUnavailable(
            f"the engine does not report whether the container {name} runs: {_last(found)}"
        )
    return found.returncode != 0


def sweep(home: Path) -> list[str]:
    """Ends containers of this state folder whose judge is dead; names. Raises BoxUnavailable."""
    ours = ["--filter", f"label=nightly={box_name(home)}"]
    found = _docker("ps", "--all", *ours, "--format", '{{.Names}} {{.Label "nightly-judge"}}')
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
            "the command docker is missing: install Docker Engine, or use isolation = 'bwrap'"
        ) from None
    except subprocess.TimeoutExpired:
        raise BoxUnavailable(
            f"`docker {arguments[0]}` has not answered for {seconds:.0f} s: look at the engine"
        ) from None
