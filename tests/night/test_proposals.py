"""Proposals made ahead: used as they are, carried over to a new champion, asked for again, never
lost to a kill.

Real command line, servers, boxes, judge and git; the model is a script on loopback, train.py the
stub.
"""

import itertools
import json

import pytest

from tests.faults.llm_server import FAKE_KEY, LlmServer, html, ok, stall, status
from tests.faults.scripted_model import (
    CONTINUATIONS,
    FIRST,
    INJECTING,
    SINGLE,
    answer,
    harmless,
)
from tests.faults.stub_checkout import PROFILE, StubCheckout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
CONFLICTING = answer(
    "another count", (SINGLE, "    single = counts.sum(axis=0) ** 0.5 + EMBEDDING_LR")
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm, prefect_api, empty_store):
    folder = tmp_path_factory.mktemp("ahead") / "checkout"
    folder.mkdir()
    return StubCheckout(folder, warm=warm, api=prefect_api, store=empty_store)


def run_night(checkout, model, tag, trials, command=(), **changes):
    flags = (
        "night",
        "--profile",
        PROFILE,
        "--tag",
        tag,
        "--trials",
        str(trials),
        "--proposer",
        "llm",
    )
    return checkout.run(
        *(command or flags), OPENAI_BASE_URL=model.url, OPENAI_API_KEY=FAKE_KEY, **changes
    )


def decided(checkout, tag):
    """The decided trials as the ledger has them, with the fields of their ideas."""
    trials = [event["trial"] for event in checkout.ledger(tag) if event["event"] == "decided"]
    return [{**trial, **trial["idea"]} for trial in trials]


def calls(checkout, tag):
    path = checkout.home / "nights" / tag / "llm_calls.jsonl"
    return [
        (call["trial"], call["outcome"]) for call in map(json.loads, path.read_text().splitlines())
    ]


def test_a_waiting_proposal_that_conflicts_with_the_new_champion_is_asked_for_again(checkout):
    with LlmServer([ok("ready"), ok(CONTINUATIONS), ok(CONFLICTING), ok(harmless(1))]) as model:
        done = run_night(checkout, model, "conflict", 2)
    assert done.returncode == 0, done.stderr
    first, second = decided(checkout, "conflict")
    assert (first["verdict"], first["note"]) == ("keep", None)
    assert second["summary"] == "number 1"
    assert second["note"] == "asked again: the waiting proposal conflicts with the champion"
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


def test_the_next_proposal_is_made_while_a_placebo_trains_of_which_no_model_hears(checkout):
    half = checkout.folder / "half.toml"
    text = (checkout.folder / PROFILE).read_text()
    half.write_text(text.replace("[night]\n", "[night]\nplacebo_share = 0.5\n"))
    command = ("night", "--profile", str(half), "--tag", "half", "--trials", "3")
    with LlmServer([ok("ready"), ok(harmless(10)), ok(harmless(11))]) as model:
        done = run_night(checkout, model, "half", 3, (*command, "--proposer", "llm"))
        told = json.dumps(model.requests)
    assert done.returncode == 0, done.stderr
    assert [trial["placebo"] is not None for trial in decided(checkout, "half")] == [
        *(False, True, False)
    ]
    assert calls(checkout, "half") == [(0, "ok"), (1, "ok"), (3, "ok")]
    assert "placebo" not in told
    times = [event["time"] for event in checkout.ledger("half") if event["event"] == "decided"]
    path = checkout.home / "nights" / "half" / "llm_calls.jsonl"
    asked = [json.loads(line)["time"] for line in path.read_text().splitlines()]
    assert times[0] < asked[2] < times[1]


@pytest.mark.parametrize("where", ["started:2", "ran:2", "decided:2"])
def test_a_kill_loses_no_proposal_that_was_paid_for(checkout, where):
    tag = where.replace(":", "-")
    numbers = itertools.count(5)
    with LlmServer(
        lambda body: ok(
            "ready" if "ready" in str(body["messages"])[:200] else harmless(next(numbers))
        )
    ) as model:
        killed = run_night(checkout, model, tag, 3, NIGHTLY_TEST_KILL_AT=where)
        assert killed.returncode == -9, killed.stderr
        done = run_night(checkout, model, tag, 3, command=("resume", tag))
    assert done.returncode == 0, done.stderr
    assert [trial["number"] for trial in decided(checkout, tag)] == [1, 2, 3]
    # but for the pings of both processes
    asked = [trial for trial, _ in calls(checkout, tag) if trial]
    # trial 2's was made while trial 1 trained, and taken up by the process after the kill
    assert asked[:2] == [1, 2]
    assert set(asked[2:]) == {3}
    if where != "started:2":
        assert asked == [1, 2, 3]


CRASHING = answer("rows of an offset", (FIRST, FIRST.replace("8 *", "OFFSET *")), kind="data order")
MENDED = answer(
    "rows of an offset", (FIRST.replace("8 *", "OFFSET *"), FIRST.replace("8 *", "0 *"))
)


def test_a_kill_right_after_a_mend_pays_for_none_twice(checkout):
    answers = iter([ok("ready"), ok(CRASHING), ok(MENDED), ok("ready"), ok(harmless(1))])
    with LlmServer(lambda body: next(answers)) as model:
        killed = run_night(checkout, model, "mend", 1, NIGHTLY_TEST_KILL_AT="fixed:1")
        assert killed.returncode == -9, killed.stderr
        done = run_night(checkout, model, "mend", 2, command=("resume", "mend", "--trials", "2"))
    assert done.returncode == 0, done.stderr
    first, second = decided(checkout, "mend")
    assert (first["status"], first["fixes"], len(first["crashed"]), first["usage"]["calls"]) == (
        "ok",
        1,
        1,
        2,
    )
    assert (second["summary"], second["fixes"]) == ("number 1", 0)
    attempts = checkout.home / "nights" / "mend" / "trials" / "1" / "attempts"
    assert [path.name for path in attempts.iterdir()] == ["1"]
    assert "OFFSET" in (attempts / "1" / "train.py").read_text()


def test_code_that_crashed_is_not_run_again_and_a_stop_ends_the_mending(checkout):
    def stopping(exchange):
        assert checkout.run("stop", "again").returncode == 0
        stall()(exchange)

    steps = [ok("ready"), ok(CRASHING), ok(MENDED), ok(CRASHING), ok(INJECTING), stopping]
    with LlmServer(steps) as model:
        profile = checkout.folder / "in_turn.toml"
        profile.write_text(
            (checkout.folder / PROFILE).read_text().replace("answer_seconds = 5", "ahead = false")
        )
        flags = (
            "night",
            "--profile",
            str(profile),
            "--tag",
            "again",
            "--trials",
            "3",
            "--proposer",
            "llm",
        )
        done = run_night(checkout, model, "again", 3, command=flags)
    assert done.returncode == 0, done.stderr
    asked = [(0, "ok"), (1, "ok"), (1, "ok"), (2, "already_tried"), (2, "ok"), (2, "cancelled")]
    assert calls(checkout, "again") == asked
    first, second = decided(checkout, "again")
    assert (first["fixes"], second["status"], second["fixes"]) == (1, "startup_crashed", 0)
    assert checkout.ledger("again")[-1]["event"] == "stopped"


def test_an_agent_researches_a_night_and_one_without_an_idea_leaves_it_to_tpe(checkout):
    agent = checkout.folder.parent / "agent.sh"
    agent.write_text(
        '#!/bin/sh\ncat > /dev/null\n[ -e "$HOME/been" ] && exit 0\ntouch "$HOME/been"\n'
        "sed -i 's/^EMBEDDING_LR = 0.6/EMBEDDING_LR = 0.5/' trainer/train.py\n"
        "echo 'SUMMARY: add less'\necho 'KIND: optimizer'\n"
    )
    agent.chmod(0o755)
    profile = checkout.folder / "agent.toml"
    profile.write_text(
        (checkout.folder / PROFILE).read_text() + f'\n[command]\nargv = ["{agent}"]\n'
    )
    flags = (
        "night",
        "--profile",
        str(profile),
        "--tag",
        "agent",
        "--trials",
        "2",
        "--proposer",
        "command",
    )
    done = checkout.run(*flags, HOME=str(agent.parent))
    assert done.returncode == 0, done.stderr
    first, second = decided(checkout, "agent")
    assert (first["proposer"], first["summary"], first["kind"], first["usage"]["dollars"]) == (
        *("command", "add less", "optimizer"),
        None,
    )
    assert (second["proposer"], second["outcome"]) == ("tpe", "no_change")
    assert "has changed nothing" in second["stands_in"]


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (
            status(401, f"Incorrect API key provided: {FAKE_KEY}"),
            ("unauthorized", "[key]", "OPENAI_API_KEY"),
        ),
        (html(), ("no_completion", "Sign in to", "OPENAI_BASE_URL: most end in /v1")),
        (
            status(400, "max_tokens is too large: 16384"),
            ("[llm] max_tokens = 16384 is not accepted",),
        ),
    ],
    ids=["wrong key", "no /v1", "max_tokens"],
)
def test_a_night_that_its_model_refuses_leaves_no_folder_and_sends_no_notice(checkout, step, told):
    with LlmServer([step]) as model, LlmServer([]) as receiver:
        done = run_night(checkout, model, "refused", 2, NIGHTLY_WEBHOOK=receiver.url)
    assert done.returncode == 2
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("nightly-research:")]
    assert [words for words in told if words not in said] == []
    assert "Traceback" not in done.stderr
    assert not (checkout.home / "nights" / "refused").exists()
    assert receiver.answered == []


def test_a_resumed_night_that_its_model_refuses_stays_as_it_was(checkout):
    with LlmServer([ok("ready"), ok(CONTINUATIONS)]) as model:
        assert run_night(checkout, model, "once", 1).returncode == 0
    before = checkout.ledger("once")
    with LlmServer([html()]) as model, LlmServer([]) as receiver:
        flags = ("resume", "once", "--trials", "2")
        done = run_night(checkout, model, "once", 2, flags, NIGHTLY_WEBHOOK=receiver.url)
    assert done.returncode == 2
    assert "most end in /v1" in done.stderr
    assert checkout.ledger("once") == before
    assert receiver.answered == []
