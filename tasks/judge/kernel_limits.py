"""The limits that the kernel enforces on a box: on each process, and by a cgroup on all of them.

The watchdog looks four times a second and can name what was too much; these limits hold in between.
They are above the watchdog's, so that it acts first wherever it is fast enough.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import shutil
import subprocess
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# The whole environment of the command that starts a box: a candidate can read it: /proc/1/environ.
CLEAN = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
# Above the watchdog's limit: bubblewrap's own, and room for a fork bomb to exceed the watchdog's.
SPARE_TASKS = 64
PENDING_SIGNALS = 4096
OPEN_FILES = 4096
SHOW_CPU = f"cat {CGROUPS}/$(sed -n 's/^0:://p' /proc/self/cgroup)/cpu.stat"
# Linux version since which RLIMIT_NPROC counts user namespaces apart
COUNTS_PER_NAMESPACE = (5, 14)


def per_process(file_bytes: int) -> list[str]:
    """Argv prefix: no core dumps, no larger files, no memory locked or held in message queues.

    Address space is not limited: CUDA reserves far more of it than it uses.
    """
    wanted = {"core": 0, "nofile": OPEN_FILES, "fsize": file_bytes, "memlock": 65536, "msgqueue": 0}
    limits = [f"--{name}={at_most(name, value)}" for name, value in wanted.items()]
    return ["prlimit", *limits, "--"]


def at_most(name: str, wanted: int) -> int:
    """The limit, or our own hard one if that is lower: only a privileged process may raise it.

    `name` is one of prlimit's.
    """
    _, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def processes(tasks: int) -> list[str]:
    """Argv prefix for the command inside the box: limits the processes and threads of this box.

    And its timers and queued signals, which the kernel counts in the same way. Set outside, or on
    an older kernel, it would also count the user's other processes.
    """
    version = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if version < COUNTS_PER_NAMESPACE:
        return []
    wanted = {"nproc": tasks + SPARE_TASKS, "sigpending": PENDING_SIGNALS}
    return ["prlimit", *(f"--{name}={at_most(name, most)}" for name, most in wanted.items()), "--"]


def cgroup(memory_bytes: int, tasks: int) -> tuple[list[str], dict[str, str]]:
    """Argv prefix that has systemd put a box into its own cgroup, and the environment it needs.

    `memory_bytes` covers the box's resident memory and all its tmpfs. Both are empty if no such
    cgroup is available.
    """
    if not cgroup_works():
        return [], {}
    argv, environment = _scope()
    limits = [f"MemoryMax={memory_bytes}", "MemorySwapMax=0", f"TasksMax={tasks + SPARE_TASKS}"]
    prefix = [*argv, *(part for limit in limits for part in ("-p", limit)), "--"]
    return [*prefix, "env", "-i", *(f"{key}={value}" for key, value in CLEAN.items())], environment


def cgroup_cpu_seconds(pid: int) -> float:
    """CPU time of all that ran in the cgroup of a process's own; 0.0 if it has none, but ours."""
    with contextlib.suppress(OSError):
        if folder := own_cgroup(pid):
            fields = (folder / "cpu.stat").read_text().split()
            return int(fields[fields.index("usage_usec") + 1]) / 1e6
    return 0.0


def own_cgroup(pid: int) -> Path | None:
    """The folder of a process's cgroup; None if that is ours, or unknown."""
    with contextlib.suppress(OSError):
        path = _cgroup_of(f"/proc/{pid}/cgroup")
        if path and path != _cgroup_of("/proc/self/cgroup"):
            return CGROUPS / path
    return None


def _cgroup_of(file: str) -> str | None:
    """The path below CGROUPS; None where there is no cgroup of version 2."""
    for line in Path(file).read_text().splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::").lstrip("/")
    return None


def _scope() -> tuple[list[str], dict[str, str]]:
    """A systemd-run that changes neither pid, parent nor descriptors, and its environment."""
    argv = ["systemd-run", "--scope", "--quiet", "--collect"]
    if os.geteuid() == 0:
        return argv, {}
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    return [*argv, "--user"], {"XDG_RUNTIME_DIR": runtime}


@functools.cache
def cgroup_works() -> bool:
    """Whether there are cgroups v2 with both controllers, and a systemd that gives us a scope.

    CPU time is counted in every scope, if we can read it.
    """
    try:
        controllers = (CGROUPS / "cgroup.controllers").read_text().split()
    except OSError:
        return False
    systemd = shutil.which("systemd-run", path=CLEAN["PATH"])
    if not {"memory", "pids"} <= set(controllers) or systemd is None:
        return False
    argv, environment = _scope()
    try:
        tried = subprocess.run(
            [*argv, "--", "sh", "-ec", SHOW_CPU],
            env=CLEAN | environment,
            capture_output=True,
            timeout=10,
        )
    except subprocess.TimeoutExpired:
        return False
    return tried.returncode == 0 and b"usage_usec" in tried.stdout
