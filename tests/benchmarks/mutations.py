"""One wrong operator in a module: every small change of its syntax tree, each with a name.

A mutant is named by module, function and code, not by a line number, so that it is found again in
another version of the module. Never changed: text, messages of exceptions, annotations, decorators
and `if TYPE_CHECKING`.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

FORMER_NAMES = {"merging": "three_way_merge"}  # of modules, in older trees
OTHER: dict[type[ast.AST], type[Any]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
}
OTHER_CALL = {"max": "min", "min": "max", "any": "all", "all": "any"}
NOT_ENTERED = {"annotation", "returns", "decorator_list", "type_params"}
Put = Callable[[ast.AST], None]


@dataclasses.dataclass(frozen=True)
class Mutant:
    module: str
    function: str  # with its class; "" outside of functions
    before: str  # the code that is changed; long text in it is left out
    after: str
    nth: int  # of the places in this function that read alike, from 0


def module_paths(tree: Path, module: str) -> list[Path]:
    every = sorted((tree / "tasks").rglob("*.py"))
    return [path for path in every if FORMER_NAMES.get(path.stem, path.stem) == module]


def mutate(tree: Path, mutant: Mutant) -> tuple[Path, str] | None:
    """The file, and its text with the change; None where the tree has no such code.

    Code that has moved to another module or function is found if only one place reads like it.
    """
    home, everywhere = module_paths(tree, mutant.module), sorted((tree / "tasks").rglob("*.py"))
    same_function = {"function", "before", "after", "nth"}
    for paths, fields in (
        (home, same_function),
        (everywhere, same_function),
        (home, {"before", "after"}),
    ):
        found = [
            (path, parsed, make)
            for path in paths
            for other, parsed, make in changes(path)
            if all(getattr(other, field) == getattr(mutant, field) for field in fields)
        ]
        if len(found) == 1:
            path, parsed, make = found[0]
            make()
            return path, ast.unparse(parsed)
    return None


def changes(path: Path) -> Iterator[tuple[Mutant, ast.Module, Callable[[], None]]]:
    """Every mutant of a module, with the syntax tree and the call that makes the change in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module, seen = FORMER_NAMES.get(path.stem, path.stem), Counter[Mutant]()
    for function, node, parent, put in _nodes(tree):
        shown = parent if isinstance(node, ast.Constant) and not hasattr(parent, "body") else node
        for new in _variants(node, parent):
            before = _text(shown)
            put(new)
            after = _text(new if shown is node else shown)
            put(node)
            mutant = Mutant(module, function, before, after, 0)
            yield dataclasses.replace(mutant, nth=seen[mutant]), tree, partial(put, new)
            seen[mutant] += 1


def _text(node: ast.AST) -> str:
    return ast.unparse(_WithoutText().visit(copy.deepcopy(node)))


def _nodes(parent: ast.AST, function: str = "") -> Iterator[tuple[str, ast.AST, ast.AST, Put]]:
    """Each node below `parent` with its function, its parent and the call that replaces it."""
    for field, value in ast.iter_fields(parent):
        slots = [(value, partial(setattr, parent, field))]
        if isinstance(value, list):
            slots = [(child, partial(value.__setitem__, i)) for i, child in enumerate(value)]
        for node, put in slots if field not in NOT_ENTERED else []:
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            if not isinstance(node, ast.AST) or is_docstring or is_for_types:
                continue
            yield function, node, parent, put
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield from _nodes(node, f"{function}.{node.name}".lstrip("."))
            elif not isinstance(node, ast.Raise | ast.JoinedStr):
                yield from _nodes(node, function)


def _variants(node: ast.AST, parent: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    match node:
        case ast.Compare(left, ops, comparators):
            for i, op in enumerate(ops):
                changed = [*ops[:i], OTHER[type(op)](), *ops[i + 1 :]]
                yield ast.Compare(left, changed, comparators)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(OTHER[type(op)](), values)
        case ast.BinOp(left, op, right) if type(op) in OTHER:
            if not (_is_sequence(left) or _is_sequence(right)):  # they have no other operator
                yield ast.BinOp(left, OTHER[type(op)](), right)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(float(value)):
            yield ast.Constant(value * 2 or 1.0)
        case ast.Call(ast.Name(name), args, keywords) if name in OTHER_CALL:
            yield ast.Call(ast.Name(OTHER_CALL[name]), args, keywords)
        case ast.Call(func, [first, second, *others], keywords):
            if ast.Starred not in (type(first), type(second)) and ast.unparse(func) != "isinstance":
                yield ast.Call(func, [second, first, *others], keywords)
        case ast.Return() if not isinstance(parent, ast.FunctionDef):  # not the last statement
            yield ast.Pass()
        case ast.Assign([ast.Attribute() | ast.Subscript()]) | ast.AugAssign() | ast.Delete():
            yield ast.Pass()
        case ast.Expr(ast.Call()) | ast.Raise() | ast.Continue() | ast.Break():
            yield ast.Pass()
    is_condition = node is getattr(parent, "test", None) or node in getattr(parent, "ifs", [])
    if (
        is_condition
        and isinstance(node, ast.expr)
        and not isinstance(node, ast.Constant | ast.UnaryOp)
    ):
        yield ast.UnaryOp(ast.Not(), node)


def _is_sequence(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str | bytes)
    return isinstance(node, ast.JoinedStr | ast.List)


class _WithoutText(ast.NodeTransformer):
    """Replaces messages: the same code with another message is the same mutant."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Constant("...")

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("...") if isinstance(node.value, str) and " " in node.value else node
