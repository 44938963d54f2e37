"""What `./run replay` measures again: a commit with its seeds and the profile of its night."""

import argparse
import dataclasses
import os
import subprocess

import pytest

import configs
from flows.command_line import commands, recorded_score
from tasks.errors import UsageError
from tasks.history import champion
from tasks.history.ledger import Ledger
from tasks.noise import Noise
from tests.checkouts import AUTHOR
from tests.synthetic_night import make_run
from tests.trials import baseline_event, crash, keep, night_event

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
    (folder / "trainer" / "link.py").write_text("")
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        git(folder, *arguments)
    return folder


def git(folder, *arguments):
    subprocess.run(["git", *AUTHOR, *arguments], cwd=folder, check=True)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def start(root):
    head = champion.open_checkout(root).head
    return champion.start_branch(root, "nov21", head, "DEPTH = 4\n", "start")


@pytest.fixture
def commit(root, start):
    """A candidate of night nov21, measured with two seeds by a version that recorded no noise."""
    trial = keep(3, 1.6, seeds=(1, 2), scores=(1.5, 1.7), parent=start)
    return champion.commit_candidate(root, "nov21", trial, "DEPTH = 5\r\n")


def begin_night(home, *trials, commit=None, profile=STUB):
    header = night_event(profile=profile, settings=configs.load(profile), trials=3)
    with Ledger.create(home / "nights" / "nov21" / "ledger.jsonl") as book:
        book.append("night", **header)
        book.append("baseline", **baseline_event(facts={"metric": "1"}, start_commit="c0"))
        for trial in trials:
            book.append("decided", trial=dataclasses.asdict(trial))
            book.append("applied", trial=trial.number, commit=commit)


def test_the_profile_is_the_nights(root, home, commit):
    begin_night(home)
    found = recorded_score.find(root, home, commit, None)
    assert (found.source, found.seeds, found.val_bpb) == ("DEPTH = 5\r\n", (1, 2), 1.6)
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


def test_a_candidate_without_a_score_is_refused(root, home):
    trial = crash(4, seeds=(1,), parent=champion.open_checkout(root).head)
    commit = champion.commit_candidate(root, "nov21", trial, "DEPTH = 6\n")
    with pytest.raises(UsageError, match="no score to reproduce: its candidate was stopped"):
        recorded_score.find(root, home, commit, STUB)


def test_a_certified_change_is_refused_with_the_trial_to_replay(root, home):
    message = "certified\n\nTrial-Id: nov21:3\nGain: 0.0123\nZ: 3.1\n"
    git(root, "commit", "-q", "--allow-empty", "-m", message)
    with pytest.raises(UsageError, match=r"certified .*`./run replay refs/trials/nov21/3`"):
        recorded_score.find(root, home, "HEAD", STUB)


def test_a_commit_says_noise_and_hardware_itself(root, home, start):
    trial = keep(3, 1.6, noise_sd=0.0046, noise_df=8, hardware="ab12 a CPU", parent=start)
    commit = champion.commit_candidate(root, "nov21", trial, "DEPTH = 5\n")
    found = recorded_score.find(root, home, commit, STUB)
    assert (found.noise, found.hardware, found.notes) == (Noise(0.0046, 8), "ab12 a CPU", ())


def test_an_older_commit_takes_noise_and_hardware_from_the_ledger_and_says_so(root, home, commit):
    begin_night(home)
    found = recorded_score.find(root, home, commit, None)
    assert found.noise == Noise.pooled([(1.64, 1.65, 1.66)])
    assert found.hardware == "a CPU"
    assert [note.partition(", as")[0] for note in found.notes] == [
        "the commit has no trailer Noise",
        "the commit has no trailer Hardware",
    ]
    unknown = recorded_score.find(root, home / "elsewhere", commit, STUB)
    assert (unknown.noise, unknown.hardware) == (None, None)


def test_a_trailer_that_the_ledger_denies_is_named(root, home, start):
    trial = keep(1, 1.6, parent=start)
    commit = champion.commit_candidate(root, "nov21", trial, "DEPTH = 5\n")
    begin_night(home, trial, commit=commit)
    assert recorded_score.find(root, home, commit, None).contradictions == ()
    git(root, "checkout", "-q", commit)
    forged = champion.trailers_of("nov21", trial) | {"Val-Bpb": "1.400000", "Z": "9\x1b[2J"}
    lines = "\n".join(f"{name}: {value}" for name, value in forged.items())
    git(root, "commit", "-q", "--amend", "-m", f"better\n\n{lines}")
    found = recorded_score.find(root, home, "HEAD", None)
    assert found.contradictions == (
        "the commit says Val-Bpb: 1.400000, its night's ledger says 1.600000",
        "the commit says Z: 9 [2J, its night's ledger says 4.00",
    )
    assert found.notes[-1] == f"the ledger has trial 1 as commit {commit[:7]}: this is a copy"


def test_a_file_of_the_harness_that_changed_is_named(root, home, commit):
    assert recorded_score.find(root, home, commit, STUB).changed == ()
    (root / "trainer" / "link.py").write_text("# changed\n")
    assert recorded_score.find(root, home, commit, STUB).changed == ("trainer/link.py",)


def test_replay_reports_all_of_it_before_a_server_starts(root, home, commit, monkeypatch):
    monkeypatch.setattr("flows.state_home.ROOT", root)
    arguments = argparse.Namespace(commit=commit, profile=None, seeds=None)
    with pytest.raises(UsageError, match="--profile"):
        commands.replay(arguments, home)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_candidate_keeps_its_line_ends(tmp_path, ends):
    source = f"DEPTH = 3{ends}x = 1{ends}"
    (tmp_path / "train.py").write_bytes(source.encode())
    assert commands._read_candidate(tmp_path / "train.py") == source
