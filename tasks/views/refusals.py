"""What MLflow does not take: runs that are left out there, so that they keep no other run out.

They are on record in a file of the night's folder, for status and report, until MLflow takes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tasks.files import FileRef
from tasks.text import counted, one_line, shortened

FILE = "not_in_mlflow.json"
LONGEST_REASON = 300  # characters, in a message
MOST_NAMED = 8


def read(folder: Path) -> dict[str, str]:
    """Why MLflow does not take a run, by its tag `trial_id`: `nov21:3`, `nov21:baseline:1`.

    Empty without a file, or if somebody damaged it: the next session writes it again.
    """
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return {str(run): str(why) for run, why in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def write(folder: Path, refused: Mapping[str, str]) -> None:
    """Writes the file; removes it if nothing is refused."""
    if not refused:
        (folder / FILE).unlink(missing_ok=True)
    elif refused != read(folder):
        FileRef.write(folder / FILE, json.dumps(refused, indent=1).encode())


def summary(tag: str, refused: Mapping[str, str]) -> str:
    """Which runs are missing, and why the first one is."""
    names = [trial_id.removeprefix(f"{tag}:") for trial_id in refused]
    runs = [f"trial {name}" if name.isdecimal() else name.replace(":", " seed ") for name in names]
    more = f" and {counted(len(runs) - MOST_NAMED, 'other run')}" if len(runs) > MOST_NAMED else ""
    why = shortened(one_line(next(iter(refused.values()))), LONGEST_REASON)
    return f"MLflow lacks {', '.join(runs[:MOST_NAMED])}{more} ({why})"


def message(tag: str, refused: Mapping[str, str]) -> str:
    """The same, with what to do."""
    return f"{summary(tag, refused)}: `./run rebuild {tag}` tries again"
