"""What a process inherits from whoever started it: signals, limits, proxies, a cgroup.

What would break a command is set right once, before anything else, and its children inherit that.
The rest is named for `./run doctor`. The umask stays the user's: whatever a box reads gets its mode
explicitly.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import UsageError
from tasks.judge import kernel_limits

LOOPBACK = ("127.0.0.1", "localhost", "::1")
FEW_OPEN_FILES = 256  # a short night with the proposer tpe has run with 64
CGROUPS = Path("/sys/fs/cgroup")
ULIMITS = {  # each with its option of `ulimit`, and what it does
    "CPU": ("-t", "ends a process after {} CPU-seconds"),
    "AS": ("-v", "refuses more than {} bytes of address space, and torch reserves much of it"),
    "DATA": ("-d", "refuses more than {} bytes of data"),
    "FSIZE": ("-f", "refuses files of more than {} bytes"),
}


def settle() -> None:
    """For the main thread of a command, before it imports Prefect or MLflow.

    Raises UsageError for what only the user can change.
    """
    # Blocked, SIGTERM would not end a server whose command was killed. Ignored, SIGCHLD makes every
    # child look successful. `nohup` or a script's & ignores SIGHUP or SIGINT on purpose.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGTERM, signal.SIGCHLD):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    _raise_open_files()
    exempt_loopback()
    _check_proxies()


def _raise_open_files() -> None:
    """The soft limit, to what a box has or to the hard limit if that is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = kernel_limits.at_most("nofile", kernel_limits.OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def exempt_loopback() -> None:
    """Adds this machine's own addresses to no_proxy, for this process and its children.

    Prefect, MLflow, a model or a webhook on 127.0.0.1 would otherwise be asked for through a
    proxy that the user has set for the world outside.
    """
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in given.split(",") if host.strip()]
    if hosts == ["*"]:  # everything, and only if it stands alone
        return
    both = ",".join(dict.fromkeys([*hosts, *LOOPBACK]))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = both


def _check_proxies() -> None:
    """Raises UsageError for a SOCKS proxy: Prefect's client would fail at its first request.

    An all_proxy beside an http_proxy and an https_proxy is for nothing of ours, and removed.
    """
    proxies = urllib.request.getproxies_environment()
    socks = [kind for kind in ("http", "https", "all") if proxies.get(kind, "").startswith("socks")]
    if proxies.get("no") == "*":  # no proxy is used at all
        return
    if not socks or importlib.util.find_spec("socksio"):
        return
    if socks == ["all"] and {"http", "https"} <= proxies.keys():
        for name in ("all_proxy", "ALL_PROXY"):
            os.environ.pop(name, None)
        return
    raise UsageError(
        f"{socks[0]}_proxy names a SOCKS proxy, and only HTTP proxies are supported: set "
        f"http_proxy and https_proxy to one, or unset {socks[0]}_proxy"
    )


def findings(box_bytes: int) -> Iterator[str]:
    """What this process has inherited that may end a night or slow it down.

    `box_bytes` is the memory that a box may use.
    """
    for name, (flag, what) in ULIMITS.items():
        limit = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]
        if limit != resource.RLIM_INFINITY:
            yield f"ulimit {flag} {what.format(limit)}"
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < FEW_OPEN_FILES:
        yield f"ulimit -Hn allows {files} open files, and a night may need {FEW_OPEN_FILES}"
    if (nice := os.nice(0)) > 0:
        yield f"at nice {nice} other work comes first"
    memory = _cgroup_memory()
    if memory is not None and memory < box_bytes:
        yield (
            f"its cgroup ends processes at {memory / 2**30:.1f} GiB of memory, "
            f"and a box alone may use {box_bytes / 2**30:.1f} GiB"
        )


def _cgroup_memory() -> int | None:
    """The lowest limit of the cgroups that this process is in, of version 1 or 2; None if none."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return None
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers not in ("", "memory"):
            continue
        top, file = CGROUPS / controllers, "limit_in_bytes" if controllers else "max"
        place = top / path.lstrip("/")
        # In a container the path may be the host's, and only the top is there.
        for folder in {top, place, *(above for above in place.parents if top in above.parents)}:
            with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
                found.append(int((folder / f"memory.{file}").read_text()))
    return min(found, default=None)
