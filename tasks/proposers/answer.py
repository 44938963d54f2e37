"""What a language model's answer says: its headers and its SEARCH/REPLACE blocks, or the whole file.

    SUMMARY, KIND, HYPOTHESIS, EXPECTED: ...    the form that configs/prompts/answer.md asks for
    <<<<<<< SEARCH
    lines of train.py
    =======
    the lines in their place
    >>>>>>> REPLACE

Lenient in reading, as every model bends the form its own way: headers in any dress, prose, fences, thoughts aloud. What
could be read in two ways is malformed. The form is Aider's (aider.chat/docs/more/edit-formats.html).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from tasks.statuses import Outcome
from tasks.text import one_line
from tasks.usage import KINDS

MOST_BYTES = 256 * 1024  # of an answer
MOST_BLOCKS = 50
MOST_TOLD = 2000  # characters of an error
MOST_SUMMARY, MOST_SAID = (
    72,
    1000,
)  # characters of the summary, and of hypothesis and expected effect each

SEARCH = re.compile(r" {0,3}<{5,9}[ \t]*SEARCH\b", re.IGNORECASE)
DIVIDER = re.compile(r"={5,9}[ \t]*")  # never indented: what underlines a title in a docstring is
REPLACE = re.compile(r" {0,3}>{5,9}[ \t]*REPLACE\b", re.IGNORECASE)
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^`]*)")
HEADER = re.compile(
    r"^[ \t>*#_`+\d.)-]{0,12}(SUMMARY|KIND|HYPOTHESIS|EXPECTED)[ \t*_`]*(?::|$)",
    re.IGNORECASE | re.MULTILINE,
)
# A tag in a string of the code is none: one that opens begins a line, one that closes is not followed by a quote.
THINKING = re.compile(
    r"^[ \t]*<think(?:ing)?>|</think(?:ing)?>(?![\"'\\])", re.IGNORECASE | re.MULTILINE
)
CONTRACT = ("def main(", "def load_model(")
WORST_FIRST: tuple[Outcome, ...] = ("malformed", "not_found", "ambiguous", "no_edit", "no_change")


@dataclass(frozen=True)
class Problem:
    outcome: Outcome
    what: str  # one line
    detail: str = ""  # more lines, left out where there is no room for them


class EditError(ValueError):
    """An answer that gives no candidate. The text is for the model: all that is wrong, the worst first, cut at MOST_TOLD."""

    def __init__(self, *problems: Problem) -> None:
        ranked = sorted(problems, key=lambda problem: WORST_FIRST.index(problem.outcome))
        told = ""
        for place, problem in enumerate(ranked):
            room = MOST_TOLD - len(told) - 40  # for the line that ends a list cut short
            whole = f"{problem.what}\n{problem.detail}\n" if problem.detail else f"{problem.what}\n"
            fitting = next(
                (text for text in (whole, f"{problem.what}\n") if len(text) <= room), None
            )
            if fitting is None:
                told += f"and {len(ranked) - place} more problems"
                break
            told += fitting
        super().__init__(told.strip())
        self.outcome: Outcome = ranked[0].outcome


@dataclass(frozen=True)
class Block:
    """Every line of both ends with "\\n"; a `replace` without any deletes the lines of `search`."""

    search: str
    replace: str


@dataclass(frozen=True)
class Answer:
    """What an answer says, a line each, and what it changes: either blocks or the whole file."""

    hypothesis: str  # "" when it gives none
    kind: str | None  # one of llm_calls.KINDS
    expected: str | None
    summary: str
    blocks: tuple[Block, ...]
    whole_file: str | None


def parse(text: str) -> Answer:
    """The answer in a model's text. Raises EditError: malformed, or no_edit when it changes nothing."""
    if (size := len(text.encode("utf-8", "surrogatepass"))) > MOST_BYTES:
        raise EditError(
            Problem("malformed", f"The answer has {size} bytes, the limit is {MOST_BYTES}.")
        )
    outside, blocks, problems = _blocks(_without_thinking(text.replace("\r\n", "\n")).split("\n"))
    prose, files, cut_short = _whole_files(outside)
    if cut_short:
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
        form = '"<<<<<<< SEARCH", lines of train.py, "=======", the lines in their place, ">>>>>>> REPLACE"'
        note = "Fenced code is taken only as the whole file, with def main and def load_model."
        raise EditError(
            Problem(
                "no_edit",
                f"The answer has no SEARCH/REPLACE block. Write {form}, a line each. {note}",
            )
        )
    said = _headers(prose)
    hypothesis, expected = said.get("hypothesis", ""), said.get("expected", "").partition("\n\n")[0]
    summary = (
        one_line((said.get("summary") or hypothesis).partition("\n")[0])
        or "a change without a summary"
    )
    return Answer(
        hypothesis=_cut(one_line(hypothesis), MOST_SAID),
        kind=_kind(said.get("kind", "").partition("\n")[0]),
        expected=_cut(one_line(expected), MOST_SAID) or None,
        summary=_cut(summary, MOST_SUMMARY),
        blocks=tuple(blocks),
        whole_file=files[0] if files else None,
    )


def _without_thinking(text: str) -> str:
    """The text without its <think> sections. A first tag that closes one was opened in the prompt."""
    tags = list(THINKING.finditer(text))
    kept, start, thinking = [], 0, bool(tags) and "/" in tags[0][0]
    for tag in tags:
        closes = "/" in tag[0]
        if not thinking and closes:
            continue
        if not thinking:
            kept.append(text[start : tag.start()])
        start, thinking = tag.end(), not closes
    rest = text[start:]
    if thinking:  # it has no end: the answer is from the last SUMMARY on
        begins = [
            header.start() for header in HEADER.finditer(rest) if header[1].lower() == "summary"
        ]
        rest = rest[begins[-1] :] if begins else rest
    return "".join([*kept, rest])


def _blocks(lines: list[str]) -> tuple[list[str], list[Block], list[str]]:
    """The lines outside of blocks, with each block's first marker among them; the blocks; what is wrong with others."""
    outside: list[str] = []
    blocks: list[Block] = []
    problems: list[str] = []
    inside: list[str] | None = None  # the lines so far of block `number`
    number = 0
    for line in lines:
        if SEARCH.match(line):
            if inside is not None:
                problems.append(
                    f'Block {number} has no end: there is no ">>>>>>> REPLACE" before the next block.'
                )
            number, inside = number + 1, []
            outside.append(line)
        elif not REPLACE.match(line):
            (outside if inside is None else inside).append(line)
        elif inside is None:
            problems.append(
                f'A ">>>>>>> REPLACE" after block {number} ends no block: its "<<<<<<< SEARCH" is missing.'
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
    """The block, or what is wrong with it."""
    dividers = [place for place, line in enumerate(lines) if DIVIDER.fullmatch(line)]
    if not dividers:
        return 'has no "=======" between SEARCH and REPLACE.'
    if len(dividers) > 1:  # one of them may be a line of the code, and which is a guess
        return f'has {len(dividers)} lines like "=======", so its parts are unclear: choose lines of train.py without one.'
    search, replace = (
        "".join(f"{line}\n" for line in part)
        for part in (lines[: dividers[0]], lines[dividers[0] + 1 :])
    )
    if not search.strip():
        return "has an empty SEARCH: to insert lines, repeat a neighbouring line in SEARCH and in REPLACE."
    return Block(search, replace)


def _whole_files(lines: list[str]) -> tuple[list[str], list[str], bool]:
    """The other lines; every fenced whole file; whether there is another one whose fence has no end."""
    others: list[str] = []
    files: list[str] = []
    inside: list[str] = []
    fence, cut_short = "", False
    for line in lines:
        mark = FENCE.fullmatch(line)
        if not mark:
            (inside if fence else others).append(line)
        elif fence and mark[1].startswith(fence) and not mark[2].strip():
            if _is_whole(inside):
                files.append("".join(f"{line}\n" for line in inside))
                inside = []
            others += [*inside, line]
            fence, inside = "", []
        else:  # also within another fence, which is around the whole answer
            cut_short |= _is_whole(inside)
            others += [*inside, line]
            fence, inside = mark[1], []
    return [*others, *inside], files, cut_short or _is_whole(inside)


def _is_whole(lines: list[str]) -> bool:
    return all(any(line.startswith(part) for line in lines) for part in CONTRACT)


def _headers(lines: list[str]) -> dict[str, str]:
    """Header -> text, the first of each; it goes on until the next header, block or fence."""
    said: dict[str, list[str]] = {}
    current: list[str] = []
    for line in lines:
        if header := HEADER.match(line):
            current = [line[header.end() :]]
            said.setdefault(header[1].lower(), current)
        elif SEARCH.match(line) or FENCE.fullmatch(line):
            current = []
        else:
            current.append(line)
    return {
        name: "\n".join(line.strip(" \t*") for line in text).strip() for name, text in said.items()
    }


def _kind(text: str) -> str | None:
    """The kind that is meant: "Data-order." and "optimiser" are known, a list of several is none."""
    named = re.search(r"[a-z][a-z ]*", text.lower().replace("-", " ").replace("_", " "))
    if not named or "|" in text:
        return None
    return next(
        iter(difflib.get_close_matches(named[0].strip()[:40], KINDS, n=1, cutoff=0.8)), None
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3].rstrip()}..."
