"""README.md lists every attack. `NIGHTLY_WRITE_TABLE=1 pytest tests/attacks -k table` rewrites it."""

import os
from pathlib import Path

import pytest

from tests.attacks import (
    arena,
    room_counting,
    room_escape,
    room_lying,
    room_notes,
    room_overspending,
    room_peeking,
    room_recall,
    room_time,
)
from tests.attacks.arena import Attack, Control
from tests.attacks.controls import CONTROLS
from tests.attacks.suite import HONEST

ROOMS = (
    room_lying,
    room_peeking,
    room_notes,
    room_recall,
    room_time,
    room_counting,
    room_overspending,
    room_escape,
)
ATTACKS: list[Attack] = [attack for room in ROOMS for attack in room.ATTACKS]
LEAST = {
    "lying about the score": 13,
    "peeking": 14,
    "cheating time": 11,
    "under-reporting": 11,
    "training while scored": 6,
    "breaking out": 16,
}
README = Path(__file__).parent / "README.md"
HEAD = """\
# Attacks

Cheating candidates, each a few lines of difference to `honest_candidate.py`, and what stops them.
The suite runs each one in boxes and compares its status with this table, which is made from the same
list (`NIGHTLY_WRITE_TABLE=1 pytest tests/attacks -k table`). `ok` with nothing to gain: the score is
the honest one. Attacks on a box have real boxes. Most of those on the score have boxes forked from a
real one that has imported torch (`forked_boxes.py`); some of each room have real ones.
`NIGHTLY_ATTACK_BOXES=docker pytest tests/attacks` makes the real ones containers of this machine's
engine.
"""


def test_there_are_enough_attacks_of_each_kind_and_no_name_is_used_twice() -> None:
    everybody: list[Attack | Control] = [*ATTACKS, *CONTROLS, HONEST]
    names = [candidate.name for candidate in everybody]
    assert len(names) == len(set(names))
    for room, least in LEAST.items():
        attacks = [attack for attack in ATTACKS if attack.room == room]
        assert len(attacks) >= least
        assert not all(attack.forked for attack in attacks)
    assert len(CONTROLS) >= 31
    assert not all(control.forked for control in CONTROLS)


@pytest.mark.parametrize("candidate", [*ATTACKS, *CONTROLS], ids=lambda candidate: candidate.name)
def test_a_candidate_is_an_edit_of_the_honest_one(candidate: Attack | Control) -> None:
    compile(arena.edited(candidate.edits), candidate.name, "exec")


def test_no_attack_that_ends_before_torch_has_forks() -> None:
    assert {arena.boxes_of(attack) for attack in room_escape.ATTACKS} == {"stub"}


def test_the_table_lists_the_attacks() -> None:
    """Each row's status is the one that its attack's own test compares."""
    text = table()
    if os.environ.get("NIGHTLY_WRITE_TABLE"):
        README.write_text(text)
    assert README.read_text() == text


def table() -> str:
    lines = [
        HEAD,
        "| room | attack | how it cheats | stopped by | status |",
        "|---|---|---|---|---|",
        *(f"| {a.room} | {a.name} | {a.what} | {a.stopped_by} | `{a.status}` |" for a in ATTACKS),
        "",
        "These are unusual and honest, and must pass:",
        "",
        "| candidate | what is unusual |",
        "|---|---|",
        *(f"| {control.name} | {control.what} |" for control in CONTROLS),
    ]
    return "\n".join(lines) + "\n"
