"""Questions that a researcher may ask instead of proposing: cheap facts before a dear run.

What is asked and what comes back are records; who answers is the night's business, as it may take a
box. An answer may hold output of a candidate: it is data, capped, and fenced in the prompt.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

from tasks.records import Candidate, NightSoFar

QuestionKind = Literal[
    "fact",  # of the data or the machine, by its name
    "profile",  # where FLOPs, milliseconds and memory of a step go
    "loss",  # by token frequency and by position, on training rows that no gradient saw
    "sample",  # what the candidate writes after a prompt from the training text
    "try",  # import and smoke step of a patch, before it is proposed for real
]
LONGEST_ANSWER = 3000  # characters


@dataclasses.dataclass(frozen=True)
class Question:
    kind: QuestionKind
    about: str = ""  # fact: its name; sample: the prompt
    candidate: Candidate | None = None  # try: the patched file; others: None is the file shown


@dataclasses.dataclass(frozen=True)
class Answered:
    """What came of a question: at most LONGEST_ANSWER characters, and what it cost."""

    text: str
    seconds: float  # wall clock
    cpu_seconds: float | None = None  # of its box; None without one


class Desk(Protocol):
    """Answers questions. May be called from any thread; never raises for a candidate's faults."""

    def answer(self, question: Question, night: NightSoFar) -> Answered: ...

    def cancel(self) -> None:
        """Ends what it is doing, from another thread: no answer is needed any more."""


class NoDesk:
    """Where nobody answers: a question costs nothing and brings nothing."""

    def answer(self, question: Question, night: NightSoFar) -> Answered:
        return Answered(f"no answer: this night cannot answer questions ({question.kind})", 0.0)

    def cancel(self) -> None:
        """It is never doing anything."""
