"""Boxes with tests/faults/torch_stub in front of the real torch: two CPU-seconds less for each."""

from __future__ import annotations

import shutil
from pathlib import Path

from tasks.judge.workplace import assemble

STUB = Path(__file__).parent / "torch_stub" / "torch" / "__init__.py"


def assemble_with_stub(source: str, work: Path) -> Path:
    """`workplace.assemble`, with the stub as a package `torch` beside `trainer`."""
    code = assemble(source, work)
    package = code / "torch"
    package.mkdir()
    package.chmod(0o755)
    shutil.copyfile(STUB, package / "__init__.py")
    (package / "__init__.py").chmod(0o644)
    return code
