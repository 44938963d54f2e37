"""What a program does, apart from names, seeds, comments, layout and the order of its imports.

Two files with one digest do the same but for their random numbers, so a run of the second teaches
nothing. Files with different digests may still do the same: in doubt, a difference counts.

- A local variable is told by its scope and the order of its first appearance (alpha conversion).
  A name that is visible elsewhere stays: of a global, an attribute, a function, a class, an import,
  or a parameter that a caller may name.
- Seeds count by which of them are equal, and where: two generators with one seed are not two
  generators with two. A seed is what a known function is given, computed from numbers and
  `harness.seed()`.
- Neighbouring imports at module level are sorted, unless two of them bind one name.
- In a file that can see its own variables, source or seeds, these count too.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

VERSION = "2:"  # digests of older versions have no prefix

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
IMPORTS = (ast.Import, ast.ImportFrom)

# Words with which a program can see its own text, the names of its variables, or a seed's number.
SEES_SOURCE = {"__file__", "__doc__", "__loader__", "__spec__", "inspect", "linecache"}
SEES_NAMES = {
    *("_getframe", "_current_frames", "f_locals", "tb_frame", "gi_frame", "cr_frame", "__code__"),
    *("__closure__", "settrace", "setprofile", "traceback", "get_type_hints", "__annotations__"),
    *("builtins", "__builtins__"),
}
BUILTINS_THAT_SEE_NAMES = {"locals", "vars", "dir", "eval", "exec", "compile", "breakpoint"}
SEES_SEEDS = {
    *("initial_seed", "get_state", "getstate", "get_rng_state", "get_rng_state_all"),
    *("bit_generator", "entropy"),
}

HARNESS = "trainer.harness"
# What takes a seed, and which of them draw the same numbers from the same seed.
SEEDED = {
    "torch.manual_seed": "torch",
    "torch.random.manual_seed": "torch",
    "torch.cuda.manual_seed": "torch",
    "torch.cuda.manual_seed_all": "torch",
    "torch.mps.manual_seed": "torch",
    "random.seed": "Mersenne Twister",
    "random.Random": "Mersenne Twister",
    "numpy.random.seed": "Mersenne Twister",
    "numpy.random.RandomState": "Mersenne Twister",
    "numpy.random.default_rng": "numpy",
}
SEEDED_METHOD = "manual_seed"  # of a torch.Generator
LARGEST_SEED = 2**31  # what every one of them takes


def digest(source: str, tree: ast.Module) -> str | None:
    """VERSION and a sha256; None if the code is nested too deeply. Changes `tree`, of `source`."""
    try:
        nodes = _in_order(tree)
        words, names = _words(nodes)
        if words & SEES_SOURCE:
            form = source
        else:
            _remove_docstrings(nodes)
            if not words & SEES_SEEDS:
                _number_seeds(tree, nodes)
            if not (words & SEES_NAMES or names & BUILTINS_THAT_SEE_NAMES):
                _rename(tree, nodes)
            tree.body = _with_sorted_imports(tree.body)
            form = ast.dump(tree)
    except RecursionError:
        return None
    return VERSION + hashlib.sha256(form.encode("utf-8", "surrogatepass")).hexdigest()


def is_current(digest: str) -> bool:
    """Whether a digest can be compared with those of this version."""
    return digest.startswith(VERSION)


def _in_order(tree: ast.Module) -> list[ast.AST]:
    """All nodes of a tree, in the order of the file."""
    found: list[ast.AST] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        found.append(node := waiting.pop())
        waiting.extend(reversed(list(ast.iter_child_nodes(node))))
    return found


def _words(nodes: list[ast.AST]) -> tuple[set[str], set[str]]:
    """All identifiers and all strings of a program; the same without attributes."""
    attributes, names = set(), set()
    for node in nodes:
        if isinstance(node, ast.Attribute):
            attributes.add(node.attr)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
        elif isinstance(node, ast.ImportFrom):
            names.update((node.module or "").split("."))
        elif isinstance(node, ast.alias):
            names.update(node.name.split("."))
    return names | attributes, names


def _remove_docstrings(nodes: list[ast.AST]) -> None:
    for node in nodes:
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]


def _with_sorted_imports(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements of a module; each run of imports one name a statement, in a fixed order."""
    found: list[ast.stmt] = []
    for is_import, run in itertools.groupby(body, lambda statement: isinstance(statement, IMPORTS)):
        statements = list(run)
        if is_import:
            single = [one for statement in statements for one in _one_by_one(statement)]
            bound = {(_bound_by(one), _imported_by(one)) for one in single}
            if len({name for name, _ in bound}) == len(bound) and "*" not in dict(bound):
                single.sort(key=lambda one: ("__future__" not in ast.dump(one), ast.dump(one)))
                statements = single
        found += statements
    return found


def _one_by_one(statement: ast.stmt) -> list[ast.stmt]:
    if isinstance(statement, ast.Import):
        return [ast.Import([alias]) for alias in statement.names]
    assert isinstance(statement, ast.ImportFrom)
    return [ast.ImportFrom(statement.module, [one], statement.level) for one in statement.names]


def _bound_by(statement: ast.stmt) -> str:
    """The name that an import of one name binds."""
    assert isinstance(statement, IMPORTS)
    alias = statement.names[0]
    whole = isinstance(statement, ast.Import)
    return alias.asname or (alias.name.partition(".")[0] if whole else alias.name)


def _imported_by(statement: ast.stmt) -> str:
    """The dotted name of what it binds."""
    alias = statement.names[0] if isinstance(statement, IMPORTS) else None
    assert alias is not None
    if isinstance(statement, ast.ImportFrom):
        return f"{'.' * statement.level}{statement.module or ''}.{alias.name}"
    return alias.name if alias.asname else alias.name.partition(".")[0]


# --------------------------------------------------------------------------------------------------
# Seeds


def _number_seeds(tree: ast.Module, nodes: list[ast.AST]) -> None:
    """Puts the same mark in the place of equal seeds, numbered in the order of the file."""
    if _replaces(nodes, {name.rpartition(".")[2] for name in SEEDED}):
        return
    modules = _modules(tree, nodes)
    numbers: dict[tuple[str, str], int] = {}
    for node in nodes:
        if not isinstance(node, ast.Call) or len(node.args) + len(node.keywords) != 1:
            continue
        kind = _seeded_kind(node.func, modules)
        given = node.args[0] if node.args else node.keywords[0].value
        is_named = all(keyword.arg == "seed" for keyword in node.keywords)
        if kind is None or not is_named or not 0 <= _seed_value(given, modules) < LARGEST_SEED:
            continue
        number = numbers.setdefault((kind, ast.dump(given)), len(numbers))
        node.args, node.keywords = [ast.Name(f"seed {number}", ast.Load())], []


def _modules(tree: ast.Module, nodes: list[ast.AST]) -> dict[str, str]:
    """Names that are one module, or a part of one, wherever they stand: name -> dotted name."""
    single = [one for node in tree.body if isinstance(node, IMPORTS) for one in _one_by_one(node)]
    modules = {_bound_by(one): _imported_by(one) for one in single}
    times = Counter(name for node in nodes for name in _bound_names(node))
    return {name: module for name, module in modules.items() if times[name] == 1}


def _bound_names(node: ast.AST) -> Iterator[str]:
    """The names that a node binds itself, in whatever scope."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            yield name
        case ast.arg(arg=name):
            yield name
        case _:
            yield from _kept_names(node)
            if isinstance(node, ast.ExceptHandler) and node.name:
                yield node.name


def _kept_names(node: ast.AST) -> Iterator[str]:
    """The names that a node binds in another way than by assignment: none of them is renamed."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Import() | ast.ImportFrom():
            yield from map(_bound_by, _one_by_one(node))
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.MatchMapping(rest=str(name)):
            yield name
        case ast.Global(names=names) | ast.Nonlocal(names=names):
            yield from names


def _replaces(nodes: list[ast.AST], names: set[str]) -> bool:
    """Whether the program may put something of its own in the place of one of these functions."""
    for node in nodes:
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            name = node.attr
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            name = node.id if node.id == SEEDED_METHOD else ""  # in the body of a class
        elif isinstance(node, ast.Constant):
            name = str(node.value)
        else:
            name = getattr(node, "name", "") if isinstance(node, DOCUMENTED) else ""
        if name in names:
            return True
    return False


def _seeded_kind(function: ast.expr, modules: dict[str, str]) -> str | None:
    """Which random numbers a function seeds; None for any other function."""
    if name := _dotted(function, modules):
        return SEEDED.get(name)
    is_method = isinstance(function, ast.Attribute) and function.attr == SEEDED_METHOD
    return "torch" if is_method else None


def _dotted(node: ast.expr, modules: dict[str, str]) -> str | None:
    """The dotted name of a part of a module; None for anything else."""
    if isinstance(node, ast.Name):
        return modules.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _dotted(node.value, modules)):
        return f"{owner}.{node.attr}"
    return None


def _seed_value(node: ast.expr, modules: dict[str, str]) -> float:
    """The value of a seed in a run whose seed is 1; NaN for what may be more than a seed."""
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return float(value) if value < LARGEST_SEED else float("nan")
        case ast.Call(func=function, args=[], keywords=[]):
            is_seed = _dotted(function, modules) == f"{HARNESS}.seed"
            return 1.0 if is_seed else float("nan")
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _seed_value(left, modules) + _seed_value(right, modules)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _seed_value(left, modules) * _seed_value(right, modules)
    return float("nan")


# --------------------------------------------------------------------------------------------------
# Local variables


class _Scope:
    """Where names are bound: a function, a comprehension, a class or the module."""

    def __init__(self, outer: _Scope | None, *, is_class: bool = False) -> None:
        self.outer = outer
        self.is_class = is_class
        self.names: dict[str, str | None] = {}  # name -> its number; None: it keeps its name

    def find(self, name: str) -> str | None:
        """What the name becomes; None if it stays. The body of a class is seen by itself alone."""
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names and not (scope.is_class and scope is not self):
                return scope.names[name]
            scope = scope.outer
        return None


def _rename(tree: ast.Module, nodes: list[ast.AST]) -> None:
    """Numbers the local variables of a program, in place."""
    # Type parameters and `type` statements have scopes that are not known here.
    if not any(getattr(node, "type_params", None) or _is_type_alias(node) for node in nodes):
        _Renaming(nodes).rename(tree, _Scope(None))


def _is_type_alias(node: ast.AST) -> bool:
    return type(node).__name__ == "TypeAlias"


class _Renaming:
    def __init__(self, nodes: list[ast.AST]) -> None:
        self.scopes = 0
        self.kept = set(_seen_from_outside(nodes))

    def rename(self, node: ast.AST, scope: _Scope) -> None:
        """Numbers what is bound below a node, which is evaluated in `scope`."""
        if isinstance(node, ast.Name):
            node.id = scope.find(node.id) or node.id
        elif isinstance(node, ast.ExceptHandler) and node.name:
            node.name = scope.find(node.name) or node.name
        for child in _in_same_scope(node):
            self.rename(child, scope)
        if inside := _in_own_scope(node):
            own = self._open(node, inside, scope)
            for child in inside:
                self.rename(child, own)

    def _open(self, node: ast.AST, inside: list[ast.AST], outer: _Scope) -> _Scope:
        """The scope of a function, comprehension or class, with all that it binds."""
        self.scopes += 1
        scope = _Scope(outer, is_class=isinstance(node, ast.ClassDef))
        below = list(_scope_nodes(inside))
        scope.names.update((name, None) for each in below for name in _kept_names(each))
        bound: list[str] = []
        if isinstance(node, FUNCTIONS):
            named = (*node.args.args, *node.args.kwonlyargs)
            scope.names.update((parameter.arg, None) for parameter in named)
            hidden = (*node.args.posonlyargs, node.args.vararg, node.args.kwarg)
            bound += [parameter.arg for parameter in hidden if parameter]
        if isinstance(node, COMPREHENSIONS):
            below = list(_scope_nodes(generator.target for generator in node.generators))
        else:
            bound += _walrus_targets(below)
        for name in itertools.chain(bound, _assigned(below)):
            # Two underscores in front are mangled in a class, or have a meaning of their own.
            is_kept = scope.is_class or name in self.kept or name.startswith("__")
            scope.names.setdefault(name, None if is_kept else f"{self.scopes}.{len(scope.names)}")
        if isinstance(node, FUNCTIONS):
            for parameter in filter(None, hidden):
                parameter.arg = scope.find(parameter.arg) or parameter.arg
        return scope


def _in_same_scope(node: ast.AST) -> list[ast.AST]:
    """The children of a node that are evaluated where the node is."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
            arguments = node.args
            parameters = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
            all_of_them = (*parameters, arguments.vararg, arguments.kwarg)
            found: list[ast.AST | None] = [*arguments.defaults, *arguments.kw_defaults]
            found += [parameter.annotation for parameter in filter(None, all_of_them)]
            if not isinstance(node, ast.Lambda):
                found += [*node.decorator_list, node.returns]
            return [child for child in found if child is not None]
        case ast.ClassDef():
            return [*node.decorator_list, *node.bases, *node.keywords]
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            return [node.generators[0].iter]
    return list(ast.iter_child_nodes(node))


def _in_own_scope(node: ast.AST) -> list[ast.AST]:
    """The other children: those evaluated in a scope that the node opens."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return list(node.body)
        case ast.Lambda():
            return [node.body]
        case ast.DictComp():
            return [*_generators(node.generators), node.key, node.value]
        case ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
            return [*_generators(node.generators), node.elt]
    return []


def _generators(generators: list[ast.comprehension]) -> list[ast.AST]:
    iterables = [generator.iter for generator in generators[1:]]  # the first is evaluated outside
    targets = [generator.target for generator in generators]
    conditions = [condition for generator in generators for condition in generator.ifs]
    return [*targets, *iterables, *conditions]


def _scope_nodes(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The nodes below these, without those in scopes of their own; in the order of the tree."""
    waiting = list(nodes)[::-1]
    while waiting:
        yield (node := waiting.pop())
        waiting.extend(reversed(_in_same_scope(node)))


def _assigned(nodes: list[ast.AST]) -> Iterator[str]:
    """Names bound by assignment, loop, `with`, `del` or `except ... as`."""
    for node in nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


def _walrus_targets(nodes: list[ast.AST]) -> Iterator[str]:
    """Names that `:=` binds from within a comprehension in the scope around it."""
    for node in nodes:
        if isinstance(node, COMPREHENSIONS):
            inner = list(_scope_nodes(_in_own_scope(node)))
            yield from _assigned([each.target for each in inner if isinstance(each, ast.NamedExpr)])
            yield from _walrus_targets(inner)


def _seen_from_outside(nodes: list[ast.AST]) -> Iterator[str]:
    """Names that are kept in every scope, as somebody else may see them.

    Those of `nonlocal`, in annotations, which are texts, and in the body of a class in a function.
    """
    for node in nodes:
        for annotation in ("annotation", "returns"):
            if (noted := getattr(node, annotation, None)) is not None:
                yield from (name.id for name in ast.walk(noted) if isinstance(name, ast.Name))
        if isinstance(node, ast.Nonlocal):
            yield from node.names
    for made in _local_classes(nodes[0]):
        body = _scope_nodes(made.body)
        yield from (name.id for name in body if isinstance(name, ast.Name))


def _local_classes(node: ast.AST, *, in_function: bool = False) -> Iterator[ast.ClassDef]:
    if in_function and isinstance(node, ast.ClassDef):
        yield node
    for child in ast.iter_child_nodes(node):
        inside = in_function or isinstance(node, FUNCTIONS)
        yield from _local_classes(child, in_function=inside)
