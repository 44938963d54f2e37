"""The set-up script in its own checkout.

What would take a minute is a stub that records how it was called: `python -m venv` makes a folder
with a copy of the stub, whose `pip install` puts a stub of uv beside it. The shell script, the
lock, the stamp and pip's own reading of its settings are real.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = r"""#!/usr/bin/env bash
echo "python $*" >>"$STUB/log"
case "$*" in
    "-c import venv, ensurepip") [ ! -e "$STUB/no-venv" ] ;;
    -c*version_info*) cat "$STUB/version" ;;
    --version) echo "Python $(cat "$STUB/version").0" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip install "*) cp "$STUB/uv" "$(dirname "$0")/uv" ;;
    "-m pip config list") exec "$REAL_PYTHON" "$@" ;;
    -c*) exec "$REAL_PYTHON" "$@" ;;
    "-m ruff check"*) exit 1 ;;
    *flows.command_line.cli*)
        echo "in $PWD with path $PYTHONPATH: ${*: -2}"
        env >"$STUB/environment" && readlink /proc/self/fd/0 >"$STUB/stdin" ;;
esac
"""
UV = r"""#!/usr/bin/env bash
echo "uv $* from ${UV_FIND_LINKS-nowhere}" >>"$STUB/log"
[ ! -p "$STUB/hold" ] || cat "$STUB/hold"
[ ! -e "$STUB/broken" ]
"""


class Checkout:
    def __init__(self, folder: Path) -> None:
        self.folder, self.stub = folder / "checkout", folder / "stub"
        self.folder.mkdir()
        (self.stub / "bin").mkdir(parents=True)
        for name in ("run", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.folder)
        for path, text in ((self.stub / "bin" / "python3", PYTHON), (self.stub / "uv", UV)):
            path.write_text(text)
            path.chmod(0o755)
        (self.stub / "version").write_text("3.11\n")

    def environment(self, **changes: str) -> dict[str, str]:
        # no key, as the stub writes its whole environment down
        unset = ("PIP_", "UV_", "NIGHTLY_", "PYTHON", "OPENAI_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
        path = f"{self.stub / 'bin'}:{os.environ['PATH']}"
        real = {
            "REAL_PYTHON": sys.executable,
            "STUB": str(self.stub),
            "PIP_CONFIG_FILE": os.devnull,
        }
        return {**kept, "PATH": path, **real, **changes}

    def run(
        self, *arguments: str, cwd: Path | None = None, **changes: str
    ) -> subprocess.CompletedProcess[str]:
        argv = [str(self.folder / "run"), *arguments]
        return subprocess.run(
            argv,
            cwd=cwd or self.folder,
            env=self.environment(**changes),
            capture_output=True,
            text=True,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        argv = [str(self.folder / "run"), *arguments]
        return subprocess.Popen(argv, env=self.environment(), stderr=subprocess.PIPE, text=True)

    def log(self) -> str:
        path = self.stub / "log"
        return path.read_text() if path.exists() else ""

    def count(self, what: str) -> int:
        return len(re.findall(f"^{what}", self.log(), re.MULTILINE))


PARALLEL = "--numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder"


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_help_needs_no_set_up(checkout, arguments):
    done = checkout.run(*arguments)
    assert done.returncode == 0
    assert "night " in done.stdout
    assert checkout.log() == ""
    assert not (checkout.folder / ".venv").exists()


def test_help_lists_what_the_command_line_has(checkout):
    listed = set(re.findall(r"^  (\w+) ", checkout.run().stdout, re.MULTILINE))
    argv = [sys.executable, "-m", "flows.command_line.cli", "--help"]
    known = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert listed - {"test", "bench", "check", "lock"} == set(
        re.findall(r"^    (\w+)\b", known, re.MULTILINE)
    )


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", ["test", "bench", "check", "lock"])
def test_help_on_a_command_of_the_script_is_its_part_of_the_usage(checkout, command, flag):
    done = checkout.run(command, flag)
    assert (done.returncode, done.stderr, checkout.log()) == (0, "", "")
    first, *more = done.stdout.splitlines()
    assert first.startswith(f"  {command} ")
    assert all(line.startswith("     ") for line in more)
    assert f"\n{done.stdout}" in checkout.run().stdout
    assert not (checkout.folder / ".venv").exists()


@pytest.mark.parametrize(
    "arguments", [("night", "--help"), ("prefect", "--version"), ("prefect", "-h")]
)
def test_the_other_commands_explain_themselves(checkout, arguments):
    assert f": {' '.join(arguments)}\n" in checkout.run(*arguments).stdout


def test_unknown_command_is_a_usage_error_and_sets_nothing_up(checkout):
    done = checkout.run("nihgt")
    assert (done.returncode, checkout.log()) == (2, "")
    assert "nihgt" in done.stderr


def test_old_python_is_refused_in_one_line(checkout):
    (checkout.stub / "version").write_text("3.9\n")
    done = checkout.run("night")
    assert done.returncode == 1
    assert re.fullmatch(
        r"\./run: python3 is Python 3\.9; 3\.11 to 3\.14 .*PYTHON=.*\n", done.stderr
    )
    assert not (checkout.folder / ".venv").exists()


def test_python_without_venv_names_the_package_to_install(checkout):
    (checkout.stub / "no-venv").touch()
    done = checkout.run("night")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "apt install python3-venv" in done.stderr


def test_second_call_installs_nothing_and_starts_one_python(checkout):
    assert checkout.run("status", "a").returncode == 0
    before = checkout.log()
    done = checkout.run("status", "a")
    assert (done.returncode, done.stderr) == (0, "")
    assert checkout.log().removeprefix(before) == "python -P -m flows.command_line.cli status a\n"


def test_set_up_prints_nothing_on_stdout(checkout):
    done = checkout.run("status", "a")
    assert done.stdout.count("\n") == 1
    assert "set up in" in done.stderr


def test_new_constraints_are_installed_into_the_same_environment(checkout):
    checkout.run("status", "a")
    with (checkout.folder / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert checkout.run("status", "a").returncode == 0
    assert (checkout.count("python -m venv"), checkout.count("uv pip install")) == (1, 2)


def test_an_interrupted_set_up_starts_over(checkout):
    (checkout.stub / "broken").touch()
    first = checkout.run("status", "a")
    (checkout.stub / "broken").unlink()
    second = checkout.run("status", "a")
    assert (first.returncode, second.returncode) == (1, 0)
    assert "set up in" not in first.stderr
    assert "in " not in first.stdout
    assert checkout.count("python -m venv") == 2


def test_an_environment_without_its_python_is_replaced(checkout):
    checkout.run("status", "a")
    (checkout.folder / ".venv" / "bin" / "python").unlink()
    (checkout.folder / ".venv" / "bin" / "python").symlink_to("/nowhere/python3.11")
    assert checkout.run("status", "a").returncode == 0
    assert checkout.count("python -m venv") == 2


@pytest.mark.skipif(
    not Path("/proc/locks").exists(), reason="needs Linux's list of locks, to see who waits"
)
def test_two_shells_install_once(checkout):
    inode = f":{(checkout.folder / 'run').stat().st_ino} "

    def is_waited_for():
        return any(
            "->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()
        )

    os.mkfifo(checkout.stub / "hold")  # the first install waits on it
    first = checkout.start("status", "a")
    await_that(lambda: checkout.count("uv pip install") == 1, first)
    second = checkout.start("status", "b")
    await_that(lambda: is_waited_for() or checkout.count("uv pip install") == 2, second)
    (checkout.stub / "hold").write_text("go")
    (checkout.stub / "hold").unlink()
    for process in (first, second):
        process.communicate()
        assert process.returncode == 0
    assert (checkout.count("python -m venv"), checkout.count("uv pip install")) == (1, 1)


def await_that(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_find_links_of_pip_reach_the_install(checkout):
    checkout.run("status", "a", PIP_FIND_LINKS="/one /two")
    assert re.search(r"^uv pip install .* from /one,/two$", checkout.log(), re.MULTILINE)


def test_own_find_links_of_uv_win(checkout):
    checkout.run("status", "a", PIP_FIND_LINKS="/one", UV_FIND_LINKS="/mine")
    assert re.search(r"^uv pip install .* from /mine$", checkout.log(), re.MULTILINE)


def test_another_torch_build_is_free_in_the_cuda_packages_that_it_pins_itself(checkout):
    checkout.run("status", "a")
    assert "--group dev -c constraints.txt from" in checkout.log()
    shutil.rmtree(checkout.folder / ".venv")
    checkout.run("status", "a", TORCH_INDEX="https://download.pytorch.org/whl/cu126")
    used = checkout.folder / ".venv" / "constraints.txt"
    assert f"--group dev -c {used} from" in checkout.log()
    ours, left = (set(path.read_text().splitlines()) for path in (ROOT / "constraints.txt", used))
    freed = {line.partition("=")[0] for line in ours - left}
    assert {"cuda-bindings", "nvidia-cudnn-cu13"} <= freed
    assert all(name.startswith(("cuda-", "nvidia-")) for name in freed)
    assert left < ours
    assert "nvidia-ml-py" not in freed


def test_lock_never_sees_find_links(checkout):
    done = checkout.run("lock", "--upgrade", PIP_FIND_LINKS="/one", UV_FIND_LINKS="/mine")
    assert done.returncode == 0
    assert re.search(r"^uv pip compile .*--upgrade from nowhere$", checkout.log(), re.MULTILINE)


def test_dotenv_sets_unset_variables_and_runs_nothing(checkout):
    lines = (
        "# comment",
        "export PLAIN=a b\r",
        "QUOTED='c d'",
        "TAKEN=file",
        "CODE=$(touch pwned)",
        "not a line",
        'LAST="e"',
    )
    (checkout.folder / ".env").write_text("\n".join(lines))
    assert checkout.run("status", "a", TAKEN="environment").returncode == 0
    found = dict(
        line.split("=", 1)
        for line in (checkout.stub / "environment").read_text().splitlines()
        if "=" in line
    )
    got = [found[name] for name in ("PLAIN", "QUOTED", "TAKEN", "CODE", "LAST")]
    assert got == ["a b", "c d", "environment", "$(touch pwned)", "e"]
    assert not list(checkout.folder.glob("**/pwned"))


def seen(checkout, *names):
    """What these variables are for the command line; None for one that is not set."""
    lines = (checkout.stub / "environment").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    return [found.get(name) for name in names]


def test_dotenv_of_a_windows_editor_with_blanks_around_the_equals_signs_is_read(checkout):
    text = '\ufeffFIRST=a\r\nSPACED = b c \r\n\tTABBED\t=\t" d "\r\n\r\n  # a comment\r\n'
    (checkout.folder / ".env").write_bytes(text.encode())
    done = checkout.run("status", "a")
    assert "ignored" not in done.stderr
    assert seen(checkout, "FIRST", "SPACED", "TABBED") == ["a", "b c", " d "]


def test_a_line_of_dotenv_that_sets_nothing_is_named_and_not_shown(checkout):
    (checkout.folder / ".env").write_text("A=1\nOPENAI_API_KEY: sk-secret\nB=2\n")
    done = checkout.run("status", "a")
    assert "./run: .env, line 2 is not NAME=VALUE: ignored\n" in done.stderr
    assert "sk-secret" not in done.stderr
    assert seen(checkout, "A", "B") == ["1", "2"]


def test_a_link_to_the_script_runs_the_checkout_it_leads_to(checkout, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nightly").symlink_to("../checkout/link")
    (checkout.folder / "link").symlink_to("run")
    argv = [str(tmp_path / "bin" / "nightly"), "status", "a"]
    done = subprocess.run(argv, cwd=tmp_path, env=checkout.environment(), capture_output=True)
    assert done.returncode == 0
    assert f"with path {checkout.folder}:" in done.stdout.decode()
    assert not (tmp_path / "bin" / ".venv").exists()


def test_an_exported_cdpath_changes_nothing(checkout, tmp_path):
    (tmp_path / "elsewhere" / "checkout").mkdir(parents=True)
    argv = ["bash", "checkout/run", "status", "a"]
    environment = checkout.environment(CDPATH=str(tmp_path / "elsewhere"))
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, f"path {checkout.folder}:" in done.stdout) == (0, True), done.stderr


def test_a_user_without_account_and_home_gets_a_name_and_a_home(checkout):
    environment = checkout.environment(HOME="/nowhere")
    for name in ("USER", "LOGNAME"):
        environment.pop(name, None)
    argv = ["unshare", "--user", "--map-user=54321", str(checkout.folder / "run"), "status", "a"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    home = checkout.folder / ".nightly" / "home"
    assert (seen(checkout, "HOME", "USER"), home.is_dir()) == ([str(home), "uid-54321"], True)


def test_no_home_and_none_that_can_be_made_is_said_in_one_line(checkout):
    done = checkout.run("status", "a", HOME="/nowhere", NIGHTLY_HOME="/dev/null/x")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "set HOME or NIGHTLY_HOME" in done.stderr


def test_a_home_that_works_is_kept(checkout, tmp_path):
    checkout.run("status", "a", HOME=str(tmp_path))
    assert seen(checkout, "HOME") == [str(tmp_path)]
    assert not (checkout.folder / ".nightly").exists()


def test_settings_of_another_python_reach_no_command(checkout):
    given = {
        "PYTHONWARNINGS": "error",
        "PYTHONPATH": "/other/packages",
        "PYTHONINSPECT": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    assert checkout.run("status", "a", **given).returncode == 0
    assert seen(checkout, *given) == [None, str(checkout.folder), None, None]


def test_every_user_can_read_what_is_installed(checkout):
    argv = ["bash", "-c", f"umask 077; exec {checkout.folder}/run status a"]
    assert subprocess.run(argv, env=checkout.environment(), capture_output=True).returncode == 0
    installed = [checkout.folder / ".venv", *(checkout.folder / ".venv").rglob("*")]
    assert [path for path in installed if path.stat().st_mode & 0o044 != 0o044] == []


def test_a_clone_has_the_same_bytes_where_git_converts_line_ends(tmp_path):
    (tmp_path / "origin").mkdir()
    for name in ("run", ".gitattributes"):
        shutil.copy(ROOT / name, tmp_path / "origin")
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for folder, *arguments in (
        ("origin", "init", "-q"),
        ("origin", "add", "-A"),
        ("origin", *who, "commit", "-qm", "start"),
        (".", "-c", "core.autocrlf=true", "clone", "-q", "origin", "clone"),
    ):
        subprocess.run(["git", *arguments], cwd=tmp_path / folder, check=True)
    assert (tmp_path / "clone" / "run").read_bytes() == (ROOT / "run").read_bytes()


def test_works_from_another_folder_and_keeps_it(checkout, tmp_path):
    done = checkout.run("trial", "x.py", cwd=tmp_path)
    assert done.stdout == f"in {tmp_path} with path {checkout.folder}: trial x.py\n"


def test_closed_stdin_is_replaced(checkout):
    argv = ["bash", "-c", f"exec {checkout.folder}/run status a <&-"]
    assert subprocess.run(argv, env=checkout.environment(), capture_output=True).returncode == 0
    assert (checkout.stub / "stdin").read_text() == "/dev/null\n"


def test_check_runs_every_tool_and_fails_if_one_failed(checkout):
    assert checkout.run("check").returncode == 1  # the stub's `ruff check` fails
    assert checkout.count("python -m mypy") == 1


def test_quick_leaves_the_slow_tests_out(checkout):
    checkout.run("test", "--quick", "-k", "a")
    assert f"python -m pytest {PARALLEL} -m not slow -k a\n" in checkout.log()


def test_the_small_language_model_is_installed_once(checkout):
    checkout.run("status", "a")
    checkout.run("test", "--quick")
    assert checkout.count("uv pip install") == 1
    assert [checkout.run("test", "-k", "a").returncode for _ in range(2)] == [0, 0]
    assert re.findall("^uv pip install .* from", checkout.log(), re.MULTILINE)[1:] == [
        f"uv pip install --python {checkout.folder}/.venv/bin/python "
        "--quiet --no-deps --no-build --group llm-test from"
    ]
    assert checkout.count(f"python -m pytest {PARALLEL} -k a$") == 2


def test_without_the_small_language_model_tests_run_and_the_next_time_retries(checkout):
    checkout.run("status", "a")
    (checkout.stub / "broken").touch()
    done = checkout.run("test")
    assert (done.returncode, done.stdout) == (0, "")
    assert "will skip" in done.stderr
    assert checkout.count(f"python -m pytest {PARALLEL}$") == 1
    (checkout.stub / "broken").unlink()
    assert "will skip" not in checkout.run("test").stderr
    assert checkout.count("uv pip install") == 3


def test_every_variable_of_the_example_is_read():
    names = re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    code = (ROOT / "run").read_text() + "".join(
        path.read_text()
        for package in ("flows", "tasks")
        for path in (ROOT / package).rglob("*.py")
    )
    assert names
    assert [name for name in names if name not in code] == []


def test_torch_is_pinned_for_every_machine():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in pins if line.startswith("torch==")] == ["torch==2.13.0"]
    assert not [line for line in pins if "+" in line.partition(";")[0]]
