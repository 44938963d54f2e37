"""Candidates and keeps in git: branch `autoresearch/<tag>`, refs `refs/trials/<tag>/<number>`.

Plumbing only: blob, temporary index, commit-tree, update-ref with the expected old value. The
user's working tree, index and HEAD are never touched, no hook, filter, signature or identity of
theirs is used, and a kill leaves a ref either moved or not. After a crash each function may be
called again and then changes nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import NightlyError, UsageError
from tasks.history import git_plumbing, git_readiness
from tasks.records import TRAIN, Trial
from tasks.text import one_line, shortened

TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
# What git itself means by such a word: HEAD, FETCH_HEAD, ...; and a whole commit.
NAMES_OF_GIT = re.compile(
    r"(?:[A-Z_]+_)?HEAD|AUTO_MERGE|MERGE_AUTOSTASH|BISECT_[A-Z_]+|NOTES_MERGE_[A-Z]+"
    r"|[0-9a-f]{40}|[0-9a-f]{64}"
)
SUBJECT_LENGTH = 72
PLACEBO = "placebo"  # the trailer Verdict of a trial of the champion, unchanged
TRAILER_LENGTH = 200
LOCK_SECONDS = 5.0
CERTIFIED = "-certified"  # after the tag: the branch with what is shown to help


@dataclass(frozen=True)
class Checkout:
    """The user's checkout as a night finds it."""

    root: Path
    head: str  # commit
    branch: str | None  # None: HEAD is detached
    dirty: bool  # tracked files differ from HEAD
    train_dirty: bool  # trainer/train.py differs: the night starts from the file as it is

    def describe(self) -> str:
        where = f"{self.branch or 'a detached HEAD'} at {self.head[:7]}"
        if self.train_dirty:
            return f"{where} with your uncommitted {TRAIN}"
        return f"{where}, other files uncommitted" if self.dirty else where


@dataclass(frozen=True)
class CommittedTrial:
    """A trial of some night, as git has it."""

    number: int
    commit: str
    subject: str
    trailers: dict[str, str]


def open_checkout(path: Path) -> Checkout:
    """What the checkout at `path` holds.

    Raises UsageError if it is none, has no commit or no sound trainer/train.py, or takes no
    commits.
    """
    root = path.resolve()
    remedy = (
        "Clone the project with git, or make this folder a repository: "
        "git init && git add -A && git commit -m start"
    )
    if not (root / ".git").exists():
        raise UsageError(f"{root} is not a git checkout, and kept patches become commits. {remedy}")
    try:
        git_plumbing.run(root, "rev-parse", "--git-dir")
    except NightlyError as error:
        raise UsageError(
            f"{root} is not a git checkout that git can read: {error}. {remedy}"
        ) from error
    head = git_plumbing.resolve(root, "HEAD")
    if head is None:
        raise UsageError(
            f"{root} has no commit yet, and a night starts from one: "
            "git add -A && git commit -m start"
        )
    git_readiness.check_train(root)
    git_readiness.rehearse(root, head)
    branch = git_plumbing.run(root, "rev-parse", "--symbolic-full-name", "HEAD").removeprefix(
        "refs/heads/"
    )
    changed = git_readiness.changed_files(root)
    return Checkout(
        root=root,
        head=head,
        branch=None if branch == "HEAD" else branch,
        dirty=bool(changed),
        train_dirty=TRAIN in changed,
    )


def check_tag(root: Path, tag: str) -> None:
    """Raises UsageError unless `tag` can name a new night: a plain name whose refs are free."""
    if NAMES_OF_GIT.fullmatch(tag):
        raise UsageError(
            f"--tag {tag!r} has a special meaning in git: choose another name, as in nov21"
        )
    if not TAG.fullmatch(tag) or not _is_branch_name(root, f"autoresearch/{tag}"):
        raise UsageError(
            f"--tag {tag!r} cannot name a branch: use 1 to 64 letters, digits and . _ + -, "
            "starting with a letter or digit, "
            f"no `..`, and neither . nor .lock at the end, as in nov21"
        )
    if tag.endswith(CERTIFIED):
        raise UsageError(
            f"--tag {tag!r} is the name for the certified changes of night "
            f"{tag.removesuffix(CERTIFIED)!r}: choose another name, as in nov21"
        )
    refs = set(
        git_plumbing.run(
            root, "for-each-ref", "--format=%(refname)", "refs/heads/autoresearch", "refs/trials"
        ).split("\n")
    )
    for taken in (_branch(tag), f"refs/trials/{tag}", _branch(f"{tag}{CERTIFIED}")):
        if any(f"{ref}/".startswith(f"{taken}/") for ref in refs):
            raise UsageError(
                f"night {tag} exists ({taken}): `./run resume {tag}` resumes it, "
                "or choose another --tag"
            )
    if "refs/heads/autoresearch" in refs:
        raise UsageError(
            f"your branch 'autoresearch' is in the way of autoresearch/{tag}: "
            "git branch -m autoresearch NEW-NAME"
        )
    check_not_checked_out(root, tag)


def check_not_checked_out(root: Path, tag: str) -> None:
    """Raises UsageError if a worktree has the night's branch checked out.

    Its files would look changed after a keep.
    """
    worktree = ""
    for line in git_plumbing.run(root, "worktree", "list", "--porcelain").splitlines():
        key, _, value = line.partition(" ")
        worktree = value if key == "worktree" else worktree
        if (key, value) == ("branch", _branch(tag)):
            raise UsageError(
                f"autoresearch/{tag} is checked out in {worktree}, and the night moves it: "
                f"there, `git switch --detach` or switch to another branch"
            )


def start_branch(root: Path, tag: str, head: str, source: str, subject: str) -> str:
    """Makes the night's branch and returns its commit: `head` with `source` as trainer/train.py."""
    return _commit_at(root, _branch(tag), head, source, f"{_one_line(subject)}\n")


def commit_candidate(root: Path, tag: str, trial: Trial, source: str) -> str:
    """Commits a candidate on its parent, kept or not, as refs/trials/<tag>/<number>.

    Returns the commit.
    Raises NightlyError if that ref holds another candidate.
    """
    message = message_of(trial, trailers_of(tag, trial))
    return _commit_at(root, f"refs/trials/{tag}/{trial.number}", trial.parent, source, message)


def trailers_of(tag: str, trial: Trial) -> dict[str, str]:
    """What a trial's commit says of it: all that `./run replay` needs to measure it again.

    Noise and hardware are left out where the ledger does not have them, as in older nights.
    """
    known = {
        "Trial-Id": f"{tag}:{trial.number}",
        "Val-Bpb": "-" if trial.val_bpb is None else f"{trial.val_bpb:.6f}",
        "Verdict": trial.verdict if trial.placebo is None else PLACEBO,
        "Seeds": " ".join(map(str, trial.seeds)) or "-",
        "Z": "-" if trial.z is None else f"{trial.z:.2f}",
    }
    if trial.noise_sd is not None:
        known["Noise"] = f"{trial.noise_sd:.6f} (df {trial.noise_df})"
    if trial.hardware is not None:
        known["Hardware"] = shortened(one_line(trial.hardware), TRAILER_LENGTH)
    return known


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
    git_plumbing.run(root, "update-ref", "-m", "keep", _branch(tag), new, old)


def tip(root: Path, tag: str) -> str | None:
    """The commit that the night's branch is at; None if there is no such branch."""
    return git_plumbing.resolve(root, _branch(tag))


def trial_commit(root: Path, tag: str, number: int) -> str | None:
    """The commit of a trial; None if it has none yet."""
    return git_plumbing.resolve(root, f"refs/trials/{tag}/{number}")


def source_at(root: Path, revision: str) -> str:
    """trainer/train.py of a commit, byte for byte. Raises NightlyError if there is none."""
    return git_plumbing.run_bytes(root, "cat-file", "blob", f"{revision}:{TRAIN}").decode(
        "utf-8", "surrogatepass"
    )


def trailers(root: Path, revision: str) -> dict[str, str]:
    """The trailers of a commit's message. Raises NightlyError if there is no such commit."""
    return _trailers(
        git_plumbing.run(root, "show", "--no-patch", "--format=%(trailers:only,unfold)", revision)
    )


def changed_since(root: Path, revision: str, names: Sequence[str]) -> tuple[str, ...]:
    """Which of these files of the checkout are not as they are in a commit."""
    differs = ("diff", "--name-only", "--no-ext-diff", "--no-textconv", "-z", revision, "--")
    return tuple(filter(None, git_plumbing.run(root, *differs, *names).split("\0")))


def candidates(root: Path, tag: str) -> list[CommittedTrial]:
    """A night's candidates in the order of its trials; none if the repository has no such night."""
    if not TAG.fullmatch(tag):
        return []
    fields = ("refname:lstrip=3", "objectname", "contents:subject", "trailers:only,unfold")
    layout = "".join(f"%({field})%00" for field in fields)
    parts = git_plumbing.run(
        root, "for-each-ref", f"--format={layout}", f"refs/trials/{tag}"
    ).split("\0")
    found = [parts[i : i + len(fields)] for i in range(0, len(parts) - 1, len(fields))]
    night = [
        CommittedTrial(int(n), commit, subject, _trailers(text))
        for n, commit, subject, text in found
        if n.strip().isdecimal()
    ]
    return sorted(night, key=lambda candidate: candidate.number)


def reconcile(root: Path, tag: str, commits: Mapping[int, str], tips: Sequence[str]) -> list[str]:
    """Makes the night's refs match its ledger, and returns what was repaired.

    The trials' refs must point at `commits`, the branch at one of `tips`. A missing ref is made
    again, the branch at the first tip. Raises NightlyError if one was moved elsewhere, or a commit
    is no longer in the repository.
    """
    _remove_locks(root, tag)
    listed = git_plumbing.run(
        root,
        "for-each-ref",
        "--format=%(refname) %(objectname)",
        f"refs/trials/{tag}",
        _branch(tag),
    )
    found = dict(line.split(" ") for line in listed.splitlines())
    wanted = {f"refs/trials/{tag}/{number}": (commit,) for number, commit in commits.items()}
    repaired = []
    for ref, allowed in (wanted | {_branch(tag): tuple(tips)}).items():
        if ref not in found:
            git_plumbing.run(
                root, "update-ref", "-m", "restored from the ledger", ref, allowed[0], ""
            )
            repaired.append(f"{ref} was missing: restored at {allowed[0][:7]}")
        elif found[ref] not in allowed:
            raise NightlyError(
                f"{ref} is at {found[ref]}, the ledger says {allowed[0]}: somebody moved it. "
                f"`git update-ref {ref} {allowed[0]}` puts it back, then `./run resume {tag}`"
            )
    return repaired


def _remove_locks(root: Path, tag: str) -> None:
    """Removes locks of the night's own refs that a power cut left behind.

    A git process that outlived its flow is done within seconds.
    """
    common = Path(git_plumbing.run(root, "rev-parse", "--path-format=absolute", "--git-common-dir"))
    branches = (_branch(tag), _branch(f"{tag}{CERTIFIED}"))
    locks = (common / "refs" / "trials" / tag).glob("*.lock")
    held = [*(common / f"{branch}.lock" for branch in branches), *locks]
    deadline = time.monotonic() + LOCK_SECONDS
    for lock in held:
        while lock.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        lock.unlink(missing_ok=True)


def _commit_at(root: Path, ref: str, parent: str, source: str, message: str) -> str:
    """A commit with `source` on `parent`, with `ref` pointing at it; made only once."""
    tree = git_plumbing.tree_with(root, parent, TRAIN, source)
    if existing := git_plumbing.resolve(root, ref):
        head, _, text = (
            git_plumbing.run_bytes(root, "cat-file", "commit", existing)
            .decode("utf-8", "replace")
            .partition("\n\n")
        )
        lines = [line for line in head.split("\n") if line.startswith(("tree ", "parent "))]
        if (lines, text) != ([f"tree {tree}", f"parent {parent}"], message):
            raise NightlyError(
                f"{ref} exists and holds another commit ({existing}): "
                f"`git update-ref -d {ref}` frees it, "
                f"a new night needs another --tag"
            )
        return existing
    commit = git_plumbing.run(
        root, "commit-tree", "--no-gpg-sign", tree, "-p", parent, "-m", message
    )
    # "": the ref must not exist yet.
    git_plumbing.run(root, "update-ref", "-m", message.partition("\n")[0], ref, commit, "")
    return commit


def message_of(trial: Trial, trailers: Mapping[str, str]) -> str:
    """A commit's subject and trailers. A subject of one line cannot pass for a trailer."""
    subject = _one_line(trial.idea.summary) or f"trial {trial.number}"
    values = {key: shortened(one_line(value), TRAILER_LENGTH) for key, value in trailers.items()}
    lines = "".join(f"{key}: {value}\n" for key, value in values.items())
    return f"{subject}\n\n{lines}"


def _trailers(text: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


def _one_line(text: str) -> str:
    return shortened(one_line(text), SUBJECT_LENGTH)


def _branch(tag: str) -> str:
    return f"refs/heads/autoresearch/{tag}"


def _is_branch_name(root: Path, name: str) -> bool:
    try:
        git_plumbing.run(root, "check-ref-format", "--branch", name)
    except NightlyError:
        return False
    return True
