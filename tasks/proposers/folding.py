"""The parts of a train.py that never run without CUDA: a prompt shows one line for each of them.

They are found in the source alone, by a rule that would rather show too much. Where no GPU is, a
comparison with the text "cuda" is false, if that text stands nowhere but in comparisons, and so is
a tensor's `is_cuda`. What follows is dead: the branch of an `if` that such a test rules out, what
comes after a branch that returns, and each function of the module that is named in dead lines and
nowhere else.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from configs import knobs
from tasks.records import CONTRACT

CUDA = "cuda"
LEAST = 3  # lines: fewer are not worth one that stands for them
FOLD = re.compile(r"\s*# \(lines (\d+)-(\d+) are for CUDA and not shown: they do not run here\)\s*")
WORD = re.compile(r"\w+")

Truths = Mapping[str, bool]  # names of the scope with their only value


@dataclasses.dataclass(frozen=True)
class _Span:
    """Lines, counted from 1, of statements at one level."""

    first: int
    last: int
    column: int

    def __contains__(self, line: int) -> bool:
        return self.first <= line <= self.last


@functools.lru_cache(maxsize=8)
def folded(source: str, device: str) -> str:
    """The file as a researcher is shown it on this device, a profile's."""
    lines = source.split("\n")
    for span in reversed(_folds(source, lines) if device != CUDA else []):
        end = "\r" if lines[span.first - 1].endswith("\r") else ""
        indent, which = lines[span.first - 1][: span.column], f"{span.first}-{span.last}"
        mark = f"{indent}# (lines {which} are for CUDA and not shown: they do not run here){end}"
        lines[span.first - 1 : span.last] = [mark]
    return "\n".join(lines)


def unfolded(text: str, source: str) -> str:
    """A whole file as it was answered, with the lines of `source` that its folds stand for."""
    own = source.split("\n")
    lines: list[str] = []
    for line in text.split("\n"):
        found = FOLD.fullmatch(line)
        first, last = map(int, found.groups()) if found else (0, 0)
        is_fold = 0 < first <= last <= len(own) and line not in own
        lines += [part.removesuffix("\r") for part in own[first - 1 : last]] if is_fold else [line]
    return "\n".join(lines)


def _folds(source: str, lines: Sequence[str]) -> list[_Span]:
    """From top to bottom; none of a file in which the rule cannot be sure."""
    try:
        tree = knobs.parse(source)
    except SyntaxError:
        return []
    if not _is_compared_only(tree) or "\r" in source.replace("\r\n", ""):  # it ends a line, too
        return []
    spans = list(_dead(tree.body, {}))
    while more := list(_functions(tree, spans)):
        spans += more
    merged: list[_Span] = []
    for span in sorted(spans, key=lambda span: (span.first, -span.last)):
        above = merged[-1] if merged else None
        if above and span.last <= above.last:
            continue
        between = lines[above.last : span.first - 1] if above else [""]
        if above and above.column == span.column and not "".join(between).strip():
            merged[-1] = dataclasses.replace(above, last=span.last)
        else:
            merged.append(span)
    return [span for span in merged if span.last - span.first + 1 >= LEAST]


def _is_compared_only(tree: ast.Module) -> bool:
    """Whether no variable can hold the text "cuda", and nobody but torch defines `is_cuda`."""
    compared = {
        id(side)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq)
        for side in (node.left, *node.comparators)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value == CUDA and id(node) not in compared:
            return False
        if isinstance(node, ast.Attribute) and node.attr == "is_cuda":
            if not isinstance(node.ctx, ast.Load):
                return False
        elif "is_cuda" in _bound(node):
            return False
    return True


def _bound(node: ast.AST) -> tuple[str, ...]:
    """The names that this node alone binds, or declares to be another scope's."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            return (name,)
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return (name,)
        case ast.arg(arg=name):
            return (name,)
        case ast.alias(name=name, asname=alias):
            return (alias or name.partition(".")[0],)
        case ast.Global(names=names) | ast.Nonlocal(names=names):
            return tuple(names)
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
            return (name,)
        case ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
            return (name,)
    return ()


def _truths(scope: ast.AST, outer: Truths) -> Truths:
    """What is known of the names in a function: of its own ones, those that are bound once."""
    bound = Counter(name for node in ast.walk(scope) for name in _bound(node))
    known = {name: value for name, value in outer.items() if name not in bound}
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], _truth(node.value, known)
            if isinstance(target, ast.Name) and bound[target.id] == 1 and value is not None:
                known[target.id] = value
    return known


def _truth(test: ast.expr, known: Truths) -> bool | None:
    """What a test gives where no GPU is; None if that is not known."""
    match test:
        case ast.Compare(left=left, ops=[ast.Eq() | ast.NotEq() as op], comparators=[right]):
            sides = (getattr(side, "value", None) for side in (left, right))
            return isinstance(op, ast.NotEq) if CUDA in sides else None
        case ast.Attribute(attr="is_cuda"):
            return False
        case ast.Name(id=name):
            return known.get(name)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            value = _truth(operand, known)
            return None if value is None else not value
        case ast.BoolOp(op=op, values=values):
            found = [_truth(value, known) for value in values]
            decides = isinstance(op, ast.Or)
            if decides in found:
                return decides
            return None if None in found else not decides
    return None


def _dead(body: Sequence[ast.stmt], known: Truths) -> Iterator[_Span]:
    """The dead parts of a list of statements, each as large as it can be."""
    for place, statement in enumerate(body):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _dead(statement.body, _truths(statement, known))
        elif isinstance(statement, ast.If):
            value = _truth(statement.test, known)
            branches = {True: statement.body, False: statement.orelse}
            for taken, branch in branches.items():
                if value in (None, taken):
                    yield from _dead(branch, known)
                else:
                    yield from _span(branch, statement.lineno)
            if value is not None and _leaves(branches[value]):
                yield from _span(body[place + 1 :], statement.end_lineno or 0)
                return
        else:
            for part in _parts(statement):
                yield from _dead(part, known)


def _parts(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The lists of statements in a loop, a `with`, a `try`, a `match` or a class."""
    inner = (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ()))
    for holder in (statement, *inner):
        for name in ("body", "orelse", "finalbody"):
            part = getattr(holder, name, None)
            if isinstance(part, list):
                yield part


def _leaves(branch: Sequence[ast.stmt]) -> bool:
    leaving = ast.Return | ast.Raise | ast.Continue | ast.Break
    return bool(branch) and isinstance(branch[-1], leaving)


def _span(body: Sequence[ast.stmt], after: int) -> Iterator[_Span]:
    """The lines of statements that begin on a line of their own."""
    if not body:
        return
    first = min([body[0].lineno, *(d.lineno for d in getattr(body[0], "decorator_list", ()))])
    if first > after:
        yield _Span(first, body[-1].end_lineno or first, body[0].col_offset)


def _functions(tree: ast.Module, spans: Sequence[_Span]) -> Iterator[_Span]:
    """Functions of the module that only dead lines name, and that are not dead so far."""
    bound = Counter(name for node in ast.walk(tree) for name in _bound(node))
    used = list(_used(tree))
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.decorator_list or bound[node.name] > 1:
            continue
        if node.name in CONTRACT or any(node.lineno in span for span in spans):
            continue
        itself = _Span(node.lineno, node.end_lineno or node.lineno, node.col_offset)
        lines = [line for name, line in used if name == node.name and line not in itself]
        if lines and all(any(line in span for span in spans) for line in lines):
            yield itself


def _used(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every mention of a name with its line: as a variable, an attribute, or a word of a text."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.Constant) and id(node) not in docstrings:
            words = WORD.findall(node.value) if isinstance(node.value, str) else ()
            yield from ((word, node.lineno) for word in words)
