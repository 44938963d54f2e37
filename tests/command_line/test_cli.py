"""Bad input: one clear line, a non-zero exit code, no traceback, nothing half-written."""

import copy
import dataclasses
import importlib.metadata
import json
import shutil
import subprocess
import urllib.request
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.command_line import cli, commands, server
from tasks.history.ledger import Ledger
from tests.checkouts import Checkout
from tests.trials import COMMIT, baseline_event, keep, night_event

SMALL = "tests/profiles/small.toml"
pytestmark = pytest.mark.slow  # a process for each command, one Prefect server for all


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, prefect_api, warm):
    return Checkout(tmp_path_factory.mktemp("checkout"), api=prefect_api, warm=warm)


@pytest.fixture
def corpus(checkout, tmp_path):
    """A copy of the embedded corpus, and a profile for it, both for a test to change."""
    shutil.copytree(checkout.folder / "configs" / "corpus", tmp_path / "corpus")
    text = (
        (checkout.folder / SMALL)
        .read_text()
        .replace('source = "corpus"', f'source = "{tmp_path / "corpus"}"')
    )
    (tmp_path / "mine.toml").write_text(text)
    return tmp_path


def refused(checkout, *arguments, code=2, **environment):
    """Runs a command that must fail; returns its message."""
    before = checkout.git("for-each-ref"), checkout.git("status", "--porcelain")
    done = checkout.run(*arguments, **environment)
    assert done.returncode == code, done.stderr
    said = done.stderr.partition("\nIts log ends:\n")[0]  # what follows is a candidate's
    assert "Traceback" not in said, done.stderr
    assert done.stdout == ""
    assert (checkout.git("for-each-ref"), checkout.git("status", "--porcelain")) == before
    # what failed while it was prepared is on record, and its name is free
    for night in (checkout.home / "nights").glob("*"):
        assert code != 2
        assert [event["event"] for event in checkout.ledger(night.name)] == ["night", "stopped"]
    message = said.strip().splitlines()[-1]
    assert message.startswith(("nightly-research:", "./run"))
    return message


def test_help_answers_without_prefect(checkout):
    done = checkout.run("--help")
    assert done.returncode == 0
    assert "night" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["night", "--trials", "0"],
        *(["night", f"--hours={hours}"] for hours in ("-1", "nan", "inf", "1e999")),
        ["resume", "nov1", "--hours", "inf"],
        ["night", "--proposer", "oracle"],
        ["nothing"],
        [],
    ],
)
def test_usage_errors_exit_2(checkout, arguments):
    assert "error" in refused(checkout, *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trials", "0"], "argument --trials: '0': should be a whole number, 1 or more"),
        (["--trials", "1.5"], "argument --trials: '1.5': should be a whole number, 1 or more"),
        (["--hours", "0"], "argument --hours: '0': should be a number above 0, such as 8 or 0.5"),
        (["--hours", "x"], "argument --hours: 'x': should be a number above 0, such as 8 or 0.5"),
    ],
)
def test_a_limit_that_is_refused_says_what_is_allowed(checkout, arguments, said):
    assert said in refused(checkout, "night", *arguments)


def test_prefect_gets_all_arguments_after_its_name(checkout):
    version = checkout.run("prefect", "--version")
    assert (version.returncode, version.stdout.strip()) == (
        0,
        importlib.metadata.version("prefect"),
    )
    assert "work-pool" in checkout.run("prefect", "--help").stdout


def test_every_argument_of_every_command_has_help():
    parser: Any = cli.parser()
    (commands,) = parser._subparsers._group_actions
    for name, command in commands.choices.items():
        assert [action.dest for action in command._actions if not action.help] == [], name
        positional = [action for action in command._actions if not action.option_strings]
        assert [
            action.dest for action in positional if not (action.metavar or "").isupper()
        ] == [], name


@pytest.mark.parametrize(
    "command", [["prepare"], ["night"], ["doctor"], ["trial", "trainer/train.py"]]
)
def test_an_unknown_profile_lists_the_known_ones(checkout, command):
    assert "laptop" in refused(checkout, *command, "--profile", "laptob")


def test_an_unknown_key_in_a_profile_is_named(checkout, corpus):
    (corpus / "mine.toml").write_text((corpus / "mine.toml").read_text() + "\n[nights]\n")
    assert "nights" in refused(checkout, "prepare", "--profile", str(corpus / "mine.toml"))


def test_an_unknown_night_lists_the_known_ones(checkout):
    for command, *rest in (
        ["status"],
        ["stop"],
        ["report"],
        ["resume"],
        ["compare", "nov2"],
        ["show", "1"],
    ):
        assert "no night 'nov1'" in refused(checkout, command, "nov1", *rest)


@pytest.mark.parametrize("tags", [["nov1"], ["nov1", "nov1"]])
def test_a_comparison_needs_two_nights(checkout, tags):
    assert "two nights or more, not only nov1" in refused(checkout, "compare", *tags)


@pytest.fixture
def nights(checkout, tmp_path):
    """Runs a command beside two nights whose text not every terminal can show."""
    for tag, hardware in (("nov1", "a CPU"), ("nov2", "a GPU")):
        with Ledger.create(tmp_path / "nights" / tag / "ledger.jsonl") as book:
            book.append("night", **night_event(tag=tag, trials=1))
            book.append("baseline", **baseline_event(hardware=hardware, start_commit=COMMIT))
            book.append("decided", trial=dataclasses.asdict(keep(1, summary="\u03bb and \ud800")))

    def run(*arguments, is_warm=True, **environment):
        """With `is_warm=False` in a new Python: a fork's output has its encoding already."""
        where = checkout if is_warm else cold
        return where.run(*arguments, NIGHTLY_HOME=str(tmp_path), **environment)

    cold = copy.copy(checkout)
    cold.warm = None
    return run


def test_nights_are_compared_as_a_table_and_as_an_object(nights):
    shown = nights("compare", "nov1", "nov2")
    assert (shown.returncode, shown.stdout.split()[:3]) == (0, ["night", "nov1", "nov2"]), (
        shown.stderr
    )
    told = json.loads(nights("compare", "nov1", "nov2", "--json").stdout)
    assert [night["tag"] for night in told["nights"]] == ["nov1", "nov2"]
    assert told["not_comparable"] == [
        line for line in shown.stdout.splitlines() if line.startswith("Not comparable:")
    ]
    assert "Not comparable: different hardware: nov1: a CPU; nov2: a GPU" in told["not_comparable"]


def test_a_trial_is_shown_as_text_and_as_an_object_on_any_terminal(nights):
    assert (
        json.loads(nights("show", "nov1", "1", "--json").stdout)["summary"] == "\u03bb and \ud800"
    )
    assert (
        "trial 1 of night nov1: \u03bb and\n"
        in nights("show", "nov1", "1", is_warm=False, PYTHONIOENCODING="utf-8").stdout
    )
    shown = nights("show", "nov1", "1", is_warm=False, PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "trial 1 of night nov1: \\u03bb and\n" in shown.stdout


@pytest.mark.parametrize(
    ("number", "said"),
    [("2", "its trials are 0 (the baseline) to 1"), ("-1", "no trial -1"), ("x", "invalid int")],
)
def test_an_unknown_trial(nights, number, said):
    done = nights("show", "nov1", number)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_candidate(checkout):
    assert "No such file" in refused(checkout, "trial", "nothing.py")


def test_a_candidate_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "x.py").write_bytes(b"\xef\xbb\xbfDEPTH = 1\r\n")
    assert commands._read_candidate(tmp_path / "x.py") == "DEPTH = 1\r\n"


def test_a_worker_needs_a_server(checkout):
    assert "./run server" in refused(checkout, "worker", "local", PREFECT_API_URL="")


@pytest.mark.parametrize(
    "command", [["prepare"], ["deploy"], ["worker", "local"], ["schedule", "on"]]
)
def test_a_prefect_server_that_does_not_answer(checkout, command):
    dead = f"http://127.0.0.1:{server.free_port()}/api"
    assert dead in refused(checkout, *command, PREFECT_API_URL=dead)


def test_a_state_folder_that_cannot_be_made(checkout):
    assert "NIGHTLY_HOME" in refused(checkout, "status", "x", NIGHTLY_HOME="/proc/nothing")


@pytest.mark.parametrize("tag", ["a b", "-x"])
def test_a_tag_that_cannot_be_a_branch_name(checkout, tag):
    assert "cannot name a branch" in refused(checkout, "night", "--profile", SMALL, f"--tag={tag}")


def flow_runs(checkout) -> int:
    with urllib.request.urlopen(
        urllib.request.Request(
            f"{checkout.api}/flow_runs/count", b"{}", {"Content-Type": "application/json"}
        )
    ) as answer:
        return int(json.load(answer))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["night", "--proposer", "llm"], "model"),
        (["night", "--model", "m1"], "--model m1 is for the proposers"),
        (["night", "--proposer", "replay", "--patches", "nothing"], "no folder of patches"),
        (["night", "--profile", "mps"], "needs an Apple GPU"),
        (["trial", "trainer/train.py", "--profile", "mps"], "needs an Apple GPU"),
    ],
)
def test_a_usage_error_makes_no_flow_run(checkout, arguments, said):
    before = flow_runs(checkout)
    assert said in refused(checkout, *arguments)
    assert flow_runs(checkout) == before


def test_the_status_of_all_nights_is_a_table_or_an_object(nights):
    shown = nights("status")
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["night", "nov1", "nov2"]
    told = json.loads(nights("status", "--json").stdout)
    assert ([night["tag"] for night in told["nights"]], told["damaged"]) == (["nov1", "nov2"], {})


def test_the_status_of_no_night_says_how_to_start_one(checkout, tmp_path):
    done = checkout.run("status", NIGHTLY_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "")
    assert "`./run night` starts one" in done.stderr


def test_a_folder_without_git(tmp_path, prefect_api, warm):
    bare = Checkout(tmp_path, api=prefect_api, warm=warm)
    shutil.rmtree(tmp_path / ".git")
    done = bare.run("night", "--profile", SMALL)
    assert done.returncode == 2
    assert "not a git checkout" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_knob_that_train_py_does_not_have(checkout, corpus):
    path = corpus / "mine.toml"
    path.write_text(path.read_text().replace("[train]", "[train]\nDEPHT = 3"))
    assert "DEPHT" in refused(checkout, "night", "--profile", str(path))


def test_a_corrupt_corpus_file_is_named(checkout, corpus):
    shard = corpus / "corpus" / "train_00000.parquet"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    assert "train_00000.parquet" in refused(
        checkout, "night", "--profile", str(corpus / "mine.toml"), code=1
    )


def _without_checksums(path):
    path.write_text(path.read_text().replace('checksums = "SHA256SUMS"\n', ""))
    return str(path)


def test_a_parquet_without_text_names_its_columns(checkout, corpus):
    pq.write_table(pa.table({"content": ["a"]}), corpus / "corpus" / "train_00000.parquet")
    message = refused(
        checkout, "night", "--profile", _without_checksums(corpus / "mine.toml"), code=1
    )
    assert "no column `text`" in message
    assert "content" in message


def test_training_on_the_validation_shard_is_refused(checkout, corpus):
    shutil.copy(corpus / "corpus" / "val_00000.parquet", corpus / "corpus" / "train_00000.parquet")
    message = refused(
        checkout, "night", "--profile", _without_checksums(corpus / "mine.toml"), code=1
    )
    assert "share content" in message


def test_a_crashed_baseline_starts_no_night(tmp_path, prefect_api, warm):
    checkout = Checkout(tmp_path, api=prefect_api, warm=warm)
    train = tmp_path / "trainer" / "train.py"
    train.write_text(
        train.read_text().replace(
            "def main() -> None:", "def main() -> None:\n    raise RuntimeError('broken')"
        )
    )
    message = refused(checkout, "night", "--profile", SMALL, code=3)
    assert "startup_crashed" in message
    assert "broken" in message
    (tag,) = (night.name for night in (checkout.home / "nights").iterdir())
    night = json.loads(checkout.run("status", tag, "--json").stdout)
    assert (night["state"], night["last_error"] in message) == ("failed", True)
    checkout.git("checkout", "-q", "HEAD", "--", "trainer/train.py")
    done = checkout.run("night", "--profile", SMALL, "--trials", "1", "--json")
    assert json.loads(done.stdout)["tag"] == tag


def test_a_detached_dirty_checkout_works_and_is_logged(tmp_path, prefect_api, warm):
    checkout = Checkout(tmp_path, api=prefect_api, warm=warm)
    checkout.git("checkout", "-q", "--detach")
    train = tmp_path / "trainer" / "train.py"
    train.write_text(train.read_text() + "# mine\n")
    before = checkout.git("status", "--porcelain"), checkout.git("rev-parse", "HEAD")
    done = checkout.run("night", "--profile", SMALL, "--tag", "d", "--trials", "1")
    assert done.returncode == 0, done.stderr
    assert "a detached HEAD" in done.stderr
    assert "uncommitted trainer/train.py" in done.stderr
    assert (checkout.git("status", "--porcelain"), checkout.git("rev-parse", "HEAD")) == before
    assert "# mine" in checkout.git("show", "autoresearch/d:trainer/train.py")


def test_a_full_disk_is_reported_and_leaves_nothing_half_written(checkout, tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "full", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can make a full disk")
    try:
        done = checkout.run(
            "prepare",
            "--profile",
            "laptop",
            NIGHTLY_HOME=str(tmp_path / "home"),
            PREFECT_HOME=str(checkout.home),
        )
        assert done.returncode == 1
        assert "No space left" in done.stderr
        assert "Traceback" not in done.stderr
        assert not [path for path in tmp_path.rglob("*.part*") if path.name.startswith(".")]
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
