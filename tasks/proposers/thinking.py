"""Where a model's thinking ends and its answer begins.

Models mark their thinking in more ways than a list could hold, and in it they draft answers that
they then reject. So only sections whose tags name them are cut out unseen; for all others the form
of the answer decides: the last SUMMARY with an edit begins it, and its edits stand together, with
no tag between them and no words after a tag that closes behind them. An edit is a SEARCH/REPLACE
block or a fenced whole file. All functions take linear time.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from tasks.records import CONTRACT

SEARCH = re.compile(r"^ {0,3}<{5,9}[ \t]*SEARCH\b", re.IGNORECASE | re.MULTILINE)
REPLACE = re.compile(r"^ {0,3}>{5,9}[ \t]*REPLACE\b", re.IGNORECASE | re.MULTILINE)
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^`]*)")
HEADER = re.compile(
    r"^[ \t>*#_`+\d.)-]{0,12}(SUMMARY|KIND|GAIN|HYPOTHESIS|EXPECTED|NOTES)[ \t*_`]*(?::|$)",
    re.IGNORECASE | re.MULTILINE,
)
# The line before one of several ideas: its number and perhaps a title.
IDEA = re.compile(
    r"^[ \t>*#_`+\[(<-]{0,12}IDEA[ \t]*#?[ \t]*(\d{1,2})(?:[ \t]+of[ \t]+\d{1,2})?[ \t]*"
    r"(?:[^\w\s](.{0,300}))?$",
    re.IGNORECASE,
)
# A block with more on its last line, and a header right behind a tag or a word, as where a chat's
# control tokens were taken out.
ENDED = re.compile(rf"{REPLACE.pattern}(?=[ \t]*\S)", REPLACE.flags)
GLUED = re.compile(r"(?<=[^\s\"'`*#+(-])(?=SUMMARY[ \t]*:)")
IN_A_LINE = re.compile(r"(?<=[ \t])SUMMARY:")
# Thinking by its name, in any brackets. Beside a quote or a backslash it is a string of the code.
NAMED = re.compile(
    r"(?<![\"'`\\])[<\[\u25c1]\|?[ \t]*(/?)([\w:-]{0,30}?(?:think|thought|reason)[\w:-]{0,30})"
    r"(?:[ \t]+\w{1,20}=[^<>\n]{0,60})?[ \t]*\|?[>\]\u25b7](?![\"'\\(])",
    re.IGNORECASE,
)
ENDING = re.compile(r"(?:^|[_:-])end(?:[_:-]|$)", re.IGNORECASE)  # as in <|end_of_thought|>
# Tags of any name, in brackets of any shape.
SYMBOLS = r"[^\w\s\"'`./\\*#=~,;:!?$%&+()-]{1,3}"
CLOSING = re.compile(rf"(?<![\"'`\\]){SYMBOLS}/[ \t]*([\w:.-]{{1,40}})[ \t]*{SYMBOLS}")
TAG = re.compile(rf"{CLOSING.pattern}|{SYMBOLS}([\w:.-]{{1,40}})")  # closing or opening
ALONE = re.compile(rf"{SYMBOLS}[ \t]*(\w[\w :.-]{{0,40}}){SYMBOLS}")
CONTROL = re.compile(r"(?<!`)<(?:\|[^<>|\s]{1,40}\|?|[^<>|\s/]{1,40}\|)>")
# The name of a chat's role, glued to the next word: "assistantfinal".
ROLE = re.compile(r"assistant(?!s\b)[a-z]+|^assistant$")
UNCLEAR = (
    "It is unclear which edits are the answer and which were only thought about: {}. Answer after "
    "the thinking, SUMMARY first, with nothing but the answer from there on."
)


def without_thinking(text: str) -> str:
    """The text without the sections that tags name as thinking; an edit stays as it is.

    A closing tag without an opening one ends a section that began in the prompt. Of a section
    without an end, whose opening tag begins a line, the answer that it ends with is left. If it has
    edits and none is clearly the answer, it stays, tag and all, and `last_answer` doubts it.
    """
    if not NAMED.search(text):
        return text
    lines = lines_of(text)
    text = "\n".join(lines)
    kept: list[str] = []
    start, opened = 0, -1  # of the text that comes next; of the section, -1 outside of one
    for tag, begin, end in _named_tags(lines):
        if _closes(tag):
            kept.append(text[start : max(opened, start)])
            start, opened = end, -1
        elif opened < 0:
            opened = begin
    if opened < 0 or text[text.rfind("\n", 0, opened) + 1 : opened].strip():
        return "".join([*kept, text[start:]])
    section = text[opened:]
    answer = at_the_end(section)
    if answer is None:
        answer = section if edits(section.split("\n")) else ""
    return "".join([*kept, text[start:opened], answer])


def at_the_end(thinking: str) -> str | None:
    """The answer that thinking ends with: from its last SUMMARY, and only NOTES after its edits.

    None if there is none: words after an edit may reject it.
    """
    lines = lines_of(thinking)
    found = edits(lines)
    last = found[-1] if found else range(0)
    summaries = _summaries(lines, found)
    behind = itertools.takewhile(lambda line: header_of(line) != "NOTES", lines[last.stop :])
    if not summaries or not all(map(_is_blank, behind)):
        return None
    return "\n".join(lines[summaries[-1] :])


def last_answer(text: str) -> tuple[list[str], str | None]:
    """The lines from the last SUMMARY with an edit, and why they may hold a rejected draft.

    All lines if nothing before that SUMMARY is an answer.
    """
    lines = lines_of(text)
    found = edits(lines)
    summaries = _summaries(lines, found)
    start = summaries[-1] if summaries else 0
    if start and len(summaries) == 1 and found[0].start > start:
        start = 0  # its headers may be in any order
    if found and (opened := _unclosed(lines[: found[-1].start])):
        return lines, UNCLEAR.format(f"{opened!r} begins a section that does not end")
    lines = lines[start:]
    found = [range(edit.start - start, edit.stop - start) for edit in found if edit.start >= start]
    return lines, next(_doubts(lines, found), None)


def ideas(text: str) -> tuple[list[list[str]], str | None]:
    """The lines of each idea of the last numbered answer, and why they may hold a rejected draft.

    A numbering that begins again at 1 is another answer, and the last one with an edit counts. Each
    part begins with its IDEA line. None if no edit comes after such a line.
    """
    lines = lines_of(text)
    found = edits(lines)
    last = found[-1].start if found else 0
    outside = outside_of(lines[:last], [edit for edit in found if edit.stop <= last])
    numbered = [(place, int(idea[1])) for place in outside if (idea := IDEA.match(lines[place]))]
    if not numbered:
        return [], None
    start = next((place for place, number in reversed(numbered) if number == 1), None)
    parts = [(place, number) for place, number in numbered if place >= (start or 0)]
    begins = [place for place, _ in parts]
    stops = [*begins[1:], len(lines)]
    sections = [lines[begin:stop] for begin, stop in zip(begins, stops, strict=True)]
    if opened := _unclosed(lines[:last]):
        return sections, UNCLEAR.format(f"{opened!r} begins a section that does not end")
    if start is None and found[0].start < begins[0]:
        return sections, UNCLEAR.format("an edit stands before the first idea")
    for (_, before), (_, number) in itertools.pairwise(parts):
        if number <= before:
            return sections, UNCLEAR.format(f"IDEA {number} comes after IDEA {before}")
    own = [range(e.start - begins[0], e.stop - begins[0]) for e in found if e.start >= begins[0]]
    return sections, next(_doubts(lines[begins[0] :], own, is_numbered=True), None)


def header_of(line: str) -> str:
    """The name of the header that a line begins with, in capitals; empty if there is none."""
    header = HEADER.match(line)
    return header[1].upper() if header else ""


def edits(lines: list[str]) -> list[range]:
    """The lines of each block and fenced whole file, in order; the first line of a broken one."""
    found: list[range] = []
    begin: int | None = None
    for place, line in enumerate(lines):
        if SEARCH.match(line):
            found += [] if begin is None else [range(begin, begin + 1)]
            begin = place
        elif REPLACE.match(line):
            found.append(range(place if begin is None else begin, place + 1))
            begin = None
    found += [] if begin is None else [range(begin, begin + 1)]
    places = outside_of(lines, found)
    files = whole_files([lines[place] for place in places])
    found += [range(places[file.start], places[file.stop - 1] + 1) for file in files]
    return sorted(found, key=lambda edit: edit.start)


def whole_files(lines: list[str]) -> list[range]:
    """Each fenced whole file, fences included; the first line of one whose fence has no end."""
    found: list[range] = []
    fence, begin = "", 0
    for place, line in enumerate(lines):
        mark = FENCE.fullmatch(line)
        if not mark:
            continue
        is_whole = bool(fence) and _is_whole(lines[begin + 1 : place])
        if fence and mark[1].startswith(fence) and not mark[2].strip():
            found += [range(begin, place + 1)] if is_whole else []
            fence = ""
        else:  # within another fence too, which may be around the whole answer
            found += [range(begin, begin + 1)] if is_whole else []
            fence, begin = mark[1], place
    is_cut = bool(fence) and _is_whole(lines[begin + 1 :])
    return [*found, range(begin, begin + 1)] if is_cut else found


def _is_whole(lines: list[str]) -> bool:
    return all(any(line.startswith(f"def {name}(") for line in lines) for name in CONTRACT)


def lines_of(text: str) -> list[str]:
    """The text's lines, parted where a header, or a word after a block, begins within one."""
    lines = ENDED.sub(r"\g<0>\n", text).split("\n")
    if not GLUED.search(text):
        return lines
    outside = set(outside_of(lines, edits(lines)))
    parts = [GLUED.split(line) if i in outside else [line] for i, line in enumerate(lines)]
    return [part for each in parts for part in each]


def outside_of(lines: list[str], found: list[range]) -> list[int]:
    """The places of the lines outside of edits."""
    inside = {place for edit in found for place in edit}
    return [place for place in range(len(lines)) if place not in inside]


def _summaries(lines: list[str], found: list[range]) -> list[int]:
    """The places of the SUMMARY headers before the last edit."""
    last = found[-1].start if found else 0
    return [
        place
        for place in outside_of(lines[:last], [edit for edit in found if edit.stop <= last])
        if header_of(lines[place]) == "SUMMARY"
    ]


def _named_tags(lines: list[str]) -> Iterator[tuple[re.Match[str], int, int]]:
    """Each tag of thinking outside of edits, and where it begins and ends in the joined lines."""
    outside = set(outside_of(lines, edits(lines)))
    start = 0
    for place, line in enumerate(lines):
        if place in outside:
            for tag in NAMED.finditer(line):
                yield tag, start + tag.start(), start + tag.end()
        start += len(line) + 1


def _unclosed(lines: list[str]) -> str | None:
    """The tag of thinking that begins a line and has no closing one."""
    opened: str | None = None
    for tag, _, _ in _named_tags(lines):
        if _closes(tag):
            opened = None
        elif not tag.string[: tag.start()].strip():
            opened = opened or tag[0]
    return opened


def _closes(tag: re.Match[str]) -> bool:
    return bool(tag[1] or ENDING.search(tag[2]))


def _doubts(lines: list[str], found: list[range], is_numbered: bool = False) -> Iterator[str]:
    """What makes it unclear whether all of these edits are the answer."""
    if not found:
        return
    passed, words = 0, []  # each line outside of edits with the number of edits before it
    for place in outside_of(lines, found):
        while passed < len(found) and found[passed].stop <= place:
            passed += 1
        words.append((passed, lines[place]))
    spans = _spans(words)
    for name, within in spans.items():
        if sum(stop - start for start, stop in within) not in (0, len(found)):
            yield UNCLEAR.format(f"the tag {name!r} is around some of them and not around all")
    yield from _between(words, len(found), set(spans), is_numbered)
    yield from _behind(words, len(found), set(spans))


def _spans(words: list[tuple[int, str]]) -> dict[str, list[tuple[int, int]]]:
    """For each name of a closing tag, the edits that its sections hold, as disjoint ranges.

    Without an opening tag a section begins with the text, as one that the prompt opened.
    """
    opened: dict[str, list[int]] = {}
    spans: dict[str, list[tuple[int, int]]] = {}
    for passed, line in words:
        for tag in TAG.finditer(line):
            if not tag[1]:
                opened.setdefault(tag[2].lower(), []).append(passed)
                continue
            name = tag[1].lower()
            begins = opened.get(name)
            start, stop = begins.pop() if begins else 0, passed
            within = spans.setdefault(name, [])
            while within and within[-1][1] > start:  # a section within this one
                start = min(start, within.pop()[0])
            within.append((start, stop))
    return spans


def _between(
    words: list[tuple[int, str]], count: int, paired: set[str], is_numbered: bool
) -> Iterator[str]:
    """The lines between two edits where one answer may end and another begin."""
    seen: set[str] = set()
    before = 0  # edits before the idea that a line belongs to
    for passed, line in words:
        is_between = 0 < passed < count
        if is_numbered and IDEA.match(line):
            seen, before = set(), passed
            continue
        if (header := header_of(line)) and header != "NOTES":
            is_another = is_numbered and header == "SUMMARY" and passed > before
            if is_between and (header in seen or is_another):
                yield UNCLEAR.format(f"{header} comes again between them")
            seen.add(header)
        if is_between and (_mark(line, paired) is not None or IN_A_LINE.search(line)):
            yield UNCLEAR.format(f"{line.strip()[:80]!r} stands between them")


def _behind(words: list[tuple[int, str]], count: int, paired: set[str]) -> Iterator[str]:
    """The first line of words after a tag that closes behind the last edit."""
    opened: set[str] = set()
    is_closed = False
    for line in (line for passed, line in words if passed == count):
        rest = line if is_closed else ""
        for tag in TAG.finditer(line):
            if not tag[1]:
                opened.add(tag[2].lower())
            elif not is_closed and tag[1].lower() not in opened:
                is_closed, rest = True, line[tag.end() :]
        if not is_closed and (mark := _mark(line, paired)) is not None:
            is_closed, rest = True, line[mark:]
        if not _is_blank(rest):
            yield UNCLEAR.format(f"{line.strip()[:80]!r} stands after a tag that closes them")


def _mark(line: str, paired: set[str]) -> int | None:
    """Where in a line a tag without a partner ends; None if there is none."""
    for kind in (CONTROL, ROLE):
        if mark := kind.search(line):
            return mark.end()
    alone = ALONE.fullmatch(line.strip())
    return len(line) if alone and alone[1].lower() not in paired else None


def _is_blank(line: str) -> bool:
    """Whether a line has nothing but tags and fences."""
    rest = CONTROL.sub("", CLOSING.sub("", line)).strip(" \t\r`~")
    return not rest or bool(ALONE.fullmatch(rest))
