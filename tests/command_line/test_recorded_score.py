"""What `./run replay` measures again: a commit with its seeds and the profile of its night."""

import argparse
import os
import subprocess

import pytest

import configs
from flows.command_line import commands, recorded_score
from tasks.errors import UsageError
from tasks.history import champion
from tasks.history.ledger import Ledger
from tests.synthetic_night import make_run
from tests.trials import baseline_event, keep, night_event

STUB = "tests/profiles/stub.toml"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with one commit."""
    for key in [key for key in os.environ if key.startswith("GIT_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    folder = tmp_path / "checkout"
    (folder / "trainer").mkdir(parents=True)
    (folder / "trainer" / "train.py").write_text("DEPTH = 3\n")
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for arguments in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "start"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def commit(root):
    """A candidate of night nov21, measured with two seeds."""
    start = champion.start_branch(
        root, "nov21", champion.open_checkout(root).head, "DEPTH = 4\n", "start"
    )
    trial = keep(3, 1.6, seeds=(1, 2), scores=(1.5, 1.7), parent=start)
    return champion.commit_candidate(root, "nov21", trial, "DEPTH = 5\r\n")


def begin_night(home, profile=STUB):
    header = night_event(profile=profile, settings=configs.load(profile), trials=3)
    with Ledger.create(home / "nights" / "nov21" / "ledger.jsonl") as book:
        book.append("night", **header)
        book.append("baseline", **baseline_event(facts={"metric": "1"}, start_commit="c0"))


def test_the_profile_is_the_nights(root, home, commit):
    begin_night(home)
    found = recorded_score.find(root, home, commit, None)
    assert (found.source, found.seeds, found.val_bpb) == ("DEPTH = 5\r\n", (1, 2), "1.600000")
    assert found.profile == configs.load(STUB)


@pytest.mark.parametrize(
    ("line", "other", "difference"),
    [
        ("amount = 1.2e8", "amount = 2.4e8", "budget"),
        ("validation_documents = 4", "validation_documents = 5", "data"),
        ('device = "cpu"', 'device = "cpu"\nthreads = 2', "threads"),
    ],
)
def test_a_profile_whose_scores_are_not_comparable_is_refused(
    root, home, commit, tmp_path, line, other, difference
):
    begin_night(home)
    text = (configs.FOLDER.parent / STUB).read_text()
    assert line in text
    (tmp_path / "other.toml").write_text(text.replace(line, other))
    with pytest.raises(UsageError, match=rf"differs from .* night nov21 in {difference}, and"):
        recorded_score.find(root, home, commit, str(tmp_path / "other.toml"))


def test_a_score_of_another_metric_version_is_refused(root, home, commit):
    begin_night(home)
    found = recorded_score.find(root, home, commit, None)
    found.check_metric(make_run(metric_version=1))
    with pytest.raises(UsageError, match="metric version 1, this checkout scores with version 2"):
        found.check_metric(make_run(metric_version=2))


def test_a_profile_with_other_limits_is_used(root, home, commit, tmp_path):
    begin_night(home)
    text = (configs.FOLDER.parent / STUB).read_text().replace("memory_gib = 1", "memory_gib = 2")
    (tmp_path / "roomy.toml").write_text(text)
    found = recorded_score.find(root, home, commit, str(tmp_path / "roomy.toml"))
    assert found.profile.limits.memory_gib == 2


def test_an_unknown_night_needs_a_profile(root, home, commit):
    with pytest.raises(UsageError, match=r"night nov21, which is not in .*--profile"):
        recorded_score.find(root, home, commit, None)
    assert recorded_score.find(root, home, commit, STUB).profile.name == "stub"


def test_a_commit_that_was_never_measured_is_refused(root, home):
    with pytest.raises(UsageError, match="no 'Seeds:' trailer"):
        recorded_score.find(root, home, "HEAD", STUB)


def test_an_unknown_commit_is_refused(root, home):
    with pytest.raises(UsageError, match="no commit 'nothing'"):
        recorded_score.find(root, home, "nothing", STUB)


def test_replay_reports_all_of_it_before_a_server_starts(root, home, commit, monkeypatch):
    monkeypatch.setattr("flows.state_home.ROOT", root)
    arguments = argparse.Namespace(commit=commit, profile=None, allow_unsandboxed=False)
    with pytest.raises(UsageError, match="--profile"):
        commands.replay(arguments, home)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_candidate_keeps_its_line_ends(tmp_path, ends):
    source = f"DEPTH = 3{ends}x = 1{ends}"
    (tmp_path / "train.py").write_bytes(source.encode())
    assert commands._read_candidate(tmp_path / "train.py") == source
