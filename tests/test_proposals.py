"""Proposals made ahead: used as they are, carried over to a new champion, asked for again, never lost to a kill.

Real command line, servers, boxes, judge and git; the model is a script on loopback, train.py the stub.
"""

import itertools
import json

import pytest

from tests.faults.llm_server import FAKE_KEY, LlmServer, ok, stall, status
from tests.faults.scripted_model import EMBEDDING, SINGLE, answer
from tests.faults.stub_checkout import PROFILE, StubCheckout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
BETTER = answer("count what a token follows", (SINGLE, "    single = (counts > 0).sum(axis=0) + EMBEDDING_LR"))
CONFLICTING = answer("another count", (SINGLE, "    single = counts.sum(axis=0) ** 0.5 + EMBEDDING_LR"))


def harmless(number: int) -> str:
    return answer(f"number {number}", (EMBEDDING, EMBEDDING.replace("0.6", f"0.60{number}")))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ahead") / "checkout"
    folder.mkdir()
    return StubCheckout(folder)


def run_night(checkout, model, tag, trials, command=(), **changes):
    flags = ("night", "--profile", PROFILE, "--tag", tag, "--trials", str(trials), "--proposer", "llm")
    return checkout.run(*(command or flags), OPENAI_BASE_URL=model.url, OPENAI_API_KEY=FAKE_KEY, **changes)


def decided(checkout, tag):
    return [event["trial"] for event in checkout.ledger(tag) if event["event"] == "decided"]


def calls(checkout, tag):
    path = checkout.home / "nights" / tag / "llm_calls.jsonl"
    return [(call["trial"], call["outcome"]) for call in map(json.loads, path.read_text().splitlines())]


def test_a_waiting_proposal_that_conflicts_with_the_new_champion_is_asked_for_again(checkout):
    with LlmServer([ok("ready"), ok(BETTER), ok(CONFLICTING), ok(harmless(1))]) as model:
        done = run_night(checkout, model, "conflict", 2)
    assert done.returncode == 0, done.stderr
    first, second = decided(checkout, "conflict")
    assert (first["verdict"], first["note"]) == ("keep", None)
    assert second["summary"] == "number 1"
    assert second["note"] == "asked again: the proposal that waited did not fit the new champion"
    assert second["usage"]["calls"] == 2
    assert calls(checkout, "conflict") == [(0, "ok"), (1, "ok"), (2, "ok"), (2, "ok")]


def test_the_next_proposal_is_asked_for_while_a_trial_trains_and_knows_of_it(checkout):
    with LlmServer([ok("ready"), ok(harmless(2)), ok(harmless(3)), ok(harmless(4))]) as model:
        done = run_night(checkout, model, "knows", 3)
        told = [body["messages"][-1]["content"] for body in model.requests]
    assert done.returncode == 0, done.stderr
    assert "number 2" in told[2]
    assert "number 2" not in told[1]
    events = [(event["event"], event.get("trial")) for event in checkout.ledger("knows")]
    assert ("started", 3) in events
    began = [event["time"] for event in checkout.ledger("knows") if event["event"] == "decided"]
    path = checkout.home / "nights" / "knows" / "llm_calls.jsonl"
    asked = {call["trial"]: call["time"] for call in map(json.loads, path.read_text().splitlines())}
    assert asked[2] < began[0]  # before trial 1 was decided
    assert asked[3] < began[1]


@pytest.mark.parametrize("where", ["started:2", "ran:2", "decided:2"])
def test_a_kill_loses_no_proposal_that_was_paid_for(checkout, where):
    tag = where.replace(":", "-")
    numbers = itertools.count(5)
    with LlmServer(lambda body: ok("ready" if "ready" in str(body["messages"])[:200] else harmless(next(numbers)))) as model:
        killed = run_night(checkout, model, tag, 3, NIGHTLY_TEST_KILL_AT=where)
        assert killed.returncode == -9, killed.stderr
        done = run_night(checkout, model, tag, 3, command=("resume", tag))
    assert done.returncode == 0, done.stderr
    assert [trial["number"] for trial in decided(checkout, tag)] == [1, 2, 3]
    asked = [trial for trial, _ in calls(checkout, tag)]
    assert asked[:3] == [0, 1, 2]  # trial 2's was made while trial 1 trained, and taken up by the process after the kill
    assert set(asked[3:]) == {3}
    if where != "started:2":
        assert asked == [0, 1, 2, 3]


def test_a_stop_does_not_wait_for_a_model_that_thinks(checkout):
    profile = checkout.folder / "patient.toml"
    profile.write_text((checkout.folder / PROFILE).read_text().replace("answer_seconds = 5", "answer_seconds = 500"))
    asked = iter(["ping", 1, 2])

    def step(body):
        if (trial := next(asked)) == 2:
            assert checkout.run("stop", "stop").returncode == 0
            return stall()
        return ok("ready" if trial == "ping" else harmless(8))

    with LlmServer(step) as model:
        flags = ("night", "--profile", str(profile), "--tag", "stop", "--trials", "3", "--proposer", "llm")
        done = run_night(checkout, model, "stop", 3, command=flags)
    assert done.returncode == 0, done.stderr
    assert calls(checkout, "stop") == [(0, "ok"), (1, "ok"), (2, "cancelled")]
    assert checkout.ledger("stop")[-1]["event"] == "stopped"


def test_a_wrong_key_is_said_before_anything_is_measured(checkout):
    with LlmServer([status(401, f"Incorrect API key provided: {FAKE_KEY}")]) as model:
        done = run_night(checkout, model, "key", 2)
    assert done.returncode == 2
    assert "unauthorized" in done.stderr
    assert "[key]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(event["event"] == "baseline" for event in checkout.ledger("key"))
