"""All that an answer may hold: one idea or several, notes to keep, or questions in their place.

    IDEA 1                    a line before each idea, where several may be given
    SUMMARY, KIND, ...        the idea, as tasks.proposers.answer reads it
    IDEA 2
    ...
    NOTES: ...                the researcher's notebook, anywhere
    ASK: fact NAME            a question; it counts only in an answer without an idea
    ASK: try                  the same, about the blocks that follow

Each idea stands for itself: one that cannot be read spoils no other.
"""

from __future__ import annotations

import dataclasses
import re

from tasks.proposers import answer, thinking
from tasks.proposers.answer import Answer, EditError, Problem
from tasks.proposers.digest import plain
from tasks.proposers.thinking import IDEA, header_of
from tasks.text import counted

MOST_NOTES = 2000  # characters
ASK = re.compile(r"^[ \t>*#_`+\d.)-]{0,12}ASK[ \t*_`]*:[ \t*_`]*(.*)$", re.IGNORECASE)
TRY = re.compile(r"try\b", re.IGNORECASE)
TITLE = " \t*_`:.)]>-"  # what may stand around an idea's title


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question as it was written: the words after ASK, and the lines that follow `ASK: try`."""

    words: str
    patch: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Reading:
    """Ideas in the model's order, or what is wrong with them; none in an answer that asks."""

    ideas: tuple[Answer | EditError, ...] = ()
    notes: str | None = None  # cleaned, at most MOST_NOTES characters
    asked: tuple[Asked, ...] = ()
    ignored: tuple[str, ...] = ()  # what else the answer holds and is not used, a line each


def read(text: str, *, most: int = 1, may_ask: bool = False) -> Reading:
    """What an answer without its thinking holds: at most so many ideas, questions if it may ask."""
    try:
        answer.check_size(text)
    except EditError as error:
        return Reading((error,))
    lines = thinking.lines_of(text.replace("\r\n", "\n"))
    notes = notes_of(lines)
    asked, rest = _questions(lines) if may_ask else ((), lines)
    if asked and not thinking.edits(rest):
        return Reading(notes=notes, asked=asked)
    ignored = [f"{counted(len(asked), 'question')} beside an idea"] if asked else []
    ideas = _ideas("\n".join(rest), most)
    if len(ideas) > most:
        ignored.append(f"{counted(len(ideas) - most, 'idea')} beyond the limit of {most}")
    return Reading(ideas[:most], notes, ignored=tuple(ignored))


def _ideas(text: str, most: int) -> tuple[Answer | EditError, ...]:
    sections, doubt = thinking.ideas(text) if most > 1 else ([], None)
    if doubt:
        return (EditError(Problem("malformed", doubt)),)
    found: list[Answer | EditError] = []
    for section in sections or [[]]:
        try:
            found.append(_idea(section) if section else answer.parse(text))
        except EditError as error:
            found.append(error)
    return tuple(found)


def _idea(section: list[str]) -> Answer:
    """The idea below an IDEA line, whose title stands in for a missing SUMMARY."""
    heading, *lines = section
    title = IDEA.sub(r"\2", heading).strip(TITLE)
    has_summary = any(name == "summary" and words for name, words in answer.headers(lines))
    return answer.idea_of(lines if has_summary or not title else [f"SUMMARY: {title}", *lines])


def notes_of(lines: list[str]) -> str | None:
    """The text of the last NOTES header, several lines, cleaned and cut; None if it has none."""
    inside = {place for edit in thinking.edits(lines) for place in edit}
    notes: list[str] = []
    is_noting = False
    for place, line in enumerate(lines):
        header = thinking.HEADER.match(line)
        if header and header[1].upper() == "NOTES" and place not in inside:
            is_noting, notes = True, [line[header.end() :].lstrip(" \t*_`")]
        elif place in inside or header or IDEA.match(line) or ASK.match(line):
            is_noting = False
        elif is_noting and not thinking.FENCE.fullmatch(line):
            notes.append(line)
    text = plain("\n".join(notes)[: 8 * MOST_NOTES]).strip()
    if len(text) > MOST_NOTES:
        text = f"{text[: MOST_NOTES - 10].rstrip()}\n... (cut)"
    return text if re.search(r"\w", text) else None


def _questions(lines: list[str]) -> tuple[tuple[Asked, ...], list[str]]:
    """The questions, and the lines that belong to none.

    What follows `ASK: try` belongs to it, up to the next question, the next IDEA line, or a SUMMARY
    after its edits, which begins an idea.
    """
    found = thinking.edits(lines)
    outside = set(thinking.outside_of(lines, found))
    questions: list[tuple[str, list[str]]] = []
    rest: list[str] = []
    own = rest  # where a line goes
    has_edit = False
    for place, line in enumerate(lines):
        is_outside = place in outside
        if is_outside and (ask := ASK.match(line)):
            questions.append((ask[1].strip(" \t*_`"), []))
            own, has_edit = (questions[-1][1] if TRY.match(ask[1]) else rest), False
            continue
        is_another = has_edit and header_of(line) == "SUMMARY"
        if is_outside and (is_another or IDEA.match(line)):
            own = rest
        has_edit = has_edit or not is_outside
        own.append(line)
    return tuple(Asked(words, tuple(patch)) for words, patch in questions), rest
