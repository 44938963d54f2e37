"""A night's folder, nights/<tag> in the state folder, read-only and without Prefect."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tasks.errors import UsageError
from tasks.history import ledger
from tasks.history.night_state import fold
from tasks.records import NightState

LEDGER = "ledger.jsonl"
PULSE = "heartbeat.json"
BASE = "base.py"  # source that the baseline is measured with; git has it later
BASELINE = "baseline.json"  # its runs: every score of the night is compared with them
PROGRAM = "program.md"  # the researcher's instructions as they were at the start
NOTES = "notes.md"  # an earlier night's last notes, which its researcher begins with
CALLS = "llm_calls.jsonl"


def program_file(contender: int | None) -> str:
    """The name of the program's copy; in a tournament, of that of a contender, from 1."""
    return PROGRAM if contender is None else f"program-{contender}.md"


def find(home: Path, tag: str) -> Path:
    """The folder of a night that exists. Raises UsageError if there is none."""
    folder = home / "nights" / tag
    if not ledger.exists(folder / LEDGER):
        known = ", ".join(night.name for night in all_of(home))
        others = f"there are: {known}" if known else "there are none yet"
        raise UsageError(f"no night {tag!r} in {home}; {others}")
    return folder


def all_of(home: Path) -> list[Path]:
    """The folders of all nights, by name."""
    paths = (home / "nights").glob(f"*/{LEDGER}")
    return sorted(path.parent for path in paths if ledger.exists(path))


def baseline_file(state: NightState, hardware: str) -> str:
    """The name of the file with the runs of this night's baseline on that hardware."""
    moves = (each.hardware_before for each in state.remeasurements if each.baseline)
    first = next(moves, state.baseline.hardware if state.baseline else hardware)
    if hardware == first:
        return BASELINE
    return f"baseline-{hashlib.sha256(hardware.encode()).hexdigest()[:8]}.json"


def read_state(folder: Path) -> NightState:
    """The state of this folder's night, even while another process holds it."""
    return fold(ledger.read(folder / LEDGER))
