"""A language model's answer: its headers and its SEARCH/REPLACE blocks, or the whole file.

    SUMMARY, KIND, GAIN, HYPOTHESIS, EXPECTED: ...   the form of configs/prompts/answer.md
    <<<<<<< SEARCH
    lines of train.py
    =======
    the lines in their place
    >>>>>>> REPLACE

Read leniently, as every model bends the form in its own way: decorated headers, prose, fences,
thinking. An answer with two possible readings is malformed. The form is Aider's
(aider.chat/docs/more/edit-formats.html).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from tasks.proposers import gain, thinking
from tasks.proposers.thinking import FENCE, HEADER, REPLACE, SEARCH
from tasks.records import Estimate
from tasks.statuses import Outcome
from tasks.text import one_line, shortened
from tasks.usage import KINDS

MOST_BYTES = 640 * 1024  # of an answer, which may be a whole train.py of proposal.MAX_BYTES
MOST_BLOCKS = 50
MOST_ERROR = 2000  # characters of an EditError
MOST_SUMMARY = 72  # characters
MOST_WORDS = 1000  # characters of a hypothesis and of an expected effect

# Never indented, as the line below a title in a docstring may be.
DIVIDER = re.compile(r"={5,9}[ \t]*")
NO_EDIT = (
    'The answer has no SEARCH/REPLACE block. Write "<<<<<<< SEARCH", lines of train.py, "=======", '
    'the lines in their place, ">>>>>>> REPLACE", each on a line of its own. Fenced code is used '
    "only if it is the whole file, with def main and def load_model."
)
WORST_FIRST: tuple[Outcome, ...] = ("malformed", "not_found", "ambiguous", "no_edit", "no_change")


@dataclass(frozen=True)
class Problem:
    outcome: Outcome
    what: str  # one line
    detail: str = ""  # more lines, left out where there is no room for them


class EditError(ValueError):
    """An answer that gives no candidate.

    The text is for the model: all that is wrong, the worst first, at most MOST_ERROR characters.
    """

    def __init__(self, *problems: Problem) -> None:
        ranked = sorted(problems, key=lambda problem: WORST_FIRST.index(problem.outcome))
        text = ""
        for place, problem in enumerate(ranked):
            room = MOST_ERROR - len(text) - 40  # for the line about problems that are left out
            line = f"{problem.what}\n"
            whole = f"{line}{problem.detail}\n" if problem.detail else line
            fitting = next((version for version in (whole, line) if len(version) <= room), None)
            if fitting is None:
                text += f"and {len(ranked) - place} more problems"
                break
            text += fitting
        super().__init__(text.strip())
        self.outcome: Outcome = ranked[0].outcome


@dataclass(frozen=True)
class Block:
    """Every line of both ends with "\\n"; an empty `replace` deletes the lines of `search`."""

    search: str
    replace: str


@dataclass(frozen=True)
class Answer:
    """One idea's words, a line each, and its change: either blocks or the whole file."""

    hypothesis: str  # "" if it gives none
    kind: str | None  # one of usage.KINDS
    expected: str | None
    summary: str
    blocks: tuple[Block, ...]
    whole_file: str | None
    estimate: Estimate | None = None  # of its gain; None if it gives none that can be read


def parse(text: str) -> Answer:
    """The only idea in a model's text, without its thinking.

    Raises EditError: malformed, or no_edit if it changes nothing.
    """
    check_size(text)
    return idea_of(*thinking.last_answer(text.replace("\r\n", "\n")))


def check_size(text: str) -> None:
    """Raises EditError for a text that is too long to be read."""
    if (size := len(text.encode("utf-8", "surrogatepass"))) > MOST_BYTES:
        raise EditError(
            Problem("malformed", f"The answer has {size} bytes, the limit is {MOST_BYTES}.")
        )


def idea_of(lines: list[str], doubt: str | None = None) -> Answer:
    """The idea in these lines, which hold no other.

    Raises EditError: malformed, also if there is a doubt about them; no_edit.
    """
    outside, blocks, problems = _blocks(lines)
    problems += [doubt] if doubt else []
    fenced = thinking.whole_files(outside)
    files = [_text(outside[file.start + 1 : file.stop - 1]) for file in fenced if len(file) > 1]
    code = {place for file in fenced for place in file[1:-1]}
    if len(files) < len(fenced):
        problems.append(
            "The fence around the whole file has no end: the answer may have been cut short."
        )
    if len(files) + bool(blocks) > 1:
        problems.append("Two answers in one: give either SEARCH/REPLACE blocks or one whole file.")
    if len(blocks) > MOST_BLOCKS:
        problems.append(f"The answer has {len(blocks)} blocks, the limit is {MOST_BLOCKS}.")
    if problems:
        raise EditError(*(Problem("malformed", problem) for problem in problems))
    if not blocks and not files:
        raise EditError(Problem("no_edit", NO_EDIT))
    prose = [line for place, line in enumerate(outside) if place not in code]
    said = dict(reversed(headers(prose)))  # the first of each counts
    hypothesis = one_line(said.get("hypothesis", ""))
    summary = one_line((said.get("summary") or said.get("hypothesis", "")).partition("\n")[0])
    expected = one_line(said.get("expected", "").partition("\n\n")[0])
    return Answer(
        hypothesis=shortened(hypothesis, MOST_WORDS),
        kind=kind_of(said.get("kind", "").partition("\n")[0]),
        expected=shortened(expected, MOST_WORDS) or None,
        summary=shortened(summary or "a change without a summary", MOST_SUMMARY),
        blocks=tuple(blocks),
        whole_file=files[0] if files else None,
        estimate=gain.estimate_of(said.get("gain", "").partition("\n")[0]),
    )


def _blocks(lines: list[str]) -> tuple[list[str], list[Block], list[str]]:
    """The lines outside of blocks and each block's first marker; the blocks; the problems."""
    outside: list[str] = []
    blocks: list[Block] = []
    problems: list[str] = []
    inside: list[str] | None = None  # the lines so far of block `number`
    number = 0
    for line in lines:
        if SEARCH.match(line):
            if inside is not None:
                problems.append(
                    f'Block {number} has no end: there is no ">>>>>>> REPLACE" '
                    "before the next block."
                )
            number, inside = number + 1, []
            outside.append(line)
        elif not REPLACE.match(line):
            (outside if inside is None else inside).append(line)
        elif inside is None:
            problems.append(
                f'A ">>>>>>> REPLACE" after block {number} ends no block: '
                'its "<<<<<<< SEARCH" is missing.'
            )
        else:
            block = _block(inside)
            if isinstance(block, Block):
                blocks.append(block)
            else:
                problems.append(f"Block {number} {block}")
            inside = None
    if inside is not None:
        problems.append(f'Block {number} has no end: there is no ">>>>>>> REPLACE".')
    return outside, blocks, problems


def _block(lines: list[str]) -> Block | str:
    """The block, or its problem."""
    dividers = [place for place, line in enumerate(lines) if DIVIDER.fullmatch(line)]
    if not dividers:
        return 'has no "=======" between SEARCH and REPLACE.'
    if len(dividers) > 1:  # one of them may be a line of the code, and which one is a guess
        return (
            f'has {len(dividers)} lines like "=======", so its parts are unclear: '
            "choose lines of train.py without one."
        )
    search = _text(lines[: dividers[0]])
    if not search.strip():
        return (
            "has an empty SEARCH: to insert lines, repeat a neighbouring line in SEARCH and in "
            "REPLACE."
        )
    return Block(search, _text(lines[dividers[0] + 1 :]))


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def headers(lines: list[str]) -> list[tuple[str, str]]:
    """Each header's name in lower case and its text, up to the next header, block or fence."""
    found: list[tuple[str, list[str]]] = []
    current: list[str] = []
    for line in lines:
        if header := HEADER.match(line):
            current = [line[header.end() :]]
            found.append((header[1].lower(), current))
        elif SEARCH.match(line) or FENCE.fullmatch(line):
            current = []
        else:
            current.append(line)
    return [(name, "\n".join(line.strip(" \t*") for line in text).strip()) for name, text in found]


def kind_of(text: str) -> str | None:
    """The kind that is meant, also by "Data-order." or "optimiser"; None for a list of several."""
    named = re.search(r"[a-z][a-z ]*", text.lower().replace("-", " ").replace("_", " "))
    if not named or "|" in text:
        return None
    near = difflib.get_close_matches(named[0].strip()[:40], KINDS, n=1, cutoff=0.8)
    return near[0] if near else None
