"""What the kernel itself holds a box to: limits on its processes and, where the machine has one, a cgroup around them all.

The watchdog looks four times a second and says in words what was too much; these limits hold in between. They lie above the
watchdog's, so that it has the first word wherever it is fast enough.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# The whole environment of what starts a box: a candidate could read it at /proc/1/environ.
CLEAN = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
SPARE_TASKS = 64  # above the watchdog's limit: bubblewrap's own, and room for a fork bomb to pass the limit that names it
COUNTS_PER_NAMESPACE = (
    5,
    14,
)  # the Linux from which RLIMIT_NPROC counts a user namespace by itself


def per_process(file_bytes: int) -> list[str]:
    """Argv prefix: no core dumps, no files above the tmpfs' size, no memory locked or kept in message queues.

    Address space is not limited: CUDA reserves far more of it than it uses.
    """
    return [
        "prlimit",
        "--core=0",
        "--nofile=4096",
        f"--fsize={file_bytes}",
        "--memlock=65536",
        "--msgqueue=0",
        "--",
    ]


def processes(tasks: int) -> list[str]:
    """Argv prefix for the command inside the box: processes and threads of this box alone, whoever runs it.

    Set outside, or on an older kernel, it would count all processes of the user: those of other boxes, or of a human.
    """
    version = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    return (
        ["prlimit", f"--nproc={tasks + SPARE_TASKS}", "--"]
        if version >= COUNTS_PER_NAMESPACE
        else []
    )


def cgroup(memory_bytes: int, tasks: int) -> tuple[list[str], dict[str, str]]:
    """Argv prefix that puts a box into a cgroup of its own, by systemd, and the environment that it needs.

    `memory_bytes` is the box's resident memory and all its tmpfs. Both are empty where there is no such cgroup to be had.
    """
    if not _cgroup_works():
        return [], {}
    argv, environment = _scope()
    limits = [f"MemoryMax={memory_bytes}", "MemorySwapMax=0", f"TasksMax={tasks + SPARE_TASKS}"]
    prefix = [*argv, *(part for limit in limits for part in ("-p", limit)), "--"]
    return [*prefix, "env", "-i", *(f"{key}={value}" for key, value in CLEAN.items())], environment


def _scope() -> tuple[list[str], dict[str, str]]:
    """The systemd-run that leaves pid, descriptors and parent as they are, and where it finds a user's own systemd."""
    argv = ["systemd-run", "--scope", "--quiet", "--collect"]
    if os.geteuid() == 0:
        return argv, {}
    return [*argv, "--user"], {
        "XDG_RUNTIME_DIR": os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    }


@functools.cache
def _cgroup_works() -> bool:
    """Whether this machine has the second version of cgroups with both controllers, and a systemd that gives us a scope."""
    try:
        controllers = (CGROUPS / "cgroup.controllers").read_text().split()
    except OSError:
        return False
    if not {"memory", "pids"} <= set(controllers) or not shutil.which(
        "systemd-run", path=CLEAN["PATH"]
    ):
        return False
    argv, environment = _scope()
    try:
        tried = subprocess.run(
            [*argv, "--", "true"], env=CLEAN | environment, capture_output=True, timeout=10
        )
    except subprocess.TimeoutExpired:
        return False
    return tried.returncode == 0
