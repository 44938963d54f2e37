import subprocess
from pathlib import Path

import pytest

from configs import knobs
from tasks import proposal
from tasks.proposers.replay import ReplayProposer, apply
from tasks.records import NightSoFar, UsageError

ROOT = Path(__file__).parents[1]
TRAIN = (ROOT / "trainer" / "train.py").read_text(encoding="utf-8")
DEMONSTRATION = ROOT / "tests" / "patches"
SOURCE = "A = 1\nB = 2\nC = 3\nD = 4\nE = 5\n"

GOOD = """--- a/trainer/train.py
+++ b/trainer/train.py
@@ -2 +2 @@
-B = 2
+B = 20
"""
HALF = GOOD + "@@ -4 +4 @@\n-D = 40\n+D = 4\n"
OTHER = GOOD + "--- a/trainer/prepare.py\n+++ b/trainer/prepare.py\n@@ -1 +1 @@\n-x\n+y\n"
NEW_FILE = GOOD + "diff --git a/x b/x\nnew file mode 100644\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+x\n"
OUTSIDE = GOOD.replace("trainer/train.py", "../escape.py")
LINK = """diff --git a/trainer/train.py b/trainer/train.py
deleted file mode 100644
--- a/trainer/train.py
+++ /dev/null
@@ -1,5 +0,0 @@
-A = 1
-B = 2
-C = 3
-D = 4
-E = 5
diff --git a/trainer/train.py b/trainer/train.py
new file mode 120000
--- /dev/null
+++ b/trainer/train.py
@@ -0,0 +1 @@
+/etc/hostname
\\ No newline at end of file
"""


@pytest.fixture
def propose(tmp_path):
    """The proposal for a trial from a folder with these files."""

    def propose(trial: int = 1, champion: str = SOURCE, **files: str | bytes):
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / name.replace("__", ".")).write_bytes(data)
        return ReplayProposer(tmp_path).propose(NightSoFar("t", 1, trial, champion, 1.6, 1.6, {}, ()))

    return propose


def test_a_diff_is_applied_to_the_champion(propose):
    proposed = propose(p01__diff=GOOD)
    assert proposed.source == SOURCE.replace("B = 2", "B = 20")
    assert (proposed.summary, proposed.proposer, proposed.problem) == ("p01", "replay", None)


def test_a_diff_finds_its_lines_where_they_have_drifted_to(propose):
    proposed = propose(p01__patch=GOOD, champion="# new\n" * 7 + SOURCE)
    assert proposed.problem is None
    assert "B = 20" in proposed.source


def test_trial_k_takes_file_k_in_name_order_and_then_there_is_nothing_left(propose):
    files = {"b__py": "B", "a__py": "A", "c__txt": "no patch"}
    assert [propose(trial, **files).source for trial in (1, 2)] == ["A", "B"]
    assert propose(3, **files) is None


def test_a_py_file_is_the_whole_candidate(propose):
    proposed = propose(p__py="# Try nothing\nx = 1\n")
    assert (proposed.source, proposed.summary) == ("# Try nothing\nx = 1\n", "Try nothing")


@pytest.mark.parametrize("line", ["# Twice B\n", "#Twice B\r\n", "## Twice B ##\n"])
def test_a_first_line_of_comment_is_the_summary(propose, line):
    assert propose(p__diff=line + GOOD).summary == "Twice B"


@pytest.mark.parametrize("line", ["#!/usr/bin/python\n", "#\n", "\n", ""])
def test_without_one_the_files_name_is(propose, line):
    assert propose(p__diff=line + GOOD).summary == "p"


@pytest.mark.parametrize(
    ("patch", "problem"),
    [
        (GOOD.replace("B = 2\n", "B = 7\n"), "does not apply: patch failed: trainer/train.py:2"),
        (HALF, "does not apply"),
        ("no patch at all\n", "does not apply: No valid patches in input"),
        ("", "does not apply"),
        (OTHER, "touches trainer/prepare.py; only trainer/train.py may change"),
        (NEW_FILE, "touches x; only trainer/train.py may change"),
        (OUTSIDE, "escape.py"),
        (LINK, "does more than edit trainer/train.py"),
        (b"\xff\xfe" + GOOD.encode(), "is not UTF-8"),
    ],
)
def test_a_patch_that_cannot_be_used_is_a_problem_and_changes_nothing(propose, patch, problem):
    proposed = propose(p03__diff=patch)
    assert proposed.source == SOURCE
    assert proposed.problem.startswith("patch p03.diff ")
    assert problem in proposed.problem
    assert "\n" not in proposed.problem


def test_a_patch_applies_in_a_temporary_folder_inside_a_repository(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert "B = 20" in apply(GOOD, SOURCE)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_patch_keeps_line_ends_and_letters(propose):
    champion = SOURCE.replace("A = 1\n", "A = 1\r\n").replace("E = 5", "E = '\u00e9'")
    assert propose(p__diff=GOOD, champion=champion).source == champion.replace("B = 2", "B = 20")


def test_a_missing_folder_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"no folder of patches at .*nowhere"):
        ReplayProposer(tmp_path / "nowhere")


def test_an_empty_folder_is_a_usage_error(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(UsageError, match=r"no patch in .* end in \.diff, \.patch, \.py"):
        ReplayProposer(tmp_path)


def test_the_demonstration_night_applies_to_train_py_as_it_is():
    """01 is kept, so the others are made against it; 06 alone is refused before a run."""
    proposer, champion = ReplayProposer(DEMONSTRATION), TRAIN
    seen, problems = {knobs.ast_sha256(TRAIN) or "": 0}, []
    for number in range(1, 7):
        night = NightSoFar("t", 1, number, champion, 1.6, 1.6, dict(knobs.read(TRAIN)), ())
        proposed = proposal.ask(proposer, night, seen)
        assert proposed is not None
        assert proposed.source != champion
        problems.append(proposed.problem)
        champion = proposed.source if number == 1 else champion
        seen[knobs.ast_sha256(proposed.source) or ""] = number
    assert knobs.read(champion)["DEPTH"] == 2
    assert problems[:5] == [None] * 5
    assert "does not parse" in str(problems[5])
    night = NightSoFar("t", 1, 7, champion, 1.6, 1.6, {}, ())
    assert proposer.propose(night) is None
