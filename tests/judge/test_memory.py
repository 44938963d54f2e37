"""Memory that the kernel keeps for a process outside its resident set, kind by kind, in a real box.

Each kind is refused, or counted at no less than it takes.
"""

import errno
import os
import platform

import pytest

from tasks.judge import kernel_limits, memory, seccomp
from tasks.judge.box import Box, open_box
from tasks.judge.processes import process_tree
from tests.boxes import SAY, answer, make_spec

MIB = 2**20
MACHINE = platform.machine()
# Calls that are not in the filter
OTHERS = {"x86_64": {"timer_create": 222, "exit": 60}, "aarch64": {"timer_create": 107, "exit": 93}}

pytestmark = pytest.mark.skipif(MACHINE not in OTHERS, reason="no filter for this machine")

NUMBERS = seccomp.numbered(seccomp.ALL, MACHINE) | OTHERS[MACHINE] if MACHINE in OTHERS else {}
START = (
    f"{SAY}\nNUMBERS = {NUMBERS}"
    """
import ctypes, fcntl, mmap, select, signal, socket, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
def call(name, *arguments):
    addresses = map(ctypes.c_void_p, arguments)
    if libc.syscall(ctypes.c_long(NUMBERS[name]), *addresses) == -1:
        raise OSError(ctypes.get_errno(), name)
def reserve(size):  # that can be read, and holds nothing
    at = libc.mmap(None, ctypes.c_size_t(size), 1, 0x4022, -1, ctypes.c_long(0))
    libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(size), 15)  # MADV_NOHUGEPAGE
    return at
file = open("/tmp/file", "w+b")
spare = ctypes.create_string_buffer(64)
errors, kept, where = [], [], ctypes.addressof(spare)
"""
)

# Kind of memory, how a process gets it, and the error it gets instead.
REFUSED = {
    "semaphores, 2 MB a set": ("call('semget', 0, 32000, 0o1600)", errno.ENOSYS),
    "messages in queues": ("call('msgget', 0, 0o1600)", errno.ENOSYS),
    "shared memory by key": ("call('shmget', 0, 4096, 0o1600)", errno.ENOSYS),
    "messages in POSIX queues": ("call('mq_open', 0, 0o102, 0o600, 0)", errno.ENOSYS),
    "events of files": ("call('inotify_init1', 0)", errno.ENOSYS),
    "events of file systems": ("call('fanotify_init', 0, 0)", errno.ENOSYS),
    "watched descriptors": ("select.epoll()", errno.ENOSYS),
    "asynchronous requests": ("call('io_setup', 1, 0)", errno.ENOSYS),
    "rules of access": ("call('landlock_create_ruleset', 0, 0, 1)", errno.ENOSYS),
    "filters of system calls": ("call('seccomp', 1, 0, 0)", errno.ENOSYS),
    "filters by another call": ("call('prctl', 22, 2, 0)", errno.EINVAL),
    "tables of futexes, 2 GB a call": ("call('prctl', 78, 1, 16, 0, 0)", errno.EINVAL),
    "memory in files without a name": ("os.memfd_create('x')", errno.ENOSYS),
    "memory that is secret": ("call('memfd_secret', 0)", errno.ENOSYS),
    "unmapped huge pages in a pipe": ("call('vmsplice', 1, 0, 0, 0)", errno.ENOSYS),
    "pages of deleted files in a pipe": ("os.splice(3, os.pipe()[1], 1)", errno.ENOSYS),
    "the same pages in another pipe": ("call('tee', 0, 1, 1, 0)", errno.ENOSYS),
    "pages of deleted files in a socket": ("os.sendfile(3, 3, 0, 1)", errno.ENOSYS),
    "access control lists": ("os.setxattr('/tmp/file', 'user.x', b'')", errno.EOPNOTSUPP),
    "locks on parts of a file": ("fcntl.lockf(file, fcntl.LOCK_EX)", errno.ENOLCK),
    "such locks of an open file": ("fcntl.fcntl(file, 37, bytes(32))", errno.ENOLCK),
    "shared memory but for a page unmapped": ("mmap.mmap(-1, 4096)", errno.EPERM),
    "the same by a device": ("mmap.mmap(os.open('/dev/zero', 2), 4096)", errno.ENODEV),
    "descriptors of one thread": ("call('clone', 0x10900, 0, 0, 0, 0)", errno.EPERM),
    "timers": ("[call('timer_create', 1, 0, where) for _ in range(9999)]", errno.EAGAIN),
}

# Kind of memory, how a process gets it, and the least that this takes.
COUNTED = {
    "page tables": (
        "at = reserve(2**34)\n"
        "for i in range(2**13): ctypes.c_char.from_address(at + (i << 21)).value",
        32 * MIB,
    ),
    "mappings": (
        "at = reserve(40_000 * 4096)\n"
        "for i in range(0, 40_000, 2): libc.mprotect(ctypes.c_void_p(at + 4096 * i), 4096, 0)",
        (40_000 - memory.FREE_MAPPINGS) * 192,
    ),
    "empty files": (
        "for i in range(5000): os.mknod('/tmp/' + 240 * 'x' + str(i))",
        5000 * 1400,
    ),
    "pipes": (
        "kept += [os.pipe() for _ in range(1900)]",
        (3800 - memory.FREE_DESCRIPTORS) * 4096,
    ),
    "sockets": (
        "[os.close(end) for pair in kept for end in pair]\n"
        "kept = [socket.socketpair() for _ in range(200)]",
        (400 - memory.FREE_SOCKETS) * 212_992,
    ),
    "a process whose first thread has ended": (
        "child = os.fork()\n"
        "if child == 0:\n"
        "    kept = bytearray(b'x') * 2**25\n"
        "    threading.Thread(target=time.sleep, args=[600]).start()\n"
        "    call('exit', 0)\n"
        "while open(f'/proc/{child}/stat').read().split()[2] != 'Z': time.sleep(0.005)",
        32 * MIB,
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("box")
    yield made
    (made / "gate").chmod(0o755)


@pytest.fixture(scope="module")
def tried(folder):
    """Each refused kind and the number of its error, and by how many bytes each counted kind grew.

    Also what was counted beside the resident sets of a box that has done nothing.
    """
    attempts = [
        f"try: {code}; errors.append(0)\nexcept OSError as error: errors.append(error.errno)"
        for code, _ in REFUSED.values()
    ]
    steps = [f"wire.recv(1)\n{code}\nsay(0)" for code, _ in COUNTED.values()]
    code = "\n".join([START, *attempts, "say(errors)", *steps, "wire.recv(1)"])
    with open_box(make_spec(folder, memory_bytes=2**40), ["-c", code]) as box:
        found = dict(zip(REFUSED, answer(box), strict=True))
        idle = memory.hidden(pids(box))
        for kind in COUNTED:
            before = held(box)
            box.wire.send(b"x")
            answer(box)
            found[kind] = held(box) - before
    return found, idle


def pids(box: Box) -> list[int]:
    return [process.pid for process in process_tree(box.process.pid)]


def held(box: Box) -> int:
    """Bytes that the box holds."""
    return sum(map(memory.resident, pids(box))) + memory.hidden(pids(box))


@pytest.mark.parametrize("kind", REFUSED)
def test_memory_that_cannot_be_seen_from_outside_is_refused(tried, kind):
    if kind == "timers" and not kernel_limits.processes(1):
        pytest.skip("this kernel counts the user's other processes too")
    assert os.strerror(tried[0][kind]) == os.strerror(REFUSED[kind][1])


@pytest.mark.parametrize("kind", COUNTED)
def test_memory_outside_the_resident_sets_is_counted(tried, kind):
    assert tried[0][kind] >= COUNTED[kind][1]


def test_a_box_that_has_done_nothing_holds_next_to_nothing_more(tried):
    assert tried[1] < MIB
