"""Commands as another user than root, who tests run as: with access to what they need, in places
that are closed to others."""

from __future__ import annotations

from pathlib import Path

# Gives a process its own view of the file system, in which it can reach the paths after the first
# `--` although they are below the closed folders before it: those are covered, and only the paths
# are put back.
COVER = """\
stash=$1; shift; closed=; umask 022
while [ "$1" != -- ]; do closed="$closed $1"; shift; done
shift
mount -t tmpfs -o mode=755 stash "$stash"
count=0
for path; do
  [ "$path" != -- ] || break
  mkdir "$stash/$count"; mount --bind "$path" "$stash/$count"; count=$((count+1))
done
for folder in $closed; do mount -t tmpfs -o mode=755 cover "$folder"; done
i=0
while [ "$1" != -- ]; do
  mkdir -p "$1"; mount --bind "$stash/$i" "$1"; i=$((i+1)); shift
done
shift
umount -l "$stash"
exec "$@"
"""


def _closed_above(path: Path) -> Path | None:
    """The first folder on the way to `path` that is closed to others; None if there is none."""
    return next(
        (folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None
    )


def as_user(uid: int, stash: Path, *needed: str | Path) -> list[str]:
    """Argv prefix: as this uid, with or without an account, and with access to the `needed` paths.

    `stash` is an empty folder outside all closed ones.
    """
    paths = [Path(place).resolve() for place in needed]
    hidden = {path: closed for path in paths if (closed := _closed_above(path))}
    folders = {str(closed) for closed in hidden.values()}
    cover = ["sh", "-ec", COVER, "cover", str(stash), *folders, "--", *map(str, hidden), "--"]
    drop = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all"]
    return ["unshare", "--mount", "--propagation", "private", "--", *cover, *drop, "--"]
