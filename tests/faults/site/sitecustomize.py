"""What a test changes in our processes, and only there: Python imports this module at its start if PYTHONPATH leads here.

Boxes get tests/faults/torch_stub beside `trainer`, in front of the real torch. With NIGHTLY_TEST_KILL_AT="decided:3" a
process that reaches the milestone `decided` for the third time ends as by `kill -9`; NIGHTLY_TEST_MILESTONES names a file
that gets a line for each milestone.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

from flows.night import interruption
from tasks.judge import workplace
from tests.faults.stub_torch import assemble_with_stub

_reached: Counter[str] = Counter()


def reached(step: str) -> None:
    _reached[step] += 1
    if path := os.environ.get("NIGHTLY_TEST_MILESTONES"):
        with open(path, "a") as file:
            file.write(f"{step}\n")
    place, _, count = os.environ.get("NIGHTLY_TEST_KILL_AT", "").partition(":")
    if step == place and _reached[step] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)


workplace.assemble = assemble_with_stub
interruption.reached = reached
