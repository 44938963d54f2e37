"""Changes to our processes under test, for every Python that has this folder in PYTHONPATH.

Boxes get tests/faults/torch_stub beside `trainer`, in front of the real torch. With
NIGHTLY_TEST_KILL_AT="decided:3" a process ends as by `kill -9` when it reaches the milestone
`decided` for the third time. NIGHTLY_TEST_MILESTONES names a file that gets a line for each
milestone.

Each change is made when its module is imported, not before: Prefect reads its settings from the
environment at its import, and a command sets them first.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

TORCH_STUB = Path(__file__).resolve().parent.parent / "torch_stub" / "torch"

_reached: Counter[str] = Counter()


def add_torch_stub(workplace: Any) -> None:
    assemble = workplace.assemble

    def assemble_with_stub(source: str, work: Path) -> Path:
        code = Path(assemble(source, work))
        package = code / "torch"
        package.mkdir()
        shutil.copyfile(TORCH_STUB / "__init__.py", package / "__init__.py")
        package.chmod(0o755)
        (package / "__init__.py").chmod(0o644)
        return code

    workplace.assemble = assemble_with_stub


def follow_milestones(trial_steps: Any) -> None:
    trial_steps.reached = reached


def reached(step: str) -> None:
    _reached[step] += 1
    if path := os.environ.get("NIGHTLY_TEST_MILESTONES"):
        with open(path, "a") as file:
            file.write(f"{step}\n")
    place, _, count = os.environ.get("NIGHTLY_TEST_KILL_AT", "").partition(":")
    if step == place and _reached[step] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)


CHANGES = {"tasks.judge.workplace": add_torch_stub, "flows.night.trial_steps": follow_milestones}


class ChangedModules(importlib.abc.MetaPathFinder):
    """Finds the modules of CHANGES, and changes each right after its own code has run."""

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_change(module: ModuleType) -> None:
                run(module)
                CHANGES[fullname](module)

            spec.loader.exec_module = run_and_change  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, ChangedModules())
