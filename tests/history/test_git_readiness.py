"""Checkouts as people have them: partial, read-only, half merged, with hidden edits. What a night
cannot use is refused before any work, in one line; all else is used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.night import calibration, opening
from tasks.errors import UsageError
from tasks.history import champion, git_readiness
from tests.boxes import make_profile

AUTHOR = ("-c", "user.name=A", "-c", "user.email=a@example.org")
TRAIN = "trainer/train.py"


def git(folder: Path, *arguments: str, check: bool = True) -> str:
    return subprocess.run(
        ["git", *AUTHOR, *arguments], cwd=folder, capture_output=True, text=True, check=check
    ).stdout.strip()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with one commit."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    folder = tmp_path / "checkout"
    (folder / "trainer").mkdir(parents=True)
    (folder / TRAIN).write_text("DEPTH = 3\n")
    (folder / "README.md").write_text("read me\n")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "start")
    return folder


def refusal(root: Path) -> str:
    with pytest.raises(UsageError) as refused:
        champion.open_checkout(root)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("missing", ["blob:none", "tree:0"])
def test_a_partial_clone_takes_commits_though_its_origin_is_gone(root, tmp_path, missing):
    (root / "docs").mkdir()
    (root / "docs" / "a.md").write_text("not in the clone\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "more")
    git(root, "config", "uploadpack.allowFilter", "true")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", f"--filter={missing}", "--sparse", root.as_uri(), "clone")
    git(clone, "sparse-checkout", "set", "trainer")
    assert not (clone / "docs").exists()
    root.rename(tmp_path / "gone")
    found = champion.open_checkout(clone)
    assert (found.dirty, found.train_dirty) == (False, False)
    commit = champion.start_branch(clone, "nov21", found.head, "DEPTH = 4\n", "start")
    assert champion.source_at(clone, commit) == "DEPTH = 4\n"
    assert set(git(clone, "ls-tree", "-r", "--name-only", commit).split()) == {
        "README.md",
        "docs/a.md",
        TRAIN,
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="a read-only mount needs root")
def test_a_read_only_checkout_is_refused(root):
    code = "import sys; from pathlib import Path; from tasks.history import champion\n"
    code += "champion.open_checkout(Path(sys.argv[1]))"
    shell = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
    python = [sys.executable, "-c", code, str(root)]
    argv = ["unshare", "--mount", "sh", "-c", shell, "sh", str(root), *python]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert f"UsageError: {root}/.git cannot be written, and a night makes" in done.stderr


def test_a_filter_whose_program_is_missing_is_named(root):
    (root / ".gitattributes").write_text("*.md filter=lfs\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "lfs")
    git(root, "config", "filter.lfs.required", "true")
    git(root, "config", "filter.lfs.clean", "no-git-lfs clean -- %f")
    os.utime(root / "README.md", (1, 1))  # git must look at its content
    assert "no-git-lfs: not found" in (said := refusal(root))
    assert "install it" in said


@pytest.mark.parametrize("mark", ["--skip-worktree", "--assume-unchanged"])
@pytest.mark.parametrize(
    ("name", "expected"), [(TRAIN, (True, True)), ("README.md", (True, False))]
)
def test_an_edit_that_the_index_hides_is_on_record(root, mark, name, expected):
    git(root, "update-index", mark, name)
    found = champion.open_checkout(root)
    assert (found.dirty, found.train_dirty) == (False, False)
    with (root / name).open("a") as file:
        file.write("# edited\n")
    assert git(root, "status", "--porcelain") == ""
    found = champion.open_checkout(root)
    assert (found.dirty, found.train_dirty) == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (TRAIN, "train.py has a merge conflict: resolve it"),
        ("README.md", "is unfinished, README.md has a conflict"),
    ],
)
def test_a_merge_that_is_not_done_is_refused(root, name, said):
    for branch, text in (("other", "A = 1\n"), ("main", "A = 2\n")):
        git(root, "checkout", "-q", *(["-b"] if branch == "other" else []), branch)
        (root / name).write_text(text)
        git(root, "commit", "-qam", branch)
    git(root, "merge", "other", check=False)
    assert said in refusal(root)


def test_a_train_py_that_is_no_python_is_refused_by_file_and_line(root):
    (root / TRAIN).write_text("DEPTH = 3\n<<<<<<< HEAD\nDEPTH = 4\n")
    assert f"{root / TRAIN} is not valid Python: line 2: invalid syntax" in refusal(root)


def test_a_train_py_that_is_no_text_is_refused(root):
    (root / TRAIN).write_bytes(b"DEPTH = '\xff'\n")
    assert "is not UTF-8: invalid start byte at byte 9" in refusal(root)


def test_a_byte_order_mark_is_no_reason_to_refuse_and_is_not_in_the_night(root):
    (root / TRAIN).write_bytes(b"\xef\xbb\xbfDEPTH = 3\r\nX = DEPTH\r\n")
    assert champion.open_checkout(root).train_dirty
    profile = make_profile().model_copy(update={"train": {"DEPTH": 4}})
    assert opening.base_source(root, profile) == "DEPTH = 4\r\nX = DEPTH\r\n"
    git(root, "commit", "-qam", "with a mark")
    assert calibration.unpatched(root, profile).source == "DEPTH = 4\r\nX = DEPTH\r\n"


def test_the_rehearsal_leaves_no_ref_and_changes_no_file(root):
    before = git(root, "for-each-ref"), git(root, "status", "--porcelain", "--ignored")
    git_readiness.rehearse(root, "HEAD")
    assert (git(root, "for-each-ref"), git(root, "status", "--porcelain", "--ignored")) == before
    assert git(root, "fsck", "--strict", "--no-dangling") == ""
