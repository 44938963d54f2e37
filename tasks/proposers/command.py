"""An external coding agent as the researcher: Codex, Claude Code, or any command that edits a file.

It runs with the user's rights in a scratch clone of what a researcher may see: trainer/ with the
champion's train.py, and the prompt as NIGHT.md; no data, no validation text, and no environment
variable that the profile does not name. Only trainer/train.py is taken from the clone. This is not
a sandbox: what the user can read and do, the agent can.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import configs
from tasks.errors import NightlyError, UsageError
from tasks.proposers import agent_process, answer, gain, reading, three_way_merge
from tasks.proposers.proposal import MAX_BYTES, Proposer, no_patch, stand_in
from tasks.records import TRAIN, Candidate, Idea, NightSoFar, Proposal, RunResult
from tasks.statuses import Outcome
from tasks.text import one_line, shortened

PASSED_ON = ("PATH", "HOME", "LANG", "TERM")  # of the environment, besides what the profile names
PROMPT = "NIGHT.md"
# A trial may be training on the GPU, against the clock.
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
LEAST_SECRET = 8  # characters; a shorter value is not a key
QUOTED = 300  # characters of the log's end in a problem
AUTHOR = ("-c", "user.name=nightly-research", "-c", "user.email=nightly-research@localhost")


@dataclasses.dataclass(frozen=True)
class _Unfit:
    """A train.py that cannot be taken."""

    why: str  # follows its name


@dataclasses.dataclass(frozen=True)
class CommandProposer:
    """Proposes the agent's change, or `fallback`'s proposal if the agent fails.

    The agent's output is kept in agents/<tag>-<trial>/agent.log.
    """

    settings: configs.Command
    home: Path  # state folder
    root: Path  # the checkout
    prompt: Callable[[NightSoFar], str]
    fallback: Proposer
    name: str = "command"
    _cancelled: threading.Event = dataclasses.field(
        default_factory=threading.Event, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        self.check(self.settings)

    @staticmethod
    def check(settings: configs.Command) -> None:
        """Raises UsageError for a command that does not exist."""
        _argv(settings)

    def thinks(self, night: NightSoFar) -> bool:
        return True

    def fix(self, night: NightSoFar, proposal: Proposal, run: RunResult) -> Proposal | None:
        """None: the next prompt reports the crash."""
        return None

    def cancel(self) -> None:
        """Ends the running agent, from another thread; none is started afterwards."""
        self._cancelled.set()

    def ideas(self, night: NightSoFar) -> tuple[Proposal, ...]:
        return (self.propose(night),)

    def propose(self, night: NightSoFar) -> Proposal:
        """The agent's train.py; the champion's with a `problem` if the agent left none to run."""
        if self._cancelled.is_set():
            return self._problem(night, "cancelled", "the agent was not started")
        folder = self.home / "agents" / f"{night.tag}-{night.next_trial}"
        prompt, source = self.prompt(night), night.shown.source
        try:
            with _scratch_clone(folder / "clone", self.root, source, prompt) as clone:
                visit, left = self._run(clone), _take(clone)
                (folder / "agent.log").write_text(visit.log, encoding="utf-8")
        except (OSError, NightlyError) as error:  # the program may be gone since the night began
            return self._instead(night, f"the command could not be run: {error}")
        if visit.end == "cancelled":
            return self._problem(night, "cancelled", "the agent was ended")
        if visit.end == "late":
            late = f"the command was not done after {self.settings.seconds:g} s"
            return self._instead(night, late, "timeout")
        if visit.end == "not started":
            return self._instead(night, f"the command could not be run: {visit.why}")
        return self._judged(night, visit, left)

    def _run(self, clone: Path) -> agent_process.Visit:
        """Runs the agent. Secrets that it printed are removed from its output."""
        named = (*PASSED_ON, *self.settings.environment)
        here = {name: os.environ[name] for name in named if name in os.environ}
        usual = {"HOME": str(Path.home()), "LANG": "C.UTF-8", "TERM": "dumb"}
        visit = agent_process.run(
            _argv(self.settings),
            prompt=clone / PROMPT,
            folder=clone,
            environment={**NO_GPU, **usual, **here, "TMPDIR": str(clone / "tmp")},
            seconds=self.settings.seconds,
            cancelled=self._cancelled,
            home=self.home,
        )
        stdout, log = visit.stdout, visit.log
        for name, value in self._secrets():
            stdout, log = stdout.replace(value, f"[{name}]"), log.replace(value, f"[{name}]")
        return dataclasses.replace(visit, stdout=stdout, log=log)

    def _secrets(self) -> list[tuple[str, str]]:
        given = ((name, os.environ.get(name, "")) for name in self.settings.environment)
        return [(name, value) for name, value in given if len(value) >= LEAST_SECRET]

    def _judged(
        self, night: NightSoFar, visit: agent_process.Visit, left: str | _Unfit
    ) -> Proposal:
        """The proposal of an agent that ended by itself."""
        command = Path(self.settings.argv[0]).name
        tail = one_line(visit.log[-2 * QUOTED :])[-QUOTED:]
        status = f"{command} ended with exit status {visit.status}" if visit.status else None
        log = f"; its log ends: {tail}" if tail else ""
        if isinstance(left, _Unfit):
            return self._problem(night, "unfit", f"{TRAIN} {left.why}{log}")
        if left == night.shown.source:
            # It may lack a key. A night of such trials would be over in minutes.
            unchanged = f"{status or f'{command} is done'} and has changed nothing{log}"
            return self._instead(night, unchanged, "no_change")
        for name, value in self._secrets():
            if value in left and value not in night.shown.source:
                return self._problem(night, "unfit", f"{TRAIN} holds the value of {name}")
        said = _headers(visit.stdout)
        idea = Idea(
            summary=shortened(said.get("summary", ""), answer.MOST_SUMMARY)
            or f"change by {command}",
            proposer=self.name,
            outcome="ok",
            kind=answer.kind_of(said.get("kind", "")),
            hypothesis=shortened(said.get("hypothesis", ""), answer.MOST_WORDS) or None,
            expected=shortened(said.get("expected", ""), answer.MOST_WORDS) or None,
            estimate=gain.estimate_of(said.get("gain", "")),
            notes=reading.notes_of(visit.stdout.splitlines()),
            note=status,
        )
        if visit.survivors:
            survivors = ", ".join(map(str, visit.survivors))
            idea = idea.with_note(f"its processes {survivors} outlived SIGKILL")
        return Proposal(Candidate.parse(left), idea)

    def _problem(self, night: NightSoFar, outcome: Outcome, what: str) -> Proposal:
        return no_patch(night, self.name, outcome, f"{outcome}: {what}")

    def _instead(self, night: NightSoFar, why: str, outcome: Outcome | None = None) -> Proposal:
        proposed = stand_in(self.fallback, night, why, outcome)
        why = f"{one_line(why)}; {self.fallback.name} has nothing left to propose"
        return proposed or no_patch(night, self.name, outcome, why)


def _argv(settings: configs.Command) -> list[str]:
    """The command, with its program's full path, as the agent runs in another folder.

    Raises UsageError if there is no such program.
    """
    if not settings.argv:
        raise UsageError(
            "proposer command needs [command] argv in the profile, "
            'such as argv = ["codex", "exec", "-"]'
        )
    program = shutil.which(os.path.expanduser(settings.argv[0]))
    if program is None:
        raise UsageError(
            f"[command] argv: there is no program {settings.argv[0]!r} here; "
            "install it, or give its full path"
        )
    return [os.path.abspath(program), *settings.argv[1:]]


@contextlib.contextmanager
def _scratch_clone(link: Path, root: Path, source: str, prompt: str) -> Iterator[Path]:
    """A new repository with one commit of what a researcher may see; removed afterwards.

    It is a temporary folder to which `link` leads: inside the state folder, an agent would find the
    data and the checkout above it. Raises OSError.
    """
    if link.is_symlink():  # a killed night's
        _remove(link.readlink().parent)
        link.unlink()
    link.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="nightly-agent-")).resolve() / "clone"
    link.symlink_to(folder)
    try:
        for name in ("trainer", "tmp"):
            (folder / name).mkdir(parents=True)
        for module in (root / "trainer").glob("*.py"):
            shutil.copyfile(module, folder / "trainer" / module.name)
        (folder / TRAIN).write_bytes(source.encode("utf-8", "surrogatepass"))
        (folder / PROMPT).write_text(prompt, encoding="utf-8", errors="replace")
        (folder / ".gitignore").write_text("/tmp/\n__pycache__/\n")
        for arguments in (
            ("init", "-q", "--template="),
            ("add", "-A"),
            (*AUTHOR, "commit", "-q", "-m", "the champion"),
        ):
            if (done := three_way_merge.run_git(folder, *arguments)).returncode:
                raise OSError(
                    f"git {arguments[0]}: {done.stderr.decode('utf-8', 'replace').strip()}"
                )
        yield folder
    finally:
        _remove(folder.parent)
        link.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Removes a folder of any depth, also if it is partly read-only. A link is left alone."""
    if not folder.is_symlink():
        subprocess.run(["chmod", "-R", "u+rwx", folder], capture_output=True)
    subprocess.run(["rm", "-rf", folder], capture_output=True)


def _take(clone: Path) -> str | _Unfit:
    """train.py, whatever is in its place. No link is followed."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe is opened without a writer
    try:
        with contextlib.ExitStack() as undo:
            place = None
            for folder in (clone, "trainer"):
                place = os.open(folder, flags | os.O_DIRECTORY, dir_fd=place)
                undo.callback(os.close, place)
            file = undo.enter_context(open(os.open("train.py", flags, dir_fd=place), "rb"))
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return _Unfit("is no longer a plain file")
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            return _Unfit(f"is longer than {MAX_BYTES} bytes")
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return _Unfit("is not UTF-8")
    except OSError as error:
        return _Unfit(f"cannot be read: {error.strerror}")


def _headers(stdout: str) -> dict[str, str]:
    """The first line of each header, the last one of its name: an agent prints much before them."""
    found = answer.headers(stdout.splitlines())
    return {name: one_line(text.partition("\n")[0]) for name, text in found}
