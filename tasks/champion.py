"""Candidates and keeps as git objects: the branch `autoresearch/<tag>` and the refs `refs/trials/<tag>/<number>`.

Plumbing only, through GitPython's runner: blob, temporary index, commit-tree, update-ref with the expected old value.
So the user's working tree, index and HEAD are never touched, none of their hooks, filters, signatures, identities takes
part, and a kill leaves a ref moved or not. Each function may be called again after a crash and then changes nothing.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import git

from tasks.records import NightlyError, Trial, UsageError, one_line

TRAIN = "trainer/train.py"
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
SUBJECT_LENGTH = 72
CONFIG = {
    "core.hooksPath": "/dev/null",  # update-ref would run reference-transaction, write-tree post-index-change
    "core.fsmonitor": "false",
    "core.splitIndex": "false",  # or the temporary index leaves a shared one in .git
    "core.fsync": "committed,loose-object",  # a ref must not outlive its objects in a power cut
    "i18n.commitEncoding": "UTF-8",
    "log.showSignature": "false",  # or `show` runs the user's gpg
}
IDENTITY = {
    "GIT_AUTHOR_NAME": "nightly-research",
    "GIT_AUTHOR_EMAIL": "nightly-research@localhost",
    "GIT_COMMITTER_NAME": "nightly-research",
    "GIT_COMMITTER_EMAIL": "nightly-research@localhost",
}


@dataclass(frozen=True)
class Checkout:
    """The user's checkout as a night finds it."""

    root: Path
    head: str  # commit
    branch: str | None  # None: HEAD is detached
    dirty: bool  # tracked files differ from HEAD
    train_dirty: bool  # trainer/train.py does: the night starts from the file as it is, not as it was committed

    def describe(self) -> str:
        where = f"{self.branch or 'a detached HEAD'} at {self.head[:7]}"
        if self.train_dirty:
            return f"{where} with your uncommitted {TRAIN}"
        return f"{where}, other files uncommitted" if self.dirty else where


def open_checkout(path: Path) -> Checkout:
    """What the checkout at `path` holds. Raises UsageError if it is none, has no commit or no trainer/train.py."""
    root = path.resolve()
    remedy = "Clone the project with git, or make this folder a repository: git init && git add -A && git commit -m start"
    if not (root / ".git").exists():
        raise UsageError(f"{root} is not a git checkout, and kept patches become commits. {remedy}")
    try:
        _git(root, "rev-parse", "--git-dir")
    except NightlyError as error:
        raise UsageError(f"{root} is not a git checkout that git can read: {error}. {remedy}") from error
    head = _resolve(root, "HEAD")
    if head is None:
        raise UsageError(f"{root} has no commit yet, and a night starts from one: git add -A && git commit -m start")
    if not (root / TRAIN).is_file():
        raise UsageError(f"{root / TRAIN} is missing: `git checkout HEAD -- {TRAIN}` brings it back")
    branch = _git(root, "rev-parse", "--symbolic-full-name", "HEAD").removeprefix("refs/heads/")
    changed = _git(root, "status", "--porcelain", "-z", "--untracked-files=no", "--ignore-submodules").split("\0")
    return Checkout(
        root=root,
        head=head,
        branch=None if branch == "HEAD" else branch,
        dirty=any(changed),
        train_dirty=any(entry[3:] == TRAIN for entry in changed),
    )


def check_tag(root: Path, tag: str) -> None:
    """Raises UsageError unless a new night can be named `tag`: a plain name whose refs are all free."""
    if not TAG.fullmatch(tag) or not _is_branch_name(root, f"autoresearch/{tag}"):
        raise UsageError(
            f"--tag {tag!r} cannot name a branch: use 1 to 64 letters, digits, dots, dashes or underscores, as in nov21"
        )
    refs = set(_git(root, "for-each-ref", "--format=%(refname)", "refs/heads/autoresearch", "refs/trials").split("\n"))
    for taken in (_branch(tag), f"refs/trials/{tag}"):
        if any(f"{ref}/".startswith(f"{taken}/") for ref in refs):
            raise UsageError(f"night {tag} exists ({taken}): `./run resume {tag}` goes on with it, or choose another --tag")
    if "refs/heads/autoresearch" in refs:
        raise UsageError(f"your branch 'autoresearch' is in the way of autoresearch/{tag}: git branch -m autoresearch NEW-NAME")
    check_not_checked_out(root, tag)


def check_not_checked_out(root: Path, tag: str) -> None:
    """Raises UsageError if a worktree has the night's branch checked out: its files would look changed at a keep."""
    worktree = ""
    for line in _git(root, "worktree", "list", "--porcelain").splitlines():
        key, _, value = line.partition(" ")
        worktree = value if key == "worktree" else worktree
        if (key, value) == ("branch", _branch(tag)):
            raise UsageError(
                f"autoresearch/{tag} is checked out in {worktree}, and the night moves it: "
                f"there, `git switch --detach` or switch to another branch"
            )


def start_branch(root: Path, tag: str, head: str, source: str, subject: str) -> str:
    """Makes the night's branch: one commit on `head` whose only change is `source` as trainer/train.py. Returns it."""
    return _commit_at(root, _branch(tag), head, source, f"{_one_line(subject)}\n")


def commit_candidate(root: Path, tag: str, trial: Trial, source: str) -> str:
    """Commits a candidate on its parent, kept or not, as refs/trials/<tag>/<number>, and returns the commit.

    Raises NightlyError if that ref holds another candidate.
    """
    trailers = {
        "Trial-Id": f"{tag}:{trial.number}",
        "Val-Bpb": "-" if trial.val_bpb is None else f"{trial.val_bpb:.6f}",
        "Verdict": trial.verdict,
        "Seeds": " ".join(map(str, trial.seeds)) or "-",
        "Z": "-" if trial.z is None else f"{trial.z:.2f}",
    }
    message = _message(_one_line(trial.summary) or f"trial {trial.number}", trailers)
    return _commit_at(root, f"refs/trials/{tag}/{trial.number}", trial.parent, source, message)


def advance(root: Path, tag: str, new: str, old: str) -> None:
    """Moves the night's branch from `old` to `new`, or raises NightlyError if it is at neither."""
    at = tip(root, tag)
    if at == new:
        return
    if at != old:
        raise NightlyError(
            f"autoresearch/{tag} is at {at}, expected {old}: somebody moved it. "
            f"`git update-ref {_branch(tag)} {old}` puts it back, then `./run resume {tag}`"
        )
    _git(root, "update-ref", "-m", "keep", _branch(tag), new, old)


def tip(root: Path, tag: str) -> str | None:
    """The commit that the night's branch is at; None if there is no such branch."""
    return _resolve(root, _branch(tag))


def source_at(root: Path, revision: str) -> str:
    """trainer/train.py of a commit, byte for byte. Raises NightlyError if there is none."""
    return _git_bytes(root, "cat-file", "blob", f"{revision}:{TRAIN}").decode("utf-8", "surrogatepass")


def trailers(root: Path, revision: str) -> dict[str, str]:
    """The trailers of a commit's message. Raises NightlyError if there is no such commit."""
    text = _git(root, "show", "--no-patch", "--format=%(trailers:only,unfold)", revision)
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


def diff(root: Path, old: str, new: str) -> str:
    """Unified diff of trainer/train.py between two commits; other files are left out."""
    options = ("-p", "--no-ext-diff", "--no-textconv", "--no-renames", "--no-color", "--text")
    return _git_bytes(root, "diff-tree", *options, old, new, "--", TRAIN).decode("utf-8", "replace")


def _commit_at(root: Path, ref: str, parent: str, source: str, message: str) -> str:
    """A commit with `source` on `parent`, and `ref` made to point at it; or the commit there if it is this one."""
    tree = _tree(root, parent, source)
    if existing := _resolve(root, ref):
        head, _, text = _git_bytes(root, "cat-file", "commit", existing).decode("utf-8", "replace").partition("\n\n")
        lines = [line for line in head.split("\n") if line.startswith(("tree ", "parent "))]
        if (lines, text) != ([f"tree {tree}", f"parent {parent}"], message):
            raise NightlyError(
                f"{ref} is there and holds another commit ({existing}): `git update-ref -d {ref}` frees it, "
                f"a new night needs another --tag"
            )
        return existing
    commit = _git(root, "commit-tree", "--no-gpg-sign", tree, "-p", parent, "-m", message)
    _git(root, "update-ref", "-m", message.partition("\n")[0], ref, commit, "")  # "": it must not exist
    return commit


def _tree(root: Path, parent: str, source: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file, index = Path(folder, "train.py"), Path(folder, "index")
        file.write_bytes(source.encode("utf-8", "surrogatepass"))
        blob = _git(root, "hash-object", "-w", "--no-filters", str(file))
        _git(root, "read-tree", f"{parent}^{{tree}}", index=index)
        _git(root, "update-index", "--add", "--cacheinfo", f"100644,{blob},{TRAIN}", index=index)
        return _git(root, "write-tree", index=index)


def _message(subject: str, trailers: Mapping[str, str]) -> str:
    """Subject and trailers. Nothing in a subject of one line can pass for a trailer."""
    lines = "".join(f"{key}: {_one_line(value)}\n" for key, value in trailers.items())
    return f"{subject}\n\n{lines}"


def _one_line(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= SUBJECT_LENGTH else f"{line[: SUBJECT_LENGTH - 3]}..."


def _branch(tag: str) -> str:
    return f"refs/heads/autoresearch/{tag}"


def _is_branch_name(root: Path, name: str) -> bool:
    try:
        _git(root, "check-ref-format", "--branch", name)
    except NightlyError:
        return False
    return True


def _resolve(root: Path, revision: str) -> str | None:
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except NightlyError:
        return None


def _git(root: Path, *arguments: str, index: Path | None = None) -> str:
    return _git_bytes(root, *arguments, index=index).decode("utf-8", "surrogateescape").rstrip("\n")


def _git_bytes(root: Path, *arguments: str, index: Path | None = None) -> bytes:
    """Output of a git command on this checkout, whatever GIT_DIR says (a hook or `rebase --exec` sets it).

    Raises NightlyError with git's own message.
    """
    place = (f"--git-dir={root / '.git'}", f"--work-tree={root}", "--no-optional-locks", "--no-replace-objects")
    config = [part for key, value in CONFIG.items() for part in ("-c", f"{key}={value}")]
    environment = {**IDENTITY, **({"GIT_INDEX_FILE": str(index)} if index else {})}
    runner = git.Git(root)
    try:
        return runner.execute(
            [runner.GIT_PYTHON_GIT_EXECUTABLE or "git", *place, *config, *arguments],
            stdout_as_string=False,
            strip_newline_in_stdout=False,
            env=environment,
        )
    except git.GitCommandError as error:
        said = str(error.stderr).strip().removeprefix("stderr:").strip().strip("'")
        raise NightlyError(f"git {arguments[0]} failed (exit {error.status}): {said}") from error
