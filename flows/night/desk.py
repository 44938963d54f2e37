"""Answers a researcher's questions: from facts that are known, or from a box.

A box waits for nothing and delays nothing: beside a run it has a low priority on a CPU, and on a
GPU it is not opened. Its answers are the candidate's own word.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.night import measured_facts, studies
from tasks.judge.box import Box
from tasks.proposers import proposal
from tasks.proposers.digest import plain, reason_of
from tasks.proposers.questions import LONGEST_ANSWER, Answered, Question
from tasks.records import Baseline, Bench, Candidate, NightSoFar, Study
from tasks.text import shortened
from tasks.trial import device_lock, early_run, inspection

LOG = 1500  # characters, from the end of a smoke step's log


@dataclasses.dataclass
class _Boxes:
    """The box that is open, for whoever ends the night. Takes no lock."""

    last: Box | None = None
    cancelled: bool = False

    def opened(self, box: Box) -> None:
        self.last = box
        if self.cancelled:
            box.interrupt()

    def end(self) -> None:
        self.cancelled = True
        if (box := self.last) is not None:
            box.interrupt()


@dataclasses.dataclass(frozen=True)
class NightDesk:
    """The Desk of a night; may be asked from any thread, and a box lives in the one that asks."""

    folder: Path  # nights/<tag>
    bench: Bench
    baseline: Baseline
    facts: Mapping[str, str]
    boxes: _Boxes = dataclasses.field(default_factory=_Boxes)

    def cancel(self) -> None:
        self.boxes.end()

    def answer(self, question: Question, night: NightSoFar) -> Answered:
        started = time.monotonic()
        text, cpu_seconds = self._answer(question, night)
        cut = shortened(text, LONGEST_ANSWER)
        return Answered(cut, time.monotonic() - started, cpu_seconds)

    def _answer(self, question: Question, night: NightSoFar) -> tuple[str, float | None]:
        """The text, and the CPU-seconds of the box if there was one."""
        if question.kind == "fact":
            return self._fact(question.about), None
        number, shown = _shown(night)
        if question.kind in ("profile", "loss") and question.candidate is None:
            known = self._known(number)
            if known and (text := _told(question, known)):
                return text, None
        if (obstacle := self._obstacle(night)) is not None:
            return f"not now: {obstacle}", None
        beside = _is_beside(night)
        if question.kind == "try":
            return self._try(question.candidate or night.shown, beside=beside)
        if question.kind == "sample":
            return self._sample(question.about, number, shown, beside=beside)
        return self._study(question, number, shown, beside=beside)

    def _fact(self, name: str) -> str:
        """One that is named whole or in part; else the names of all."""
        asked = name.strip().casefold()
        found = [known for known in self.facts if asked and asked in known.casefold()]
        exact = [known for known in found if known.casefold() == asked]
        if chosen := exact or found:
            return "\n".join(f"{known}: {self.facts[known]}" for known in chosen)
        return f"no such fact; there are: {'; '.join(self.facts)}"

    def _known(self, number: int) -> Study | None:
        return studies.read(self.folder, number) or (None if number else self.baseline.study)

    def _obstacle(self, night: NightSoFar) -> str | None:
        """Why no box can be opened beside what runs; None if one can."""
        if self.boxes.cancelled:
            return "the night ends"
        if not _is_beside(night):
            return None
        if device := device_lock.device_of(self.bench.profile):
            return f"another run is training on {device}, and would lose time"
        return early_run.obstacle(self.bench.profile, self.baseline)

    def _study(
        self, question: Question, number: int, shown: Candidate, *, beside: bool
    ) -> tuple[str, float | None]:
        """A study of the file shown is kept; one of a patch is not."""
        if question.candidate is not None:
            if question.kind == "loss":
                return "no answer: a patch has no trained model. Ask for its profile", None
            found = self._studied(question.candidate, None, beside=beside)
            return measured_facts.step(found), found.cpu_seconds
        trained = studies.checkpoint(self.folder, number, shown)
        found = self._studied(shown, trained, beside=beside)
        is_answered = found.milliseconds is not None or found.bits_per_byte is not None
        if trained is not None and is_answered:
            studies.write(self.folder, number, found)
        return _told(question, found) or _NO_CHECKPOINT, found.cpu_seconds

    def _sample(
        self, prompt: str, number: int, shown: Candidate, *, beside: bool
    ) -> tuple[str, float | None]:
        trained = studies.checkpoint(self.folder, number, shown)
        if trained is None:
            return _NO_CHECKPOINT, None
        found = self._studied(shown, trained, profile=False, prompt=prompt, beside=beside)
        return measured_facts.samples(found, inspection.TEMPERATURES), found.cpu_seconds

    def _studied(
        self, candidate: Candidate, trained: inspection.Checkpoint | None, **options: Any
    ) -> Study:
        return inspection.study(candidate, self.bench, trained, opened=self.boxes.opened, **options)

    def _try(self, candidate: Candidate, *, beside: bool) -> tuple[str, float | None]:
        if problem := proposal.check(candidate, {}):
            return f"rejected_patch: {plain(problem)}", None
        tried = inspection.try_out(candidate, self.bench, beside=beside, opened=self.boxes.opened)
        lines = [f"ok: {tried.reason}"]
        if tried.status != "ok":
            # Nothing here has seen validation text: `reason_of` is for the other statuses.
            reason = reason_of(tried.status, tried.reason) or shortened(plain(tried.reason), LOG)
            lines = [f"{tried.status}: {reason}"]
            if beside and tried.status in early_run.UNDECIDED:
                lines.append("that was beside another run, and alone it may do better")
        if tried.peak_memory_bytes:
            lines.append(f"{tried.peak_memory_bytes / 2**30:.1f} GiB of host memory")
        log = plain(tried.log[-8 * LOG :]).strip()[-LOG:]
        lines += [f"its log ends:\n{log}"] if log else []
        return "; ".join(lines), tried.cpu_seconds


_NO_CHECKPOINT = (
    "no answer: no trained model of the file shown was kept. There will be one after the next "
    "keep; the baseline's figures are among the facts"
)


def _is_beside(night: NightSoFar) -> bool:
    """Whether a run trains while this is asked."""
    return night.in_flight is not None or night.beside_placebo


def _shown(night: NightSoFar) -> tuple[int, Candidate]:
    """The trial whose file is shown, 0 for the baseline, and the file."""
    if night.parent is not None:
        return night.parent.trial, night.parent.candidate
    keeps = [trial.number for trial in night.trials if trial.verdict == "keep"]
    return (keeps[-1] if keeps else 0), night.champion


def _told(question: Question, study: Study) -> str:
    """What a study says to the question; empty if it was not asked that."""
    if question.kind == "profile":
        return measured_facts.step(study)
    return measured_facts.losses(study)
