"""The system calls that no box may make: a seccomp filter closes what namespaces leave open.

Four kinds are refused: calls that only serve an attack on the kernel or on another process; those
that create or change namespaces, mounts and clocks; those that hold memory outside any resident
set, where the watchdog could not see it; and those that tell which file pages another box has read.
All others are allowed: an allow-list breaks with every new version of a driver or the C library.

A refused call fails with an error number, as on a kernel without it, so that a library falls back
instead of crashing. The filter is classic BPF, see seccomp(2), built with struct alone; the numbers
are those of the kernel's own tables.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import struct
from collections.abc import Iterable, Iterator
from typing import Any

# Classic BPF: load a word, compare it, test its bits, return.
LOAD, IF_EQUAL, IF_ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
KILL_PROCESS, ALLOW, FAIL = 0x80000000, 0x7FFF0000, 0x00050000  # SECCOMP_RET_*; FAIL | errno
# Offsets in struct seccomp_data; those of arguments are of their low halves.
NUMBER, MACHINE, FIRST_ARGUMENT, THIRD_ARGUMENT = 0, 4, 16, 32
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
DOCKER_MACHINES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
X32 = 0x40000000  # bit of x86-64's second table, whose calls this filter does not know
NEW_NAMESPACE = 0x7E020000  # CLONE_NEW* flags of clone(); CLONE_NEWTIME is not one of its flags
# AF_UNIX and AF_NETLINK. AF_VSOCK (40) would reach a virtual machine's host, and the buffers of
# loopback connections hide memory.
FAMILIES = (1, 16)
MOST_FAMILIES = 64  # above the highest AF_* of any kernel

Rule = dict[str, Any]  # of docker's JSON, or one of its tests of an argument
# name: (x86-64, aarch64); None where the machine has no such call.
Calls = dict[str, tuple[int, int | None]]
NOT_PERMITTED: Calls = {
    # other processes, and the kernel's keys, instruments and rarely used machinery
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "lookup_dcookie": (212, 18),
    # which pages of a file another box left in the cache: a note to the next one, a bit a page
    "mincore": (27, 232),
    "cachestat": (451, 451),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "unshare": (272, 97),
    "setns": (308, 268),
    # the machine: its kernel, clocks, disks, ports, log and terminals
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "clock_settime": (227, 112),
    "settimeofday": (164, 170),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "iopl": (172, None),
    "ioperm": (173, None),
    "syslog": (103, 116),
    "vhangup": (153, 58),
}
NOT_THERE: Calls = {
    # Its flags are in memory, which a filter cannot read; the C library falls back to clone.
    "clone3": (435, 435),
    # Its RWF_NOWAIT tells of cached pages; without flags the C library falls back to preadv.
    "preadv2": (327, 286),
    # memory that outlives its mapping and is in no process's resident set
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
}
# Evicts pages from the cache. It succeeds and does nothing, as advice may be ignored.
NOTHING_DONE: Calls = {"fadvise64": (221, 223)}
MADVISE: Calls = {"madvise": (28, 233)}
EVICT = (20, 21)  # MADV_COLD and MADV_PAGEOUT: the same for a mapped file
CLONE: Calls = {"clone": (56, 220)}
SOCKET: Calls = {"socket": (41, 198), "socketpair": (53, 199)}
# Without it cuInit fails with error 304 (NVIDIA/OpenShell issue 1696); there a cgroup must count.
CUDA_NEEDS = "memfd_create"


def numbered(names: Iterable[str], machine: str) -> dict[str, int]:
    """The numbers of those calls that this machine, a key of MACHINES, has."""
    column = list(MACHINES).index(machine)
    table = NOT_PERMITTED | NOT_THERE | NOTHING_DONE | MADVISE | CLONE | SOCKET
    return {name: number for name in names if (number := table[name][column]) is not None}


def program(machine: str, device: str = "cpu") -> bytes | None:
    """The filter, an array of struct sock_filter; None for a machine without one."""
    if machine not in MACHINES:
        return None

    def each(calls: Iterable[str], then: list[bytes]) -> list[bytes]:
        numbers = numbered(calls, machine).values()
        return [line for number in numbers for line in _when(number, then)]

    allow = _line(RETURN, ALLOW)
    needed = {CUDA_NEEDS} if device == "cuda" else set()
    no_new_namespace = [
        _line(LOAD, FIRST_ARGUMENT),
        _line(IF_ANY_BIT, NEW_NAMESPACE, 0, 1),
        _fail(errno.EPERM),
        allow,
    ]
    no_eviction = [
        _line(LOAD, THIRD_ARGUMENT),
        *(line for advice in EVICT for line in _when(advice, [_fail(0)])),
        allow,
    ]
    known_families = [
        _line(LOAD, FIRST_ARGUMENT),
        *(line for family in FAMILIES for line in _when(family, [allow])),
        _fail(errno.EAFNOSUPPORT),
    ]
    lines = [
        _line(LOAD, MACHINE),
        _line(IF_EQUAL, MACHINES[machine], 1, 0),
        _line(RETURN, KILL_PROCESS),
        _line(LOAD, NUMBER),
        *([_line(IF_ANY_BIT, X32, 0, 1), _fail(errno.EPERM)] if machine == "x86_64" else []),
        *each(NOT_PERMITTED, [_fail(errno.EPERM)]),
        *each([name for name in NOT_THERE if name not in needed], [_fail(errno.ENOSYS)]),
        *each(NOTHING_DONE, [_fail(0)]),
        *each(MADVISE, no_eviction),
        *each(CLONE, no_new_namespace),
        *each(SOCKET, known_families),
        allow,
    ]
    return b"".join(lines)


@contextlib.contextmanager
def descriptor(device: str) -> Iterator[int | None]:
    """The filter for this machine as an open file, for `bwrap --seccomp`; None if there is none.

    Bubblewrap reads the file to its end, so each box needs its own, passed by `pass_fds`.
    """
    code = program(platform.machine(), device)
    if code is None:
        yield None
        return
    with open(os.memfd_create("nightly-seccomp"), "wb+", buffering=0) as file:
        file.write(code)
        file.seek(0)
        yield file.fileno()


def docker_profile(machine: str, device: str = "cpu") -> str | None:
    """The same filter as a file for `docker run --security-opt seccomp=FILE`; None as `program`.

    It replaces the engine's own, which before Docker 23 lets AF_VSOCK pass. A call that the
    engine's libseccomp does not know is allowed.
    """
    if machine not in DOCKER_MACHINES:
        return None

    def refuse(calls: Iterable[str], number: int, *arguments: Rule) -> Rule:
        names = list(numbered(calls, machine))
        return {
            "names": names,
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": number,
            "args": list(arguments),
        }

    def equal(index: int, value: int) -> Rule:
        return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}

    needed = {CUDA_NEEDS} if device == "cuda" else set()
    flags = [1 << bit for bit in range(32) if NEW_NAMESPACE >> bit & 1]
    unknown = [family for family in range(MOST_FAMILIES) if family not in FAMILIES]
    beyond = {"index": 0, "value": MOST_FAMILIES, "op": "SCMP_CMP_GE"}
    rules = [
        refuse(NOT_PERMITTED, errno.EPERM),
        refuse([name for name in NOT_THERE if name not in needed], errno.ENOSYS),
        refuse(NOTHING_DONE, 0),
        *(refuse(MADVISE, 0, equal(2, advice)) for advice in EVICT),
        # a rule that compares an argument twice means either, so there is one for each bit
        *(
            refuse(
                CLONE,
                errno.EPERM,
                {"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"},
            )
            for flag in flags
        ),
        *(refuse(SOCKET, errno.EAFNOSUPPORT, equal(0, family)) for family in unknown),
        refuse(SOCKET, errno.EAFNOSUPPORT, beyond),
    ]
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": [DOCKER_MACHINES[machine]],
            "syscalls": rules,
        }
    )


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One struct sock_filter; a jump is the number of lines to skip."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _fail(number: int) -> bytes:
    return _line(RETURN, FAIL | number)


def _when(value: int, then: list[bytes]) -> list[bytes]:
    """Runs `then`, which must end the program, if the loaded word is `value`."""
    return [_line(IF_EQUAL, value, 0, len(then)), *then]
