"""What a patch touches: functions, classes and module-level names, and lines.

A record names these of every change, however little room there is, so that no two changes are made
of the same lines unawares. They are computed from the files before and after, with none of their
code run.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import itertools
from collections.abc import Iterable, Sequence

from configs import knobs

MOST_NAMES, MOST_RANGES = 40, 12  # of one patch; more are grouped, so that none is left out
IMPORTS = "imports"

Lines = tuple[int, int]  # the first and the last, counted from 1
Edit = tuple[int, int, int, int]  # lines [a, b) of the old file became [c, d) of the new, from 0


@dataclasses.dataclass(frozen=True)
class Touched:
    names: tuple[str, ...]  # `GPT.forward`, `DEPTH`, `imports`, in the order of the file
    lines: tuple[Lines, ...]  # of the old file; around an insertion the two neighbours


@functools.lru_cache(maxsize=256)
def edits(old: str, new: str) -> tuple[Edit, ...]:
    """The lines that differ."""
    matcher = difflib.SequenceMatcher(None, old.split("\n"), new.split("\n"))
    return tuple((a, b, c, d) for tag, a, b, c, d in matcher.get_opcodes() if tag != "equal")


@functools.lru_cache(maxsize=256)
def touched(old: str, new: str) -> Touched:
    changed = edits(old, new)
    before, after = _owners(old), _owners(new)
    names: dict[str, None] = {}
    for a, b, c, d in changed:
        for owners, part in ((after, range(c, d)), (before, range(a, b))):
            names.update((name, None) for line in part for name in owners.get(line, ()))
    last = old.count("\n") + 1
    lines = [(a + 1, b) if a < b else (max(a, 1), min(a + 1, last)) for a, b, _, _ in changed]
    return Touched(tuple(names), _joined(lines))


def surviving(sources: Sequence[str]) -> tuple[tuple[Lines, ...], ...]:
    """Which lines of the last file came with each of the others but the first.

    The files are the states of one file, one change after the other.
    """
    origins: list[int] = [0] * (sources[0].count("\n") + 1)
    for number, (old, new) in enumerate(itertools.pairwise(sources), start=1):
        for a, b, c, d in reversed(edits(old, new)):
            origins[a:b] = [number] * (d - c)
    found: list[list[Lines]] = [[] for _ in sources]
    for line, number in enumerate(origins, start=1):
        found[number].append((line, line))
    return tuple(map(_joined, found[1:]))


def grouped(names: Iterable[str]) -> list[str]:
    """At most MOST_NAMES: if there are more, methods become their class, then a count the rest."""
    named = list(dict.fromkeys(names))
    if len(named) > MOST_NAMES:
        named = list(dict.fromkeys(name.partition(".")[0] for name in named))
    if len(named) > MOST_NAMES:
        named = [*named[: MOST_NAMES - 1], f"{len(named) - MOST_NAMES + 1} more names"]
    return named


def ranges_of(lines: Sequence[Lines]) -> str:
    """Lines as "3, 120-131": at most MOST_RANGES, the nearest of which are joined if need be."""
    spans = list(lines)
    while len(spans) > MOST_RANGES:
        gaps = [after[0] - before[1] for before, after in itertools.pairwise(spans)]
        nearest = gaps.index(min(gaps))
        spans[nearest : nearest + 2] = [(spans[nearest][0], spans[nearest + 1][1])]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _joined(lines: Iterable[Lines]) -> tuple[Lines, ...]:
    """Overlapping and adjacent ranges as one, in order."""
    spans: list[Lines] = []
    for first, last in sorted(lines):
        if spans and first <= spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], max(spans[-1][1], last))
        else:
            spans.append((first, last))
    return tuple(spans)


@functools.lru_cache(maxsize=64)
def _owners(source: str) -> dict[int, tuple[str, ...]]:
    """By line, from 0: what is defined there. Nothing for a file that does not parse."""
    try:
        tree = knobs.parse(source)
    except SyntaxError:
        return {}
    owners: dict[int, tuple[str, ...]] = {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            _own(owners, node, IMPORTS)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = (each for target in targets for each in ast.walk(target))
            _own(owners, node, *(each.id for each in found if isinstance(each, ast.Name)))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            _own(owners, node, node.name)
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                    _own(owners, method, f"{node.name}.{method.name}")
    return owners


def _own(owners: dict[int, tuple[str, ...]], node: ast.stmt, *names: str) -> None:
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    for line in range(first - 1, node.end_lineno or node.lineno):
        owners[line] = names
