"""Real boxes without torch: what gets in, what gets out, and that nothing is left of them."""

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.judge import bwrap, kernel_limits, probe
from tasks.judge.box import open_box, sweep
from tasks.judge.bwrap import BoxUnavailable, box_name
from tasks.judge.processes import ProcessId, Stat, process_tree
from tests.boxes import SAY, UNWAITED, alive, answer, make_spec, verdict

SLEEP = ["-c", "import time; time.sleep(600)"]
GATE = SAY + (
    "\ntry: os.listdir('/data/d'); say('open')\nexcept PermissionError: say('closed')\n"
    "wire.recv(1); say(open('/data/d/rows').read())"
)
JUDGE = """
import sys, time
from pathlib import Path
from tasks.judge.box import open_box
from tests.boxes import SAY, answer, make_spec
with open_box(make_spec(Path(sys.argv[1])), ["-c", SAY + "say(1); time.sleep(600)"]) as box:
    answer(box)
    print(box.process.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_probe_passes_on_this_machine(tmp_path, device):
    """A box with a GPU sees the host's /sys too; that much can be tried without a GPU."""
    assert [name for name, holds, _ in probe.probe(tmp_path, device) if not holds] == []


@pytest.fixture
def closed_umask(monkeypatch):
    """A umask of 077, and a stage that is made under it."""
    place = Path(tempfile.mkdtemp(dir="/run" if os.geteuid() == 0 else None))
    place.chmod(0o755)
    monkeypatch.setattr(bwrap, "STAGE", place / "stage")
    before = os.umask(0o077)
    yield
    os.umask(before)
    shutil.rmtree(place)


@pytest.mark.usefixtures("closed_umask")
def test_a_box_can_read_what_it_needs_under_a_closed_umask(tmp_path):
    tmp_path.chmod(0o755)
    assert [check for check in probe.probe(tmp_path) if not check[1]] == []


@pytest.mark.usefixtures("closed_umask")
def test_a_box_does_not_inherit_our_umask(folder):
    with open_box(make_spec(folder), ["-c", SAY + "say(os.umask(0))"]) as box:
        assert answer(box) == 0o022


@pytest.mark.parametrize("limit", ["n 64", "l 0", "f 4096", "u 4000"])
def test_a_box_starts_under_a_hard_limit_that_is_lower_than_its_own(tmp_path, limit):
    code = "import sys; from pathlib import Path; from tasks.judge import probe\n"
    code += "print([check for check in probe.probe(Path(sys.argv[1])) if not check[1]])"
    shell = f'ulimit -{limit}; exec "$@"'
    argv = ["bash", "-c", shell, "bash", sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's box is that user")
def test_packages_that_a_box_may_not_read_are_named_with_the_remedy(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "numpy"
    package.mkdir(parents=True)
    package.chmod(0o700)
    paths = {**sysconfig.get_paths(), "purelib": str(package.parent)}
    monkeypatch.setattr("sysconfig.get_paths", lambda: paths)
    ((name, holds, detail),) = probe.probe(tmp_path)
    assert (name, holds) == ("a box starts", False)
    assert f"may not read {package} (mode 0700): chmod -R a+rX {package.parent}" in detail
    assert "namespaces" not in detail


def test_a_box_sees_no_secret_of_ours(folder, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    code = SAY + (
        "pids = [name for name in os.listdir('/proc') if name.isdigit()]\n"
        "say([open(f'/proc/{pid}/environ').read() for pid in pids])"
    )
    with open_box(make_spec(folder), ["-c", code]) as box:
        environments = answer(box)
    assert environments
    assert not any("sk-secret" in text or str(Path.home()) + "\0" in text for text in environments)


def test_the_gate_opens_for_a_running_box(folder):
    spec = make_spec(folder)
    with open_box(spec, ["-c", GATE]) as box:
        assert answer(box) == "closed"
        spec.gate.open()
        box.wire.send(b"g")
        assert answer(box) == "rows"


def test_no_host_path_is_writable(folder):
    code = SAY + (
        "\nwrote = []\nfor top, folders, files in os.walk('/'):\n"
        "    folders[:] = [] if top.startswith(('/proc', '/sys')) else folders\n"
        "    try: open(top + '/mark', 'w').close(); wrote.append(top)\n"
        "    except OSError: pass\n"
        "say(wrote)"
    )
    with open_box(make_spec(folder), ["-c", code]) as box:
        wrote = answer(box)
    assert [path for path in wrote if not path.startswith(bwrap.TMPFS)] == []
    assert list(folder.rglob("mark")) == []


def test_a_daemon_ends_with_its_box(folder):
    code = SAY + (
        "\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(600)\n"
        "    os._exit(0)\nos.wait(); say(1); time.sleep(600)"
    )
    with open_box(make_spec(folder), ["-c", code]) as box:
        answer(box)
        tree = process_tree(box.process.pid)
        assert len(tree) >= 4
    assert alive(tree) == []


def test_of_300_mb_of_output_both_ends_are_kept(folder):
    code = SAY + (
        "\nprint('first')\nfor _ in range(300): sys.stdout.write('x' * 2**20)\n"
        "print('\\nlast \\x1b[31m'); sys.stdout.flush(); say(1)"
    )
    with open_box(make_spec(folder), ["-c", code]) as box:
        answer(box)
        box.kill()
        log = box.log.text()
    assert log.startswith("first\n")
    assert log.endswith("\nlast [31m\n")
    assert "bytes left out" in log
    assert len(log) < 70_000


def test_too_much_memory_is_named(folder):
    code = SAY + "\nx = bytearray(2**30)\nfor i in range(0, 2**30, 4096): x[i] = 1\nsay(1)"
    with open_box(make_spec(folder, memory_bytes=64 * 2**20), ["-c", code]) as box:
        assert verdict(box)[0] == "out_of_memory"


def test_too_many_tasks_are_named(folder):
    code = "import os, time\nfor _ in range(60):\n    if os.fork() == 0: break\ntime.sleep(600)"
    with open_box(make_spec(folder), ["-c", code]) as box:
        assert verdict(box)[0] == "too_many_tasks"


@pytest.mark.parametrize("attempt", range(5))
def test_a_fork_bomb_is_named(folder, attempt):
    code = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    with open_box(make_spec(folder), ["-c", code]) as box:
        status, reason = verdict(box)
    assert status == "too_many_tasks"
    assert "the limit is 32" in reason


def test_the_limit_on_cpu_seconds_is_named(folder):
    with open_box(make_spec(folder), ["-c", "while True: pass"]) as box:
        box.watchdog.limit_cpu(0.5)
        assert "the limit is 0.5" in verdict(box)[1]


def test_cpu_seconds_include_children_that_have_ended(folder):
    code = SAY + (
        "\nif os.fork() == 0:\n    end = time.process_time() + 0.5\n"
        "    while time.process_time() < end: pass\n    os._exit(0)\n"
        "os.wait(); say(1); wire.recv(1)"
    )
    with open_box(make_spec(folder), ["-c", code]) as box:
        answer(box)
        assert box.watchdog.cpu_seconds() >= 0.5


def test_cpu_seconds_include_short_children_that_nobody_waits_for(folder):
    """The watchdog, which looks now and then, sees few of them alive."""
    code = SAY + UNWAITED + "say(1); wire.recv(1)"
    with open_box(make_spec(folder), ["-c", code]) as box:
        answer(box)
        assert box.watchdog.cpu_seconds() >= 0.4


@pytest.mark.parametrize("ended", [False, True], ids=["running", "ended by the watchdog"])
def test_a_box_that_dies_slowly_is_waited_for(folder, ended):
    """Frozen, a process outlives SIGKILL for longer than once was waited for a box: 2 s."""
    code = SAY + "\nsay(1); time.sleep(600)"
    with freezer() as freeze, open_box(make_spec(folder), ["-c", code]) as box:
        answer(box)
        (python,) = [process for process in process_tree(box.process.pid) if not below(process)]
        thaw = freeze(python.pid)
        later = threading.Timer(2.5, thaw)
        later.start()
        if ended:
            box.watchdog.cpu_seconds()  # a look
            box.watchdog._kill_group()
            box.process.wait()
        box.kill()
        later.join()
        assert not python.is_alive


def below(process: ProcessId) -> set[ProcessId]:
    return process_tree(process.pid) - {process}


@contextlib.contextmanager
def freezer() -> Iterator[Callable[[int], Callable[[], object]]]:
    """Freezes a process, and returns what thaws it: a cgroup of version 1, whose frozen processes
    do not even die."""
    folder = Path(f"/sys/fs/cgroup/freezer/nightly-test-{os.getpid()}")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("no process can be frozen here: that takes root and a freezer of version 1")

    def freeze(pid: int) -> Callable[[], object]:
        (folder / "cgroup.procs").write_text(str(pid))
        (folder / "freezer.state").write_text("FROZEN")
        while (folder / "freezer.state").read_text() != "FROZEN\n":
            time.sleep(0.005)
        return functools.partial((folder / "freezer.state").write_text, "THAWED")

    try:
        yield freeze
    finally:
        (folder / "freezer.state").write_text("THAWED")
        while (folder / "cgroup.procs").read_text():
            time.sleep(0.005)
        folder.rmdir()


@pytest.mark.usefixtures("without_bwrap")
def test_a_box_that_cannot_start_is_one_failed_entry(tmp_path):
    found = probe.probe(tmp_path)
    assert [(name, holds) for name, holds, _ in found] == [("a box starts", False)]


def test_without_any_bwrap_the_error_names_the_remedy(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(BoxUnavailable, match="apt install bubblewrap"):
        bwrap.find_bwrap()


def test_kill_9_of_the_judge_ends_its_box(folder):
    argv = [sys.executable, "-c", JUDGE, str(folder)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=root) as judge:
        assert judge.stdout is not None
        tree = process_tree(int(judge.stdout.readline()))
        assert len(tree) >= 3
        judge.kill()
    while alive(tree):
        time.sleep(0.01)


def test_sweep_ends_only_orphaned_boxes_of_this_folder(folder):
    def pretend(name: str) -> int:
        """An orphan whose command line is that of a bwrap with this host name."""
        orphan = f"exec -a bwrap {sys.executable} {SLEEP[0]} '{SLEEP[1]}' --hostname {name}"
        shell = ["bash", "-c", f"({orphan}) >/dev/null 2>&1 & echo $!"]
        return int(subprocess.run(shell, capture_output=True, check=True).stdout)

    mine, other = pretend(box_name(folder)), pretend(box_name(folder / "other"))
    try:
        while Stat.read(mine).parent != 1:
            time.sleep(0.01)
        ended = sweep(folder)
        assert mine in ended
        assert other not in ended
    finally:
        for pid in (mine, other):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


def test_the_baselines_compiled_kernels_are_read_only_in_a_box(folder):
    kernels = folder / "kernels"
    kernels.write_bytes(b"kernels")
    kernels.chmod(0o644)
    code = SAY + (
        "\npath = os.environ['NIGHTLY_SEED_CACHE']\n"
        "try: open(path, 'r+b'); wrote = True\nexcept OSError: wrote = False\n"
        "say([open(path).read(), wrote, os.environ['NIGHTLY_EXPORT_CACHE']])"
    )
    with open_box(make_spec(folder, seed_cache=kernels, export_cache=True), ["-c", code]) as box:
        assert answer(box) == ["kernels", False, "1"]


def test_without_compiled_kernels_no_variable_names_any(folder):
    code = SAY + "say([name for name in os.environ if name.endswith('_CACHE')])"
    with open_box(make_spec(folder), ["-c", code]) as box:
        assert answer(box) == []


def test_a_box_runs_under_small_limits(folder):
    code = SAY + (
        "import resource as r\n"
        "names = r.RLIMIT_CORE, r.RLIMIT_NOFILE, r.RLIMIT_FSIZE, r.RLIMIT_MEMLOCK, 12  # MSGQUEUE\n"
        "say([r.getrlimit(name)[1] for name in names])"
    )
    with open_box(make_spec(folder), ["-c", code]) as box:
        assert answer(box) == [0, 4096, 16 * 2**20, 65536, 0]


def test_a_cgroup_scope_for_root_not_run_here(monkeypatch):
    monkeypatch.setattr(kernel_limits, "cgroup_works", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    argv, environment = kernel_limits.cgroup(1000, 32)
    assert " ".join(argv) == (
        "systemd-run --scope --quiet --collect "
        "-p MemoryMax=1000 -p MemorySwapMax=0 -p TasksMax=96 -- "
        "env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin"
    )
    assert environment == {}


def test_a_cgroup_scope_for_an_ordinary_user_not_run_here(monkeypatch):
    monkeypatch.setattr(kernel_limits, "cgroup_works", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    argv, environment = kernel_limits.cgroup(1000, 32)
    assert argv[:5] == ["systemd-run", "--scope", "--quiet", "--collect", "--user"]
    assert argv[-3:] == ["env", "-i", "PATH=/usr/bin:/bin:/usr/sbin:/sbin"]
    assert environment == {"XDG_RUNTIME_DIR": "/run/user/1000"}


def test_the_scope_comes_first_and_has_room_for_every_tmpfs_not_run_here(folder, monkeypatch):
    monkeypatch.setattr(kernel_limits, "cgroup_works", lambda: True)
    spec = make_spec(folder, memory_bytes=1000, tmp_bytes=10)
    argv, _ = bwrap.command(spec, 3, ["-c", ""], 4)
    assert argv[0] == "systemd-run"
    assert "MemoryMax=1030" in argv
    assert argv[argv.index("--seccomp") + 1] == "4"


@pytest.mark.parametrize("controllers", ["", "cpu io", "cpu memory"])
def test_no_scope_without_both_controllers(tmp_path, monkeypatch, controllers):
    (tmp_path / "cgroup.controllers").write_text(controllers)
    monkeypatch.setattr(kernel_limits, "CGROUPS", tmp_path)
    kernel_limits.cgroup_works.cache_clear()
    try:
        assert kernel_limits.cgroup(1000, 32) == ([], {})
    finally:
        kernel_limits.cgroup_works.cache_clear()


def test_processes_are_not_limited_on_a_kernel_that_counts_other_boxes_too(monkeypatch):
    kernel = os.uname()
    older = os.uname_result((*kernel[:2], "5.4.0-99-generic", *kernel[3:]))
    monkeypatch.setattr(os, "uname", lambda: older)
    assert kernel_limits.processes(32) == []
