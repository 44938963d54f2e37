"""Three versions of one text made into one, by git: how a patch made against an older champion is carried over to another.

Git is run in folders of our own here, deaf to the user's configuration; tasks/history/git_plumbing.py is for the checkout.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from tasks.errors import NightlyError

MOST_CONFLICTS = 127  # git merge-file's exit status is their number, at most this one


def three_way(base: str, ours: str, theirs: str) -> str | None:
    """`ours` with the changes that lead from `base` to `theirs`, or None where the two conflict.

    Lines end at "\\n" and at nothing else; every other character is kept as it is. Raises NightlyError when git fails.
    """
    texts = {"ours": ours, "base": base, "theirs": theirs}
    if any("\0" in text for text in texts.values()):
        return None  # git does not merge what it takes for binary
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in texts.items():
            (folder / file).write_bytes(text.encode("utf-8", "surrogatepass"))
        done = run_git(folder, "merge-file", "-p", *texts)
    if done.returncode > MOST_CONFLICTS:
        raise NightlyError(
            f"git merge-file failed (exit {done.returncode}): {done.stderr.decode('utf-8', 'replace').strip()}"
        )
    return None if done.returncode else done.stdout.decode("utf-8", "surrogatepass")


def run_git(
    folder: Path, *arguments: str, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """A git command in a folder of our own, deaf to the user's configuration and to a repository around it.

    Raises NightlyError when a signal ends it, which says nothing of what it was given.
    """
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CEILING_DIRECTORIES": str(
            folder.resolve().parent
        ),  # in a repository git apply skips other folders
    }
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=environment,
        input=given,
        capture_output=True,
        start_new_session=True,
    )  # a Ctrl-C in the terminal is the night's and not git's
    if done.returncode < 0:
        raise NightlyError(
            f"git {arguments[0]} was ended by signal {-done.returncode}: is the memory full?"
        )
    return done
