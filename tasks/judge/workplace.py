"""The folder of one run: the candidate's package, the gates and the checkpoint."""

from __future__ import annotations

import contextlib
import platform
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from tasks.judge.processes import ProcessId
from trainer import prepare

TRAINER = Path(prepare.__file__).parent
FIXED_FILES = (  # beside the candidate in a box
    "__init__.py",
    "prepare.py",
    "packing.py",
    "harness.py",
    "link.py",
    "roles.py",
    "gradients.py",
    "exhaustion.py",
    "speed.py",
    "flops.py",
)
STUDY_FILES = ("study.py", "step_parts.py")  # in a study box, too: no score depends on them


@contextlib.contextmanager
def workplace(home: Path) -> Iterator[Path]:
    """A folder for one run, removed afterwards: what is kept of a run is in its RunResult.

    Its name holds the process that uses it: the next run removes folders of killed processes.
    """
    boxes, host = home / "boxes", platform.node()
    boxes.mkdir(parents=True, exist_ok=True)
    for left in boxes.glob(f"{host}~*~*"):
        if not ProcessId.parse(left.name.rsplit("~", 2)[1]).is_alive:
            _remove(left)
    work = boxes / f"{host}~{ProcessId.current()}~{secrets.token_hex(4)}"
    try:  # a Ctrl-C may come at any line
        work.mkdir()
        work.chmod(0o755)
        yield work
    finally:
        _remove(work)


def _remove(work: Path) -> None:
    """As far as possible: another run may be removing it too. The next run tries again."""
    with contextlib.suppress(OSError):
        for gate in work.glob("*-gate"):
            gate.chmod(0o755)
        shutil.rmtree(work)


def assemble(source: str, work: Path) -> Path:
    """The package `trainer` as a box sees it: our fixed files and the candidate, all readable."""
    package = work / "code" / "trainer"
    package.mkdir(parents=True)
    for name in FIXED_FILES:
        shutil.copyfile(TRAINER / name, package / name)
    (package / "train.py").write_text(source, encoding="utf-8", errors="surrogatepass", newline="")
    for path in (package.parent, package, *package.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return package.parent


def add_study_files(code: Path) -> None:
    """Puts those of a study box beside the others."""
    for name in STUDY_FILES:
        shutil.copyfile(TRAINER / name, code / "trainer" / name)
        (code / "trainer" / name).chmod(0o644)


def read_whole(path: Path) -> None:
    """Reads a file into the page cache: a part that a box had read would be a note to others."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
