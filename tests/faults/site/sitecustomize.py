"""Changes to our processes under test, for every Python that has this folder in PYTHONPATH.

Boxes get tests/faults/torch_stub beside `trainer`, in front of the real torch. With
NIGHTLY_TEST_KILL_AT="decided:3" a process ends as by `kill -9` when it reaches the milestone
`decided` for the third time; NIGHTLY_TEST_SIGNAL is the number of another signal for that.
NIGHTLY_TEST_TOUCH="waiting=PATH" makes a file at that milestone. NIGHTLY_TEST_MILESTONES names a
file that gets a line for each milestone, NIGHTLY_TEST_CLOCK one for the moments at which a training
begins and ends. With NIGHTLY_TEST_HOLD="waiting" the first training of the process ends only after
that milestone. NIGHTLY_TEST_HARDWARE is what the machine is said to be.

Each change is made when its module is imported, not before: Prefect reads its settings from the
environment at its import, and a command sets them first.
"""

from __future__ import annotations

import dataclasses
import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from collections import Counter
from types import ModuleType
from typing import Any

_reached: Counter[str] = Counter()


def add_torch_stub(workplace: Any) -> None:
    from tests.faults.stub_torch import assemble_with_stub

    workplace.assemble = assemble_with_stub


def follow_milestones(interruption: Any) -> None:
    interruption.reached = reached


def reached(step: str) -> None:
    _reached[step] += 1
    if milestones := os.environ.get("NIGHTLY_TEST_MILESTONES"):
        with open(milestones, "a") as file:
            file.write(f"{step}\n")
    touched, _, path = os.environ.get("NIGHTLY_TEST_TOUCH", "").partition("=")
    if step == touched:
        open(path, "a").close()
    place, _, count = os.environ.get("NIGHTLY_TEST_KILL_AT", "").partition(":")
    if step == place and _reached[step] == int(count or 1):
        os.kill(os.getpid(), int(os.environ.get("NIGHTLY_TEST_SIGNAL", signal.SIGKILL)))


def follow_clock(protocol: Any) -> None:
    go, finish = protocol.go, protocol.finish
    held = [step for step in [os.environ.get("NIGHTLY_TEST_HOLD")] if step]

    def note(what: str) -> None:
        if path := os.environ.get("NIGHTLY_TEST_CLOCK"):
            with open(path, "a") as file:
                file.write(f"{what} {time.time()}\n")

    def noting_go(*arguments: Any, **options: Any) -> Any:
        begun = go(*arguments, **options)
        note("go")
        return begun

    def noting_end(box: Any, begun: Any, *arguments: Any, **options: Any) -> Any:
        if held:
            step = held.pop()
            while not _reached[step]:
                time.sleep(0.01)
            begun = dataclasses.replace(begun, go=time.monotonic())
        trained = finish(box, begun, *arguments, **options)
        note("end")
        return trained

    protocol.go, protocol.finish = noting_go, noting_end


def name_hardware(hardware: Any) -> None:
    if named := os.environ.get("NIGHTLY_TEST_HARDWARE"):
        hardware.describe = lambda device, threads: named


def follow_ideas(idea_queue: Any) -> None:
    """The milestone `queued`: what a call brought is on disk, and nothing is chosen yet."""
    add = idea_queue.IdeaQueue.add

    def adding(*arguments: Any) -> None:
        add(*arguments)
        reached("queued")

    idea_queue.IdeaQueue.add = adding


CHANGES = {
    "tasks.judge.workplace": add_torch_stub,
    "flows.night.interruption": follow_milestones,
    "tasks.judge.protocol": follow_clock,
    "tasks.trial.hardware": name_hardware,
    "tasks.search.idea_queue": follow_ideas,
}


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
