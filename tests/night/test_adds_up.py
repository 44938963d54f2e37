"""The check of a finished night: no complaint about a good one, one about each damage."""

import contextlib
import copy
import json
import os
import shutil
import subprocess
from pathlib import Path

import mlflow
import pytest

from tests.faults import adds_up
from tests.faults.stub_checkout import PROFILE, StubCheckout

pytestmark = pytest.mark.slow
TRIALS = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory, warm, prefect_api, empty_store):
    """A checkout with a finished stub night, and what its user's tree was before.

    Its second trial is a placebo.
    """
    checkout = StubCheckout(
        tmp_path_factory.mktemp("checkout"), warm=warm, api=prefect_api, store=empty_store
    )
    profile = (checkout.folder / PROFILE).read_text()
    half = checkout.folder / "half.toml"
    half.write_text(profile.replace("[night]\n", "[night]\nplacebo_share = 0.5\n"))
    before = adds_up.UserTree.of(checkout)
    done = checkout.run("night", "--profile", str(half), "--tag", "a", "--trials", str(TRIALS))
    assert done.returncode == 0, done.stderr
    return checkout, before


def not_needed(folder, names):
    return {"prefect", "data"} if Path(folder).name == ".nightly" else ()


@pytest.fixture
def night(finished, tmp_path):
    """A copy of the finished night, to be damaged.

    Its artifacts are still the original's: MLflow knows them by their path.
    """
    original, before = finished
    shutil.copytree(original.folder, tmp_path / "copy", ignore=not_needed, symlinks=True)
    damaged = copy.copy(original)
    damaged.folder = tmp_path / "copy"
    damaged.home = damaged.folder / ".nightly"
    return damaged, before


def complaints(night):
    return adds_up.complaints(night[0], "a", TRIALS, night[1])


def test_a_good_night_adds_up(finished):
    assert complaints(finished) == []


def test_so_does_a_copy_that_is_not_damaged(night):
    assert complaints(night) == []


def test_it_has_a_keep_and_a_discard_to_be_right_about(finished):
    verdicts = {trial["verdict"] for trial in adds_up.decided(finished[0].ledger("a")).values()}
    assert "keep" in verdicts


def test_its_placebo_was_the_champion_with_new_seeds_and_is_told_apart_everywhere(finished):
    checkout, _ = finished
    kept, placebo, last = adds_up.decided(checkout.ledger("a")).values()
    assert (kept["verdict"], kept["placebo"], last["placebo"]) == ("keep", None, None)
    assert (placebo["placebo"], placebo["verdict"]) == ("discard", "discard")
    assert placebo["digest"] == kept["digest"]
    # The champion was chosen by its scores: it was run afresh.
    assert len(placebo["champion_scores"]) >= 3
    assert not {*placebo["seeds"]} & {*kept["seeds"], *placebo["champion_seeds"]}
    trailer = "--format=%(trailers:key=Verdict,valueonly)"
    assert checkout.git("log", "-1", trailer, "refs/trials/a/2").strip() == "placebo"
    folder = checkout.home / "nights" / "a"
    assert (folder / "results.tsv").read_text().splitlines()[3].split("\t")[3] == "placebo"
    assert (
        "3 trials: 1 kept, 1 discarded, 0 stopped, 1 placebo" in (folder / "report.md").read_text()
    )


def test_another_number_of_trials_was_planned(finished):
    assert adds_up.complaints(finished[0], "a", TRIALS + 1, finished[1]) != []


def rewrite(checkout, change):
    """The ledger with its list of events changed in place."""
    events = checkout.ledger("a")
    change(events)
    (checkout.home / "nights" / "a" / "ledger.jsonl").write_text(
        "".join(json.dumps(event) + "\n" for event in events)
    )


def index(events, name, nth=0):
    return [i for i, event in enumerate(events) if event["event"] == name][nth]


LEDGER = {
    "a trial is decided twice": lambda events: events.insert(
        index(events, "applied"), events[index(events, "decided")]
    ),
    "a trial is applied twice": lambda events: events.insert(
        index(events, "applied"), events[index(events, "applied")]
    ),
    "a trial is not applied": lambda events: events.pop(index(events, "applied", -1)),
    "a trial was not started": lambda events: events.pop(index(events, "started", -1)),
    "a trial is missing": lambda events: events.__delitem__(
        slice(index(events, "started", 1), index(events, "applied", 1) + 1)
    ),
    "two baselines": lambda events: events.insert(1, events[index(events, "baseline")]),
    "no end": lambda events: events.pop(index(events, "finished")),
    "a trial started on another parent": lambda events: events[index(events, "started", -1)].update(
        parent="0" * 40
    ),
    "another commit": lambda events: events[index(events, "applied", -1)].update(
        commit=events[1]["start_commit"]
    ),
}


@pytest.mark.parametrize("change", LEDGER.values(), ids=LEDGER)
def test_a_damaged_ledger_is_complained_about(night, change):
    rewrite(night[0], change)
    assert complaints(night) != []


GIT = {
    "a trial's ref is gone": [("update-ref", "-d", "refs/trials/a/2")],
    "a trial's ref is at another commit": [("update-ref", "refs/trials/a/2", "refs/trials/a/1")],
    "a ref too many": [("update-ref", "refs/trials/a/9", "refs/trials/a/1")],
    "the branch is at its start": [("update-ref", "refs/heads/autoresearch/a", "refs/trials/a/1^")],
    "the branch is gone": [("update-ref", "-d", "refs/heads/autoresearch/a")],
}


@pytest.mark.parametrize("commands", GIT.values(), ids=GIT)
def test_damaged_refs_are_complained_about(night, commands):
    for command in commands:
        night[0].git(*command)
    assert any(complaint.startswith("git: ") for complaint in complaints(night))


def test_a_lock_file_of_git_is_complained_about(night):
    (night[0].folder / ".git" / "refs" / "heads" / "autoresearch" / "a.lock").touch()
    assert any("lock files" in complaint for complaint in complaints(night))


TABLE = {
    "a row is gone": lambda rows: rows[:-1],
    "a row is there twice": lambda rows: [*rows, rows[-1]],
    "rows in another order": lambda rows: [*rows[:-2], rows[-1], rows[-2]],
}


@pytest.mark.parametrize("change", TABLE.values(), ids=TABLE)
def test_a_damaged_table_is_complained_about(night, change):
    table = night[0].home / "nights" / "a" / "results.tsv"
    table.write_text("".join(change(table.read_text().splitlines(keepends=True))))
    assert any(complaint.startswith("results.tsv: ") for complaint in complaints(night))


FILES = ("report.md", "progress.png", "results.tsv", "trials/2/train.py", "trials/2/result.json")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_is_complained_about(night, name):
    (night[0].home / "nights" / "a" / name).unlink()
    assert any(complaint.startswith("files: ") for complaint in complaints(night))


def test_a_result_of_another_trial_is_complained_about(night):
    trials = night[0].home / "nights" / "a" / "trials"
    shutil.copy(trials / "1" / "result.json", trials / "2" / "result.json")
    assert any("another trial" in complaint for complaint in complaints(night))


def test_a_half_written_file_is_complained_about(night):
    (night[0].home / "nights" / "a" / ".report.md.part").touch()
    assert any("half-written" in complaint for complaint in complaints(night))


def test_a_folder_of_a_killed_run_is_complained_about(night):
    (night[0].home / "boxes" / "host-1-1-x").mkdir()
    assert any("left in boxes/" in complaint for complaint in complaints(night))


def delete(client, run):
    client.delete_run(run.info.run_id)


def double(client, run):
    client.create_run(run.info.experiment_id, tags=run.data.tags)


def reopen(client, run):
    client.update_run(run.info.run_id, status="RUNNING")


def rescore(client, run):
    client.log_metric(
        run.info.run_id, "val_bpb" if "trial_id" in run.data.tags else "trials", 99.0, step=1000
    )


@pytest.mark.parametrize("harm", [delete, double, reopen, rescore])
@pytest.mark.parametrize(
    "tag", [("trial_id", "a:2"), ("night", "a")], ids=["a child", "the parent"]
)
def test_a_damaged_run_in_mlflow_is_complained_about(night, harm, tag):
    client = mlflow.MlflowClient(f"sqlite:///{night[0].home}/mlflow.db")
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = [run for run in client.search_runs(everywhere) if run.data.tags.get(tag[0]) == tag[1]]
    harm(client, run)
    assert any(complaint.startswith("MLflow: ") for complaint in complaints(night))


def test_a_process_that_is_left_is_complained_about_unless_it_stands(night):
    environment = {**os.environ, "NIGHTLY_HOME": str(night[0].home)}
    with subprocess.Popen(["sleep", "600"], env=environment) as left:
        try:
            found = complaints(night)
            assert [f"process {left.pid}" in complaint for complaint in found] == [True], found
            assert adds_up.complaints(night[0], "a", TRIALS, night[1], frozenset({left.pid})) == []
        finally:
            with contextlib.suppress(ProcessLookupError):
                left.kill()


def edit(checkout):
    (checkout.folder / "README.md").write_text("edited\n")


def stage(checkout):
    checkout.git("rm", "-q", "--cached", "README.md")


def move_head(checkout):
    checkout.git("checkout", "-q", "-b", "elsewhere")


@pytest.mark.parametrize("harm", [edit, stage, move_head])
def test_a_touched_tree_of_the_user_is_complained_about(night, harm):
    harm(night[0])
    assert any(complaint.startswith("user's tree: ") for complaint in complaints(night))
