"""Nights with `[limits] start_ahead`: the next run waits while a trial trains, is used if nothing
changes, thrown away after a keep, and ended with the night.

Real command line, boxes, judge and git; the model is a script on loopback, train.py the stub. The
first trial's training ends only once the next run waits.
"""

import json
import signal

import pytest

from tests.boxes import live_boxes
from tests.faults import adds_up
from tests.faults.llm_server import FAKE_KEY, LlmServer, ok
from tests.faults.scripted_model import CONTINUATIONS, harmless
from tests.faults.stub_checkout import PROFILE, StubCheckout
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm, prefect_api, empty_store):
    folder = tmp_path_factory.mktemp("ahead") / "checkout"
    folder.mkdir()
    made = StubCheckout(folder, warm=warm, api=prefect_api, store=empty_store)
    profile = (folder / PROFILE).read_text()
    (folder / "ahead.toml").write_text(
        profile.replace("[limits]\n", "[limits]\nstart_ahead = true\n")
    )
    flags = ("--profile", str(folder / "ahead.toml"), "--tag", "first", "--trials", "1")
    done = made.run("night", *flags)  # the baseline is measured once for all
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def night(checkout):
    """Runs a night; what it did. Nothing of it may be left."""

    def run(tag, answers=None, command=(), trials=2, **changes):
        proposer = "tpe" if answers is None else "llm"
        profile = str(checkout.folder / "ahead.toml")
        flags = ("--profile", profile, "--tag", tag, "--trials", str(trials))
        argv = command or ("night", *flags, "--proposer", proposer)
        with LlmServer([ok("ready"), *map(ok, answers or ())]) as model:
            key = {"OPENAI_BASE_URL": model.url, "OPENAI_API_KEY": FAKE_KEY}
            done = checkout.run(*argv, **key, **changes)
        wait_for(lambda: live_boxes(checkout.home) == set(), "the end of all boxes")
        return done

    return run


@pytest.fixture(scope="module")
def before(checkout):
    return adds_up.UserTree.of(checkout)


def first_runs(checkout, tag):
    """(summary, verdict, status, whether it was started ahead) of each trial's first run."""
    found = []
    for event in checkout.ledger(tag):
        if event["event"] == "decided":
            trial = event["trial"]
            path = checkout.home / "nights" / tag / "trials" / str(trial["number"]) / "result.json"
            run = json.loads(path.read_text())["runs"][0]
            found.append(
                (trial["idea"]["summary"], trial["verdict"], run["status"], run["started_early"])
            )
    return found


def test_a_discard_leaves_the_waiting_run_to_its_trial(checkout, before, night):
    done = night("used", [harmless(1), harmless(2)], NIGHTLY_TEST_HOLD="waiting")
    assert done.returncode == 0, done.stderr
    assert first_runs(checkout, "used") == [
        ("number 1", "discard", "ok", False),
        ("number 2", "discard", "ok", True),
    ]
    assert adds_up.complaints(checkout, "used", 2, before, frozenset()) == []


def test_a_keep_throws_it_away_with_its_boxes(checkout, before, night):
    done = night("kept", [CONTINUATIONS, harmless(3)], NIGHTLY_TEST_HOLD="waiting")
    assert done.returncode == 0, done.stderr
    first, second = first_runs(checkout, "kept")
    assert first == ("count what a token follows", "keep", "ok", False)
    assert second[2:] == ("ok", False)
    assert adds_up.complaints(checkout, "kept", 2, before, frozenset()) == []


ENDS = (
    ("waiting", signal.SIGTERM),
    ("waiting", signal.SIGKILL),
    ("ran", signal.SIGKILL),
    ("decided", signal.SIGKILL),
)


def test_an_end_while_a_run_waits_loses_nothing_and_leaves_nothing_alive(checkout, before, night):
    """One night of tpe, which proposes ahead too, is ended in its first trial again and again."""
    tag = "ended"
    command: tuple[str, ...] = ()
    for where, how in ENDS:
        end = {"NIGHTLY_TEST_KILL_AT": where, "NIGHTLY_TEST_SIGNAL": str(int(how))}
        ended = night(tag, command=command, trials=3, NIGHTLY_TEST_HOLD="waiting", **end)
        assert ended.returncode != 0, (where, how, ended.stderr)
        assert (ended.returncode == -9) == (how == signal.SIGKILL), (where, how, ended.stderr)
        is_recorded = checkout.ledger(tag)[-1]["event"] == "stopped"
        assert is_recorded == (how == signal.SIGTERM), (where, how)
        assert (checkout.home / "nights" / tag / "trials" / "2" / "proposal.json").is_file()
        command = ("resume", tag)
    done = night(tag, command=command, NIGHTLY_TEST_HOLD="waiting")
    assert done.returncode == 0, done.stderr
    runs = first_runs(checkout, tag)
    assert [status for _, _, status, _ in runs] == ["ok"] * 3
    (_, verdict, *_), (*_, early) = runs[1:]
    assert early == (verdict != "keep")
    assert list((checkout.home / "boxes").iterdir()) == []
    assert adds_up.complaints(checkout, tag, 3, before, frozenset()) == []


def test_a_stop_and_the_nights_end_take_the_waiting_run_along(checkout, night):
    tag = "stopped"
    stop = checkout.home / "nights" / tag / "stop"
    done = night(tag, NIGHTLY_TEST_HOLD="waiting", NIGHTLY_TEST_TOUCH=f"waiting={stop}")
    assert done.returncode == 0, done.stderr
    assert [event["event"] for event in checkout.ledger(tag)][-1] == "stopped"
    assert len(first_runs(checkout, tag)) == 1
    assert list((checkout.home / "boxes").iterdir()) == []
