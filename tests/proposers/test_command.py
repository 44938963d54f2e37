"""Real scripts as agents: what is taken from them, what they see, and that nothing is left."""

import contextlib
import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet
import pytest

import configs
from tasks.errors import UsageError
from tasks.judge import processes
from tasks.proposers import agent_process, proposal
from tasks.proposers.command import CommandProposer
from tasks.records import Candidate, NightSoFar, Proposal
from tests.trials import make_proposal

ROOT = Path(__file__).resolve().parents[2]
CHAMPION = "A = 1\nB = 2\n"
FALLBACK = "DEPTH = 2\n\n\ndef load_model(path, device): ...\n\n\ndef main(): ...\n"
EDIT = "printf 'A = 10\\n' > trainer/train.py\n"
KEY = "sk-" + "0123456789" * 3
PATIENCE = 60.0
# Leaves a daemon behind, in its own session and without the agent's environment, and waits for its
# pid.
DAEMON = """
setsid env -i sh -c 'sleep 600 & echo $! > "$0"' "$HOME/daemon" &
while [ ! -s "$HOME/daemon" ]; do sleep 0.01; done
"""


@dataclasses.dataclass(frozen=True)
class Fallback:
    name: str = "tpe"

    def propose(self, night: NightSoFar) -> Proposal:
        return make_proposal(FALLBACK, "DEPTH 3 -> 2", self.name)


def night(champion: str = CHAMPION, trial: int = 7) -> NightSoFar:
    return NightSoFar("nov21", 1, trial, Candidate.parse(champion), 1.6, 1.6, {}, ())


@pytest.fixture
def home(tmp_path):
    """A state folder; the user's home, which agents use to tell us things, is beside it."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def make(home, user):
    """A proposer whose agent is this shell script."""

    def make(
        script: str,
        seconds: float = 60.0,
        environment: tuple[str, ...] = (),
        prompt: str = "improve it\n",
    ):
        path = user / "codex"
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o755)
        settings = configs.Command(
            argv=(str(path), "exec", "-"), seconds=seconds, environment=environment
        )
        return CommandProposer(settings, home, ROOT, lambda night: prompt, Fallback())

    return make


def command(home, *argv: str):
    return CommandProposer(configs.Command(argv=argv), home, ROOT, lambda night: "", Fallback())


def alive(user: Path, name: str) -> bool:
    """Whether the process lives whose pid an agent has left in this file."""
    pid = int((user / name).read_text())
    with contextlib.suppress(OSError):
        return processes.ProcessId.of(pid).is_alive
    return False


def left_over(home: Path) -> list[str]:
    """Files of an agent, and records of processes, but not its log."""
    return sorted(
        str(path.relative_to(home))
        for path in home.rglob("*")
        if path.is_file() and path.name != "agent.log"
    )


def test_what_the_agent_leaves_in_train_py_is_the_proposal(make, home):
    said = "echo 'SUMMARY: no'; echo 'SUMMARY: Wider A'; echo KIND: Architecture\n"
    said += "echo 'HYPOTHESIS: it is narrow'\n"
    proposed = make(EDIT + said + "echo 'EXPECTED: -0.01'").propose(night())
    assert proposed == make_proposal(
        source="A = 10\n",
        summary="Wider A",
        proposer="command",
        outcome="ok",
        kind="architecture",
        hypothesis="it is narrow",
        expected="-0.01",
    )
    assert left_over(home) == []


def test_a_silent_agent_has_a_summary(make):
    proposed = make(EDIT + "echo KIND: magic; echo SUMMARY:; echo SUMMARY: not this >&2").propose(
        night()
    )
    assert (
        proposed.idea.summary,
        proposed.idea.kind,
        proposed.idea.hypothesis,
        proposed.idea.note,
    ) == (
        "change by codex",
        None,
        None,
        None,
    )


@pytest.mark.parametrize("source", ["a\r\nb", "# \u00e9\u2028\x0c\ufeff\n", ""])
def test_the_file_is_taken_byte_for_byte(make, user, source):
    (user / "new").write_bytes(source.encode())
    assert make('cat "$HOME/new" > trainer/train.py').propose(night()).candidate.source == source


def test_the_agent_is_given_the_champion_and_the_prompt(make, user):
    script = 'cat > "$HOME/stdin"; cp NIGHT.md trainer/train.py trainer/prepare.py "$HOME"\n'
    script += 'echo "$@" > "$HOME/argv"\n'
    script += 'git log --format=%an > "$HOME/log"; git status --porcelain > "$HOME/status"\n'
    prompt = "improve it: \u00e9 $HOME {x}\n" * 20_000  # more than a pipe holds
    make(script, prompt=prompt).propose(night())
    assert (user / "stdin").read_text() == (user / "NIGHT.md").read_text() == prompt
    assert (user / "train.py").read_text() == CHAMPION
    assert (user / "prepare.py").read_bytes() == (ROOT / "trainer" / "prepare.py").read_bytes()
    assert (user / "argv").read_text() == "exec -\n"
    assert (user / "log").read_text() == "nightly-research\n"
    assert (user / "status").read_text() == ""


def test_its_other_edits_are_ignored(make, home):
    before = (ROOT / "trainer" / "prepare.py").read_bytes()
    script = "echo x >> trainer/prepare.py; echo x > new; rm -r .git\n"
    script += "mkdir -p shut/in; echo x > shut/in/f; chmod 0 shut\n"
    assert make(script + EDIT).propose(night()).candidate.source == "A = 10\n"
    assert (ROOT / "trainer" / "prepare.py").read_bytes() == before
    assert left_over(home) == []


def test_a_link_in_the_clones_place_leads_nowhere(make, user, home):
    precious = user / "precious" / "trainer"
    precious.mkdir(parents=True)
    (precious / "train.py").write_text("precious")
    precious.chmod(0o500)
    proposed = make('cd ..; mv clone "$HOME/moved"; ln -s "$HOME/precious" clone').propose(night())
    assert (proposed.candidate.source, proposed.problem) == (
        CHAMPION,
        "unfit: trainer/train.py cannot be read: Not a directory",
    )
    assert (precious / "train.py").read_text() == "precious"
    assert precious.stat().st_mode & 0o777 == 0o500
    assert left_over(home) == []
    assert not (home / "agents" / "nov21-7" / "clone").is_symlink()


def test_a_folder_of_any_depth_is_removed(make, home):
    make("mkdir -p " + "d/" * 1500 + "\n" + EDIT).propose(night())
    assert [path.name for path in (home / "agents" / "nov21-7").iterdir()] == ["agent.log"]


def test_it_sees_no_validation_text(make, user):
    make('find . -type f -exec cat {} + > "$HOME/seen"').propose(night())
    seen = (user / "seen").read_text(errors="replace")
    assert CHAMPION in seen
    for split in ("val_00000", "holdout_00000"):
        documents = pyarrow.parquet.read_table(configs.FOLDER / "corpus" / f"{split}.parquet")[
            "text"
        ].to_pylist()
        assert documents
        assert [text for text in documents if text[:40] in seen or text[-40:] in seen] == []


def test_its_environment_is_what_the_profile_names_and_little_else(make, user, monkeypatch):
    for name in (
        "OPENAI_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
        "NIGHTLY_HOME",
        "CODEX_API_KEY",
        "PYTHONPATH",
        "TMPDIR",
    ):
        monkeypatch.setenv(name, KEY)
    monkeypatch.delenv("LANG", raising=False)
    proposed = make(
        'env > "$HOME/env"; ls "$TMPDIR"', environment=("CODEX_API_KEY", "NOT_SET")
    ).propose(night())
    assert proposed.idea.outcome == "no_change"
    found = dict(line.split("=", 1) for line in (user / "env").read_text().splitlines())
    assert set(found) - {"PWD", "SHLVL", "OLDPWD", "_"} == {
        *("PATH", "HOME", "LANG", "TERM", "TMPDIR", "CODEX_API_KEY"),
        *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    }
    assert found["CUDA_VISIBLE_DEVICES"] == ""
    assert (found["CODEX_API_KEY"], found["LANG"]) == (KEY, "C.UTF-8")
    assert Path(found["TMPDIR"]).parent.name == "clone"


def test_a_key_that_it_prints_is_in_no_log_and_no_proposal(make, home, monkeypatch):
    monkeypatch.setenv("CODEX_API_KEY", KEY)
    named = ("CODEX_API_KEY",)
    printed = make('echo "SUMMARY: with $CODEX_API_KEY"; exit 1', environment=named).propose(
        night()
    )
    assert printed.idea.stands_in.endswith("its log ends: SUMMARY: with [CODEX_API_KEY]")
    assert KEY not in (home / "agents" / "nov21-7" / "agent.log").read_text()
    written = make("echo \"K = '$CODEX_API_KEY'\" > trainer/train.py", environment=named).propose(
        night()
    )
    assert (written.candidate.source, written.problem) == (
        CHAMPION,
        "unfit: trainer/train.py holds the value of CODEX_API_KEY",
    )


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("ln -sf /etc/passwd trainer/train.py", "cannot be read: "),
        ("ln -sf prepare.py trainer/train.py", "cannot be read: "),
        (
            "mv trainer other; ln -s other trainer; echo x > trainer/train.py",
            "cannot be read: Not a directory",
        ),
        ("rm trainer/train.py", "cannot be read: No such file or directory"),
        ("rm -r trainer", "cannot be read: No such file or directory"),
        ("rm trainer/train.py; mkdir trainer/train.py", "cannot be read: Is a directory"),
        ("rm trainer/train.py; mkfifo trainer/train.py", "is no longer a plain file"),
        ("rm trainer/train.py; ln -s /dev/zero trainer/train.py", "cannot be read: "),
        ("truncate -s 100G trainer/train.py", "is longer than 524288 bytes"),
        ("head -c 524289 /dev/zero > trainer/train.py", "is longer than 524288 bytes"),
        ("printf '\\377\\376x' > trainer/train.py", "is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_taken_is_a_problem(make, home, script, why):
    proposed = make(f"{script}\necho did it").propose(night())
    assert (proposed.candidate.source, proposed.idea.outcome) == (CHAMPION, "unfit")
    assert proposed.problem.startswith(f"unfit: trainer/train.py {why}")
    assert proposed.problem.endswith("; its log ends: did it")
    assert left_over(home) == []


def test_a_binary_file_is_refused_by_the_check_of_every_proposal(make):
    proposed = make("head -c 1000 /dev/zero > trainer/train.py").propose(night())
    assert proposed.problem is None
    assert "does not parse" in str(proposal.check(proposed.candidate, {}))


def test_no_git_runs_in_the_folder_after_the_agent(make, user):
    """Hooks and configured commands would run in our environment, with nothing to end them."""
    script = """
mkdir -p .git/hooks
for name in pre-commit post-checkout reference-transaction post-index-change pre-auto-gc; do
  printf '#!/bin/sh\\ntouch "$HOME/ran"\\n' > .git/hooks/$name; chmod 755 .git/hooks/$name
done
git config core.fsmonitor 'touch "$HOME/ran"; false'
git config filter.x.clean 'touch "$HOME/ran"'; echo '*.py filter=x' > .gitattributes
rm -f "$HOME/ran"
"""
    assert make(script + EDIT).propose(night()).candidate.source == "A = 10\n"
    assert not (user / "ran").exists()


def test_the_clone_ignores_the_users_configuration(make, user, home):
    template = user / "template" / "hooks"
    template.mkdir(parents=True)
    (template / "pre-commit").write_text(f"#!/bin/sh\ntouch {user}/ran\nexit 1\n")
    (template / "pre-commit").chmod(0o755)
    settings = {
        "init.templateDir": template.parent,
        "commit.gpgsign": "true",
        "core.autocrlf": "true",
        "core.hooksPath": template,
    }
    for name, value in settings.items():
        subprocess.run(["git", "config", "--global", name, str(value)], check=True)
    assert make(EDIT).propose(night("A = 1\r\n")).candidate.source == "A = 10\n"
    assert not (user / "ran").exists()


def test_if_an_agent_has_changed_nothing_the_fallback_proposes(make):
    proposed = make("echo please log in").propose(night())
    assert (proposed.candidate.source, proposed.idea.outcome, proposed.problem) == (
        FALLBACK,
        "no_change",
        None,
    )
    assert (
        proposed.idea.stands_in
        == "codex is done and has changed nothing; its log ends: please log in"
    )


def test_a_change_is_taken_whatever_the_exit_status(make):
    proposed = make(EDIT + "exit 3").propose(night())
    assert (proposed.candidate.source, proposed.problem, proposed.idea.note) == (
        "A = 10\n",
        None,
        "codex ended with exit status 3",
    )


def test_if_the_agent_fails_without_a_change_the_fallback_proposes(make):
    """An expired key must not make a night of rejected trials."""
    proposed = make("echo Please log in; printf '\\033[31mnow\\033[0m\\n' >&2; kill -9 $$").propose(
        night()
    )
    assert (proposed.candidate.source, proposed.idea.proposer, proposed.problem) == (
        FALLBACK,
        "tpe",
        None,
    )
    assert proposed.idea.stands_in.startswith(
        "codex ended with exit status -9 and has changed nothing; its log ends: "
    )
    assert "Please log in" in proposed.idea.stands_in
    assert "\033" not in proposed.idea.stands_in


def test_a_late_agent_is_ended_with_all_its_processes(make, user, home, monkeypatch):
    script = EDIT + DAEMON + "setsid sh -c 'echo $$ > \"$HOME/other\"; sleep 600' &\nsleep 600"
    # Its last file is there when its time is up.
    clock = SimpleNamespace(monotonic=lambda: 2.0 if is_written(user / "other") else 0.0)
    monkeypatch.setattr(agent_process, "time", clock)
    proposed = make(script, seconds=2.0).propose(night())
    assert (proposed.candidate.source, proposed.idea.outcome) == (FALLBACK, "timeout")
    assert proposed.idea.stands_in == "the command was not done after 2 s"
    assert not alive(user, "daemon")
    assert not alive(user, "other")
    assert left_over(home) == []


def test_processes_that_an_agent_leaves_behind_are_ended(make, user, home):
    proposed = make(
        EDIT + DAEMON + "sleep 600 & echo $! > \"$HOME/other\"; trap 'kill 0' EXIT"
    ).propose(night())
    assert (proposed.candidate.source, proposed.idea.note) == (
        "A = 10\n",
        "codex ended with exit status -15",
    )
    assert not alive(user, "daemon")
    assert not alive(user, "other")
    assert left_over(home) == []


def test_an_agent_of_a_killed_night_is_ended_at_the_next_start_with_its_daemons(user, home):
    agent = user / "agent"
    agent.write_text(f'#!/bin/sh\n{DAEMON}\necho $$ > "$HOME/agent.pid"; sleep 600')
    agent.chmod(0o755)
    code = f"""
import configs, threading
from pathlib import Path
from tasks.proposers import agent_process
here = Path({str(user)!r})
(here / "prompt").touch()
environment = {{"HOME": str(here), "PATH": "/usr/bin:/bin"}}
agent_process.run([{str(agent)!r}], prompt=here / "prompt", folder=here, environment=environment,
    seconds=600, cancelled=threading.Event(), home=Path({str(home)!r}))
"""
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        wait_for(user / "agent.pid")
    finally:
        owner.kill()
        owner.wait()
    assert alive(user, "daemon")
    assert len(processes.end_orphans(home)) == 1
    assert not alive(user, "daemon")
    assert not alive(user, "agent.pid")
    assert left_over(home) == []


def is_written(path: Path) -> bool:
    return path.exists() and path.read_text().endswith("\n")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_written(path) and time.monotonic() < deadline:
        time.sleep(0.01)


def test_it_is_not_started_before_it_is_on_record(make, user, monkeypatch):
    def full(home, pid):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(processes, "record", full)
    proposed = make("touch $HOME/started\n" + EDIT).propose(night())
    assert (
        proposed.idea.stands_in
        == "the command could not be run: [Errno 28] No space left on device"
    )
    assert not (user / "started").exists()


def test_it_is_on_record_for_as_long_as_it_runs(make, user, home):
    make('ls "${0%/*}/home/processes" > "$HOME/records"').propose(night())
    (record,) = (user / "records").read_text().split()
    assert f"~{os.getpid()}." in record
    assert left_over(home) == []


def test_a_cancelled_agent_is_ended_and_none_is_started_after_it(make, user, home):
    proposer = make(EDIT + DAEMON + 'echo $$ >> "$HOME/started"; sleep 600', seconds=600.0)
    made: list[Proposal] = []
    thread = threading.Thread(target=lambda: made.append(proposer.propose(night())))
    thread.start()
    wait_for(user / "started")
    proposer.cancel()
    thread.join(PATIENCE)
    made.append(proposer.propose(night()))
    assert [(p.idea.outcome, p.candidate.source) for p in made] == [("cancelled", CHAMPION)] * 2
    assert [p.problem for p in made] == [
        "cancelled: the agent was ended",
        "cancelled: the agent was not started",
    ]
    assert not alive(user, "daemon")
    assert len((user / "started").read_text().split()) == 1
    assert left_over(home) == []


def test_both_ends_of_a_long_output_are_kept(make, home):
    script = (
        EDIT
        + "echo first; yes | head -c 30000000; yes n | head -c 30000000 >&2\n"
        + "echo 'SUMMARY: the last'"
    )
    assert make(script).propose(night()).idea.summary == "the last"
    log = (home / "agents" / "nov21-7" / "agent.log").read_text()
    assert log.startswith("first\ny\n")
    assert "bytes left out" in log
    assert len(log) < 2**18


def test_binary_output_becomes_text(make, home):
    proposed = make("head -c 100000 /dev/urandom; head -c 1000 /dev/urandom >&2").propose(night())
    assert proposed.idea.outcome == "no_change"
    assert "\n" not in proposed.idea.stands_in
    assert (home / "agents" / "nov21-7" / "agent.log").read_text()


def test_a_killed_nights_clone_is_removed_and_no_clone_is_near_the_data(make, home, user, tmp_path):
    stale = tmp_path / "nightly-agent-killed" / "clone"
    stale.mkdir(parents=True)
    (home / "agents" / "nov21-7").mkdir(parents=True)
    (home / "agents" / "nov21-7" / "clone").symlink_to(stale)
    make('pwd > "$HOME/place"; ls trainer > "$HOME/files"').propose(night())
    assert not stale.parent.exists()
    place = Path((user / "place").read_text().strip())
    assert not place.is_relative_to(home)
    assert not place.is_relative_to(ROOT)
    assert not place.parent.exists()
    assert sorted(path.name for path in (home / "agents" / "nov21-7").iterdir()) == ["agent.log"]
    assert (user / "files").read_text().split() == sorted(
        path.name for path in (ROOT / "trainer").glob("*.py")
    )


def test_a_program_that_the_system_cannot_run_is_the_fallbacks_turn(home, user):
    (user / "agent").write_bytes(b"\x7fELF no program")
    (user / "agent").chmod(0o755)
    proposed = command(home, str(user / "agent")).propose(night())
    assert proposed.candidate.source == FALLBACK
    assert proposed.idea.stands_in.startswith(
        "the command could not be run: [Errno 8] Exec format error"
    )


def test_so_is_a_program_that_is_gone_or_a_folder_that_cannot_be_made(make, home, user):
    proposer = make(EDIT)
    (home / "agents").touch()
    assert "could not be run: [Errno" in proposer.propose(night()).idea.stands_in
    (home / "agents").unlink()
    (user / "codex").unlink()
    assert (
        "could not be run: [command] argv: there is no program"
        in proposer.propose(night()).idea.stands_in
    )


def test_a_command_that_does_not_exist_is_a_usage_error(home, user, monkeypatch):
    with pytest.raises(UsageError, match=r"needs \[command\] argv in the profile"):
        command(home)
    for name in ("no-such-agent", "./no-such-agent", str(user), ""):
        with pytest.raises(UsageError, match=r"\[command\] argv: there is no program"):
            command(home, name)
    monkeypatch.chdir(user)
    (user / "agent").write_text(f"#!/bin/sh\n{EDIT}")
    (user / "agent").chmod(0o755)
    for name in ("./agent", "~/agent"):  # the clone, where it runs, has no such file
        assert command(home, name).propose(night()).candidate.source == "A = 10\n"


def test_it_is_a_researcher(make):
    proposer = make("true")
    assert isinstance(proposer, proposal.Researcher)
    assert proposer.thinks(night())


def test_the_agent_gets_signals_as_a_shell_would_give_them(make, user):
    """Python ignores SIGPIPE, and a child that inherits that never ends on a closed pipe."""
    make('yes | head -1; grep SigIgn /proc/self/status > "$HOME/ignored"').propose(night())
    ignored = int((user / "ignored").read_text().split()[1], 16)
    assert not ignored & 1 << (signal.SIGPIPE - 1)
