"""Candidates and keeps in real git repositories: what is made, and all that must stay as it was."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import NightlyError, UsageError
from tasks.history import champion
from tasks.records import Trial
from tests import trials

HOOKS = (
    "reference-transaction",
    "post-index-change",
    "pre-commit",
    "commit-msg",
    "post-commit",
    "post-checkout",
)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with one commit and hostile settings; no git identity anywhere."""
    for key in [key for key in os.environ if key.startswith("GIT_")]:
        monkeypatch.delenv(key)
    for key, value in {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(key, value)
    folder = tmp_path / "checkout"
    (folder / "trainer").mkdir(parents=True)
    (folder / "trainer" / "train.py").write_text("DEPTH = 3\n")
    (folder / "README.md").write_text("read me\n")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qm", "start")
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def make_trial(parent: str, **changes) -> Trial:
    fields = {
        "verdict": "keep",
        "reason": "better",
        "z": 3.14159,
        "val_bpb": 1.6123456,
        "scores": (1.6123456, 1.6123456),
        "seeds": (1, 2),
        "parent": parent,
    }
    return trials.make_trial(**{**fields, **changes})


def start(root: Path, tag: str = "nov21") -> str:
    return champion.start_branch(
        root, tag, champion.open_checkout(root).head, "DEPTH = 4\n", "the baseline"
    )


def trailers(root: Path, revision: str) -> dict[str, str]:
    lines = git(root, "log", "-1", "--format=%(trailers:only,unfold)", revision).splitlines()
    return dict(line.split(": ", 1) for line in lines if line)


def users_state(root: Path) -> tuple:
    """All of the user's that a night must not change, byte for byte."""
    files = {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and ".git" not in p.parts}
    heads = [
        (root / ".git" / name).read_bytes()
        for name in ("HEAD", "logs/HEAD", "refs/heads/main", "config")
    ]
    index = hashlib.sha256((root / ".git" / "index").read_bytes()).hexdigest()
    return (
        files,
        heads,
        index,
        sorted(p.name for p in (root / ".git").iterdir() if p.name not in ("refs", "logs")),
    )


def test_a_clean_checkout_is_described(root):
    found = champion.open_checkout(root)
    assert (found.root, found.head, found.branch) == (root, git(root, "rev-parse", "HEAD"), "main")
    assert (found.dirty, found.train_dirty) == (False, False)
    assert found.describe() == f"main at {found.head[:7]}"


def test_a_dirty_detached_checkout_says_what_it_starts_from(root):
    git(root, "checkout", "-q", "--detach")
    (root / "trainer" / "train.py").write_text("DEPTH = 9\n")
    found = champion.open_checkout(root)
    assert (found.branch, found.dirty, found.train_dirty) == (None, True, True)
    assert "detached" in found.describe()
    assert "uncommitted trainer/train.py" in found.describe()


def test_a_change_elsewhere_is_dirty_but_not_in_train_py(root):
    (root / "README.md").write_text("changed\n")
    git(root, "add", "README.md")
    found = champion.open_checkout(root)
    assert (found.dirty, found.train_dirty) == (True, False)


def test_looking_at_a_checkout_does_not_rewrite_its_index(root):
    os.utime(root / "README.md", (1, 1))  # `git status` would refresh the index for this
    before = users_state(root)
    champion.open_checkout(root)
    assert users_state(root) == before


def test_a_worktree_is_a_checkout_too(root, tmp_path):
    git(root, "worktree", "add", "-q", str(tmp_path / "other"), "-b", "side")
    other = champion.open_checkout(tmp_path / "other")
    assert other.branch == "side"
    assert champion.start_branch(other.root, "nov21", other.head, "x\n", "s") == champion.tip(
        root, "nov21"
    )


def test_a_folder_that_is_no_checkout_is_refused_with_the_remedy(root):
    with pytest.raises(UsageError, match="git init && git add -A && git commit"):
        # a folder of a checkout would commit to the wrong path
        champion.open_checkout(root / "trainer")


def test_a_broken_repository_is_refused(root):
    (root / ".git" / "HEAD").unlink()
    with pytest.raises(UsageError, match="git can read"):
        champion.open_checkout(root)


def test_a_repository_without_a_commit_is_refused(tmp_path):
    git(tmp_path, "init", "-q")
    with pytest.raises(UsageError, match="no commit yet"):
        champion.open_checkout(tmp_path)


def test_a_missing_train_py_is_refused(root):
    (root / "trainer" / "train.py").unlink()
    with pytest.raises(UsageError, match=r"git checkout HEAD -- trainer/train\.py"):
        champion.open_checkout(root)


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "a b",
        "a/b",
        "-a",
        ".a",
        "a..b",
        "a.lock",
        "a~1",
        "a@{1}",
        "x" * 65,
        "a'b",
        "a\nb",
        "caf\u00e9",
        "a.",
        "$(a)",
    ],
)
def test_a_tag_that_cannot_name_a_branch_and_a_folder_is_refused(root, tag):
    with pytest.raises(UsageError, match="cannot name a branch"):
        champion.check_tag(root, tag)


@pytest.mark.parametrize(
    "tag",
    [
        "HEAD",
        "FETCH_HEAD",
        "ORIG_HEAD",
        "MERGE_HEAD",
        "AUTO_MERGE",
        "BISECT_EXPECTED_REV",
        "a1" * 20,
    ],
)
def test_a_tag_that_means_something_to_git_is_refused(root, tag):
    with pytest.raises(UsageError, match=f"'{tag}' has a special meaning in git: choose another"):
        champion.check_tag(root, tag)


@pytest.mark.parametrize(
    "tag", ["head", "AHEAD", "HEAD-2", "nov21", "a", "x" * 64, "2026-11-21", "a.b_c+d"]
)
def test_a_plain_tag_is_free_in_a_new_checkout(root, tag):
    champion.check_tag(root, tag)


@pytest.mark.parametrize(
    "ref",
    ["refs/heads/autoresearch/nov21", "refs/trials/nov21/7", "refs/heads/autoresearch/nov21/x"],
)
def test_a_tag_in_use_is_refused_with_the_remedy_and_its_neighbours_are_not(root, ref):
    git(root, "update-ref", ref, "HEAD")
    with pytest.raises(UsageError, match=r"run resume nov21.*another --tag"):
        champion.check_tag(root, "nov21")
    champion.check_tag(root, "nov2")
    champion.check_tag(root, "nov211")


def test_a_tag_is_not_that_of_another_nights_certified_changes(root):
    with pytest.raises(UsageError, match="certified changes of night 'nov21': choose another name"):
        champion.check_tag(root, "nov21-certified")
    git(root, "branch", "autoresearch/nov21-certified")
    with pytest.raises(UsageError, match=r"nov21-certified.*another --tag"):
        champion.check_tag(root, "nov21")


def test_a_branch_called_autoresearch_is_in_the_way(root):
    git(root, "branch", "autoresearch")
    with pytest.raises(UsageError, match="git branch -m autoresearch"):
        champion.check_tag(root, "nov21")


def test_a_branch_that_is_checked_out_is_refused(root, tmp_path):
    start(root)
    git(root, "worktree", "add", "-q", str(tmp_path / "other"), "autoresearch/nov21")
    with pytest.raises(UsageError, match=r"checked out in .*/other"):
        champion.check_not_checked_out(root, "nov21")


def test_an_unborn_branch_of_that_name_is_refused(root):
    git(root, "symbolic-ref", "HEAD", "refs/heads/autoresearch/nov21")
    with pytest.raises(UsageError, match="checked out in"):
        champion.check_tag(root, "nov21")


def test_the_first_commit_changes_train_py_and_nothing_else(root):
    first = start(root)
    assert champion.tip(root, "nov21") == first
    assert git(root, "diff", "--name-only", "main", first) == "trainer/train.py"
    assert champion.source_at(root, first) == "DEPTH = 4\n"
    assert git(root, "log", "-1", "--format=%an <%ae> %cn %s", first) == (
        "nightly-research <nightly-research@localhost> nightly-research the baseline"
    )


def test_the_first_commit_is_made_once(root):
    assert start(root) == start(root)


def test_a_first_commit_in_the_place_of_another_is_an_error(root):
    start(root)
    with pytest.raises(NightlyError, match="holds another commit"):
        champion.start_branch(
            root, "nov21", git(root, "rev-parse", "main"), "DEPTH = 5\n", "the baseline"
        )


def test_a_night_may_start_from_an_uncommitted_train_py(root):
    git(root, "rm", "-q", "--cached", "trainer/train.py")
    git(root, "-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "not in git")
    assert champion.source_at(root, start(root)) == "DEPTH = 4\n"


def test_a_candidate_is_a_commit_with_trailers(root):
    parent = start(root)
    commit = champion.commit_candidate(root, "nov21", make_trial(parent), "DEPTH = 2\n")
    assert git(root, "rev-parse", "refs/trials/nov21/1") == commit
    assert git(root, "rev-parse", f"{commit}^") == parent
    assert git(root, "log", "-1", "--format=%s", commit) == "DEPTH 3 -> 2"
    assert trailers(root, commit) == {
        "Trial-Id": "nov21:1",
        "Val-Bpb": "1.612346",
        "Verdict": "keep",
        "Seeds": "1 2",
        "Z": "3.14",
    }


def test_noise_and_hardware_of_a_candidate_are_in_its_commit_uncut(root):
    hardware = "0123456789abcdef NVIDIA H100 80GB HBM3 80 GiB 700 W, driver 580.65.06, torch 2.13.0"
    known = make_trial(start(root), noise_sd=0.00456789, noise_df=8, hardware=hardware)
    commit = champion.commit_candidate(root, "nov21", known, "DEPTH = 2\n")
    found = trailers(root, commit)
    assert (found["Noise"], found["Hardware"]) == ("0.004568 (df 8)", hardware)
    assert found == champion.trailers_of("nov21", known)


def test_trailers_come_back_as_they_were_written(root):
    commit = champion.commit_candidate(root, "nov21", make_trial(start(root)), "DEPTH = 2\n")
    assert champion.trailers(root, commit) == trailers(root, commit)
    with pytest.raises(NightlyError, match="git show failed"):
        champion.trailers(root, "nothing-like-that")


def test_a_failed_candidate_has_a_commit_and_no_score(root):
    trial = make_trial(
        start(root),
        verdict="discard",
        status="train_crashed",
        val_bpb=None,
        z=None,
        scores=(),
        seeds=(),
    )
    commit = champion.commit_candidate(root, "nov21", trial, "DEPTH = (\n")
    assert (
        trailers(root, commit)["Val-Bpb"]
        == trailers(root, commit)["Z"]
        == trailers(root, commit)["Seeds"]
        == "-"
    )


def test_a_candidate_is_committed_once(root):
    trial = make_trial(start(root))
    commit = champion.commit_candidate(root, "nov21", trial, "DEPTH = 2\n")
    assert champion.commit_candidate(root, "nov21", trial, "DEPTH = 2\n") == commit


@pytest.mark.parametrize(
    ("source", "changes"), [("DEPTH = 7\n", {}), ("DEPTH = 2\n", {"verdict": "discard"})]
)
def test_a_trial_ref_is_never_given_to_another_candidate(root, source, changes):
    parent = start(root)
    commit = champion.commit_candidate(root, "nov21", make_trial(parent), "DEPTH = 2\n")
    with pytest.raises(NightlyError, match="holds another commit"):
        champion.commit_candidate(root, "nov21", make_trial(parent, **changes), source)
    assert git(root, "rev-parse", "refs/trials/nov21/1") == commit


@pytest.mark.parametrize(
    "source", ["a\r\nb\r\n", "no newline", "", "\u00e9\U0001f600", "'\ud800'", "$Id$\n"]
)
def test_a_source_comes_back_byte_for_byte(root, source):
    (root / ".gitattributes").write_text("* text=auto eol=crlf ident\n")
    git(root, "config", "core.autocrlf", "true")
    commit = champion.commit_candidate(root, "nov21", make_trial(start(root)), source)
    assert champion.source_at(root, commit) == source


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.text(max_size=200)
    | st.just("a\n\nVerdict: keep\nTrial-Id: x:9")
    | st.sampled_from(["Verdict: keep", "", " \n"])
)
def test_no_summary_forges_a_trailer(root, text):
    number = int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16)
    trial = make_trial(
        git(root, "rev-parse", "HEAD"), number=number, summary=text, verdict="discard"
    )
    commit = champion.commit_candidate(root, "nov21", trial, "x\n")
    found = trailers(root, commit)
    assert (len(found), found["Verdict"], found["Trial-Id"]) == (5, "discard", f"nov21:{number}")
    subject = git(root, "log", "-1", "--format=%B", commit).splitlines()
    assert len(subject) == 7
    assert len(subject[0]) <= 72


def test_a_keep_moves_the_branch_once(root):
    old = start(root)
    new = champion.commit_candidate(root, "nov21", make_trial(old), "DEPTH = 2\n")
    champion.advance(root, "nov21", new, old)
    champion.advance(root, "nov21", new, old)
    assert champion.tip(root, "nov21") == new
    assert git(root, "rev-list", "--count", "main..autoresearch/nov21") == "2"


def test_a_branch_that_somebody_moved_is_left_alone(root):
    old = start(root)
    new = champion.commit_candidate(root, "nov21", make_trial(old), "DEPTH = 2\n")
    git(root, "update-ref", "refs/heads/autoresearch/nov21", "main")
    with pytest.raises(NightlyError, match="somebody moved it"):
        champion.advance(root, "nov21", new, old)
    assert champion.tip(root, "nov21") == git(root, "rev-parse", "main")


def test_a_branch_that_is_locked_is_reported_in_gits_words(root):
    old = start(root)
    new = champion.commit_candidate(root, "nov21", make_trial(old), "DEPTH = 2\n")
    (root / ".git" / "refs" / "heads" / "autoresearch" / "nov21.lock").touch()
    with pytest.raises(NightlyError, match=r"update-ref failed.*nov21\.lock"):
        champion.advance(root, "nov21", new, old)


def test_a_whole_night_leaves_a_dirty_checkout_as_it_was_and_runs_no_hook(root, tmp_path):
    marker = tmp_path / "hook-ran"
    for name in HOOKS:
        hook = root / ".git" / "hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {marker}\nexit 1\n")
        hook.chmod(0o755)
    for key, value in {
        "commit.gpgsign": "true",
        "gpg.program": "false",
        "core.splitIndex": "true",
    }.items():
        git(root, "config", key, value)
    (root / "trainer" / "train.py").write_text("DEPTH = 9\n")
    (root / "README.md").write_text("staged\n")
    git(root, "-c", f"core.hooksPath={os.devnull}", "add", "README.md")
    (root / "untracked").write_text("mine\n")
    before = users_state(root)

    champion.check_tag(root, "nov21")
    old = start(root)
    new = champion.commit_candidate(root, "nov21", make_trial(old), "DEPTH = 2\n")
    champion.advance(root, "nov21", new, old)

    assert users_state(root) == before
    assert not marker.exists()
    git(root, "-c", f"core.hooksPath={os.devnull}", "fsck", "--strict")


def test_a_git_dir_in_the_environment_does_not_lead_astray(root, tmp_path, monkeypatch):
    git(tmp_path, "init", "-q", "--bare", "elsewhere")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    first = start(root)
    monkeypatch.undo()
    assert git(root, "rev-parse", "autoresearch/nov21") == first
