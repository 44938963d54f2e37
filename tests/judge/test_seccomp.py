"""The filter: its decision on each call, by an interpreter of its program, and in a real box."""

import errno
import json
import os
import platform
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from tasks.judge import probe, seccomp
from tasks.judge.box import open_box
from tests.boxes import SAY, answer, make_spec

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def decide(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the kernel would return for a call: the result of the program on struct seccomp_data."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    lines = list(struct.iter_unpack("=HBBI", program))
    at, word = 0, 0
    while True:
        code, if_true, if_false, value = lines[at]
        at += 1
        if code == seccomp.LOAD:
            (word,) = struct.unpack_from("=I", data, value)
        elif code == seccomp.RETURN:
            return value
        else:
            holds = word == value if code == seccomp.IF_EQUAL else bool(word & value)
            at += if_true if holds else if_false


def program_for(machine: str, device: str = "cpu") -> bytes:
    program = seccomp.program(machine, device)
    assert program is not None
    return program


def on(machine: str, name: str, *arguments: int, device: str = "cpu") -> int:
    number = seccomp.numbered([name], machine)[name]
    return decide(program_for(machine, device), seccomp.MACHINES[machine], number, *arguments)


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_every_listed_call_fails_with_its_number(machine):
    for calls, number in (
        (seccomp.NOT_PERMITTED, errno.EPERM),
        (seccomp.NOT_THERE, errno.ENOSYS),
        (seccomp.NOT_SUPPORTED, errno.EOPNOTSUPP),
    ):
        names = seccomp.numbered(calls, machine)
        assert {on(machine, name) for name in names} == {seccomp.FAIL | number}


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_every_other_call_is_allowed(machine):
    program = program_for(machine)
    listed = set(seccomp.numbered(seccomp.ALL, machine).values())
    others = set(range(600)) - listed
    assert {decide(program, seccomp.MACHINES[machine], number) for number in others} == {
        seccomp.ALLOW
    }


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_advice_to_evict_pages_from_the_cache_is_ignored(machine):
    assert (
        on(machine, "fadvise64")
        == on(machine, "madvise", 0, 0, 20)
        == on(machine, "madvise", 0, 0, 21)
        == seccomp.FAIL
    )
    assert on(machine, "madvise", 0, 0, 4) == seccomp.ALLOW


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_no_process_changes_what_becomes_of_its_children(machine):
    """The action is in memory, at an address of 64 bits: a null pointer only asks for it."""
    for action in (1, 1 << 32, 0x7FFF_0000_1000):
        assert on(machine, "rt_sigaction", 17, action, 0, 8) == seccomp.FAIL
        assert on(machine, "rt_sigaction", 15, action, 0, 8) == seccomp.ALLOW
    assert on(machine, "rt_sigaction", 17, 0, 1, 8) == seccomp.ALLOW


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_anonymous_memory_is_private(machine):
    private, shared, validated, anonymous = 0x02, 0x01, 0x03, 0x20
    assert {on(machine, "mmap", 0, 1, 3, kind | anonymous) for kind in (shared, validated)} == {
        seccomp.FAIL | errno.EPERM
    }
    for flags in (private | anonymous, shared, private):
        assert on(machine, "mmap", 0, 1, 3, flags) == seccomp.ALLOW


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_a_thread_shares_the_descriptors_of_its_process(machine):
    assert on(machine, "clone", 0x10900) == seccomp.FAIL | errno.EPERM
    assert on(machine, "clone", 0x10D00) == seccomp.ALLOW


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_record_locks_and_tables_of_the_kernel_are_refused(machine):
    assert {on(machine, "fcntl", 3, command) for command in (6, 7, 37, 38)} == {
        seccomp.FAIL | errno.ENOLCK
    }
    assert {on(machine, "prctl", option) for option in (22, 78)} == {seccomp.FAIL | errno.EINVAL}
    assert on(machine, "fcntl", 3, 4) == on(machine, "prctl", 15) == seccomp.ALLOW


@pytest.mark.parametrize("machine", seccomp.MACHINES)
@pytest.mark.parametrize(
    "flag", [0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000]
)
def test_clone_cannot_make_a_namespace(machine, flag):
    assert on(machine, "clone", flag | 17) == seccomp.FAIL | errno.EPERM


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_clone_can_make_processes_and_threads(machine):
    assert {on(machine, "clone", flags) for flags in (17, 0x3D0F00, 0x1200011)} == {seccomp.ALLOW}


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_sockets_are_of_two_families(machine):
    allowed = {family for family in range(64) if on(machine, "socket", family) == seccomp.ALLOW}
    assert allowed == {1, 16}
    assert on(machine, "socket", 40) == seccomp.FAIL | errno.EAFNOSUPPORT


def test_a_call_of_another_table_kills_the_process():
    program = program_for("x86_64")
    assert decide(program, 0x40000003, 1) == seccomp.KILL_PROCESS


def test_the_second_table_of_x86_64_is_refused():
    assert (
        decide(program_for("x86_64"), seccomp.MACHINES["x86_64"], seccomp.X32 | 1)
        == seccomp.FAIL | errno.EPERM
    )


def test_the_calls_that_cudas_driver_needs_are_allowed_for_cuda():
    assert on("x86_64", "memfd_create", device="cuda") == seccomp.ALLOW
    assert on("x86_64", "mmap", 0, 1, 3, 0x21, device="cuda") == seccomp.ALLOW
    assert on("x86_64", "shmget", device="cuda") == seccomp.FAIL | errno.ENOSYS


def refusal(profile: dict[str, Any], name: str, arguments: tuple[int, ...]) -> int | None:
    """The error number of docker's first rule that fits a call; None if it is allowed."""
    tests = {
        "SCMP_CMP_EQ": lambda has, rule: has == rule["value"],
        "SCMP_CMP_NE": lambda has, rule: has != rule["value"],
        "SCMP_CMP_GE": lambda has, rule: has >= rule["value"],
        "SCMP_CMP_MASKED_EQ": lambda has, rule: has & rule["value"] == rule["valueTwo"],
    }
    assert profile["defaultAction"] == "SCMP_ACT_ALLOW"
    for rule in profile["syscalls"]:
        if name in rule["names"] and all(
            tests[test["op"]](arguments[test["index"]], test) for test in rule["args"]
        ):
            assert rule["action"] == "SCMP_ACT_ERRNO"
            return int(rule["errnoRet"])
    return None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_dockers_filter_decides_as_ours(machine, device):
    text = seccomp.docker_profile(machine, device)
    assert text is not None
    profile = json.loads(text)
    values = [*range(80), 0x3D0F00, 0x10400, *(1 << bit for bit in range(7, 32)), 0xFFFFFFFF]
    for name in seccomp.numbered(seccomp.ALL, machine):
        for value in [0] if name in seccomp.LISTED else values:
            for arguments in ((value,) * 4, (17, value, 0, 0), (17, value << 32, 0, 0)):
                ours = on(machine, name, *arguments, device=device)
                docker = refusal(profile, name, arguments)
                expected = seccomp.ALLOW if docker is None else seccomp.FAIL | docker
                assert ours == expected, (name, arguments)


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_numbers_are_those_of_the_kernel(machine):
    if not HEADERS[machine].exists():
        pytest.skip("no kernel headers here")
    text = HEADERS[machine].read_text()
    known = {
        name: int(number)
        for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)
    }
    ours = seccomp.numbered(seccomp.ALL, machine)
    assert {name: known[name] for name in ours if name in known} == {
        name: ours[name] for name in ours if name in known
    }
    assert len(ours.keys() - known.keys()) <= 3  # headers older than a call


def test_no_filter_for_an_unknown_machine(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with seccomp.descriptor("cpu") as fd:
        assert fd is None
    assert seccomp.docker_profile("riscv64") is None


@pytest.mark.skipif(platform.machine() not in seccomp.MACHINES, reason="no filter for this machine")
def test_the_descriptor_is_at_the_start_of_the_program():
    with seccomp.descriptor("cpu") as fd:
        assert fd is not None
        assert os.read(fd, 1 << 16) == seccomp.program(platform.machine())


def test_without_the_filter_the_probe_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(seccomp, "program", lambda *_: None)
    failed = {name for name, holds, _ in probe.probe(tmp_path / "home") if not holds}
    assert set(probe.FILTERED) | {"kernel keyring refused"} <= failed


def test_threads_processes_and_sockets_work_under_the_filter(folder):
    code = SAY + (
        "\nimport multiprocessing, threading, subprocess\n"
        "thread = threading.Thread(target=lambda: None); thread.start(); thread.join()\n"
        "child = multiprocessing.get_context('fork').Process(target=lambda: None)\n"
        "child.start(); child.join()\n"
        "socket.socketpair(); socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\n"
        "say([child.exitcode, subprocess.run(['true']).returncode])"
    )
    with open_box(make_spec(folder), ["-c", code]) as box:
        assert answer(box) == [0, 0]


@pytest.mark.slow
def test_torch_trains_and_compiles_under_the_filter(folder):
    code = SAY + (
        "\nos.environ['TORCHINDUCTOR_VEC_ISA_OK'] = '0'  # or it compiles programs to find out"
        "\nimport torch\ntorch.set_num_threads(1)\nmodel = torch.compile(torch.nn.Linear(8, 8))\n"
        "optimizer = torch.optim.SGD(model.parameters(), 0.1)\nlosses = []\n"
        "for _ in range(3):\n"
        "    loss = model(torch.ones(4, 8)).square().mean(); losses.append(loss.item())\n"
        "    loss.backward(); optimizer.step(); optimizer.zero_grad()\n"
        "say([losses, os.path.isdir('/scratch/inductor')])"
    )
    spec = make_spec(folder, memory_bytes=4 * 2**30, tasks=256, tmp_bytes=256 * 2**20)
    with open_box(spec, ["-c", code]) as box:
        losses, compiled = answer(box)
    assert losses[2] < losses[0]
    assert compiled
