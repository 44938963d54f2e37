"""How much memory the processes of a box hold, and the kernel for them. All of it is from /proc.

Much of it is in no resident set. What can be seen from outside is counted here, at its size or at
the most that it can take: swapped and huge pages, page tables, mappings, open descriptors, the
buffers of sockets, files in a tmpfs (their text has a limit of its own) and shared memory that was
unmapped. What cannot be seen is refused to a box: see seccomp.py. The rest is bounded by the limits
on tasks and pending signals, and by the kernel's own on one user's pipes: 64 MiB.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tasks.judge.bwrap import TMPFS

COUNTED = (b"VmRSS", b"VmSwap", b"VmPTE", b"HugetlbPages")  # lines of /proc/PID/status
SIZES = re.compile(rb"^(\w+):\s+(\d+) kB$", re.MULTILINE)
# Up to these numbers nothing is counted: mappings in each process, the others in the whole box.
FREE_MAPPINGS, FREE_DESCRIPTORS, FREE_SOCKETS = 2048, 1024, 64
MAPPING_BYTES = 768  # with a name, a memory policy and the record of its pages
DESCRIPTOR_BYTES = 16 * 1024  # of a pipe with two pages, or of an open map of an ended process
FILE_BYTES = 2048  # an inode and its longest name


def resident(pid: int) -> int:
    """Bytes in memory or swap, page tables included; 0 if it has ended. Raises OSError if gone."""
    return sum(_living(pid)[1].get(name, 0) for name in COUNTED)


def proportional(pid: int) -> int:
    """The same, each shared page divided among its sharers; 0 if the process is gone.

    Not divided where we may not look.
    """
    with contextlib.suppress(OSError):
        folder, sizes = _living(pid)
        try:
            sizes |= _sizes(folder / "smaps_rollup")
        except PermissionError:
            return resident(pid)
        shares = (b"Pss", b"SwapPss", *COUNTED[2:])
        return sum(sizes.get(name, 0) for name in shares)
    return 0


def hidden(pids: Iterable[int], most_shared: int | None = None) -> int:
    """At most how many bytes the processes hold that neither function above counts.

    Shared memory counts at the size of its mapping, which can be touched at any time. With
    `most_shared`, for boxes whose driver maps far more of it than it uses, only what is really
    there counts: where we may not see that, at most `most_shared` bytes of the whole box.
    """
    shared: dict[str, int] = {}
    unseen: dict[str, int] = {}
    mappings = descriptors = unmapped = 0
    inside: list[Path] = []
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            folder, sizes = _living(pid)
            maps = (folder / "maps").read_text(errors="replace").splitlines()
            mappings += max(len(maps) - FREE_MAPPINGS, 0)
            descriptors += len(os.listdir(folder / "fd"))
            if found := list(_shared_anonymous(maps)):
                unmapped -= sizes.get(b"RssShmem", 0)
            for key, span, size in found:
                held = size if most_shared is None else _held(folder / "map_files" / span)
                kind = unseen if held is None else shared
                kind[key] = max(kind.get(key, 0), size if held is None else held)
            if os.readlink(folder / "ns/pid") != os.readlink("/proc/self/ns/pid"):
                inside.append(folder)
    unmapped += sum(shared.values()) + min(sum(unseen.values()), most_shared or 0)
    unmapped = max(unmapped, 0)
    descriptors = max(descriptors - FREE_DESCRIPTORS, 0)
    held = unmapped + mappings * MAPPING_BYTES + descriptors * _descriptor_bytes()
    for folder in inside:  # what is the whole box's: the first that still runs tells it
        with contextlib.suppress(OSError):
            return held + _sockets(folder) + _files(folder)
    return held


def _living(pid: int) -> tuple[Path, dict[bytes, int]]:
    """The folder of the process in /proc, and what its status counts, in bytes.

    A process whose first thread has ended shows none of its memory; another thread's folder does.
    """
    folder = Path(f"/proc/{pid}")
    sizes = _sizes(folder / "status")
    if b"VmRSS" not in sizes:
        for thread in (folder / "task").iterdir():
            with contextlib.suppress(OSError):
                found = _sizes(thread / "status")
                if b"VmRSS" in found:
                    return thread, found
    return folder, sizes


def _sizes(path: Path) -> dict[bytes, int]:
    """The bytes of each line `NAME: N kB` in a file of /proc."""
    return {name: int(size) * 1024 for name, size in SIZES.findall(path.read_bytes())}


def machine_shared() -> int:
    """Bytes of shared memory in use on the whole machine, the files of every tmpfs included.

    Without what of it has been swapped out.
    """
    return _sizes(Path("/proc/meminfo"))[b"Shmem"]


def _held(mapped: Path) -> int | None:
    """Bytes of a mapped file in memory or swap; None if we may not look: only root may."""
    try:
        return mapped.stat().st_blocks * 512
    except FileNotFoundError:  # unmapped since
        return 0
    except PermissionError:
        return None


def _shared_anonymous(maps: list[str]) -> Iterator[tuple[str, str, int]]:
    """(identity, addresses, bytes) of each mapping of shared memory without a file of its own.

    The addresses are written as the names in /proc/PID/map_files are.
    """
    for line in maps:
        if "/dev/zero" in line:
            span, mode, _, device, inode, *name = line.split(maxsplit=5)
            if mode[3] == "s" and name and name[0].startswith("/dev/zero"):
                first, last = (int(address, 16) for address in span.split("-"))
                yield device + inode, f"{first:x}-{last:x}", last - first


def _descriptor_bytes() -> int:
    """At most what an open descriptor holds. The largest buffer is /proc/stat's on many CPUs."""
    return max(DESCRIPTOR_BYTES, 2 * len(Path("/proc/stat").read_bytes()))


def _sockets(folder: Path) -> int:
    """At most what the buffers and filters of all sockets hold, in a network of the box's own."""
    if os.readlink(folder / "ns/net") == os.readlink("/proc/self/ns/net"):
        return 0
    sockets = int((folder / "net/sockstat").read_text().split()[2])
    limits = Path("/proc/sys/net/core")
    buffers, options = (int((limits / name).read_text()) for name in ("wmem_max", "optmem_max"))
    return max(sockets - FREE_SOCKETS, 0) * (2 * buffers + options)


def _files(folder: Path) -> int:
    """At most what the files in the box's tmpfs take beside their text, extended attributes too."""
    used: dict[int, int] = {}
    for place in TMPFS:
        path = f"{folder}/root{place}"
        # While bubblewrap still builds the box, this may be the host's.
        if os.path.isdir(path) and not (os.path.isdir(place) and os.path.samefile(path, place)):
            found = os.statvfs(path)
            used[os.stat(path).st_dev] = found.f_files - found.f_ffree
    return sum(used.values()) * FILE_BYTES
