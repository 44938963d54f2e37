"""The client against a real server and a real language model.

The model is too small to write a patch that improves anything: these tests show the protocol, and
the outcome of each failure.
"""

import os
import threading
import time
from collections.abc import Iterator

import pytest

from configs import Llm
from tasks.history.llm_calls import CallLog, read
from tasks.proposers.chat import Endpoint
from tasks.proposers.llm import NO_PATCH, LlmProposer
from tasks.proposers.prompt import Briefing
from tasks.proposers.tpe import TpeProposer
from tasks.records import Candidate, NightSoFar
from tests.faults import small_llm
from tests.faults.small_llm import CONTEXT, SmallLlm

pytestmark = [
    pytest.mark.llm_real,
    pytest.mark.slow,
    pytest.mark.skipif(bool(small_llm.missing()), reason=small_llm.missing() or ""),
]
SECONDS = 300.0  # for an answer that comes, on a machine that is busy
SOURCE = "DEPTH = 3\n\n\ndef load_model(path, device): ...\n\n\ndef main(): ...\n"
LONG = "The quick brown fox jumps over the lazy dog. " * (CONTEXT // 12)  # 10 tokens each


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[SmallLlm]:
    running = SmallLlm(tmp_path_factory.mktemp("small_llm") / "server.log")
    yield running
    running.close()


@pytest.fixture
def endpoint(server, monkeypatch):
    """Makes the product's client, in the environment of a user with a local server and no key."""
    for name in [
        name for name in os.environ if name.startswith("OPENAI_") or name.lower().endswith("_proxy")
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)

    def make(**settings) -> Endpoint:  # at temperature 0, or an answer may be of any length
        usual = {
            "model": small_llm.NAME,
            "retries": 0,
            "temperature": 0.0,
            "answer_seconds": SECONDS,
        }
        return Endpoint.from_environment(Llm(**{**usual, **settings}))

    return make


def messages(text: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "Answer in one short sentence."},
        {"role": "user", "content": text},
    ]


def test_an_answer_comes_with_its_tokens(endpoint):
    reply = endpoint(max_tokens=1000).ask(messages("Say hello."), SECONDS)
    assert (reply.outcome, reply.error, reply.estimated) == ("ok", None, False)
    assert reply.text
    assert 10 < (reply.prompt_tokens or 0) < 60
    assert 0 < (reply.completion_tokens or 0) <= 1000
    assert reply.request_id is None  # llama.cpp gives none


def test_a_prompt_that_begins_as_the_one_before_is_partly_cached(endpoint):
    for _ in range(2):
        reply = endpoint(max_tokens=5).ask(
            messages("Which colours has a rainbow, and in which order?"), SECONDS
        )
    assert 0 < (reply.cached_tokens or 0) <= (reply.prompt_tokens or 0)


def test_an_answer_that_reaches_max_tokens_is_truncated(endpoint):
    reply = endpoint(max_tokens=1).ask(messages("Count from one to one hundred."), SECONDS)
    assert (reply.outcome, reply.completion_tokens) == ("truncated", 1)
    assert reply.text


def test_a_prompt_beyond_the_context_is_an_overflow_and_costs_nothing(endpoint):
    reply = endpoint().ask(messages(LONG * 2), SECONDS)
    assert (reply.outcome, reply.text, reply.prompt_tokens) == ("context_overflow", None, None)
    assert str(CONTEXT) in str(reply.error)


@pytest.mark.parametrize(("answer_seconds", "seconds"), [(0.3, SECONDS), (SECONDS, 0.3)])
def test_a_slow_answer_is_a_timeout_and_does_not_delay_the_next_one(
    endpoint, answer_seconds, seconds
):
    assert endpoint(answer_seconds=answer_seconds).ask(messages(LONG), seconds).outcome == "timeout"
    assert endpoint(max_tokens=5).ask(messages("Say hello."), SECONDS).outcome in (
        "ok",
        "truncated",
    )


def test_a_request_in_progress_can_be_cancelled(server, endpoint):
    asked, replies = endpoint(), []
    thread = threading.Thread(target=lambda: replies.append(asked.ask(messages(LONG), SECONDS)))
    thread.start()
    while not server.is_busy():
        time.sleep(0.01)
    asked.cancel()
    thread.join()
    assert [reply.outcome for reply in replies] == ["cancelled"]
    assert asked.ask(messages("Say hello."), SECONDS).outcome == "cancelled"


def test_a_proposal_of_such_a_model_is_refused_and_its_cost_is_recorded(endpoint, tmp_path):
    champion, calls = Candidate.parse(SOURCE), CallLog(tmp_path / "llm_calls.jsonl")
    settings = Llm(
        model=small_llm.NAME,
        retries=0,
        repairs=1,
        max_tokens=40,
        answer_seconds=SECONDS,
        seconds=2 * SECONDS,
    )
    asked = endpoint(max_tokens=40)
    proposer = LlmProposer(
        asked,
        Briefing("Improve train.py.", {"hardware": "a CPU"}, (), settings),
        calls,
        TpeProposer(),
    )
    night = NightSoFar("real", 1, 1, champion, 2.3, 2.3, champion.knobs, ())

    proposed = proposer.propose(night)

    assert proposed is not None
    assert proposed.idea.outcome in NO_PATCH
    assert proposed.problem is not None
    assert proposed.problem.startswith(f"{proposed.idea.outcome}: ")
    assert proposed.candidate.source == SOURCE
    written = read(tmp_path / "llm_calls.jsonl")
    assert [call.purpose for call in written] == ["propose", "repair"]
    assert all(call.outcome in NO_PATCH and call.answer and not call.estimated for call in written)
    assert calls.usage(1).prompt_tokens > 1500  # of two calls: each prompt has about a thousand
