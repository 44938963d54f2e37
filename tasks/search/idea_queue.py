"""The night's ideas, nights/<tag>/ideas.jsonl: all that a researcher proposed, several a call.

One JSON object a line: a file that ideas were made against, the ideas of a call with their
candidates, or an idea that was dropped and why. Lines are only added; a call's ideas are on disk,
all of them, before one is chosen. Which were run is not written here: it follows from the trials,
so a kill between two writes can neither lose an idea nor run it twice. A torn last line is skipped,
and removed by the next writer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.errors import NightlyError
from tasks.files import sync_folder
from tasks.history import night_folder
from tasks.records import Candidate, Idea, NightSoFar, Proposal


@dataclasses.dataclass(frozen=True)
class Queued:
    """An idea as it was proposed. `said.queued` is its id: "7.2" is the second for trial 7."""

    trial: int  # that it was proposed for
    base: str  # the train.py that it was made against
    source: str  # the candidate
    said: Idea

    @property
    def id(self) -> str:
        return str(self.said.queued)


@dataclasses.dataclass(frozen=True)
class Ideas:
    """What the file says: all ideas in order, and why some were dropped, by id."""

    every: tuple[Queued, ...] = ()
    dropped: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def waiting(self, night: NightSoFar) -> tuple[Queued, ...]:
        """Those that were neither dropped nor tried, nor are being tried now."""
        gone = {trial.idea.queued for trial in night.trials} | self.dropped.keys()
        if night.in_flight:
            gone.add(night.in_flight.idea.queued)
        return tuple(idea for idea in self.every if idea.id not in gone)


@dataclasses.dataclass(frozen=True)
class IdeaQueue:
    """The file of one night, which one thread at a time writes."""

    path: Path

    @classmethod
    def of(cls, folder: Path) -> IdeaQueue:
        return cls(folder / night_folder.IDEAS)

    def read(self) -> Ideas:
        """Raises NightlyError with the number of a damaged line."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return Ideas()
        files: dict[str, str] = {}
        every: list[Queued] = []
        dropped: dict[str, str] = {}
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):
            try:
                event = json.loads(line)
                match event["event"]:
                    case "file":
                        files[event["sha256"]] = event["source"]
                    case "ideas":
                        base = files[event["base"]]
                        for each in event["ideas"]:
                            said = Idea.from_json(each["idea"])
                            every.append(Queued(event["trial"], base, each["source"], said))
                    case "dropped":
                        dropped[event["id"]] = event["reason"]
            except (ValueError, KeyError, TypeError) as error:
                raise NightlyError(
                    f"{self.path}, line {number} is damaged: {line[:80]!r}. Restore the file from "
                    "a backup, or remove it: then the waiting ideas are lost, the trials are not"
                ) from error
        return Ideas(tuple(every), dropped)

    def add(self, trial: int, base: Candidate, made: Sequence[Proposal]) -> None:
        """Adds what was proposed for this trial against `base`, and returns when it is on disk.

        Raises NightlyError if the disk does not take it: nothing was added then.
        """
        if not made:
            return
        known = self.read().every
        before = sum(idea.trial == trial for idea in known)
        key = hashlib.sha256(_encoded(base.source)).hexdigest()
        lines: list[dict[str, Any]] = []
        if base.source not in {idea.base for idea in known}:
            lines.append({"event": "file", "sha256": key, "source": base.source})
        ideas = []
        for number, proposed in enumerate(made, start=before + 1):
            idea = dataclasses.replace(proposed.idea, queued=f"{trial}.{number}")
            ideas.append({"idea": dataclasses.asdict(idea), "source": proposed.candidate.source})
        # One line: the half of a call would be taken for all of it.
        lines.append({"event": "ideas", "trial": trial, "base": key, "ideas": ideas})
        self._append(lines)

    def drop(self, reasons: Mapping[str, str]) -> None:
        """Puts on record, by id, why ideas are not run. Raises NightlyError as `add`."""
        self._append({"event": "dropped", "id": id, "reason": why} for id, why in reasons.items())

    def _append(self, events: Iterable[Mapping[str, Any]]) -> None:
        now = datetime.now(UTC).isoformat()
        # ASCII, also for text that is no valid Unicode. One write: a kill tears at most its end.
        written = b"".join(json.dumps({**e, "time": now}).encode() + b"\n" for e in events)
        if not written:
            return
        is_new = not self.path.exists()
        descriptor = None
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
            before = self.path.read_bytes().rfind(b"\n") + 1
            os.ftruncate(descriptor, before)
            try:
                while written:
                    written = written[os.write(descriptor, written) :]
                os.fsync(descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, before)
                raise
            if is_new:
                sync_folder(self.path.parent)
        except OSError as error:
            raise NightlyError(
                f"ideas could not be written to {self.path}: {error.strerror}. Make room or repair "
                f"the disk, then `./run resume {self.path.parent.name}`"
            ) from error
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
