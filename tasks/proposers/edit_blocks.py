"""A language model's SEARCH/REPLACE blocks applied to train.py: all of them or none.

A SEARCH is whole lines and must be in the file exactly once, apart from white space at the ends of
lines: an edit in the wrong place would be scored as if it were the right one. One that is there
only with another indentation or spacing is taken if it is there once and all its lines are shifted
alike; its REPLACE is shifted as much. All blocks are looked up in the file as it was, so their
order does not matter. Lines end at "\\n", as in git; str.splitlines knows more line ends.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterator

from tasks.proposers import folding
from tasks.proposers.answer import Answer, Block, EditError, Problem
from tasks.records import Candidate

MOST_PLACES = 10  # listed of an ambiguous SEARCH
MOST_EXPLAINED = 3  # of the SEARCHes that are not in the file; there is little room
# Lines read of such a SEARCH to find the nearest lines of the file. This and COMMON bound the time.
STUDIED = 64
COMMON = 50  # a word in more lines than this does not show where a SEARCH belongs
LEFT_OUT = 8  # lines that a SEARCH may lack or have too many, and its place is still found
QUOTED = 3  # lines of the SEARCH
SHOWN, BEFORE = 6, 2  # lines of the file, and those of them before the first difference
WIDTH = 100  # characters quoted of a line; words are taken from twice as many
TAB = 4  # columns
WORD = re.compile(r"\w+")


def apply(answer: Answer, current: Candidate) -> Candidate:
    """`current` with the answer's changes and its own line ends.

    Raises EditError, with all problems at once.
    """
    source = current.source
    carriage = "\r" if source.count("\r\n") * 2 > source.count("\n") else ""
    if answer.whole_file is not None:
        whole = folding.unfolded(answer.whole_file, source)
        result = whole.replace("\n", f"{carriage}\n")
    else:
        # The last line is "" if the file ends with a line end, so a block can change that, too.
        lines = source.split("\n")
        places = _places(answer.blocks, [line.removesuffix("\r") for line in lines])
        for place in reversed(places):
            lines[place.start : place.stop] = [line + carriage for line in place.replace]
        result = "\n".join(lines)
        if not source.endswith("\r"):  # the new last line must not keep half a line end
            result = result.removesuffix("\r")
    candidate = Candidate.parse(result)
    same_code = candidate.digest is not None and candidate.digest == current.digest
    if result == source or same_code:
        what = "The answer leaves the code as it is"
        why = "new names of variables, other seeds, comments, layout and the order of imports"
        raise EditError(Problem("no_change", f"{what}: {why} do not count as a change."))
    return candidate


@dataclasses.dataclass(frozen=True, order=True)
class _Place:
    """Where a block goes: its first line, the line after its last one, and the lines for them."""

    start: int
    stop: int
    number: int  # the block's, from 1
    replace: list[str] = dataclasses.field(compare=False)


def _places(blocks: tuple[Block, ...], lines: list[str]) -> list[_Place]:
    """The places of all blocks, in the file's order. Raises EditError."""
    places: list[_Place] = []
    problems: list[Problem] = []
    bare = [line.rstrip() for line in lines]
    text, bare_text = _joined(lines), _joined(bare)
    dense_text = _joined(list(map(_dense, lines)))
    for number, block in enumerate(blocks, start=1):
        wanted, replace = (part.split("\n")[:-1] for part in (block.search, block.replace))
        bare_wanted = [line.rstrip() for line in wanted]
        found = _find(_joined(wanted), text) or _find(_joined(bare_wanted), bare_text)
        shifted = None
        if not found:
            dense = _find(_joined(list(map(_dense, wanted))), dense_text)
            if len(dense) == 1:
                there = bare[dense[0] : dense[0] + len(wanted)]
                shifted = _shifted(bare_wanted, there, replace)
            found = [] if shifted is None else dense
        if len(found) == 1:
            lines_in_place = replace if shifted is None else shifted
            places.append(_Place(found[0], found[0] + len(wanted), number, lines_in_place))
        elif found:
            where = ", ".join(str(start + 1) for start in found)
            more = ", ..." if len(found) == MOST_PLACES else ""
            what = (
                f"Block {number}: its SEARCH is in train.py more than once, "
                f"at lines {where}{more}: add neighbouring lines to it."
            )
            problems.append(Problem("ambiguous", what))
        elif fold := next(filter(folding.FOLD.fullmatch, wanted), None):
            what = (
                f'Block {number}: its SEARCH has the line "{fold.strip()}". That stands for '
                "lines that you are not shown and cannot change: choose other lines."
            )
            problems.append(Problem("not_found", what))
        else:
            explained = sum(problem.outcome == "not_found" for problem in problems) < MOST_EXPLAINED
            detail = _explanation(bare_wanted, bare) if explained else ""
            problems.append(
                Problem("not_found", f"Block {number}: its SEARCH is not in train.py.", detail)
            )
    places.sort()
    for one, other in itertools.pairwise(places):
        if other.start < one.stop:
            what = (
                f"Blocks {one.number} and {other.number} both change line {other.start + 1} of "
                "train.py: make one block of them."
            )
            problems.append(Problem("malformed", what))
    if problems:
        raise EditError(*problems)
    return places


def _dense(line: str) -> str:
    """A line without its blanks."""
    return line.replace(" ", "").replace("\t", "")


def _shifted(search: list[str], there: list[str], replace: list[str]) -> list[str] | None:
    """The lines for REPLACE, moved as far as SEARCH is moved from the lines that are there.

    A line that REPLACE has from SEARCH is left as it is there, with its spacing. None if the lines
    of SEARCH are moved by different widths, or a line of REPLACE would begin left of the margin.
    """
    pairs = [(wanted, found) for wanted, found in zip(search, there, strict=True) if found.strip()]
    widths = {_indent(found) - _indent(wanted) for wanted, found in pairs}
    if len(widths) != 1 or any("\t" in line[: len(line) - len(line.lstrip())] for line in there):
        return None
    by = widths.pop()
    own: dict[str, set[str]] = {}
    for wanted, found in pairs:
        own.setdefault(wanted, set()).add(found)
    lines = []
    for line in replace:
        text, begin = line.strip(" \t"), _indent(line) + by
        if text and begin < 0:
            return None
        same = own.get(line.rstrip(), set())
        moved = " " * begin + text if text else ""
        lines.append(next(iter(same)) if len(same) == 1 else moved)
    return lines


def _indent(line: str) -> int:
    """Columns before a line's first character."""
    return len(line.expandtabs(TAB)) - len(line.expandtabs(TAB).lstrip(" "))


def _joined(lines: list[str]) -> str:
    """The lines as one text, each between two line ends, so that only whole lines are found."""
    return "\n".join(["", *lines, ""])


def _find(part: str, text: str) -> list[int]:
    """The lines of `text` where `part` begins, at most MOST_PLACES. Matches may overlap."""
    found: list[int] = []
    at = line = -1
    while len(found) < MOST_PLACES and (after := text.find(part, at + 1)) >= 0:
        line += text.count("\n", at + 1, after + 1)
        found.append(line)
        at = after
    return found


def _explanation(wanted: list[str], lines: list[str]) -> str:
    """Describes a SEARCH that is not in the file.

    Its first lines, the nearest lines of the file, and where the two first differ.
    """
    text = ["It begins", *(f"| {_shown(line)}" for line in wanted[:QUOTED])]
    begin = _nearest(wanted, lines)
    if begin is None:
        return "\n".join([*text, "Nothing in train.py is like it."])
    file = {begin + k: lines[begin + k] for k in range(len(wanted)) if 0 <= begin + k < len(lines)}
    differs = next(k for k, line in enumerate(wanted) if file.get(begin + k) != line)
    place = begin + differs
    first = max(place - BEFORE, begin, 0)
    text.append("Nearest in train.py, with line numbers, is")
    text += [f"{i + 1} | {_shown(lines[i])}" for i in range(first, min(first + SHOWN, len(lines)))]
    if place not in file:
        end = "begins after" if place < 0 else "ends before"
        text.append(f"train.py {end} line {differs + 1} of the SEARCH: {_shown(wanted[differs])}")
    else:
        text += _difference(wanted[differs], file[place], differs, place)
    return "\n".join(text)


def _difference(wanted: str, line: str, of_search: int, of_file: int) -> Iterator[str]:
    """Two lines that differ, and where."""
    pairs = zip(line, wanted, strict=False)
    column = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    start = max(column - WIDTH // 2, 0) if column > WIDTH - 20 else 0
    escaped = not (line + wanted).isascii()  # to tell characters apart that look alike
    yield (
        f"They first differ at line {of_search + 1} of the SEARCH, "
        f"line {of_file + 1} of train.py, column {column + 1}:"
    )
    yield f"SEARCH   | {_shown(wanted, start, escaped)}"
    yield f"train.py | {_shown(line, start, escaped)}"


def _nearest(wanted: list[str], lines: list[str]) -> int | None:
    """The line where a SEARCH would begin if it were in the file; None if they share no rare word.

    Every word in both votes for the beginning that would align its lines, with more weight if it is
    rare. Near the winner, a beginning at which the first lines agree is preferred: then the SEARCH
    lacks lines further on, or has too many.
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
    """The numbers of the lines that each word is in."""
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
