"""A night that certifies what it kept, killed at every step of that, and `./run certify` after it.

Real command line, boxes, judge, git, MLflow and Prefect server; train.py is the stub of
tests/faults. The night's trials are made once: what comes after them is run undisturbed, undone,
and run again with a `kill -9` at each step.
"""

import difflib
import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.faults import adds_up
from tests.faults.stub_checkout import PROFILE, StubCheckout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TAG, TRIALS = "certified", 2
BRANCH = f"refs/heads/autoresearch/{TAG}-certified"
LEDGER = "ledger.jsonl"
SETTINGS = """extends = "stub.toml"
description = "The stub, with more of its runs for a certification than a night has by default."

[night]
certify_share = 0.35
end_runs = 1

[verdict]
false_discovery_rate = 0.005
"""
PATCHES = {  # a third more training for the same budget; and the same in fewer statements
    "1-less": ("DEPTH = 3 ", "DEPTH = 2 "),
    "2-simpler": (
        "    mixed = (1 - FINAL_LR_FRAC) * pairs + FINAL_LR_FRAC / VOCAB_SIZE\n    cooled = mixed",
        "    cooled = pairs",
    ),
}
# Each step of a certification, of the recording of its result, and of the night's end. A milestone
# is counted from the start of the process.
PLACES = (
    *("trained:1", "fresh:1", "trained:2", "certified:1", "pointed:1"),
    *("trained:1", "fresh:2", "finished:1"),
)


def command(checkout: StubCheckout) -> tuple[str, ...]:
    profile = str(checkout.folder / "tests" / "profiles" / "certified.toml")
    replay = ("--proposer", "replay", "--patches", str(checkout.folder / "patches"))
    return ("night", "--profile", profile, "--tag", TAG, "--trials", str(TRIALS), *replay)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm, prefect_api, empty_store):
    folder = tmp_path_factory.mktemp("certified")
    folder.chmod(0o755)  # the uid of boxes must reach the dataset
    made = StubCheckout(folder, warm=warm, api=prefect_api, store=empty_store)
    (folder / Path(PROFILE).parent / "certified.toml").write_text(SETTINGS)
    (folder / "patches").mkdir()
    source = (folder / "trainer" / "train.py").read_text()
    for name, (old, new) in PATCHES.items():
        assert old in source
        before, source = source.splitlines(True), source.replace(old, new, 1)
        names = ("a/trainer/train.py", "b/trainer/train.py")
        patch = difflib.unified_diff(before, source.splitlines(True), *names)
        (folder / "patches" / f"{name}.diff").write_text("".join(patch))
    return made


@pytest.fixture(scope="module")
def before(checkout):
    return adds_up.UserTree.of(checkout)


@pytest.fixture(scope="module")
def trials(checkout, before):
    """The ledger of the night's trials, which dies in the first run of its certification."""
    done = checkout.run(*command(checkout), NIGHTLY_TEST_KILL_AT="trained:1")
    assert done.returncode == -9, done.stderr
    assert verdicts(checkout) == ["keep", "keep"]
    return (folder_of(checkout) / LEDGER).read_bytes()


@pytest.fixture(scope="module")
def undisturbed(checkout, trials):
    """What the night leaves where nothing disturbs it; afterwards it is undone."""
    done = checkout.run("resume", TAG)
    assert done.returncode == 0, done.stderr
    left = told(checkout)
    undo(checkout, trials)
    return left


def undo(checkout: StubCheckout, trials: bytes) -> None:
    """Leaves of the night nothing but its trials."""
    (folder_of(checkout) / LEDGER).write_bytes(trials)
    shutil.rmtree(folder_of(checkout) / "fresh")
    checkout.git("update-ref", "-d", BRANCH)


@pytest.fixture(scope="module")
def killed(checkout, undisturbed):
    """The same night, killed at each step."""
    for i, place in enumerate((*PLACES, "")):
        way = ("resume", TAG) if i % 2 or place == "" else command(checkout)
        done = checkout.run(*way, NIGHTLY_TEST_KILL_AT=place)
        assert done.returncode == (-9 if place else 0), f"{place}: {done.stderr}"
    return told(checkout)


def folder_of(checkout: StubCheckout) -> Path:
    return checkout.home / "nights" / TAG


def verdicts(checkout: StubCheckout) -> list[str]:
    return [e["trial"]["verdict"] for e in checkout.ledger(TAG) if e["event"] == "decided"]


def runs(checkout: StubCheckout) -> list[dict[str, object]]:
    """The fresh runs without what an audit's random questions or the clock may change."""
    names = ("purpose", "champion", "left_out", "seed", "status")
    events = [e["run"] for e in checkout.ledger(TAG) if e["event"] == "fresh"]
    return [{name: run[name] for name in names} for run in events]


def told(checkout: StubCheckout) -> dict[str, object]:
    certified = [
        claim["trials"]
        for event in checkout.ledger(TAG)
        if event["event"] == "certified"
        for claim in event["certification"]["claims"]
        if claim["certificate"] == "certified"
    ]
    tip = checkout.git("rev-parse", BRANCH).strip()
    return {"runs": runs(checkout), "certified": certified, "branch": tip}


def test_a_night_certifies_what_helps_and_ends_with_runs_of_each_file(undisturbed):
    assert undisturbed["certified"] == [[1]]
    ends = [run["left_out"] for run in undisturbed["runs"] if run["purpose"] == "end"]
    assert ends == [[1, 2], [], [2]]
    seeds = [run["seed"] for run in undisturbed["runs"]]
    assert seeds == list(range(seeds[0], seeds[0] + len(seeds)))


def test_a_certification_killed_at_every_step_is_that_of_an_undisturbed_night(killed, undisturbed):
    assert killed == undisturbed


def test_after_every_kill_the_night_adds_up(checkout, killed, before):
    assert adds_up.complaints(checkout, TAG, TRIALS, before) == []
    names = [event["event"] for event in checkout.ledger(TAG)]
    assert names.count("certified") == 1


def test_later_certifications_add_up_and_ctrl_c_ends_one_after_its_run(checkout, killed, trials):
    undo(checkout, trials)
    done = checkout.run("certify", TAG, "--runs", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["tag"], found["kept"], found["branch"]) == (TAG, 2, None)
    assert [claim["certificate"] for claim in found["claims"]] == ["open", "open"]
    assert len(runs(checkout)) == 1
    ctrl_c = {"NIGHTLY_TEST_KILL_AT": "trained:1", "NIGHTLY_TEST_SIGNAL": str(int(signal.SIGINT))}
    done = checkout.run("certify", TAG, **ctrl_c)
    assert done.returncode == 0, done.stderr
    assert "ends after this run" in done.stderr
    assert len(runs(checkout)) == 2
    assert "Certified: 0 of 2 kept changes" in done.stdout
    done = checkout.run("certify", TAG)
    assert done.returncode == 0, done.stderr
    assert "Certified: 1 of 2 kept changes" in done.stdout
    assert f"`git merge autoresearch/{TAG}-certified`" in done.stdout
    assert checkout.git("rev-parse", BRANCH).strip()
    assert checkout.ledger(TAG)[-1]["event"] == "certified"  # the night itself is not over
