"""A three-way merge by git: carries a patch made against an older champion over to another.

Git runs in folders of our own here, without the user's configuration;
tasks/history/git_plumbing.py is for the checkout.
"""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path

from configs import knobs
from tasks.errors import NightlyError

MOST_CONFLICTS = 127  # git merge-file's exit status is their number, up to this one
MERGES_KEPT = 512  # of whole files, some 20 MB


def three_way(base: str, ours: str, theirs: str) -> str | None:
    """`ours` with the changes that lead from `base` to `theirs`; None if they conflict.

    Lines end at "\\n" only; every other character is kept as it is. Raises NightlyError if git
    fails.
    """
    texts = {"ours": ours, "base": base, "theirs": theirs}
    if any("\0" in text for text in texts.values()):
        return None  # git does not merge binary files
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in texts.items():
            (folder / file).write_bytes(text.encode("utf-8", "surrogatepass"))
        done = run_git(folder, "merge-file", "-p", *texts)
    if done.returncode > MOST_CONFLICTS:
        error = done.stderr.decode("utf-8", "replace").strip()
        raise NightlyError(f"git merge-file failed (exit {done.returncode}): {error}")
    return None if done.returncode else done.stdout.decode("utf-8", "surrogatepass")


@functools.lru_cache(maxsize=MERGES_KEPT)
def three_way_of_files(base: str, ours: str, theirs: str) -> str | None:
    """`three_way` of train.py files, whose knobs are merged by their values.

    Git takes changes on neighbouring lines for a conflict, and the knobs are neighbours. The latest
    results are kept: a certification takes the same changes out of a champion again and again.
    """
    before, mine, new = map(knobs.read, (base, ours, theirs))
    try:
        common = knobs.writable(base, mine) & knobs.writable(theirs, mine)
        common &= knobs.writable(ours, new) & before.keys()
        alike = {name: mine[name] for name in common}
        merged = three_way(knobs.write(base, alike), ours, knobs.write(theirs, alike))
        changed = {name: new[name] for name in common if new[name] != before[name]}
        if merged is None or any(mine[name] not in (before[name], new[name]) for name in changed):
            return None
        return knobs.write(merged, changed)
    except knobs.KnobError:  # one of the files does not parse, or no longer uses a knob
        return three_way(base, ours, theirs)


def run_git(
    folder: Path, *arguments: str, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """A git command in a folder of our own.

    It ignores the user's configuration and any repository around the folder. Raises NightlyError if
    a signal ends it, which says nothing about its input.
    """
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        # Within a repository, git apply skips files outside the current folder.
        "GIT_CEILING_DIRECTORIES": str(folder.resolve().parent),
    }
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=environment,
        input=given,
        capture_output=True,
        start_new_session=True,  # a Ctrl-C in the terminal is for the night, not for git
    )
    if done.returncode < 0:
        raise NightlyError(
            f"git {arguments[0]} was ended by signal {-done.returncode}: is memory exhausted?"
        )
    return done
