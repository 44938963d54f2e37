"""The ALL_CAPS constants of a train.py, read and written without running it.

A knob is a name in capitals bound to a literal at module level: a number, a string, a bool or a
flat tuple of numbers. Tables and computed values are not knobs. The source may be any text, so
reading never raises and never computes much.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import gc
import itertools
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Value = bool | int | float | str | tuple[int | float, ...]
Number = int | float

# Lines as Python's parser sees them: str.splitlines knows more line ends.
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)?")
CAPITALS = re.compile(r"[A-Z][A-Z0-9_]{0,99}")  # MLflow takes no parameter of a longer name
LARGEST = 2**63  # a larger int is not a knob, so that 9**9**9 does not stop the night
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


class KnobError(ValueError):
    """A knob that cannot be written; the text names the knob, the value and what would fit."""


def parse(source: str) -> ast.Module:
    """The syntax tree.

    Raises SyntaxError for all that does not parse, also where Python raises another error.
    """
    try:
        with warnings.catch_warnings(), _no_collection():
            warnings.simplefilter("ignore")  # of an invalid escape in a candidate's string
            return ast.parse(source)
    except SyntaxError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        # NUL or surrogate; too deep; too deep for the C stack
        raise SyntaxError(str(error) or "nested too deeply") from error


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection in the block.

    While a tree is built, a collection is all that can run other code or let another thread run. If
    that parses too, some versions of CPython raise SystemError: "AST constructor recursion depth
    mismatch" (python/cpython #106905).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read(source: str) -> dict[str, Value]:
    """The knobs of a train.py in order, with their final values; {} if it does not parse."""
    try:
        return read_tree(parse(source))
    except SyntaxError:
        return {}


def unused(source: str) -> set[str]:
    """Knobs that nothing in the file reads: setting them changes nothing. Raises SyntaxError."""
    return _unused(parse(source))


def write(source: str, values: Mapping[str, Any]) -> str:
    """`source` with these knobs set and nothing else changed.

    A literal whose value is equal stays as it is. An int for a float knob becomes a float, and a
    list for a tuple a tuple. Raises KnobError for a file that does not parse, and for a knob that
    is unknown, unused, assigned more than once or of another type.
    """
    fitted, problems = _fitted(source, values)
    if problems:
        raise KnobError("; ".join(problems.values()))
    found = _found(parse(source))
    literals = [
        literal for name, value in fitted.items() for literal in _changed(*found[name], value)
    ]
    literals.sort(key=lambda literal: (literal[0].lineno, literal[0].col_offset), reverse=True)
    lines = LINE.findall(source)
    starts = list(itertools.accumulate(map(len, lines), initial=0))

    def place(line: int, column: int) -> int:  # columns are in bytes
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    for node, new in literals:
        begin = place(node.lineno, node.col_offset)
        end = place(node.end_lineno or 0, node.end_col_offset or 0)
        source = f"{source[:begin]}{new!r}{source[end:]}"
    return source


def writable(source: str, values: Mapping[str, Any]) -> set[str]:
    """The knobs of `values` that `write` takes. Raises KnobError for a file that does not parse."""
    return set(_fitted(source, values)[0])


def statements(tree: ast.Module) -> int:
    """The size of the code; docstrings do not count."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.stmt))
    return sum(
        not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in nodes
    )


def read_tree(tree: ast.Module) -> dict[str, Value]:
    """The knobs in order, with the values that they have at the end of the file."""
    return {name: value for name, (_, value) in _found(tree).items()}


def _found(tree: ast.Module) -> dict[str, tuple[ast.expr, Value]]:
    """The knobs: the node of the value, and the value."""
    found: dict[str, tuple[ast.expr, Value]] = {}
    for statement in tree.body:
        for name in _bound_names(statement):
            found.pop(name, None)
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            value = _literal(statement.value)
            if len(targets) == 1 and isinstance(targets[0], ast.Name) and value is not None:
                found[targets[0].id] = (statement.value, value)
    return {name: knob for name, knob in found.items() if CAPITALS.fullmatch(name)}


def _changed(node: ast.expr, old: Value, new: Value) -> list[tuple[ast.expr, Value]]:
    """Which literals get which values; a tuple keeps its brackets, comments and equal items."""
    if isinstance(node, ast.Tuple) and isinstance(old, tuple) and isinstance(new, tuple):
        return [(item, b) for item, a, b in zip(node.elts, old, new, strict=True) if a != b]
    return [(node, new)] if old != new else []


def _fitted(source: str, values: Mapping[str, Any]) -> tuple[dict[str, Value], dict[str, str]]:
    """The values in train.py's own types, and the problem of each knob that cannot be written."""
    try:
        tree = parse(source)
    except SyntaxError as error:
        raise KnobError(f"train.py does not parse: {error}") from error
    current, idle, assigned = read_tree(tree), _unused(tree), _assignments(tree)
    fitted: dict[str, Value] = {}
    problems: dict[str, str] = {}
    for name, wanted in values.items():
        if len(assigned.get(name, ())) > 1:
            lines = ", ".join(map(str, assigned[name]))
            problems[name] = (
                f"knob {name} is assigned more than once (lines {lines}); keep one assignment"
            )
        elif name not in current:
            problems[name] = f"unknown knob {name}: {_suggest(name, current)}"
        elif name in idle:
            problems[name] = f"knob {name} is unused: train.py assigns it and never reads it"
        elif (value := _fit(current[name], wanted)) is None:
            problems[name] = (
                f"knob {name} = {wanted!r} does not fit: it takes {_kind(current[name])}"
            )
        else:
            fitted[name] = value
    return fitted, problems


def _unused(tree: ast.Module) -> set[str]:
    loaded = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    }
    return set(read_tree(tree)) - loaded


def _bound_names(statement: ast.stmt) -> list[str]:
    """Names that a module-level statement binds, also in branches and loops, not in functions."""
    names: list[str] = []
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.append(node.id)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))
    return names


def _assignments(tree: ast.Module) -> dict[str, list[int]]:
    lines: dict[str, list[int]] = {}
    for statement in tree.body:
        for name in _bound_names(statement):
            lines.setdefault(name, []).append(statement.lineno)
    return lines


def _literal(node: ast.expr) -> Value | None:
    """The value of a knob's right-hand side; None if it is not a knob."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | str):
        return node.value
    try:
        if isinstance(node, ast.Tuple):
            items = [_number(item) for item in node.elts]
            return None if None in items else tuple(item for item in items if item is not None)
        return _number(node)
    except RecursionError:  # a sum of a thousand terms
        return None


def _number(node: ast.expr) -> Number | None:
    """A finite number, or arithmetic on numbers such as 2**19."""
    value: Any = None
    if (
        isinstance(node, ast.Constant)
        and isinstance(node.value, int | float)
        and not isinstance(node.value, bool)
    ):
        value = node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        operand = _number(node.operand)
        value = -operand if operand is not None and isinstance(node.op, ast.USub) else operand
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        left, right = _number(node.left), _number(node.right)
        if left is None or right is None or (isinstance(node.op, ast.Pow) and abs(right) > 63):
            return None
        try:
            value = ARITHMETIC[type(node.op)](left, right)
        except ArithmeticError:
            return None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) and abs(value) <= LARGEST else None


def _fit(old: Value, new: Any) -> Value | None:
    """`new` as the type of `old`; None if it cannot be."""
    if isinstance(new, int) and abs(new) > LARGEST:
        return None
    if isinstance(old, tuple):
        if not isinstance(new, tuple | list) or len(new) != len(old):
            return None
        items = [_fit(a, b) for a, b in zip(old, new, strict=True)]
        numbers = tuple(item for item in items if isinstance(item, int | float))
        return numbers if len(numbers) == len(old) else None
    if isinstance(old, float) and isinstance(new, int | float) and not isinstance(new, bool):
        return float(new) if math.isfinite(new) else None
    return new if type(old) is type(new) and not isinstance(old, float) else None


def _kind(value: Value) -> str:
    kinds = {int: "an int", float: "a float", bool: "a bool", str: "a string"}
    kind = f"{len(value)} numbers" if isinstance(value, tuple) else kinds[type(value)]
    return f"{kind}, such as {value!r}"


def _suggest(name: str, known: Mapping[str, Value]) -> str:
    if near := difflib.get_close_matches(name.upper(), known, n=3):
        return f"did you mean {' or '.join(near)}?"
    return f"train.py has {', '.join(known) or 'none'}"
