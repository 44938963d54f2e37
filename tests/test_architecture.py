"""The rules of the house, read from the source: who may import whom, names, sizes, and nothing on import.

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
MOST_LINES = 250
MOST_TASK_LINES = 15
TAKEN = {*importlib.metadata.packages_distributions(), *sys.stdlib_module_names, *PACKAGES}
# The first prefix that a module's name starts with says which of our modules it may import.
MAY_IMPORT = {
    "flows": ("flows", "tasks", "configs", "trainer.prepare", "trainer.packing"),
    "tasks.judge": ("tasks.judge", "trainer.prepare"),
    "tasks.experiment": ("tasks.records", "tasks.judge", "tasks.tokenization", "configs", "trainer.prepare"),
    "tasks.baseline": ("tasks.records", "tasks.experiment", "tasks.judge", "configs", "trainer.prepare"),
    "tasks.sources": ("tasks.records", "tasks.sources"),
    "tasks.fetch": ("tasks.records", "tasks.sources"),
    "tasks.comparison": ("tasks.records", "tasks.costs"),
    "tasks.report": ("tasks.records", "tasks.costs"),
    "tasks.run_words": ("tasks.records", "tasks.costs"),
    "tasks.tracing": ("tasks.records", "tasks.llm_calls", "tasks.mlflow_client"),
    "tasks.tracking": (
        *("tasks.records", "tasks.llm_calls", "tasks.costs"),
        *("tasks.mlflow_client", "tasks.run_words", "tasks.tracing"),
    ),
    "tasks.champion": ("tasks.records", "tasks.plumbing"),
    "tasks.ledger": ("tasks.records", "tasks.files", "tasks.night_state"),
    "tasks.proposers.agent": ("tasks.judge.processes",),
    "tasks.proposers": (
        *("tasks.records", "tasks.llm_calls", "tasks.proposal", "tasks.proposers", "configs"),
        *("tasks.champion", "tasks.merging", "tasks.trial_folder", "tasks.ledger", "tasks.night_state"),
    ),
    "tasks.heartbeat": ("tasks.judge.watchdog",),
    "tasks.attention_kernels": ("tasks.files", "tasks.sources"),
    "tasks": (
        "tasks.records",
        "tasks.files",
        "tasks.llm_calls",
        "tasks.statuses",
        "configs",
        "trainer.prepare",
        "trainer.packing",
    ),
    "trainer.harness": ("trainer.prepare", "trainer.speed", "trainer.roles", "trainer.alone"),
    "trainer": ("trainer.prepare", "trainer.packing", "trainer.roles", "trainer.harness"),
    "configs": ("configs",),
}
KEPT_OUT_OF_TRAINER = {"prefect", "mlflow", "openai", "git"}
WITHOUT_TORCH = {"trainer.prepare", "trainer.packing", "trainer.harness", "trainer.roles"}  # when they are imported, that is


def problems(root: Path) -> list[str]:
    """Every broken rule in the tree, as `file: what`."""
    paths = {_name(path, root): path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))}
    found = list(_bad_names(paths, root))
    for name, path in paths.items():
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        rules = [_bad_imports(name, tree, set(paths)), _bad_statements(tree), _bad_tasks(tree)]
        if name != "trainer.train":
            rules += [_bad_text(source, tree), _bad_module_level(tree)]
        found += [f"{path.relative_to(root)}: {problem}" for rule in rules for problem in rule]
    return found


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
    """The dotted name of every module imported anywhere below `tree`, by statement or by import_module("...")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*name.split(".")[: -node.level], *([node.module] if node.module else [])])
            base = base if node.level else node.module or ""
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in known | {"trainer.train"} else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (str(given.value) for given in node.args if isinstance(given, ast.Constant))


def _bad_imports(name: str, tree: ast.Module, known: set[str]) -> Iterator[str]:
    allowed = next(rule for prefix, rule in MAY_IMPORT.items() if _within(name, (prefix,)))
    for target in _imports(name, tree, known):
        top = target.partition(".")[0]
        if target == "trainer.train":
            yield "imports trainer.train"
        elif top in PACKAGES and not _within(target, allowed):
            yield f"imports {target}; may import {', '.join(allowed)}"
        elif _within(name, ("tasks.judge",)) and top not in sys.stdlib_module_names | {"numpy", *PACKAGES}:
            yield f"the judge imports {target}; may import numpy and the standard library"
        elif _within(name, ("trainer",)) and top in KEPT_OUT_OF_TRAINER:
            yield f"imports {target} inside the box"
    if name in WITHOUT_TORCH:
        for statement in _run_on_import(tree):
            if any(target.partition(".")[0] == "torch" for target in _imports(name, statement, known)):
                yield "imports torch when it is imported"


def _within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _run_on_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """The module's statements, except bodies of functions and of `if TYPE_CHECKING` and `if __name__ == ...`."""
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(statement, ast.If) and ast.unparse(statement.test).split(" ")[0].endswith(("TYPE_CHECKING", "__name__")):
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
            names = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else broad
            if names & broad and all(isinstance(statement, ast.Pass) for statement in node.body):
                yield f"line {node.lineno} swallows every exception"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("suppress", "contextlib.suppress"):
            names = {ast.unparse(given) for given in node.args}
            if names & broad:
                yield f"line {node.lineno} swallows every exception"


def _bad_tasks(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(
            ast.unparse(mark).partition("(")[0] in ("task", "prefect.task") for mark in node.decorator_list
        ):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > MOST_TASK_LINES:
                yield f"task {node.name} has {lines} lines; at most {MOST_TASK_LINES}, over a plain function"


def _bad_text(source: str, tree: ast.Module) -> Iterator[str]:
    lines = source.count("\n")
    if lines > MOST_LINES:
        yield f"{lines} lines; at most {MOST_LINES}"
    if not source.isascii():
        yield "not ASCII"
    if tree.body and not ast.get_docstring(tree):
        yield "no docstring"


def test_the_tree_keeps_every_rule():
    assert problems(ROOT) == []


BAD = {
    "tasks imports flows": ("tasks/one.py", "from flows import cli", "imports flows"),
    "tasks imports a sibling": ("tasks/one.py", "from tasks.two import x", "imports tasks.two"),
    "tasks imports a sibling by its package": ("tasks/one.py", "from tasks import two", "imports tasks.two"),
    "a sibling, relatively": ("tasks/one.py", "from . import two", "imports tasks.two"),
    "a sibling, inside a function": ("tasks/one.py", "def f():\n    import tasks.two", "imports tasks.two"),
    "tasks imports the harness": ("tasks/one.py", "import trainer.harness", "imports trainer.harness"),
    "trainer imports configs": ("trainer/harness.py", "import configs", "imports configs"),
    "trainer imports git": ("trainer/train.py", "import git", "imports git inside the box"),
    "configs imports tasks": ("configs/knobs.py", "import tasks.records", "imports tasks.records"),
    "judge imports records": ("tasks/judge/one.py", "import tasks.records", "imports tasks.records"),
    "judge imports torch": ("tasks/judge/one.py", "def f():\n    import torch", "the judge imports torch"),
    "flows imports the candidate": ("flows/one.py", "from trainer import train", "imports trainer.train"),
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
    "swallowing": ("tasks/one.py", "def f():\n    try:\n        pass\n    except Exception:\n        pass", "swallows"),
    "swallowing all": ("trainer/train.py", "def f():\n    try:\n        pass\n    except:\n        pass", "swallows"),
    "swallowing by suppress": ("tasks/one.py", "def f():\n    with contextlib.suppress(Exception):\n        g()", "swallows"),
    "a call on import": ("tasks/one.py", "import logging\nlogging.basicConfig()", "when it is imported"),
    "too long": ("tasks/one.py", "x = 1\n" * 250, "251 lines"),
    "not ASCII": ("tasks/one.py", "x = '\u00e4'", "not ASCII"),
    "a fat task": ("tasks/one.py", "@task(name='x')\ndef f():\n" + "    g()\n" * 16, "has 16 lines"),
}


@pytest.fixture
def house(tmp_path):
    files = {
        "flows/cli.py": "from tasks import two\nimport trainer.prepare",
        "tasks/records.py": "",
        "tasks/two.py": "from tasks.records import x",
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
    assert len(found) == 1
    assert problem in found[0]
    assert found[0].startswith(f"{name}: ")


def test_a_module_without_a_docstring_is_found(house):
    (house / "tasks" / "one.py").write_text("x = 1\n")
    assert problems(house) == ["tasks/one.py: no docstring"]
