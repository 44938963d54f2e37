"""The system calls that no box may make: a seccomp filter closes what namespaces leave open.

Five kinds are refused: calls that only serve an attack on the kernel or on another process; those
that create or change namespaces, mounts and clocks; those that hold memory of the kernel where the
watchdog cannot see it (what it can see, it counts: memory.py); those that tell which file pages
another box has read; and the one by which a process has the CPU time of its children forgotten.
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
# Offsets in struct seccomp_data; those of arguments, of eight bytes each, are of their low halves.
NUMBER, MACHINE, ARGUMENTS = 0, 4, 16
HIGH_HALF = 4
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
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
    # kernel objects of any number and size: semaphores, messages, events, watches, requests, rules
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "epoll_create": (213, None),
    "epoll_create1": (291, 20),
    "io_setup": (206, 0),
    "landlock_create_ruleset": (444, 444),
    "seccomp": (317, 277),
    # They keep a page, a huge one as well, in a pipe or socket after it was unmapped or deleted.
    "splice": (275, 76),
    "vmsplice": (278, 75),
    "tee": (276, 77),
    "sendfile": (40, 71),
}
# An access control list takes 64 KiB of kernel memory beside a file's own.
NOT_SUPPORTED: Calls = {
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
}
# Evicts pages from the cache. It succeeds and does nothing, as advice may be ignored.
NOTHING_DONE: Calls = {"fadvise64": (221, 223)}
MADVISE: Calls = {"madvise": (28, 233)}
EVICT = (20, 21)  # MADV_COLD and MADV_PAGEOUT: the same for a mapped file
CLONE: Calls = {"clone": (56, 220)}
CLONE_FILES, CLONE_THREAD = 0x400, 0x10000
SOCKET: Calls = {"socket": (41, 198), "socketpair": (53, 199)}
PRCTL: Calls = {"prctl": (157, 167)}
# PR_SET_SECCOMP and PR_FUTEX_HASH: filters, and a table of gigabytes in one call
KERNEL_TABLES = (22, 78)
FCNTL: Calls = {"fcntl": (72, 25)}
# F_SETLK, F_SETLKW and the same for open file descriptions: a lock on every second byte of a file
RECORD_LOCKS = (6, 7, 37, 38)
MMAP: Calls = {"mmap": (9, 222)}
MAP_SHARED, MAP_ANONYMOUS = 0x01, 0x20
SIGACTION: Calls = {"rt_sigaction": (13, 134)}
SIGCHLD = 17
# Without memfd_create cuInit fails with error 304 (NVIDIA/OpenShell issue 1696). It maps shared
# anonymous memory and locks the index of its compute cache; whether it needs epoll was not tried.
# There a cgroup must count.
CUDA_NEEDS = {"memfd_create", "epoll_create", "epoll_create1", "fcntl", "mmap"}

# Refused always, with this error number; 0 is success.
ALWAYS = (
    (NOT_PERMITTED, errno.EPERM),
    (NOT_THERE, errno.ENOSYS),
    (NOT_SUPPORTED, errno.EOPNOTSUPP),
    (NOTHING_DONE, 0),
)
# Refused if the argument of this index has one of the values, with this error number.
BY_VALUE = (
    (MADVISE, 2, EVICT, 0),
    (PRCTL, 0, KERNEL_TABLES, errno.EINVAL),
    (FCNTL, 1, RECORD_LOCKS, errno.ENOLCK),
)
LISTED = NOT_PERMITTED | NOT_THERE | NOT_SUPPORTED | NOTHING_DONE
ALL = LISTED | MADVISE | CLONE | SOCKET | PRCTL | FCNTL | MMAP | SIGACTION


def numbered(names: Iterable[str], machine: str) -> dict[str, int]:
    """The numbers of those calls that this machine, a key of MACHINES, has."""
    column = list(MACHINES).index(machine)
    return {name: number for name in names if (number := ALL[name][column]) is not None}


def program(machine: str, device: str = "cpu", in_cgroup: bool = False) -> bytes | None:
    """The filter, an array of struct sock_filter; None for a machine without one.

    A box in a cgroup of its own, which counts its CPU time, may do with SIGCHLD what it likes.
    """
    if machine not in MACHINES:
        return None
    needed = CUDA_NEEDS if device == "cuda" else set()
    if in_cgroup:
        needed = needed | SIGACTION.keys()

    def each(calls: Iterable[str], then: list[bytes]) -> list[bytes]:
        numbers = numbered((call for call in calls if call not in needed), machine).values()
        return [line for number in numbers for line in _when(number, then)]

    lines = [
        _line(LOAD, MACHINE),
        _line(IF_EQUAL, MACHINES[machine], 1, 0),
        _line(RETURN, KILL_PROCESS),
        _line(LOAD, NUMBER),
        *([_line(IF_ANY_BIT, X32, 0, 1), _fail(errno.EPERM)] if machine == "x86_64" else []),
        *(line for calls, number in ALWAYS for line in each(calls, [_fail(number)])),
        *(line for calls, then in _by_argument() for line in each(calls, then)),
        _line(RETURN, ALLOW),
    ]
    return b"".join(lines)


def _by_argument() -> Iterator[tuple[Calls, list[bytes]]]:
    """The calls that are refused with some arguments only, and the part of the filter for each."""
    allow = _line(RETURN, ALLOW)
    for calls, index, values, number in BY_VALUE:
        tests = [line for value in values for line in _when(value, [_fail(number)])]
        yield calls, [_argument(index), *tests, allow]
    known_families = [line for family in FAMILIES for line in _when(family, [allow])]
    yield SOCKET, [_argument(0), *known_families, _fail(errno.EAFNOSUPPORT)]
    # No namespace, and no thread with descriptors of its own, which nobody would count.
    yield (
        CLONE,
        [
            _argument(0),
            _line(IF_ANY_BIT, NEW_NAMESPACE, 2, 0),
            _line(IF_ANY_BIT, CLONE_THREAD, 0, 2),
            _line(IF_ANY_BIT, CLONE_FILES, 1, 0),
            _fail(errno.EPERM),
            allow,
        ],
    )
    # Its pages stay when all but one of them are unmapped, and then no map tells their number.
    yield (
        MMAP,
        [
            _argument(3),
            _line(IF_ANY_BIT, MAP_SHARED, 0, 2),
            _line(IF_ANY_BIT, MAP_ANONYMOUS, 0, 1),
            _fail(errno.EPERM),
            allow,
        ],
    )
    # Children of a process that ignores SIGCHLD, or asks for no zombies, are added to no account.
    # What it wants is in memory, so any change is passed over. It succeeds, as a loader of torch
    # sets a handler only to hear of a dead worker sooner; what waits for the handler itself hangs
    # (`make -j`, a background job's `wait` in dash), and children that are to be forgotten stay as
    # zombies, which count as tasks. To ask, with a null pointer, is allowed.
    yield (
        SIGACTION,
        [
            _argument(0),
            _line(IF_EQUAL, SIGCHLD, 0, 5),
            _argument(1),
            _line(IF_EQUAL, 0, 0, 2),
            _argument(1, HIGH_HALF),
            _line(IF_EQUAL, 0, 1, 0),
            _fail(0),
            allow,
        ],
    )


@contextlib.contextmanager
def descriptor(device: str, in_cgroup: bool = False) -> Iterator[int | None]:
    """The filter for this machine as an open file, for `bwrap --seccomp`; None if there is none.

    Bubblewrap reads the file to its end, so each box needs its own, passed by `pass_fds`.
    """
    code = program(platform.machine(), device, in_cgroup)
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
    if machine not in MACHINES:
        return None
    needed = CUDA_NEEDS if device == "cuda" else set()

    def refuse(calls: Iterable[str], number: int, *tests: Rule) -> Rule:
        names = list(numbered((name for name in calls if name not in needed), machine))
        action = {"action": "SCMP_ACT_ERRNO", "errnoRet": number}
        return {"names": names, **action, "args": list(tests)}

    rules = [
        *(refuse(calls, number) for calls, number in ALWAYS),
        *(refuse(calls, number, *tests) for calls, number, tests in _docker_tests()),
    ]
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": [f"SCMP_ARCH_{machine.upper()}"],
            "syscalls": [rule for rule in rules if rule["names"]],
        }
    )


def _docker_tests() -> Iterator[tuple[Calls, int, list[Rule]]]:
    """`_by_argument` for docker: calls, an error number, and the tests that must all hold.

    A rule cannot test an argument twice, so there is one for each value or bit.
    """

    def has(index: int, value: int, op: str = "EQ") -> Rule:
        return {"index": index, "value": value, "op": f"SCMP_CMP_{op}"}

    def has_bits(index: int, mask: int, bits: int) -> Rule:
        return {**has(index, mask, "MASKED_EQ"), "valueTwo": bits}

    for calls, index, values, number in BY_VALUE:
        yield from ((calls, number, [has(index, value)]) for value in values)
    unknown = [family for family in range(MOST_FAMILIES) if family not in FAMILIES]
    yield from ((SOCKET, errno.EAFNOSUPPORT, [has(0, family)]) for family in unknown)
    yield SOCKET, errno.EAFNOSUPPORT, [has(0, MOST_FAMILIES, "GE")]
    flags = [1 << bit for bit in range(32) if NEW_NAMESPACE >> bit & 1]
    yield from ((CLONE, errno.EPERM, [has_bits(0, flag, flag)]) for flag in flags)
    yield CLONE, errno.EPERM, [has_bits(0, CLONE_THREAD | CLONE_FILES, CLONE_THREAD)]
    shared = MAP_SHARED | MAP_ANONYMOUS
    yield MMAP, errno.EPERM, [has_bits(3, shared, shared)]
    yield SIGACTION, 0, [has(0, SIGCHLD), has(1, 0, "NE")]


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One struct sock_filter; a jump is the number of lines to skip."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _argument(index: int, half: int = 0) -> bytes:
    """Loads a half of an argument of the call, by default the low one."""
    return _line(LOAD, ARGUMENTS + 8 * index + half)


def _fail(number: int) -> bytes:
    return _line(RETURN, FAIL | number)


def _when(value: int, then: list[bytes]) -> list[bytes]:
    """Runs `then`, which must end the program, if the loaded word is `value`."""
    return [_line(IF_EQUAL, value, 0, len(then)), *then]
