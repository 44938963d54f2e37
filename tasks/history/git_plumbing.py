"""Git's plumbing commands on the user's checkout, through GitPython's runner.

They make objects and refs. No hook, filter, signature or identity of the user's is used, and
neither index nor working tree is touched.
"""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

import git

from tasks.errors import NightlyError

CONFIG = {
    "core.hooksPath": "/dev/null",  # update-ref and write-tree would run hooks
    "core.fsmonitor": "false",
    "core.splitIndex": "false",  # or the temporary index leaves a shared one in .git
    # After a power cut no ref may be left without its objects.
    "core.fsync": "committed,loose-object,reference",
    "i18n.commitEncoding": "UTF-8",
    "log.showSignature": "false",  # or `show` runs the user's gpg
}
IDENTITY = {
    "GIT_AUTHOR_NAME": "nightly-research",
    "GIT_AUTHOR_EMAIL": "nightly-research@localhost",
    "GIT_COMMITTER_NAME": "nightly-research",
    "GIT_COMMITTER_EMAIL": "nightly-research@localhost",
}


def resolve(root: Path, revision: str) -> str | None:
    """The commit that a revision names, or None."""
    try:
        return run(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except NightlyError:
        return None


def run(
    root: Path, *arguments: str, index: Path | None = None, date: datetime | None = None
) -> str:
    """`run_bytes` as text without its last newline."""
    output = run_bytes(root, *arguments, index=index, date=date)
    return output.decode("utf-8", "surrogateescape").rstrip("\n")


def run_bytes(
    root: Path, *arguments: str, index: Path | None = None, date: datetime | None = None
) -> bytes:
    """Output of a git command on this checkout; a commit gets this date, by default the present.

    GIT_DIR is ignored: a hook or `rebase --exec` sets it.
    Raises NightlyError with git's own message.
    """
    place = (
        f"--git-dir={root / '.git'}",
        f"--work-tree={root}",
        "--no-optional-locks",
        "--no-replace-objects",
    )
    config = [part for key, value in CONFIG.items() for part in ("-c", f"{key}={value}")]
    environment = {**IDENTITY, **({"GIT_INDEX_FILE": str(index)} if index else {})}
    if date:
        seconds = f"@{date.timestamp():.0f} +0000"
        environment |= {"GIT_AUTHOR_DATE": seconds, "GIT_COMMITTER_DATE": seconds}
    runner = git.Git(root)
    try:
        return runner.execute(
            [runner.GIT_PYTHON_GIT_EXECUTABLE or "git", *place, *config, *arguments],
            stdout_as_string=False,
            strip_newline_in_stdout=False,
            env=environment,
            start_new_session=True,  # or Ctrl-C in the terminal would end git during a commit
        )
    except git.GitCommandError as error:
        said = str(error.stderr).strip().removeprefix("stderr:").strip().strip("'")
        raise NightlyError(f"git {arguments[0]} failed (exit {error.status}): {said}") from error


def tree_with(root: Path, parent: str, name: str, source: str) -> str:
    """The tree of commit `parent` with `source` as the file `name`, stored; returns its hash."""
    with tempfile.TemporaryDirectory() as folder:
        file, index = Path(folder, "file"), Path(folder, "index")
        file.write_bytes(source.encode("utf-8", "surrogatepass"))
        blob = run(root, "hash-object", "-w", "--no-filters", str(file))
        run(root, "read-tree", f"{parent}^{{tree}}", index=index)
        run(root, "update-index", "--add", "--cacheinfo", f"100644,{blob},{name}", index=index)
        # A partial clone does not have the other files' content, and a commit does not need it.
        return run(root, "write-tree", "--missing-ok", index=index)
