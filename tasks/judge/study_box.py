"""A study box: what a researcher wants to know of a candidate, asked in a box of its own.

It sees training rows and perhaps a checkpoint, never what is scored. What it says is the
candidate's own word: a message of limited size, shown to researchers and used for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tasks.judge.box import Box
from tasks.judge.bwrap import Gate
from tasks.judge.protocol import blaming, expect, expect_up, ignore
from tasks.judge.wire import Wire

ENTRY = ["-u", "-c", "from trainer import study; study.enter()"]


def ask(
    box: Box,
    gate: Gate,
    questions: Mapping[str, Any],
    *,
    seconds: float,
    when_up: Callable[[Box], None] = ignore,
) -> dict[str, Any]:
    """The figures as the box gives them, unchecked; `questions` as in trainer/study.py.

    The time counts from the box's start, and `when_up` is called before any line of the candidate
    runs. Raises Stopped.
    """
    wire, deadline = Wire(box.wire), box.started + seconds
    expect_up(box, wire, deadline)
    when_up(box)
    with blaming(box, "study", seconds):
        gate.open()
        wire.send({"msg": "study", **questions}, deadline)
        return expect(wire.read(deadline), "studied")
