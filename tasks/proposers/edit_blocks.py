"""A language model's SEARCH/REPLACE blocks applied to train.py: all of them or none.

A SEARCH is whole lines and must be in the file exactly once, white space at the ends of lines aside: an edit in the wrong
place would be scored as the right one. All blocks are looked up in the file as it was, so their order does not matter.
Lines end at "\\n", as in git; str.splitlines knows further ends.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter

from tasks.proposers.answer import Answer, Block, EditError, Problem, parse
from tasks.records import Candidate

__all__ = ["Answer", "Block", "EditError", "apply", "parse"]

MOST_PLACES = 10  # of an ambiguous SEARCH that are counted
MOST_EXPLAINED = 3  # of the SEARCHes that are not in the file; there is room for few
STUDIED = 64  # lines of such a SEARCH, to find what is nearest to it; this and COMMON bound the time that it takes
COMMON = 50  # a word in more lines than this does not tell where a SEARCH belongs
LEFT_OUT = (
    8  # lines that a SEARCH may have too many or too few, and what is nearest is still recognised
)
QUOTED, BEFORE, SHOWN = (
    3,
    2,
    6,
)  # lines quoted: of the SEARCH; of the file before the first difference; of the file
WIDTH = 100  # characters of a line that are quoted, and twice as many are looked at for words
WORD = re.compile(r"\w+")


def apply(answer: Answer, current: Candidate) -> Candidate:
    """`current` with the answer's changes and its own line ends.

    Raises EditError, with all problems at once.
    """
    source = current.source
    carriage = "\r" if source.count("\r\n") * 2 > source.count("\n") else ""
    if answer.whole_file is not None:
        result = answer.whole_file.replace("\n", f"{carriage}\n")
    else:
        lines = source.split(
            "\n"
        )  # the last is "" where the file ends with a line end, so a block can change that, too
        places = _places(answer.blocks, [line.removesuffix("\r") for line in lines])
        for start, stop, number in reversed(places):
            lines[start:stop] = [
                line + carriage for line in answer.blocks[number].replace.split("\n")[:-1]
            ]
        result = "\n".join(lines)
        if not source.endswith("\r"):  # what has become the last line must not keep half a line end
            result = result.removesuffix("\r")
    candidate = Candidate.parse(result)
    same_code = candidate.digest is not None and candidate.digest == current.digest
    if result == source or same_code:
        what = "The answer leaves the code as it is: comments, layout and docstrings do not count as a change."
        raise EditError(Problem("no_change", what))
    return candidate


def _places(blocks: tuple[Block, ...], lines: list[str]) -> list[tuple[int, int, int]]:
    """(first line, line after the last, index of the block) of each block, in the order of the file."""
    places: list[tuple[int, int, int]] = []
    problems: list[Problem] = []
    bare = [line.rstrip() for line in lines]
    text, bare_text = _joined(lines), _joined(bare)
    for number, block in enumerate(blocks):
        wanted = block.search.split("\n")[:-1]
        bare_wanted = [line.rstrip() for line in wanted]
        found = _find(_joined(wanted), text) or _find(_joined(bare_wanted), bare_text)
        if len(found) == 1:
            places.append((found[0], found[0] + len(wanted), number))
        elif found:
            where = f"lines {', '.join(str(start + 1) for start in found)}{', ...' if len(found) == MOST_PLACES else ''}"
            what = f"Block {number + 1}: its SEARCH is in train.py more than once, at {where}: add neighbouring lines to it."
            problems.append(Problem("ambiguous", what))
        else:
            explained = sum(problem.outcome == "not_found" for problem in problems) < MOST_EXPLAINED
            detail = _explanation(bare_wanted, bare) if explained else ""
            problems.append(
                Problem("not_found", f"Block {number + 1}: its SEARCH is not in train.py.", detail)
            )
    places.sort()
    for (_, stop, one), (start, _, other) in itertools.pairwise(places):
        if start < stop:
            what = f"Blocks {one + 1} and {other + 1} both change line {start + 1} of train.py: make one block of them."
            problems.append(Problem("malformed", what))
    if problems:
        raise EditError(*problems)
    return places


def _joined(lines: list[str]) -> str:
    """The lines as one text in which whole lines are found: each is between two line ends."""
    return "\n".join(["", *lines, ""])


def _find(part: str, text: str) -> list[int]:
    """The lines of `text` where `part` begins, at most MOST_PLACES of them; one match may overlap the next."""
    found: list[int] = []
    at = line = -1
    while len(found) < MOST_PLACES and (after := text.find(part, at + 1)) >= 0:
        line += text.count("\n", at + 1, after + 1)
        found.append(line)
        at = after
    return found


def _explanation(wanted: list[str], lines: list[str]) -> str:
    """Of a SEARCH that is not in the file: its first lines, the nearest lines of the file, and where the two first differ."""
    told = ["It begins", *(f"| {_shown(line)}" for line in wanted[:QUOTED])]
    begin = _nearest(wanted, lines)
    if begin is None:
        return "\n".join([*told, "Nothing in train.py is like it."])
    pairs = (
        (begin + k, lines[begin + k] if 0 <= begin + k < len(lines) else None)
        for k in range(len(wanted))
    )
    place, line = next((i, line) for i, line in pairs if line != wanted[i - begin])
    first = max(place - BEFORE, begin, 0)
    told.append("Nearest in train.py, with line numbers, is")
    told += [f"{i + 1} | {_shown(lines[i])}" for i in range(first, min(first + SHOWN, len(lines)))]
    other = wanted[place - begin]
    if line is None:
        end = "begins after" if place < 0 else "ends before"
        return "\n".join(
            [*told, f"train.py {end} line {place - begin + 1} of the SEARCH: {_shown(other)}"]
        )
    column = sum(
        1
        for _ in itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(line, other, strict=False)
        )
    )
    start = max(column - WIDTH // 2, 0) if column > WIDTH - 20 else 0
    alike = not (
        line + other
    ).isascii()  # characters that look alike are told apart by their escapes
    told.append(
        f"They first differ at line {place - begin + 1} of the SEARCH, line {place + 1} of train.py, column {column + 1}:"
    )
    return "\n".join(
        [
            *told,
            f"SEARCH   | {_shown(other, start, alike)}",
            f"train.py | {_shown(line, start, alike)}",
        ]
    )


def _nearest(wanted: list[str], lines: list[str]) -> int | None:
    """The line where a SEARCH would begin if it were in the file, None when they share no telling word.

    Every word of both votes for the beginning that would bring the two together, a rare one with more weight. Close to
    the winner, one where the first lines agree is preferred: then lines further on are too many or too few.
    """
    in_search, in_file = (_lines_with(given) for given in (wanted[:STUDIED], lines))
    votes: Counter[int] = Counter()
    for word in sorted(in_search.keys() & in_file.keys()):
        if len(in_file[word]) <= COMMON:
            for i in in_file[word]:
                for k in in_search[word]:
                    votes[i - k] += 10**6 // len(in_file[word])
    if not votes:
        return None
    likely = max(votes, key=lambda begin: votes[begin])
    k = next(k for k, line in enumerate(wanted) if line)
    near = [
        i
        for i in votes
        if abs(i - likely) <= LEFT_OUT and 0 <= i + k < len(lines) and lines[i + k] == wanted[k]
    ]
    return max(near, key=lambda begin: votes[begin], default=likely)


def _lines_with(lines: list[str]) -> dict[str, list[int]]:
    """Word -> the lines that it is in."""
    found: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        for word in set(WORD.findall(line[: 2 * WIDTH])):
            found.setdefault(word, []).append(number)
    return found


def _shown(line: str, start: int = 0, escaped: bool = False) -> str:
    part = line[start : start + WIDTH]
    text = ascii(part)[1:-1] if escaped or not part.isprintable() else part
    cut = start + WIDTH < len(line) or len(text) > WIDTH
    return f"{'...' if start else ''}{text[:WIDTH]}{'...' if cut else ''}"
