import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

import configs
from configs import knobs
from tasks.errors import UsageError
from tasks.history import champion
from tasks.proposers import proposal
from tasks.proposers.replay import ReplayProposer, apply
from tasks.records import Candidate, NightSoFar
from tests.trials import make_trial

ROOT = Path(__file__).parents[2]
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
NEW_FILE = (
    GOOD + "diff --git a/x b/x\nnew file mode 100644\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+x\n"
)
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


def night_at(trial: int, current: str, **changes) -> NightSoFar:
    return NightSoFar("t", 1, trial, Candidate.parse(current), 1.6, 1.6, {}, (), **changes)


@pytest.fixture
def propose(tmp_path):
    """The proposal for a trial from a folder with these files."""

    def propose(trial: int = 1, current: str = SOURCE, **files: str | bytes):
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / name.replace("__", ".")).write_bytes(data)
        return ReplayProposer(tmp_path).propose(night_at(trial, current))

    return propose


def test_a_diff_is_applied_to_the_champion(propose):
    proposed = propose(p01__diff=GOOD)
    assert proposed.candidate.source == SOURCE.replace("B = 2", "B = 20")
    assert (proposed.idea.summary, proposed.idea.proposer, proposed.problem) == (
        "p01",
        "replay",
        None,
    )


def test_a_diff_finds_its_lines_where_they_have_drifted_to(propose):
    proposed = propose(p01__patch=GOOD, current="# new\n" * 7 + SOURCE)
    assert proposed.problem is None
    assert "B = 20" in proposed.candidate.source


def test_trial_k_takes_file_k_in_name_order_and_then_there_is_nothing_left(propose):
    files = {"b__py": "B", "a__py": "A", "c__txt": "no patch"}
    assert [propose(trial, **files).candidate.source for trial in (1, 2)] == ["A", "B"]
    assert propose(3, **files) is None


def test_a_py_file_is_the_whole_candidate(propose):
    proposed = propose(p__py="# Try nothing\nx = 1\n")
    assert (proposed.candidate.source, proposed.idea.summary) == (
        "# Try nothing\nx = 1\n",
        "Try nothing",
    )


@pytest.mark.parametrize("line", ["# Twice B\n", "#Twice B\r\n", "## Twice B ##\n"])
def test_a_first_line_of_comment_is_the_summary(propose, line):
    assert propose(p__diff=line + GOOD).idea.summary == "Twice B"


@pytest.mark.parametrize("line", ["#!/usr/bin/python\n", "#\n", "\n", ""])
def test_without_one_the_files_name_is(propose, line):
    assert propose(p__diff=line + GOOD).idea.summary == "p"


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
    assert proposed.candidate.source == SOURCE
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
    current = SOURCE.replace("A = 1\n", "A = 1\r\n").replace("E = 5", "E = '\u00e9'")
    assert propose(p__diff=GOOD, current=current).candidate.source == current.replace(
        "B = 2", "B = 20"
    )


def test_a_missing_folder_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"no folder of patches at .*nowhere"):
        ReplayProposer(tmp_path / "nowhere")


def test_an_empty_folder_is_a_usage_error(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(UsageError, match=r"no patch in .* end in \.diff, \.patch, \.py"):
        ReplayProposer(tmp_path)


def test_the_demonstration_night_applies_to_train_py_as_it_is():
    """01 is kept, so the others are made against it; 06 alone is refused before a run."""
    proposer, current = ReplayProposer(DEMONSTRATION), TRAIN
    seen, problems = {Candidate.parse(TRAIN).digest or "": 0}, []
    for number in range(1, 7):
        proposed = proposal.ask(proposer, dataclasses.replace(night_at(number, current), seen=seen))
        assert proposed is not None
        assert proposed.candidate.source != current
        problems.append(proposed.problem)
        current = proposed.candidate.source if number == 1 else current
        seen[proposed.candidate.digest or ""] = number
    assert knobs.read(current)["DEPTH"] == 2
    assert problems[:5] == [None] * 5
    assert "does not parse" in str(problems[5])
    assert proposer.propose(night_at(7, current)) is None


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout with train.py as it is in this one."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    folder = tmp_path / "checkout"
    (folder / "trainer").mkdir(parents=True)
    (folder / "trainer" / "train.py").write_text(TRAIN)
    for arguments in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "start"],
    ):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


def past_night(root: Path, start: str, *candidates: tuple[str, str], tag: str = "nov21") -> None:
    """A night from `start`: a commit for each (verdict, source), a child of the last keep."""
    parent = champion.start_branch(
        root, tag, champion.open_checkout(root).head, start, "the baseline"
    )
    for number, (verdict, source) in enumerate(candidates, start=1):
        scored = verdict != "rejected"
        trial = make_trial(
            number,
            summary=f"idea {number}",
            status="ok" if scored else "rejected_patch",
            verdict="keep" if verdict == "keep" else "discard",
            reason="",
            z=3.14159 if scored else None,
            val_bpb=1.5 if scored else None,
            scores=(),
            seeds=(),
            knobs={},
            digest=None,
            parent=parent,
            commit=None,
            placebo="discard" if verdict == "placebo" else None,
        )
        commit = champion.commit_candidate(root, tag, trial, source)
        parent = commit if verdict == "keep" else parent


def with_profile(name: str, **changed) -> str:
    return knobs.write(TRAIN, configs.load(name).train | changed)


def test_a_past_nights_patches_are_the_changes_of_its_trials_in_order(root):
    kept = SOURCE.replace("A = 1", "A = 10")
    later = [("discard", kept.replace("E = 5", f"E = {n}")) for n in range(6, 16)]
    past_night(root, SOURCE, ("keep", kept), *later)
    proposer = ReplayProposer.of(root / "nov21", root)
    current = SOURCE.replace("C = 3", "C = 30")
    proposed = [proposer.propose(night_at(k, current)) for k in range(1, 13)]
    assert [p and p.candidate.source for p in proposed] == [
        current.replace("A = 1", "A = 10"),
        *(current.replace("E = 5", f"E = {n}") for n in range(6, 16)),
        None,
    ]
    assert proposed[10] is not None
    assert (proposed[10].idea.summary, proposed[10].idea.proposer, proposed[10].problem) == (
        "idea 11",
        "replay",
        None,
    )
    assert proposed[10].idea.note == "replayed from night nov21, trial 11 (was discard, z 3.14)"


def test_placebos_of_both_nights_are_passed_over(root):
    changed = [SOURCE.replace("E = 5", f"E = {n}") for n in (6, 7)]
    past_night(root, SOURCE, ("discard", changed[0]), ("placebo", SOURCE), ("discard", changed[1]))
    proposer = ReplayProposer.of(root / "nov21", root)
    nights = [night_at(1, SOURCE), *(night_at(k, SOURCE, placebos=1) for k in (3, 4))]
    proposed = [proposer.propose(night) for night in nights]
    assert [p and p.candidate.source for p in proposed] == [*changed, None]


def test_a_patch_that_conflicts_with_the_champion_is_a_problem_that_names_it(root):
    code = SOURCE.replace("B = 2", "print(A)")
    past_night(root, code, ("discard", code.replace("print(A)", "print(-A)")))
    proposed = ReplayProposer.of(root / "nov21", root).propose(
        night_at(1, code.replace("print(A)", "print(+A)"))
    )
    assert proposed is not None
    assert proposed.candidate.source == code.replace("print(A)", "print(+A)")
    assert (
        proposed.problem
        == "trial 1 of night nov21 conflicts with the champion: both have changed the same lines"
    )


def test_a_rejected_patch_is_replayed_and_one_that_changed_nothing_is_a_problem(root):
    past_night(root, SOURCE, ("rejected", SOURCE.replace("E = 5", "E = (")), ("rejected", SOURCE))
    proposer = ReplayProposer.of(root / "nov21", root)
    current = SOURCE.replace("A = 1", "A = 10")
    first, second = (proposer.propose(night_at(k, current)) for k in (1, 2))
    assert first is not None
    assert second is not None
    assert (first.problem, first.idea.note) == (
        None,
        "replayed from night nov21, trial 1 (was discard)",
    )
    # It will be refused by the check of every proposal.
    assert first.candidate.source == current.replace("E = 5", "E = (")
    assert second.problem == "trial 2 of night nov21 changed nothing"


def test_a_laptop_nights_patches_fit_another_profile_whose_knobs_have_other_values(root):
    """All but those that change a knob from a value which is another one here."""
    start = with_profile("laptop")
    ours = with_profile("h100")
    single = {"MATRIX_LR": 0.08, "ADAM_BETAS": (0.9, 0.95)}
    past_night(
        root,
        start,
        *(("discard", with_profile("laptop", **{name: value})) for name, value in single.items()),
    )
    proposer = ReplayProposer.of(root / "nov21", root)
    for number, (name, value) in enumerate(single.items(), start=1):
        proposed = proposer.propose(night_at(number, ours))
        assert proposed is not None
        assert proposed.problem is None
        assert proposed.candidate.source == knobs.write(ours, {name: value})


def test_a_knob_that_both_have_changed_is_a_conflict(root):
    past_night(root, with_profile("laptop"), ("keep", with_profile("laptop", DEPTH=2)))
    proposed = ReplayProposer.of(root / "nov21", root).propose(night_at(1, with_profile("h100")))
    assert proposed is not None
    assert "conflicts with the champion" in str(proposed.problem)


def test_a_folder_wins_over_a_night_of_its_name(root, tmp_path):
    past_night(root, SOURCE, ("keep", SOURCE.replace("A = 1", "A = 10")))
    folder = tmp_path / "nov21"
    folder.mkdir()
    (folder / "p.py").write_text("x = 1\n")
    proposed = ReplayProposer.of(folder, root).propose(night_at(1, SOURCE))
    assert proposed is not None
    assert proposed.candidate.source == "x = 1\n"


@pytest.mark.parametrize("name", ["nov2", "nov21b", "**", "nov21/1", "..", "HEAD"])
def test_neither_a_folder_nor_a_night_is_a_usage_error_with_both_remedies(root, name):
    past_night(root, SOURCE, ("keep", SOURCE.replace("A = 1", "A = 10")))
    with pytest.raises(
        UsageError,
        match=r"no folder of patches at .* no night .*--patches.*git fetch REMOTE 'refs/trials/",
    ):
        ReplayProposer.of(root / "nowhere" / name, root)


def test_the_remedy_brings_another_machines_night(root, tmp_path):
    past_night(root, SOURCE, ("keep", SOURCE.replace("A = 1", "A = 10")))
    other = tmp_path / "other"
    subprocess.run(["git", "clone", "-q", root, other], check=True)
    with pytest.raises(UsageError) as refused:
        ReplayProposer.of(other / "nov21", other)
    refspec = str(refused.value).split("REMOTE '")[1].split("'")[0]
    subprocess.run(["git", "fetch", "-q", "origin", refspec], cwd=other, check=True)
    proposed = ReplayProposer.of(other / "nov21", other).propose(night_at(1, SOURCE))
    assert proposed is not None
    assert (proposed.idea.summary, proposed.candidate.source) == (
        "idea 1",
        SOURCE.replace("A = 1", "A = 10"),
    )
