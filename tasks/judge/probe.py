"""Tries in a real box, with the argv of a run, what no box may allow.

The doctor does it, and every night before anything else.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from tasks.judge import container, protocol, seccomp
from tasks.judge.box import open_box
from tasks.judge.bwrap import (
    BOX_UID,
    BoxSpec,
    BoxUnavailable,
    Gate,
    Isolation,
    find_bwrap,
    mounts,
)
from tasks.judge.wire import Closed, Malformed, Silent, Wire

MARKER = "NIGHTLY_PROBE_SECRET"
# By a variable that its provider sets.
RENTED = {
    "RUNPOD_POD_ID": "a container rented from RunPod",
    "VAST_CONTAINERLABEL": "a container rented from Vast.ai",
    "KUBERNETES_SERVICE_HOST": "a container of Kubernetes",
}
MORE_RIGHTS = (  # of bubblewrap in a container: namespaces, mounts and a new /proc
    "--cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined"
)
NO_NAMESPACES = re.compile(  # what bubblewrap, unshare and mount say without them
    "userns|uid map|[Nn]amespace|Operation not permitted|mount.*[Pp]ermission denied"
)
FILTERED = (  # by seccomp alone
    "system calls filtered by us",
    "ptrace refused",
    "memory outside its processes refused",
)
CALLS = {
    machine: seccomp.numbered(("clone", "unshare", "ptrace", "keyctl", "shmget"), machine)
    for machine in seccomp.MACHINES
}
INSIDE = f"""
import ctypes, json, os, platform, signal, socket, sys, time
if "NIGHTLY_SOCKET" in os.environ:
    wire = socket.socket(socket.AF_UNIX)
    wire.connect(os.environ["NIGHTLY_SOCKET"])
else:
    wire = socket.socket(fileno=int(os.environ["NIGHTLY_FD"]))
def refused(action):
    try:
        action()
    except OSError:
        return True
    return False
libc = ctypes.CDLL(None, use_errno=True)
def denied(name, *arguments):
    number = {CALLS}.get(platform.machine(), {{}}).get(name)
    if number is None:
        return False
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments))
    if result == 0 and name == "clone":
        os._exit(0)
    return result == -1
def read(path):
    with open(path) as file:
        return file.read()
status = dict(
    line.split(":\t", 1) for line in read("/proc/self/status").splitlines() if ":\t" in line
)
devices = [line.split(":")[0].strip() for line in read("/proc/net/dev").splitlines()[2:]]
NEW_USER = 0x10000000
def say(**what):
    wire.sendall(json.dumps(what).encode() + b"\\n")
say(msg="up", python=sys.version)
say(msg="probe", checks={{
    "no network": devices == ["lo"]
        and refused(lambda: socket.create_connection(("1.1.1.1", 53), 1)),
    "clean environment":
        "{MARKER}" not in read("/proc/1/environ") + read("/proc/self/environ"),
    "nothing writable but scratch": all(refused(lambda p=p: open(p + "/probe", "w"))
        for p in ("/", "/etc", "/usr", "/box", "/dataset", "/venv", "/dev")),
    "kernel settings read-only": refused(lambda: open("/proc/sys/kernel/core_pattern", "r+")),
    "data gate closed before go": refused(lambda: os.listdir("/data/d"))
        and refused(lambda: os.chmod("/data", 0o755)),
    "own process tree only": len([p for p in os.listdir("/proc") if p.isdigit()]) < 5,
    "no capabilities":
        not any(int(status[kind], 16) for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb")),
    "no new privileges": status["NoNewPrivs"] == "1",
    "system calls filtered by us": status["Seccomp"] == "2",
    "no user namespace in it": denied("clone", NEW_USER | signal.SIGCHLD, 0, 0, 0, 0)
        and denied("unshare", NEW_USER),
    "ptrace refused": denied("ptrace", 0, 0, 0, 0),
    "kernel keyring refused": denied("keyctl", 0, -3, 1),
    "mount refused": libc.mount(b"none", b"/scratch", b"tmpfs", 0, None) == -1,
    "setting the clock refused":
        refused(lambda: time.clock_settime(time.CLOCK_REALTIME, time.time())),
    "no socket to a virtual machine's host":
        refused(lambda: socket.socket(40, socket.SOCK_STREAM)),
    "memory outside its processes refused": denied("shmget", 0, 4096, 0o1600)
        and (os.environ["NIGHTLY_DEVICE"] == "cuda" or refused(lambda: os.memfd_create("x"))),
    "cgroups and /sys read-only": refused(lambda: os.mkdir("/sys/fs/cgroup/probe"))
        and refused(lambda: open("/sys/kernel/mm/transparent_hugepage/enabled", "r+")),
}})
wire.recv(1)
say(msg="probe", checks={{
    "data gate open after go": read("/data/d/rows") == "rows",
    "data read-only": refused(lambda: open("/data/d/rows", "w"))
        and refused(lambda: os.unlink("/data/d/rows")),
}})
wire.recv(1)
"""


def probe(
    home: Path, device: str = "cpu", isolation: Isolation = "bwrap"
) -> list[tuple[str, bool, str]]:
    """(what was tried, whether the box holds, detail); a single failed entry if no box starts."""
    home.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=home))
    os.environ[MARKER] = "1"  # a secret that must not be seen inside
    try:
        return _probe(home, work, device, isolation)
    except BoxUnavailable as error:
        reason = _explain(str(error)) if isolation == "bwrap" else str(error)
        return [("a box starts", False, reason)]
    finally:
        del os.environ[MARKER]
        if (work / "gate").exists():  # without a docker engine there is none
            (work / "gate").chmod(0o755)
        shutil.rmtree(work)


def _probe(
    home: Path, work: Path, device: str, isolation: Isolation
) -> list[tuple[str, bool, str]]:
    by = container.prepare() if isolation == "docker" else str(find_bwrap())
    work.chmod(0o755)
    content = work / "content"
    content.mkdir()
    content.chmod(0o755)
    (content / "rows").write_text("rows")
    (content / "rows").chmod(0o644)
    gate = Gate.closed(work / "gate", content)
    spec = BoxSpec(
        role="probe",
        code=content,
        public=content,
        gate=gate,
        home=home,
        isolation=isolation,
        seed=0,
        device=device,
        threads=1,
        memory_bytes=2**30,
        tasks=16,
        tmp_bytes=2**20,
    )
    if isolation == "bwrap":
        _check_readable(spec)
    deadline = time.monotonic() + 30.0
    with open_box(spec, ["-I", "-u", "-c", INSIDE]) as running:
        wire = Wire(running.wire)
        protocol.expect_up(running, wire, deadline)
        try:
            before = wire.read(deadline)["checks"]
            gate.open()
            wire.send({"msg": "go"}, deadline)
            after = wire.read(deadline)["checks"]
        except (Silent, Closed, Malformed) as error:
            running.kill()
            raise BoxUnavailable(
                f"the probe ended early ({type(error).__name__}): {protocol.last_line(running)}"
            ) from None
    unfiltered = ""
    if platform.machine() not in seccomp.MACHINES:
        unfiltered = f"there is no filter for {platform.machine()}"
    return [
        ("a box starts", True, f"{by}, Python {sys.version.split()[0]}"),
        *(
            (name, bool(holds), unfiltered if name in FILTERED else "")
            for name, holds in {**before, **after}.items()
        ),
    ]


def _explain(error: str) -> str:
    """Adds the usual cause and remedy to the message of whatever stopped the box."""
    if "prlimit:" in error:
        return f"{error}. A limit of this shell is in the way: `ulimit -Ha` shows them"
    if not NO_NAMESPACES.search(error):
        return error
    if inside := _container():
        return (
            f"{error}. This is {inside}, which may not make the namespaces and mounts of a box. "
            "Take a virtual machine or bare metal; or, if you start the container yourself, use "
            f"`docker run {MORE_RIGHTS}`. Otherwise only --allow-unsandboxed remains: candidates "
            "could then read your keys and the validation text"
        )
    return (
        f"{error}. User namespaces are disabled: allow them "
        "(sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for bwrap)"
    )


def _container() -> str | None:
    """The kind of container that this process is in; None if it seems to be in none."""
    for variable, kind in RENTED.items():
        if variable in os.environ:
            return kind
    marks = any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))
    return "a container" if marks else None


def _check_readable(spec: BoxSpec) -> None:
    """Raises BoxUnavailable for a Python or packages that root installed under a umask of 077.

    The box of an ordinary user is that same user.
    """
    if os.geteuid() != 0:
        return
    library = Path(sysconfig.get_paths()["stdlib"])
    folders = [source for source, _ in mounts(spec) if source != spec.gate.folder]
    for folder in (*folders, library):
        for path in (folder, *folder.glob("*")):
            mode = path.lstat().st_mode
            needed = 0o005 if stat.S_ISDIR(mode) else 0o004  # a link has all of them
            if mode & needed != needed:
                raise BoxUnavailable(
                    f"a box runs as another user (uid {BOX_UID}), who may not read {path} "
                    f"(mode {stat.S_IMODE(mode):04o}): chmod -R a+rX {folder}"
                )
