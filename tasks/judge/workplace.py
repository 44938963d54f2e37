"""The folder of one run: the candidate's package, the gates and the checkpoint; gone when the run is over."""

from __future__ import annotations

import contextlib
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tasks.judge.processes import ProcessId
from trainer import prepare

TRAINER = Path(prepare.__file__).parent
FIXED_FILES = (
    "__init__.py",
    "prepare.py",
    "packing.py",
    "harness.py",
    "link.py",
    "roles.py",
    "speed.py",
)  # beside the candidate in a box


@contextlib.contextmanager
def workplace(home: Path) -> Iterator[Path]:
    """A folder for one run, removed afterwards: what is kept of a run is in its RunResult.

    Its name says whose it is, so that the folder of a process that was killed is removed by the next run.
    """
    boxes, host = home / "boxes", platform.node()
    boxes.mkdir(parents=True, exist_ok=True)
    for left in boxes.glob(f"{host}~*~*"):
        if not ProcessId.parse(left.name.rsplit("~", 2)[1]).is_alive:
            _remove(left)
    work = Path(tempfile.mkdtemp(prefix=f"{host}~{ProcessId.current()}~", dir=boxes))
    work.chmod(0o755)
    try:
        yield work
    finally:
        _remove(work)


def _remove(work: Path) -> None:
    """As far as that goes: another run may be at it, or a file system that is slow to forget. The next run tries again."""
    with contextlib.suppress(OSError):
        for gate in work.glob("*-gate"):
            gate.chmod(0o755)
        shutil.rmtree(work)


def assemble(source: str, work: Path) -> Path:
    """The package `trainer` as a box sees it: our fixed files and the candidate, readable by the box's uid."""
    package = work / "code" / "trainer"
    package.mkdir(parents=True)
    for name in FIXED_FILES:
        shutil.copyfile(TRAINER / name, package / name)
    (package / "train.py").write_text(source, encoding="utf-8", errors="surrogatepass", newline="")
    for path in (package.parent, package, *package.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return package.parent


def read_whole(path: Path) -> None:
    """Brings all of a file into the page cache: which part of it a box has left there would be a note to the next."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
