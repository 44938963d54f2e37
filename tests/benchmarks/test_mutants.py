"""The mutation check on a tiny made-up tree: what it draws, finds again and notices."""

import ast
import json
import shutil
from pathlib import Path

import pytest

from tests.benchmarks import mutants
from tests.benchmarks.mutants import draw
from tests.benchmarks.mutations import Mutant, changes, mutate

VERDICT = '''
"""Whether to keep."""
from typing import TYPE_CHECKING

if TYPE_CHECKING or 1 > 2:
    LIMIT: int = 3
KEEP = 2.0


def decide(z: float, again: bool = False) -> str:
    if again and z < 0:
        raise ValueError(f"z = {z + 1}" + "0 and more")
    return "keep" if z > max(KEEP, KEEP) else "discard"
'''
TESTS = """
from tasks.verdict import decide

def test_decide():
    assert (decide(2.0), decide(2.1)) == ("discard", "keep")
"""

LINUX = pytest.mark.skipif(not shutil.which("unshare"), reason="mutants run on Linux only")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write(tmp_path / "tree" / "tasks" / "verdict.py", VERDICT)
    write(tmp_path / "tree" / "tests" / "test_verdict.py", TESTS)
    write(tmp_path / "tree" / "pytest.ini", "[pytest]\npythonpath = .\n")
    return tmp_path / "tree"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def mutant(tree: Path, after: str) -> Mutant:
    found = [m for m, _, _ in changes(tree / "tasks" / "verdict.py") if m.after == after]
    assert len(found) == 1
    return found[0]


def test_the_tests_of_a_module_are_there():
    root = Path(__file__).resolve().parents[2]
    for name in {name for names in mutants.TESTS.values() for name in names}:
        stem, _, test = name.partition("::")
        found = list((root / "tests").rglob(f"test_{stem}.py"))
        assert found, name
        assert f"def {test}(" in found[0].read_text() or not test, name


def test_every_change_is_one_of_code_and_none_of_text_or_types(tree):
    assert {(m.before, m.after) for m, _, _ in changes(tree / "tasks" / "verdict.py")} == {
        ("KEEP = 2.0", "KEEP = 4.0"),
        ("z: float, again: bool=False", "z: float, again: bool=True"),
        ("again and z < 0", "again or z < 0"),
        ("again and z < 0", "not (again and z < 0)"),
        ("z < 0", "z <= 0"),
        ("z < 0", "z < 1"),
        ("raise ValueError('...' + '...')", "pass"),
        ("z > max(KEEP, KEEP)", "z >= max(KEEP, KEEP)"),
        ("z > max(KEEP, KEEP)", "not z > max(KEEP, KEEP)"),
        ("max(KEEP, KEEP)", "min(KEEP, KEEP)"),
    }


def test_the_same_code_has_the_same_mutants_wherever_it_is_and_whatever_else_changes(tree):
    drawn = draw(tree)
    assert len(set(drawn)) == 6
    assert draw(tree, seed="another") != drawn
    path = tree / "tasks" / "verdict.py"
    moved = tree / "tasks" / "trial" / "verdict.py"
    write(moved, VERDICT.replace("0 and more", "none of it").replace("\nKEEP", "\n\n# why\nKEEP"))
    path.unlink()
    assert draw(tree) == drawn
    for one in drawn:
        found = mutate(tree, one)
        assert found is not None
        assert found[0] == moved
        assert ast.dump(ast.parse(found[1])) != ast.dump(ast.parse(moved.read_text()))


@LINUX
def test_a_run_tells_what_is_killed_what_survives_and_what_was_killed_before(
    tree, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take seconds to load
    monkeypatch.setattr(mutants, "PARTS", {"verdict": (2, ["verdict"])})
    noticed, same = mutant(tree, "z >= max(KEEP, KEEP)"), mutant(tree, "min(KEEP, KEEP)")
    gone = Mutant("verdict", "decide", "z < 7", "z <= 7", 0)
    before, now = tmp_path / "before.json", tmp_path / "now.json"
    saved = [{"mutant": vars(m), "outcome": "killed"} for m in (noticed, same, gone)]
    before.write_text(json.dumps({"mutants": saved}))
    assert not mutants.run(tree, like=before, json_file=now)
    found = json.loads(now.read_text())["mutants"]
    assert [result["outcome"] for result in found[:3]] == ["killed", "survived", "gone"]
    (drawn,) = set(draw(tree)) - {noticed, same}
    assert [result["mutant"] for result in found[3:]] == [vars(drawn)]
    assert found[0]["test"] == "tests/test_verdict.py::test_decide"
    assert (tree / "tasks" / "verdict.py").read_text() == VERDICT
    before.write_text(json.dumps({"mutants": saved[2:]}))
    monkeypatch.setattr(mutants, "PARTS", {})
    assert mutants.run(tree, like=before)


@LINUX
def test_tests_that_fail_without_a_mutant_are_an_error(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    write(tree / "tests" / "test_verdict.py", TESTS.replace("2.1", "1.9"))
    with pytest.raises(SystemExit, match=r"fails without a mutant.*test_decide"):
        mutants.Copy(tree, tmp_path / "copy").run(mutant(tree, "KEEP = 4.0"))
