"""Whole nights through the real command line: real Prefect server, data, boxes, git, MLflow, in a
checkout of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import mlflow
import pytest

from tests.checkouts import Checkout, our_pids

SMALL = "tests/profiles/small.toml"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return Checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def first(checkout):
    """A night of three trials by tpe, in a checkout with an uncommitted change."""
    (checkout.folder / "README.md").write_text("changed by its user\n")
    before = checkout.git("status", "--porcelain"), checkout.git("rev-parse", "HEAD")
    done = checkout.run("night", "--profile", SMALL, "--tag", "first", "--trials", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert (checkout.git("status", "--porcelain"), checkout.git("rev-parse", "HEAD")) == before
    return done


def test_stdout_is_one_object_with_every_trial(first):
    night = json.loads(first.stdout)
    assert list(night) == [
        "tag",
        "baseline",
        "champion",
        "trials",
        "certification",
        "fresh",
        "tournament",
    ]
    assert night["tag"] == "first"
    assert [trial["k"] for trial in night["trials"]] == [1, 2, 3]
    assert all(
        trial["verdict"] in ("keep", "discard") and trial["reason"] for trial in night["trials"]
    )
    assert 1.5 < night["baseline"] < 4.0


def test_every_candidate_is_a_commit_and_keeps_are_the_branch(checkout, first):
    night = json.loads(first.stdout)
    refs = checkout.git(
        "for-each-ref", "--format=%(refname) %(objectname)", "refs/trials/first"
    ).split()
    assert refs == [
        part for t in night["trials"] for part in (f"refs/trials/first/{t['k']}", t["commit"])
    ]
    kept = [t["commit"] for t in night["trials"] if t["verdict"] == "keep"]
    base = next(
        event["start_commit"] for event in checkout.ledger("first") if event["event"] == "baseline"
    )
    assert checkout.git("rev-list", "--reverse", f"{base}..autoresearch/first").split() == kept


def test_mlflow_has_a_parent_and_a_child_for_each_trial(checkout, first):
    client = mlflow.MlflowClient(f"sqlite:///{checkout.home}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "nightly-research/small"]
    runs = client.search_runs([experiment.experiment_id])
    ids = {run.data.tags.get("trial_id") for run in runs}
    assert {"first:1", "first:2", "first:3"} <= ids
    scored = [
        r for r in runs if r.data.tags.get("trial_id") == "first:1" and "val_bpb" in r.data.metrics
    ]
    assert (
        len(client.get_metric_history(scored[0].info.run_id, "train_loss")) > 5 if scored else True
    )


def test_the_report_and_its_companions_are_there(checkout, first):
    folder = checkout.home / "nights" / "first"
    assert "baseline" in (folder / "report.md").read_text().lower()
    assert (folder / "results.tsv").read_text().splitlines()[0].split("\t") == [
        "commit",
        "val_bpb",
        "memory_gb",
        "status",
        "description",
    ]
    assert (folder / "progress.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in (folder / "trials" / "1").iterdir()} >= {
        "train.py",
        "patch.diff",
        "run.log",
        "judge.log",
        "result.json",
    }


def test_no_score_decides_anything_unaudited(checkout, first):
    events = checkout.ledger("first")
    baseline = next(event for event in events if event["event"] == "baseline")
    assert [abs(gap) < 1e-5 for gap in baseline["audit_gaps"]] == [True] * 3
    assert baseline["audit_allowed"] == {"gap": 1e-4, "position": 1e-2}
    for trial in (event["trial"] for event in events if event["event"] == "decided"):
        runs = json.loads(
            (
                checkout.home / "nights" / "first" / "trials" / str(trial["number"]) / "result.json"
            ).read_text()
        )["runs"]
        # whoever got a second run might have been kept
        decisive = runs if trial["verdict"] == "keep" else runs[:-1]
        assert all(run["audit_gap"] is not None for run in decisive)


def test_a_tag_that_exists_is_refused_with_the_remedy(checkout, first):
    done = checkout.run("night", "--profile", SMALL, "--tag", "first")
    assert done.returncode == 2
    assert "resume first" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_whole_night_leaves_no_process_and_no_checkpoint(checkout, first):
    assert our_pids(checkout.home) == {}
    assert os.listdir(checkout.home / "boxes") == []


def interrupt(checkout, tag, how):
    """Starts a night, sends it a signal in the middle of its first run; returns its exit code and
    what it said."""
    argv = [
        sys.executable,
        "-m",
        "flows.command_line.cli",
        "night",
        "--profile",
        SMALL,
        "--tag",
        tag,
        "--trials",
        "2",
    ]
    place, environment = checkout.folder, checkout.environment()

    # it is ignored in what a script starts in the background, and by all that starts from there
    def heed_ctrl_c():
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        argv, cwd=place, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    ) as night:
        assert night.stderr is not None
        said = []
        for line in night.stderr:
            said.append(line)
            if "trial 1:" in line:
                time.sleep(2.0)  # somewhere in its run
                night.send_signal(how)
                if how != signal.SIGINT:
                    break
            if "ends after this trial" in line:  # Ctrl-C again is now
                night.send_signal(how)
                break
        said.append(night.stderr.read())
        return night.wait(timeout=60), "".join(said)


def test_a_second_night_prepares_nothing_again_and_survives_ctrl_c(checkout, first):
    code, said = interrupt(checkout, "second", signal.SIGINT)
    assert code == 130, said
    assert "Traceback" not in said
    assert all(f"{step}: cached" in said for step in ("shards", "tokenizer", "rows", "baseline"))
    assert our_pids(checkout.home) == {}
    _, baseline, *_ = checkout.ledger("second")
    assert list(baseline["earlier_repeats"]) == ["first"]
    repeats = baseline["earlier_repeats"]["first"]
    assert set(baseline["scores"]) <= {score for group in repeats for score in group}
    assert [e["event"] for e in checkout.ledger("second")] == [
        "night",
        "baseline",
        "started",
        "stopped",
    ]

    done = checkout.run("resume", "second")
    assert done.returncode == 0, done.stderr
    assert [e["trial"] for e in checkout.ledger("second") if e["event"] == "applied"] == [1, 2]
    assert len(checkout.git("for-each-ref", "refs/trials/second").splitlines()) == 2


def test_after_kill_9_neither_box_nor_server_is_left(checkout, first):
    code, said = interrupt(checkout, "killed", signal.SIGKILL)
    assert code == -signal.SIGKILL, said
    for _ in range(200):
        if not our_pids(checkout.home):
            break
        time.sleep(0.1)
    assert our_pids(checkout.home) == {}
    assert [e["event"] for e in checkout.ledger("killed")] == ["night", "baseline", "started"]


FIELDS = [
    *(
        "status",
        "reason",
        "val_bpb",
        "claimed_bpb",
        "audit_gap",
        "seconds",
        "cpu_seconds",
        "tokens",
        "startup_seconds",
    ),
    *("isolation", "metric_version", "profile", "seed"),
]


def test_trial_prints_one_object_for_a_champion(checkout, first):
    (checkout.folder / "champion.py").write_text(
        checkout.git("show", "autoresearch/first:trainer/train.py")
    )
    done = checkout.run("trial", "champion.py", "--profile", SMALL, "--json", "--seed", "1")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert list(run) == FIELDS
    assert run["val_bpb"] == pytest.approx(json.loads(first.stdout)["champion"], abs=0.1)


def test_trial_of_a_crashing_file_exits_3_with_its_status(checkout, first):
    # its VOCAB_SIZE is the laptop's
    done = checkout.run("trial", "trainer/train.py", "--profile", SMALL, "--no-baseline", "--json")
    assert done.returncode == 3
    run = json.loads(done.stdout)
    assert list(run) == FIELDS
    assert (run["status"], run["val_bpb"]) == ("startup_crashed", None)
    assert "VOCAB_SIZE = 2048 is not prepared" in run["reason"]


def champion_with(checkout, old: str, new: str, file: str) -> None:
    """Writes the night's champion with one change into a file of the checkout."""
    source = checkout.git("show", "autoresearch/first:trainer/train.py")
    assert source.count(old) == 1
    (checkout.folder / file).write_text(source.replace(old, new))


def test_trial_of_a_file_that_under_reports_its_flops_says_both_numbers(checkout, first):
    honest = "flops_per_token=model.flops_per_token()"
    champion_with(checkout, honest, f"{honest} / 1.2", "cheap.py")
    done = checkout.run("trial", "cheap.py", "--profile", SMALL, "--no-baseline", "--json")
    assert done.returncode == 3, done.stderr
    run = json.loads(done.stdout)
    assert run["status"] == "dishonest_flops"
    said, counted = map(float, re.findall(r"[\d.]+e\+\d+", run["reason"]))
    assert counted == pytest.approx(1.2 * said, rel=0.01)


def test_trial_has_the_limits_of_a_night_unless_they_are_turned_off(checkout, first):
    """The candidate takes many times the CPU time of its FLOPs; the baseline is the night's."""
    loop = "    while (done := budget.progress(tokens)) < 1.0:\n"
    champion_with(checkout, loop, f"{loop}        sum(range(5_000_000))\n", "dear.py")
    done = checkout.run("trial", "dear.py", "--profile", SMALL, "--json")
    assert done.returncode == 3, done.stderr
    run = json.loads(done.stdout)
    assert run["status"] == "train_timeout"
    assert "CPU-seconds while training, the limit" in run["reason"]
    assert "baseline: cached" in done.stderr
    done = checkout.run("trial", "dear.py", "--profile", SMALL, "--no-baseline", "--json")
    assert json.loads(done.stdout)["status"] == "ok"
    assert "--no-baseline: the limits that follow from the baseline are off" in done.stderr
