"""The rules of the house, read from the source: who may import whom, names, sizes, and nothing on
import.

`problems` takes any tree, so that each rule is shown to fail on a small bad one.
"""

import ast
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("flows", "tasks", "trainer", "configs")
MOST_TASK_LINES = 20
MOST_FUNCTION_LINES = 70  # a screen; a table is as long as it is
TAKEN = {*importlib.metadata.packages_distributions(), *sys.stdlib_module_names, *PACKAGES}
# A room is a folder. Each row names the rooms, and the single modules of other rooms, that it may
# import
# besides itself.
GROUND = ("tasks", "configs")
HISTORY = (*GROUND, "tasks.judge.processes")
MAY_IMPORT = {
    "flows": ("flows.night", "tasks.*", "configs", "trainer.prepare", "trainer.packing"),
    "flows.command_line": ("flows", "flows.night", "tasks.*", "configs"),
    "flows.night": ("flows", "tasks.*", "configs"),
    "tasks": ("configs",),
    "tasks.judge": ("trainer.prepare",),
    "tasks.history": HISTORY,
    "tasks.data": (*GROUND, "trainer.prepare", "trainer.packing"),
    "tasks.trial": (*GROUND, "tasks.data", "tasks.judge", "trainer.prepare"),
    "tasks.proposers": (*HISTORY, "tasks.history"),
    "tasks.search": (*HISTORY, "tasks.history", "tasks.proposers", "tasks.trial.verdict"),
    "tasks.views": (*GROUND, "tasks.history", "tasks.search.bandit"),
    "trainer": (),
    "configs": (),
    "configs.corpus": (),
}
KEPT_OUT_OF_TRAINER = {"prefect", "mlflow", "openai", "git"}
# When they are imported, that is.
WITHOUT_TORCH = {
    "trainer.prepare",
    "trainer.packing",
    "trainer.harness",
    "trainer.roles",
    "trainer.gradients",
    "trainer.exhaustion",
}


def problems(root: Path) -> list[str]:
    """Every broken rule in the tree, as `file: what`."""
    paths = {
        _name(path, root): path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }
    found = list(_bad_names(paths, root))
    imports: dict[str, set[str]] = {}
    for name, path in paths.items():
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        imports[name] = set(_imports(name, tree, set(paths))) & set(paths) - {name}
        rules = [_bad_imports(name, tree, set(paths)), _bad_statements(tree), _bad_tasks(tree)]
        if name != "trainer.train":
            rules += [_bad_text(source, tree), _bad_module_level(tree)]
        found += [f"{path.relative_to(root)}: {problem}" for rule in rules for problem in rule]
    circles = [
        f"{paths[name].relative_to(root)}: in a circle of imports" for name in _circles(imports)
    ]
    return found + circles


def _name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _bad_names(paths: dict[str, Path], root: Path) -> Iterator[str]:
    seen: dict[str, Path] = {}
    helpers = [path for path in (root / "tests").rglob("*.py") if path.name != "conftest.py"]
    for path in [*paths.values(), *helpers]:
        stem, where = path.stem, path.relative_to(root)
        if stem == "__init__":
            continue
        if stem in TAKEN:
            yield f"{where}: {stem} is also the name of a dependency or a package"
        if stem in seen:
            yield f"{where}: {stem} is also the name of {seen[stem]}"
        if stem in ("utils", "helpers", "common", "misc") or "manager" in stem:
            yield f"{where}: {stem} names no noun"
        seen[stem] = where


def _imports(name: str, tree: ast.AST, known: set[str]) -> Iterator[str]:
    """The dotted name of every module imported anywhere below `tree`, by statement or by
    import_module("...")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(
                [*name.split(".")[: -node.level], *([node.module] if node.module else [])]
            )
            base = base if node.level else node.module or ""
            for alias in node.names:
                yield (
                    f"{base}.{alias.name}"
                    if f"{base}.{alias.name}" in known | {"trainer.train"}
                    else base
                )
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__")
        ):
            yield from (str(given.value) for given in node.args if isinstance(given, ast.Constant))


def _bad_imports(name: str, tree: ast.Module, known: set[str]) -> Iterator[str]:
    room = _room(name, known)
    if room not in MAY_IMPORT:
        yield f"{room} is a room without a row in MAY_IMPORT"
        return
    allowed = (room, *MAY_IMPORT[room])
    for target in _imports(name, tree, known):
        top = target.partition(".")[0]
        if target == "trainer.train":
            yield "imports trainer.train"
        elif top in PACKAGES and not _may_import(target, allowed, known):
            yield f"imports {target}; may import {', '.join(allowed)}"
        elif room == "tasks.judge" and top not in sys.stdlib_module_names | {"numpy", *PACKAGES}:
            yield f"the judge imports {target}; may import numpy and the standard library"
        elif room == "trainer" and top in KEPT_OUT_OF_TRAINER:
            yield f"imports {target} inside the box"
    if name in WITHOUT_TORCH:
        for statement in _run_on_import(tree):
            imported = _imports(name, statement, known)
            if any(target.partition(".")[0] == "torch" for target in imported):
                yield "imports torch when it is imported"


def _room(name: str, known: set[str]) -> str:
    """The folder of a module; a package's own `__init__` is in the package."""
    is_package = any(other.startswith(f"{name}.") for other in known)
    return name if is_package or "." not in name else name.rpartition(".")[0]


def _may_import(target: str, allowed: tuple[str, ...], known: set[str]) -> bool:
    room = _room(target, known)
    every_room = any(rule.endswith(".*") and _within(room, (rule[:-2],)) for rule in allowed)
    return every_room or room in allowed or target in allowed


def _circles(imports: dict[str, set[str]]) -> Iterator[str]:
    """Each module whose imports lead back to it."""
    for start in sorted(imports):
        reached: set[str] = set()
        ahead = [start]
        while ahead:
            for target in imports.get(ahead.pop(), set()) - reached:
                reached.add(target)
                ahead.append(target)
        if start in reached:
            yield start


def _within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _run_on_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """The module's statements, except bodies of functions and of `if TYPE_CHECKING` and `if
    __name__ == ...`."""
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(statement, ast.If) and ast.unparse(statement.test).split(" ")[0].endswith(
            ("TYPE_CHECKING", "__name__")
        ):
            continue
        yield statement


def _bad_module_level(tree: ast.Module) -> Iterator[str]:
    quiet = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    for statement in _run_on_import(tree):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue
        if not isinstance(statement, quiet):
            yield f"line {statement.lineno} does something when it is imported"


def _bad_statements(tree: ast.Module) -> Iterator[str]:
    broad = {"Exception", "BaseException"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            names = (
                {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
                if node.type
                else broad
            )
            if names & broad and all(isinstance(statement, ast.Pass) for statement in node.body):
                yield f"line {node.lineno} swallows every exception"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "suppress",
            "contextlib.suppress",
        ):
            names = {ast.unparse(given) for given in node.args}
            if names & broad:
                yield f"line {node.lineno} swallows every exception"


def _bad_tasks(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(
            ast.unparse(mark).partition("(")[0] in ("task", "prefect.task")
            for mark in node.decorator_list
        ):
            if "task_run_name=" not in ast.unparse(node.decorator_list[0]):
                yield f"task {node.name} has no task_run_name, which Prefect's pages show"
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > MOST_TASK_LINES:
                most = f"at most {MOST_TASK_LINES}, over a plain function"
                yield f"task {node.name} has {lines} lines; {most}"


def _bad_text(source: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MOST_FUNCTION_LINES:
                yield f"{node.name} has {lines} lines; at most {MOST_FUNCTION_LINES}"
    if not source.isascii():
        yield "not ASCII"
    if tree.body and not ast.get_docstring(tree):
        yield "no docstring"


def test_the_tree_keeps_every_rule():
    assert problems(ROOT) == []


BAD = {
    "tasks imports flows": ("tasks/one.py", "from flows import cli", "imports flows"),
    "a room above": (
        "tasks/data/one.py",
        "from tasks.views.two import x",
        "imports tasks.views.two",
    ),
    "a room above, by its package": (
        "tasks/data/one.py",
        "from tasks.views import two",
        "imports tasks.views.two",
    ),
    "a room above, relatively": (
        "tasks/data/one.py",
        "from ..views import two",
        "imports tasks.views.two",
    ),
    "a room above, inside a function": (
        "tasks/data/one.py",
        "def f():\n    import tasks.views.two",
        "imports tasks.views.two",
    ),
    "the night imports the command line": (
        "flows/night/one.py",
        "from flows.command_line import cli",
        "imports flows.command_line.cli",
    ),
    "a room without a row": ("tasks/attic/one.py", "", "tasks.attic is a room without a row"),
    "a circle": ("tasks/errors.py", "import tasks.records", "in a circle of imports"),
    "tasks imports the harness": (
        "tasks/one.py",
        "import trainer.harness",
        "imports trainer.harness",
    ),
    "trainer imports configs": ("trainer/harness.py", "import configs", "imports configs"),
    "trainer imports git": ("trainer/train.py", "import git", "imports git inside the box"),
    "configs imports tasks": ("configs/knobs.py", "import tasks.records", "imports tasks.records"),
    "judge imports records": (
        "tasks/judge/one.py",
        "import tasks.records",
        "imports tasks.records",
    ),
    "judge imports torch": (
        "tasks/judge/one.py",
        "def f():\n    import torch",
        "the judge imports torch",
    ),
    "flows imports the candidate": (
        "flows/one.py",
        "from trainer import train",
        "imports trainer.train",
    ),
    "the candidate by its name": (
        "flows/one.py",
        "import importlib\ndef f():\n    importlib.import_module('trainer.train')",
        "imports trainer.train",
    ),
    "harness imports torch": ("trainer/harness.py", "import torch.nn", "imports torch when"),
    "a dependency's name": ("tasks/mlflow.py", "", "is also the name of a dependency"),
    "a standard module's name": ("tasks/queue.py", "", "is also the name of a dependency"),
    "a name twice": ("tasks/cli.py", "", "cli is also the name of flows"),
    "a name twice, in the tests": ("tests/cli.py", "", "cli is also the name of flows"),
    "utils": ("tasks/utils.py", "", "names no noun"),
    "swallowing": (
        "tasks/one.py",
        "def f():\n    try:\n        pass\n    except Exception:\n        pass",
        "swallows",
    ),
    "swallowing all": (
        "trainer/train.py",
        "def f():\n    try:\n        pass\n    except:\n        pass",
        "swallows",
    ),
    "swallowing by suppress": (
        "tasks/one.py",
        "def f():\n    with contextlib.suppress(Exception):\n        g()",
        "swallows",
    ),
    "a call on import": (
        "tasks/one.py",
        "import logging\nlogging.basicConfig()",
        "when it is imported",
    ),
    "a long function": ("tasks/one.py", "def f():\n" + "    g()\n" * 70, "f has 71 lines"),
    "not ASCII": ("tasks/one.py", "x = '\u00e4'", "not ASCII"),
    "a fat task": (
        "tasks/one.py",
        "@task(task_run_name='x')\ndef f():\n" + "    g()\n" * 21,
        "has 21 lines",
    ),
    "a task without a name for its runs": (
        "tasks/one.py",
        "@task(name='x')\ndef f():\n    g()",
        "task f has no task_run_name",
    ),
}


@pytest.fixture
def house(tmp_path):
    files = {
        "flows/command_line/cli.py": "from tasks.views import two",
        "tasks/errors.py": "",
        "tasks/records.py": "import tasks.errors",
        "tasks/views/two.py": "from tasks.records import x",
        "tasks/judge/wire.py": "import numpy",
        "trainer/prepare.py": "def f():\n    import torch",
        "trainer/harness.py": "from trainer import prepare",
        "trainer/train.py": "import torch\nfrom trainer import harness",
        "configs/__init__.py": "",
        "tests/test_two.py": "",
    }
    for name, text in files.items():
        _write(tmp_path / name, text)
    return tmp_path


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'"""A module."""\n{text}', encoding="utf-8")


def test_a_good_tree_has_no_problem(house):
    assert problems(house) == []


@pytest.mark.parametrize(("name", "text", "problem"), BAD.values(), ids=BAD)
def test_a_broken_rule_is_found(house, name, text, problem):
    _write(house / name, text)
    found = problems(house)
    assert all(problem in line for line in found), found
    assert f"{name}: " in "".join(found)


def test_a_module_without_a_docstring_is_found(house):
    (house / "tasks" / "one.py").write_text("x = 1\n")
    assert problems(house) == ["tasks/one.py: no docstring"]
