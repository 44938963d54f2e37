"""Whether a checkout can start a night and take its commits: asked before any work is done.

Whatever is wrong is a UsageError of one line, with the remedy.
"""

from __future__ import annotations

import os
from pathlib import Path

from configs import knobs
from tasks.errors import NightlyError, UsageError
from tasks.history import git_plumbing
from tasks.records import TRAIN
from tasks.text import one_line

REHEARSED = "# Written by nightly-research to see whether this repository takes commits.\n"


def check_train(root: Path) -> None:
    """The working tree's train.py must be a Python file: a night starts from it as it is."""
    path = root / TRAIN
    if not path.is_file():
        raise UsageError(f"{path} is missing: `git checkout HEAD -- {TRAIN}` brings it back")
    if TRAIN in (conflicts := _conflicts(root)):
        raise UsageError(f"{path} has a merge conflict: resolve it, then `git add {TRAIN}`")
    if conflicts:
        raise UsageError(
            f"a merge in {root} is unfinished, {conflicts[0]} has a conflict: resolve it, "
            "then `git add` the file, or abort the merge"
        )
    try:
        knobs.parse(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except SyntaxError as error:
        raise UsageError(
            f"{path} is not valid Python: line {error.lineno}: {error.msg}. "
            f"`git diff -- {TRAIN}` shows what changed"
        ) from error


def _conflicts(root: Path) -> list[str]:
    """Files of the index that a merge has left undecided."""
    listed = git_plumbing.run(root, "ls-files", "--unmerged", "-z")
    return list(dict.fromkeys(entry.partition("\t")[2] for entry in listed.split("\0") if entry))


def check_writable(root: Path) -> None:
    """Objects and refs can be written, as far as can be seen without writing any."""
    common = Path(git_plumbing.run(root, "rev-parse", "--path-format=absolute", "--git-common-dir"))
    for folder in (common, common / "objects", common / "refs"):
        if not os.access(folder, os.W_OK):
            raise UsageError(
                f"{folder} cannot be written, and a night makes commits: make it writable for the "
                "user who runs this, or clone the project to a folder of your own"
            )


def rehearse(root: Path, head: str) -> None:
    """Makes the objects of a night's first commit on `head`, but no commit and no ref.

    Like any object without a ref, git removes them in time.
    """
    check_writable(root)
    try:
        git_plumbing.tree_with(root, head, TRAIN, REHEARSED)
    except NightlyError as error:
        raise UsageError(
            f"{root} does not take commits: {one_line(str(error))}. A complete clone (without "
            "--filter) in a folder of your own does"
        ) from error


def changed_files(root: Path) -> set[str]:
    """Tracked files that differ from HEAD, also where the index says not to look at them."""
    try:
        status = git_plumbing.run(
            root, "status", "--porcelain", "-z", "--untracked-files=no", "--ignore-submodules"
        )
        hidden = _hidden_changes(root)
    except NightlyError as error:
        raise UsageError(
            f"git cannot compare {root} with its last commit: {one_line(str(error))}. If a program "
            "for its files is missing (Git LFS: git-lfs), install it, or remove it from git's "
            "configuration"
        ) from error
    seen = {entry[3:] for entry in status.split("\0") if entry} - {TRAIN}
    # By its bytes, without conversion: that is how the night reads it.
    _, _, stored, *_ = [*git_plumbing.run(root, "ls-tree", "HEAD", TRAIN).split(), *"---"]
    found = git_plumbing.run(root, "hash-object", "--no-filters", TRAIN)
    return seen | hidden | ({TRAIN} if found != stored else set())


def _hidden_changes(root: Path) -> set[str]:
    """Changed files that are marked as skip-worktree or assume-unchanged.

    `ls-files -v` shows those marks as S or a lower-case letter.
    """
    recorded = {}
    for entry in filter(None, git_plumbing.run(root, "ls-files", "-v", "-s", "-z").split("\0")):
        facts, _, name = entry.partition("\t")
        mark, _, blob, _ = facts.split(" ")
        is_link = (root / name).is_symlink()
        if (mark == "S" or mark.islower()) and (root / name).is_file() and not is_link:
            recorded[name] = blob
    return {
        name
        for name, blob in recorded.items()
        if blob != git_plumbing.run(root, "hash-object", "--", name)
    }
