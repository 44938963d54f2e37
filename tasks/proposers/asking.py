"""Answers to a researcher's questions: which are put to the desk, and what it is told.

A patch that is to be tried is applied and checked here first, as a proposal's would be.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import get_args

from tasks.proposers import answer, edit_blocks
from tasks.proposers.answer import EditError
from tasks.proposers.digest import plain, short
from tasks.proposers.proposal import refusal
from tasks.proposers.questions import LONGEST_ANSWER, Answered, Desk, Question, QuestionKind
from tasks.proposers.reading import Asked
from tasks.records import NightSoFar
from tasks.text import counted

KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)
MOST_ABOUT = 500  # characters


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A question and its answer, cleaned: the words of a candidate may be in both."""

    question: str  # one line
    answered: Answered

    def __str__(self) -> str:
        cost = f"{self.answered.seconds:.1f} s"
        if self.answered.cpu_seconds is not None:
            cost += f", {self.answered.cpu_seconds:.1f} CPU-seconds"
        return f"{self.question} ({cost})"


def answers(desk: Desk, asked: Iterable[Asked], night: NightSoFar) -> tuple[Exchange, ...]:
    """What the desk says to each question, at most LONGEST_ANSWER characters."""
    exchanges = []
    for each in asked:
        question = _question(each, night)
        answered = question if isinstance(question, Answered) else desk.answer(question, night)
        text = plain(answered.text[: 4 * LONGEST_ANSWER]).strip("\n")
        text = text if len(text) <= LONGEST_ANSWER else f"{text[: LONGEST_ANSWER - 10]}\n... (cut)"
        words = short(each.words, MOST_ABOUT) or "(no words)"
        exchanges.append(Exchange(words, dataclasses.replace(answered, text=text)))
    return tuple(exchanges)


def said(exchanges: Iterable[Exchange]) -> str:
    """The exchanges in the record of the call that carries the answers."""
    found = [str(each) for each in exchanges]
    return f"answers {counted(len(found), 'question')}: {'; '.join(found)}" if found else ""


def _question(asked: Asked, night: NightSoFar) -> Question | Answered:
    """The question; an answer to one that no desk has to be asked."""
    word, _, about = asked.words.partition(" ")
    near = difflib.get_close_matches(word.lower().strip(",.:;?")[:20], KINDS, n=1, cutoff=0.75)
    kind = next((kind for kind in KINDS if kind in near), None)
    if kind is None:
        return Answered(f"there is no such question; ask one of: {', '.join(KINDS)}", 0.0)
    if kind != "try":
        return Question(kind, short(about, MOST_ABOUT))
    try:
        tried = answer.parse("\n".join(asked.patch))
        candidate = edit_blocks.apply(tried, night.shown)
    except EditError as error:
        return Answered(f"not tried: {error}", 0.0)
    if refused := refusal(candidate, night.seen, night.trials):
        return Answered(f"not tried: {refused[1]}", 0.0)
    return Question(kind, candidate=candidate)
