"""Tries what a box must not allow, in a real one with the exact argv of a run: the doctor's and every night's first step."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tasks.judge import protocol
from tasks.judge.box import open_box
from tasks.judge.bwrap import BoxSpec, BoxUnavailable, Gate, find_bwrap
from tasks.judge.wire import Closed, Malformed, Silent, Wire

MARKER = "NIGHTLY_PROBE_SECRET"
INSIDE = f"""
import json, os, socket, sys
wire = socket.socket(fileno=int(os.environ["NIGHTLY_FD"]))
def refused(action):
    try:
        action()
    except OSError:
        return True
    return False
def say(**what):
    wire.sendall(json.dumps(what).encode() + b"\\n")
everything = open("/proc/1/environ").read() + open("/proc/self/environ").read()
say(msg="up", python=sys.version)
say(msg="probe", checks={{
    "no network": refused(lambda: socket.create_connection(("1.1.1.1", 53), 1)) and os.listdir("/sys/class/net") == ["lo"]
        if os.path.isdir("/sys/class/net") else refused(lambda: socket.create_connection(("1.1.1.1", 53), 1)),
    "clean environment": "{MARKER}" not in everything,
    "nothing writable but scratch": all(refused(lambda p=p: open(p + "/probe", "w"))
        for p in ("/", "/etc", "/usr", "/box", "/dataset", "/venv", "/dev")),
    "kernel settings read-only": refused(lambda: open("/proc/sys/kernel/core_pattern", "r+")),
    "data gate closed before go": refused(lambda: os.listdir("/data/d")) and refused(lambda: os.chmod("/data", 0o755)),
    "own process tree only": len([p for p in os.listdir("/proc") if p.isdigit()]) < 5,
}})
wire.recv(1)
say(msg="probe", checks={{
    "data gate open after go": open("/data/d/rows").read() == "rows",
    "data read-only": refused(lambda: open("/data/d/rows", "w")) and refused(lambda: os.unlink("/data/d/rows")),
}})
wire.recv(1)
"""


def probe(home: Path, device: str = "cpu") -> list[tuple[str, bool, str]]:
    """(what was tried, whether the box holds, detail). A box that does not start is one failed entry with the reason."""
    home.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=home))
    os.environ[MARKER] = "1"  # a secret of ours that must not show in there
    try:
        return _probe(home, work, device)
    except BoxUnavailable as error:
        return [("a box starts", False, _explain(str(error)))]
    finally:
        del os.environ[MARKER]
        (work / "gate").chmod(0o755)
        shutil.rmtree(work)


def _probe(home: Path, work: Path, device: str) -> list[tuple[str, bool, str]]:
    work.chmod(0o755)
    content = work / "content"
    content.mkdir(mode=0o755)
    (content / "rows").write_text("rows")
    (content / "rows").chmod(0o644)
    gate = Gate.closed(work / "gate", content)
    spec = BoxSpec(
        role="probe",
        code=content,
        public=content,
        gate=gate,
        home=home,
        isolation="bwrap",
        seed=0,
        device=device,
        threads=1,
        memory_bytes=2**30,
        tasks=16,
        tmp_bytes=2**20,
    )
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
            raise BoxUnavailable(f"the probe ended early ({type(error).__name__}): {protocol.last_line(running)}") from None
    started = ("a box starts", True, f"{find_bwrap()}, Python {sys.version.split()[0]}")
    return [started, *((name, bool(holds), "") for name, holds in {**before, **after}.items())]


def _explain(error: str) -> str:
    """Adds the usual cause and remedy to bubblewrap's own words."""
    if "userns" in error or "uid map" in error or "namespace" in error.lower() or "Operation not permitted" in error:
        return (
            f"{error}. User namespaces are switched off or this is a container without CAP_SYS_ADMIN: allow them "
            "(sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for bwrap), or run on the host"
        )
    return error
