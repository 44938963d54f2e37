"""A night that searches in every way there is, killed between its steps, and one that goes on from
its notes.

Real command line, servers, boxes, judge, git and MLflow; the model is a script on the loopback,
train.py is the stub. One run decides, so a trial is one training.
"""

import itertools
import json
import re
from pathlib import Path

import pytest

from tests.faults import adds_up
from tests.faults.llm_server import FAKE_KEY, LlmServer, ok
from tests.faults.scripted_model import (
    EMBEDDING,
    FIRST,
    PAIRS,
    SINGLE,
    answer,
    asking,
    noted,
    several,
    trying,
)
from tests.faults.stub_checkout import PROFILE, StubCheckout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TAG, TRIALS = "search", 9
SETTINGS = """extends = "stub.toml"
description = "The stub, with a turn for every way of searching."

[night]
certify_share = 0.0
end_runs = 0
placebo_share = 0.0

[verdict]
keep = [2.5]
drop = [2.5]
champion_runs = 1

[search]
asks = 2
queue = 3
ablation_share = 0.25
archive_share = 0.2
constants_share = 0.17
stack_share = 0.15
"""
WAYS = (
    *("proposal", "proposal", "proposal", "ablation", "archive"),
    *("constants", "stack", "proposal", "proposal"),
)
# Each kill is that of another process, and milestones are counted from its start. In between, one
# is killed by the endpoint when it is asked ahead.
QUEUED = "queued:1"  # the first call's ideas are on disk, and none is proposed
KEPT_ONE = "applied:1"  # a keep, while the call's other ideas wait
WRITTEN = "written:3"  # the proposal of the trial after those, before it starts
DEPTH = "DEPTH = 3  # what a token costs: fewer of them are counted"
TRAIN = "    def train(self) -> Bigrams:"
SHOWN = re.compile(r"begin train.py, trial (\d+), not the champion")
# Dollars, of USAGE with the stub profile's prices.
A_CALL = (600 * 1.0 + 400 * 0.1 + 100 * 10.0) / 1e6
ESTIMATE = "0.05 +- 0.05"
KEPT = answer(
    "fewer FLOPs a token, and what does nothing",
    (DEPTH, DEPTH.replace("3", "2", 1)),
    (TRAIN, f"{TRAIN}\n        self.is_training = True"),
    (FIRST, f"{FIRST}\n    unused = 0"),
    gain=ESTIMATE,
)
COUNTED = answer(
    "count what a token follows",
    (SINGLE, "    single = (counts > 0).sum(axis=0) + EMBEDDING_LR"),
    gain=ESTIMATE,
)
FREED = "(weight + 0.3 * (counts > 0).sum(axis=1, keepdims=True))"
DISCOUNTED = answer(
    "discount each pair",
    (PAIRS, PAIRS.replace("counts + weight", f"np.maximum(counts - 0.3, 0) + {FREED}", 1)),
    gain=ESTIMATE,
)
CONFLICTING = answer("deeper", (DEPTH, DEPTH.replace("3", "4", 1)), gain=ESTIMATE)
QUESTIONS = f"{asking('fact tokens')}\n{trying((DEPTH, DEPTH.replace('3', '1', 1)))}"


def later(number):
    """Two ideas that do harm, and notes."""
    ideas = (
        answer(f"add {n}", (EMBEDDING, EMBEDDING.replace("0.6", f"{n}.0")), gain="0.001")
        for n in (20 + 2 * number, 21 + 2 * number)
    )
    return noted(several(*ideas), f"plan {number}")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm, prefect_api, empty_store):
    folder = tmp_path_factory.mktemp("search") / "checkout"
    folder.mkdir()
    made = StubCheckout(folder, warm=warm, api=prefect_api, store=empty_store)
    (folder / Path(PROFILE).parent / "search.toml").write_text(SETTINGS)
    return made


@pytest.fixture(scope="module")
def before(checkout):
    return adds_up.UserTree.of(checkout)


class Script:
    """The model's answers; when it is `victim`'s turn, a request kills that process instead."""

    def __init__(self):
        first = noted(several(KEPT, COUNTED, DISCOUNTED, CONFLICTING), "plan of the first")
        self.answers = itertools.chain([QUESTIONS, first], map(later, itertools.count()))
        self.victim = None

    def __call__(self, body):
        if "ready" in str(body["messages"])[:200]:
            return ok("ready")
        if self.victim:
            return lambda exchange: self.victim.kill()
        return ok(next(self.answers))


class Model(LlmServer):
    """The endpoint, and its script."""

    def __init__(self):
        self.script = Script()
        super().__init__(self.script)


@pytest.fixture(scope="module")
def model():
    with Model() as server:
        yield server


def flags(checkout, tag, trials):
    profile = str(checkout.folder / Path(PROFILE).parent / "search.toml")
    return ("--profile", profile, "--tag", tag, "--trials", str(trials), "--proposer", "llm")


@pytest.fixture(scope="module")
def night(checkout, before, model):
    """The night, through, after all its kills: the prompts that were sent for it."""
    keys = {"OPENAI_BASE_URL": model.url, "OPENAI_API_KEY": FAKE_KEY}
    way = ("night", *flags(checkout, TAG, TRIALS))
    for place in (QUEUED, KEPT_ONE, WRITTEN):
        done = checkout.run(*way, **keys, NIGHTLY_TEST_KILL_AT=place)
        assert done.returncode == -9, f"{place}: {done.stderr}"
        way = ("resume", TAG)
    with (checkout.folder.parent / "killed.log").open("w+") as log:
        victim = checkout.start(*way, log=log, **keys, NIGHTLY_TEST_HOLD="a training's end")
        model.script.victim = victim
        try:
            assert victim.wait() == -9, log.seek(0) or log.read()
        finally:
            victim.kill()
            model.script.victim = None
    done = checkout.run(*way, **keys)
    assert done.returncode == 0, done.stderr
    return [body["messages"] for body in model.requests]


@pytest.fixture(scope="module")
def trials(checkout, night):
    return adds_up.decided(checkout.ledger(TAG))


@pytest.fixture(scope="module")
def calls(checkout, night):
    path = checkout.home / "nights" / TAG / "llm_calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_night_that_was_killed_at_every_step_adds_up(checkout, night, before):
    assert adds_up.complaints(checkout, TAG, TRIALS, before) == []


DAMAGE = {
    "one that was run is gone": lambda lines: [without(line, "1.2") for line in lines],
    "one is there twice": lambda lines: [*lines, *(each for each in lines if "ideas" in each)],
    "one was run and dropped": lambda lines: [*lines, dropped("1.2", "no reason is good enough")],
    "one was dropped for no reason": lambda lines: [*lines, dropped("9.2", "")],
}


def without(line, id):
    kept = [each for each in line.get("ideas", ()) if each["idea"]["queued"] != id]
    return {**line, "ideas": kept} if "ideas" in line else line


def dropped(id, reason):
    return {"event": "dropped", "id": id, "reason": reason}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_damaged_ideas_are_complained_about(checkout, night, before, change):
    path = checkout.home / "nights" / TAG / "ideas.jsonl"
    whole = path.read_text()
    try:
        lines = change([json.loads(line) for line in whole.splitlines()])
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        found = adds_up.complaints(checkout, TAG, TRIALS, before)
    finally:
        path.write_text(whole)
    assert found
    assert all(complaint.startswith("ideas: ") for complaint in found)


def test_every_way_of_searching_has_had_its_turn(checkout, trials):
    ideas = {k: trial["idea"] for k, trial in trials.items()}
    assert [idea["search"] for idea in ideas.values()] == [*WAYS]
    assert [k for k, trial in trials.items() if trial["verdict"] == "keep"] == [1, 4]
    assert [ideas[k]["built_on"] for k in (4, 5, 7)] == [[1], [2], [2, 3]]
    report = (checkout.home / "nights" / TAG / "report.md").read_text()
    assert "## What each way of searching brought" in report
    assert "stack of near misses" in report


def test_no_idea_is_lost_and_none_is_run_twice(checkout, trials, calls):
    path = checkout.home / "nights" / TAG / "ideas.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    made = adds_up.ids_of(lines)
    brought = [call["answer"].count("SUMMARY") for call in calls if call["purpose"] == "propose"]
    assert len(made) == sum(brought)
    assert made[:4] == ["1.1", "1.2", "1.3", "1.4"]
    assert [trials[k]["idea"]["queued"] for k in (1, 2, 3)] == made[:3]
    (why,) = [line["reason"] for line in lines if line.get("id") == "1.4"]
    assert "conflicts with the present champion" in why
    assert "merged onto the present champion" in trials[2]["idea"]["note"]
    assert len({trial["digest"] for trial in trials.values()}) == TRIALS


def test_every_request_is_on_record_but_the_one_that_killed(night, calls):
    recorded = [call["messages"] for call in calls]
    assert len(night) == len(recorded) + 1
    (killed,) = [messages for messages in night if messages not in recorded]
    again = next(call for call in calls if call["trial"] == 5)
    shown = [SHOWN.findall(said[-1]["content"])[0] for said in (killed, again["messages"])]
    assert shown[0] == shown[1]
    assert sum(call["dollars"] for call in calls) == pytest.approx(A_CALL * len(calls))


def test_the_prompts_have_answers_notes_and_the_file_to_build_on(trials, calls):
    told = {call["id"]: call["messages"][-1]["content"] for call in calls}
    assert told.keys() >= {"1.1", "1.2", "5.1", "8.1"}
    assert "You have written nothing down yet" in told["1.1"]
    assert "Your questions are answered" in told["1.2"]
    assert "baseline's tokens: " in told["1.2"]
    assert "ok: " in told["1.2"]
    assert "plan of the first" in told["5.1"]
    assert "plan 0" in told["8.1"]
    (parent,) = trials[5]["idea"]["built_on"]
    assert SHOWN.findall(told["5.1"]) == [str(parent)]


def test_a_killed_night_goes_on_from_anothers_notes(checkout, night, model, trials):
    before = len(model.requests)
    keys = {"OPENAI_BASE_URL": model.url, "OPENAI_API_KEY": FAKE_KEY}
    way = ("night", *flags(checkout, "next", 1), "--notes", TAG)
    done = checkout.run(*way, **keys, NIGHTLY_TEST_KILL_AT="opened:1")
    assert done.returncode == -9, done.stderr
    done = checkout.run("resume", "next", **keys)
    assert done.returncode == 0, done.stderr
    (asked,) = [body for body in model.requests[before:] if len(body["messages"]) > 1]
    last = trials[TRIALS]["idea"]["notes"]
    assert last.startswith("plan ")
    assert last in asked["messages"][-1]["content"]
