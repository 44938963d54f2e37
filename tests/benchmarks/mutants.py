"""Mutation check: do the tests notice one wrong operator in the code that decides a night?

`./run bench mutants` draws 30 small changes of the ledger, the verdict, the judge and the patch
applier, makes each in a copy of the tree and runs the tests of the changed module. A mutant that
no test kills is a hole in the tests or computes the same. `--tree` tests another tree, and `--like`
tries the mutants of an earlier `--json` again: before and after a refactoring.

Linux only: `unshare` gives mutants their own process ids, as wrong code that ends processes
would end those of others.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.benchmarks.mutations import Mutant, changes, module_paths, mutate

SEED = "nightly"
PARTS = {  # how many mutants are drawn, and of which modules
    "ledger": (8, ["night_state", "ledger"]),
    "verdict": (6, ["verdict"]),
    "judge": (9, ["wire", "audit", "protocol", "scoring", "processes", "watchdog", "bwrap"]),
    "patch applier": (7, ["answer", "edit_blocks", "three_way_merge"]),
}
RUNS = "experiment::test_a_broken_candidate_is_a_result_with_its_reason"  # real ones: slow
TESTS = {  # of a module, the fastest first, where there are others than its own
    "night_state": ["night_state", "ledger"],
    "ledger": ["ledger", "night_state"],
    "protocol": ["protocol", RUNS],
    "scoring": ["protocol", RUNS, "scoring"],
    "watchdog": ["watchdog", "processes", "box"],
    "bwrap": ["box"],
    "answer": ["answer", "edit_blocks"],
}
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".nightly", "__pycache__", ".*_cache")
# Soft limits of 8 GiB of memory and 2 GiB a file: a loop without an end must not fill the machine.
LIMITED = ["sh", "-c", 'ulimit -S -d 8388608; ulimit -S -f 4194304; "$@"; exit $?', "sh"]


@dataclasses.dataclass(frozen=True)
class Result:
    mutant: Mutant
    outcome: str  # killed, survived, timeout, or gone: the tree has no such code
    seconds: float = 0.0
    test: str = ""  # the one that failed

    def row(self) -> str:
        codes = (" ".join(code.split()) for code in (self.mutant.before, self.mutant.after))
        cut = (code if len(code) <= 70 else f"{code[:67]}..." for code in codes)
        change = " | ".join(f"`{code}`".replace("|", "\\|") for code in cut)
        place, test = f"{self.mutant.module} {self.mutant.function}", self.test.partition("::")[2]
        return f"| {place} | {change} | {self.outcome} | {self.seconds:.0f} | {test} |"


def draw(tree: Path, seed: str = SEED) -> list[Mutant]:
    """Mutants of a tree: always the same ones, and of another tree the same as far as it is."""
    drawn: list[Mutant] = []
    for number, modules in PARTS.values():
        paths = [path for module in modules for path in module_paths(tree, module)]
        mutants = {f"{seed} {mutant}": mutant for path in paths for mutant, _, _ in changes(path)}
        ranked = sorted(mutants, key=lambda name: hashlib.sha256(name.encode()).digest())
        drawn += [mutants[name] for name in ranked[:number]]
    return drawn


class Copy:
    """A copy of a tree, in which one mutant after the other is tried."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self.tree, self._temporary = folder / "tree", folder / "t"
        shutil.copytree(tree, self.tree, ignore=NOT_COPIED, symlinks=True)
        self._usual: dict[str, float] = {}  # module -> seconds of its tests without a mutant

    def run(self, mutant: Mutant) -> Result:
        """Exits where the tests of the module fail without the mutant."""
        changed = mutate(self.tree, mutant)
        if changed is None:
            return Result(mutant, "gone")
        path, text = changed
        original = path.read_text(encoding="utf-8")
        try:
            if mutant.module not in self._usual:  # written as a mutant is: without comments
                path.write_text(ast.unparse(ast.parse(original)), encoding="utf-8")
                usual = self._test(mutant, 1800.0)
                if usual.outcome != "survived":
                    sys.exit(f"a test of {mutant.module} fails without a mutant: {usual.test}")
                self._usual[mutant.module] = usual.seconds
            path.write_text(text, encoding="utf-8")
            return self._test(mutant, 60.0 + 5 * self._usual[mutant.module])
        finally:
            path.write_text(original, encoding="utf-8")

    def _test(self, mutant: Mutant, limit: float) -> Result:
        tests: list[str] = []
        for name in TESTS.get(mutant.module, [mutant.module]):
            file, *test = name.split("::")
            paths = (self.tree / "tests").rglob(f"test_{file}.py")
            tests += ["::".join([str(path), *test]) for path in paths]
        user = [] if os.geteuid() == 0 else ["--user", "--map-current-user"]
        alone = ["unshare", *user, "--pid", "--fork", "--kill-child", "--mount-proc", *LIMITED]
        pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-rfE", "-p", "no:cacheprovider"]
        command = [*alone, *pytest, f"--basetemp={self._temporary}", *tests]
        # With CI set hypothesis draws always the same examples.
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "CI": "1"}
        began = time.monotonic()
        try:
            done = subprocess.run(
                command,
                cwd=self.tree,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            return Result(mutant, "timeout", limit)
        output = done.stdout.decode(errors="replace")
        if not tests or done.returncode in (4, 5):  # pytest's own: a usage error, no tests
            sys.exit(f"no tests of {mutant.module} in {self.tree}\n{output}")
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
        outcome = "killed" if done.returncode else "survived"
        seconds = round(time.monotonic() - began, 1)
        return Result(mutant, outcome, seconds, failed[1] if failed else "")


def run(tree: Path, like: Path | None = None, json_file: Path | None = None) -> bool:
    """Prints the table. False when a mutant survives that a test found in the run of `like`.

    With `like` come the mutants of that run first, then those drawn here that it does not have:
    they are of code that has changed.
    """
    saved = json.loads(like.read_text(encoding="utf-8"))["mutants"] if like else []
    earlier = {Mutant(**result["mutant"]): result["outcome"] for result in saved}
    print("| module, function | code | becomes | outcome | seconds | test |\n|" + " --- |" * 6)
    results = []
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        copied = Copy(tree, Path(folder))
        for mutant in dict.fromkeys([*earlier, *draw(tree)]):
            results.append(copied.run(mutant))
            print(results[-1].row(), flush=True)
    counts = Counter(result.outcome for result in results)
    print("\n" + ", ".join(f"{number} {outcome}" for outcome, number in counts.most_common()))
    survivors = [result.mutant for result in results if result.outcome == "survived"]
    lost = [mutant for mutant in survivors if earlier.get(mutant) in ("killed", "timeout")]
    if like:
        print(f"{len(lost)} survive that were found before")
    if json_file:
        data = {"seed": SEED, "mutants": [dataclasses.asdict(result) for result in results]}
        json_file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return not lost
