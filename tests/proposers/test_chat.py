"""One request to a model, against a real local server that fails as real endpoints do."""

import dataclasses
import gc
import json
import logging
import math
import os
import signal
import socket
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from configs import Llm
from tasks.errors import UsageError
from tasks.history.llm_calls import CallLog
from tasks.proposers import chat, reply
from tasks.proposers.chat import Endpoint
from tasks.usage import Call
from tests.faults.llm_server import (
    FAKE_KEY,
    USAGE,
    LlmServer,
    drip,
    error_body,
    finish,
    html,
    message,
    no_usage,
    ok,
    refusal,
    replay,
    reset_mid_body,
    stall,
    status,
)

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = [
    {"role": "system", "content": "You research."},
    {"role": "user", "content": "Improve train.py."},
]
SOON = {"retry-after-ms": "1"}  # a retry that costs no time
TAGGED = "SUMMARY: it\n<<<<<<< SEARCH\n# until </think>\n=======\n# end\n>>>>>>> REPLACE"
LONG = 60.0  # seconds, more than any test takes


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch):
    for name in (
        "OPENAI_BASE_URL",
        "OPENAI_API_KEY",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve(monkeypatch):
    """Starts a server with these steps; gives it and its endpoint, by default without retries."""
    servers = []

    def start(*steps, **settings):
        server = LlmServer(steps)
        server.start()
        servers.append(server)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", FAKE_KEY)
        return server, Endpoint.from_environment(
            Llm(model="scripted", **{"retries": 0, **settings})
        )

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def ask(serve):
    """The reply to one request that is answered by these steps."""
    return lambda *steps, **settings: serve(*steps, **settings)[1].ask(MESSAGES, LONG)


def error(message, code=None, kind="invalid_request_error", param=None):
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


# What is sent


def test_a_request_is_plain_chat_completions(serve):
    server, endpoint = serve(ok("hello"))
    endpoint.ask(MESSAGES, LONG)
    assert server.requests == [{"model": "scripted", "messages": MESSAGES, "max_tokens": 16384}]
    assert server.authorizations == [f"Bearer {FAKE_KEY}"]


def test_a_temperature_is_sent_only_if_set(serve):
    server, endpoint = serve(ok("hello"), temperature=0.5)
    endpoint.ask(MESSAGES, LONG)
    assert server.requests[0]["temperature"] == 0.5


def test_text_that_is_not_valid_unicode_is_sent(serve):
    server, endpoint = serve(ok("hello"))
    assert (
        endpoint.ask(
            [{"role": "user", "content": "a\ud800b \u00e4 \U0001f600 \0\r\n"}], LONG
        ).outcome
        == "ok"
    )
    assert server.requests[0]["messages"][0]["content"] == "a?b \u00e4 \U0001f600 \0\r\n"


def test_user_and_password_of_the_address_are_used(serve, monkeypatch):
    server, _ = serve(ok("hello"))
    monkeypatch.setenv(
        "OPENAI_BASE_URL",
        server.url.replace("http://", "http://someone:pass%2Fword@") + "?version=7",
    )
    endpoint = Endpoint.from_environment(Llm(model="scripted"))
    assert endpoint.ask(MESSAGES, LONG).outcome == "ok"
    assert server.authorizations == ["Basic c29tZW9uZTpwYXNzL3dvcmQ="]
    assert endpoint.url == server.url
    assert endpoint.redact("pass/word") == "[key]"


# Answers


def test_an_answer(ask):
    answer = ask(ok("hello"))
    assert dataclasses.replace(answer, seconds=0.0) == reply.Reply(
        outcome="ok",
        text="hello",
        error=None,
        prompt_tokens=1000,
        cached_tokens=400,
        completion_tokens=100,
        estimated=False,
        seconds=0.0,
        request_id="request-1",
        retry_after=None,
    )
    assert 0 < answer.seconds < LONG


def test_tokens_that_are_not_counted_are_estimated(ask):
    answer = ask(no_usage("x" * 350))
    characters = sum(len(each["content"]) for each in MESSAGES)
    assert answer.estimated
    assert (answer.prompt_tokens, answer.completion_tokens) == (math.ceil(characters / 3.5), 100)
    assert answer.cached_tokens is None


def test_thinking_in_a_field_of_its_own_is_estimated_too(ask):
    answer = ask(message({"content": "x", "reasoning_content": "y" * 3500}, usage=None))
    assert (answer.text, answer.completion_tokens) == ("x", 1001)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": "1000", "completion_tokens": "100"},
        {"prompt_tokens": -1, "completion_tokens": -5},
        {"prompt_tokens": 10**30, "completion_tokens": 10**30},
        {"prompt_tokens": True, "completion_tokens": None},
        {"prompt_tokens": 1.5, "completion_tokens": [], "prompt_tokens_details": "none"},
        "a lot",
        [],
        7,
    ],
)
def test_an_invalid_usage_is_estimated(ask, usage):
    answer = ask(ok("hello", usage))
    assert (answer.outcome, answer.estimated, answer.completion_tokens, answer.cached_tokens) == (
        "ok",
        True,
        2,
        None,
    )


def test_a_partial_usage_is_used_in_part(ask):
    answer = ask(ok("hello", {"prompt_tokens": 7}))
    assert (answer.prompt_tokens, answer.completion_tokens, answer.estimated) == (7, 2, True)


def test_no_more_tokens_are_cached_than_sent(ask):
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 50},
    }
    assert ask(ok("hello", usage)).cached_tokens == 10


def test_the_text_parts_of_a_list_are_joined(ask):
    parts = [
        {"type": "thinking", "text": "hm"},
        {"type": "text", "text": "hel"},
        {"type": "text", "text": "lo"},
        "?",
        {"type": "text"},
    ]
    assert ask(ok(parts)).text == "hello"


def test_an_answer_of_halves_of_surrogate_pairs_can_be_written(ask):
    assert ask(ok("a\ud800b \U0001f600")).text == "a?b \U0001f600"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<think>hm</think>hello", "hello"),
        ("\n<think>\nhm\n</think>\n\nhello\n", "hello"),
        ("hm, hm</think>hello", "hello"),  # the template began it
        ("<think>a<think>b</think>c</think>hello", "hello"),
        ("<think>a</think>hel<think>b</think>lo", "hello"),
        ("hello, the tag <think> is never closed", "hello, the tag <think> is never closed"),
        ("hello\r\nyou", "hello\r\nyou"),
        (f"<think>hm</think>\n{TAGGED}", TAGGED),
        (TAGGED, TAGGED),
    ],
)
def test_thinking_is_taken_out(ask, content, text):
    answer = ask(ok(content))
    assert (answer.outcome, answer.text) == ("ok", text)


@pytest.mark.parametrize(
    "content", [None, "", " \n\t", "<think>hm</think>", "<think>hm", 7, {"text": "hello"}, []]
)
def test_an_answer_without_text_is_empty(ask, content):
    answer = ask(ok(content))
    assert (answer.outcome, answer.text) == ("empty", None)
    assert "'stop'" in answer.error
    assert answer.completion_tokens == 100


WRITTEN = "SUMMARY: it\n<<<<<<< SEARCH\nA = 1\n=======\nA = 2\n>>>>>>> REPLACE"


@pytest.mark.parametrize("content", [None, "", "<think>hm</think>"])
@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_an_answer_in_the_field_for_thinking_is_used(ask, name, content):
    for before in ("", "hm, so:\n", f"{WRITTEN}\nno, rather\n", "hm</think>\n"):
        answer = ask(message({"content": content, name: f"{before}{WRITTEN}\n"}))
        assert (answer.outcome, answer.text, answer.error) == ("ok", WRITTEN, None)


def test_a_draft_in_the_field_for_thinking_goes_back(ask):
    draft = f"{WRITTEN}\nno, that diverges"
    answer = ask(message({"content": "", "reasoning_content": draft}))
    assert (answer.outcome, answer.text) == ("malformed", draft)
    assert "Answer after the thinking" in answer.error


def test_an_answer_beside_a_draft_in_the_field_for_thinking_is_the_answer(ask):
    answer = ask(message({"content": "hello", "reasoning_content": WRITTEN}))
    assert (answer.outcome, answer.text) == ("ok", "hello")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thinking_alone_is_said_to_be_in_its_field(ask, name):
    answer = ask(message({"content": "", name: "I should answer."}))
    assert (answer.outcome, answer.text) == ("empty", None)
    assert f"16 characters are in {name}: turn off the model's thinking" in answer.error


def test_an_answer_that_is_cut_off_is_kept(ask):
    answer = ask(finish("length", "half an answ"))
    assert (answer.outcome, answer.text) == ("truncated", "half an answ")
    assert "max_tokens" in answer.error


def test_thinking_that_took_all_the_tokens(ask):
    answer = ask(finish("length", "<think>hm"))
    assert (answer.outcome, answer.text) == ("truncated", None)


def test_a_content_filter(ask):
    assert ask(finish("content_filter", None)).outcome == "content_filter"


def test_a_refusal(ask):
    answer = ask(refusal("I\ncannot."))
    assert (answer.outcome, answer.text, answer.error) == (
        "refusal",
        None,
        "the model declines: I cannot.",
    )


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        None,
        "hello",
        7,
        {"choices": None},
        {"choices": []},
        {"choices": {}},
        {"choices": [None]},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": ["hello"]},
        b"",
        b"hello",
        b"\xff\xfe\x00",
        b"{" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"choices": ' + b"1" * 100_000 + b"}",
        json.dumps({"object": "list", "data": []}).encode(),
    ],
)
def test_status_200_without_a_completion(ask, body):
    answer = ask(
        status(200, body) if isinstance(body, bytes) else status(200, json.dumps(body).encode())
    )
    assert (answer.outcome, answer.text, answer.prompt_tokens) == ("no_completion", None, None)
    assert answer.error.startswith("status 200 with no completion")
    assert len(answer.error) <= chat.MOST_ERROR


def test_a_page_with_200_is_shown_in_words(ask):
    answer = ask(html())
    assert answer.outcome == "no_completion"
    assert answer.error == "status 200 with no completion: Sign in to the hotel's network"


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "upstream failed", "code": 502}},
        {"error": "upstream failed", "choices": []},
        {"error": ["upstream failed"]},
        {"choices": [{"error": {"message": "upstream failed"}, "message": {"content": ""}}]},
    ],
)
def test_status_200_with_an_error(ask, body):
    answer = ask(status(200, body))
    assert answer.outcome == "error_body"
    assert "upstream failed" in answer.error


def test_a_null_error_with_status_200_is_not_an_error(ask):
    body = {"error": None, "choices": [{"message": {"content": "hello"}, "error": None}]}
    assert ask(status(200, body)).outcome == "ok"


@pytest.mark.parametrize("nested", [b"[" * 700 + b"]" * 700, b'{"a":' * 700 + b"1" + b"}" * 700])
@pytest.mark.parametrize("code", [200, 400])
def test_a_deeply_nested_error(ask, nested, code):
    assert ask(status(code, b'{"error": ' + nested + b"}")).outcome in (
        "error_body",
        "no_completion",
        "bad_request",
    )


def test_a_huge_answer_is_cut(ask):
    answer = ask(ok("x" * 8_000_000))
    assert (answer.outcome, len(answer.text)) == ("truncated", reply.MOST_TEXT)


def test_a_body_of_tens_of_megabytes_is_not_read_to_its_end(ask):
    answer = ask(status(200, b'{"choices": "' + b"x" * 50_000_000 + b'"}'))
    assert answer.outcome == "no_completion"
    assert len(answer.error) <= chat.MOST_ERROR


def test_a_hostile_answer_is_read_in_linear_time(ask):
    assert ask(ok("<think>" * 50_000)).outcome == "empty"
    assert ask(ok("a<think>" * 50_000)).outcome == "ok"


@pytest.mark.parametrize("charset", ["hex", "utf-16", "nonsense", "base64"])
@pytest.mark.parametrize("code", [200, 500])
def test_an_unknown_charset(ask, charset, code):
    step = status(
        code,
        json.dumps({"error": "no"}).encode(),
        {"Content-Type": f"text/html; charset={charset}"},
    )
    assert ask(step).outcome == ("error_body" if code == 200 else "server_error")


def test_a_wrong_content_encoding(ask):
    assert ask(status(200, b"not gzip", {"Content-Encoding": "gzip"})).outcome == "unreachable"


# Failures


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_key(ask, code):
    answer = ask(status(code, error("Incorrect API key provided.", "invalid_api_key")))
    assert answer.outcome == "unauthorized"
    assert (
        answer.error
        == f"status {code}: Incorrect API key provided. (invalid_api_key, invalid_request_error)"
    )


@pytest.mark.parametrize(
    ("code", "body", "words"),
    [
        (404, error("The model `scripted` does not exist", "model_not_found"), "does not exist"),
        (404, b"404 page not found", "404 page not found"),
        (404, b"", "Not Found"),
        (
            400,
            {"object": "error", "message": "bad role", "type": "BadRequestError", "code": 400},
            "bad role (BadRequestError)",
        ),
        (422, {"detail": [{"loc": ["body", "model"], "msg": "field required"}]}, "field required"),
        (402, error("Insufficient Balance"), "Insufficient Balance"),
        (400, {"error": "plain words"}, "plain words"),
        (400, [1, 2], "[1, 2]"),
        (400, b'"quoted"', "quoted"),
        (400, b"null", "null"),
        (400, {"error": {"message": None, "code": None}}, '{"message": null'),
        (400, {"error": {"message": {"detail": "nested"}}}, "nested"),
    ],
)
def test_a_refused_request(ask, code, body, words):
    answer = ask(status(code, body))
    assert answer.outcome == "bad_request"
    assert words in answer.error
    assert answer.prompt_tokens is None


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (
            400,
            error(
                "This model's maximum context length is 8192 tokens. However, you requested 9000.",
                "context_length_exceeded",
            ),
        ),
        (
            400,
            error(
                "the request exceeds the available context size, try increasing it",
                kind="exceed_context_size_error",
            ),
        ),
        (
            500,
            {
                "error": {
                    "code": 500,
                    "message": "Context size has been exceeded.",
                    "type": "server_error",
                }
            },
        ),
        (
            400,
            {
                "object": "error",
                "message": "This model's maximum context length is 4096 tokens.",
                "code": 400,
            },
        ),
        (400, error("Your input exceeds the context window of this model.")),
        (
            400,
            error(
                "'max_tokens' or 'max_completion_tokens' is too large: 16384. "
                "This model's maximum context length is 4096"
            ),
        ),
        (400, error("Please reduce the length of the messages or completion.")),
        (
            400,
            error(
                "The input token count (90000) exceeds the maximum number of tokens "
                "allowed (32768)."
            ),
        ),
        (
            400,
            error(
                "This model's maximum prompt length is 131072 "
                "but the request contains 537812 tokens"
            ),
        ),
        (400, error("prompt is too long: 213462 tokens > 200000 maximum")),
        (
            422,
            {
                "error": "Input validation error: `inputs` tokens + `max_new_tokens` "
                "must be <= 4096. Given: 9000"
            },
        ),
        (413, b""),
        (200, error("This endpoint's maximum context length is 8192 tokens.")),
    ],
)
def test_a_prompt_that_is_too_long(serve, code, body):
    server, endpoint = serve(status(code, body), ok("never"))
    assert endpoint.ask(MESSAGES, LONG).outcome == "context_overflow"
    assert len(server.requests) == 1


def test_a_refused_temperature_is_not_an_overflow(ask):
    assert ask(status(400, error("Invalid 'messages[0].role'"))).outcome == "bad_request"


@pytest.mark.parametrize(
    ("value", "seconds"), [("600", 600.0), ("1.5", 1.5), ("0", 0.0), ("-3", 0.0)]
)
def test_a_rate_limit_says_for_how_long(ask, value, seconds):
    answer = ask(status(429, "slow down", {"retry-after": value}))
    assert (answer.outcome, answer.retry_after) == ("rate_limited", seconds)
    assert "slow down" in answer.error


def test_a_rate_limit_until_a_date(ask):
    until = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert 3500 < ask(status(429, "slow down", {"retry-after": until})).retry_after <= 3600


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "nan",
        "inf",
        "1e999",
        "Wed, 99 Foo 2026 00:00:00 GMT",
        "Fri, 21 Nov 99999 00:00:00 GMT",
    ],
)
def test_a_rate_limit_without_a_time(ask, value):
    answer = ask(status(429, "slow down", {"retry-after": value}))
    assert (answer.outcome, answer.retry_after) == ("rate_limited", None)


def test_a_rate_limit_that_is_long_is_not_waited_for(serve):
    server, endpoint = serve(
        status(429, "slow down", {"retry-after": "600"}), ok("never"), retries=3
    )
    answer = endpoint.ask(MESSAGES, LONG)
    assert (answer.outcome, answer.retry_after, len(server.requests)) == ("rate_limited", 600.0, 1)


def test_a_used_up_quota_is_a_rate_limit_with_its_reason(ask):
    answer = ask(
        status(
            429,
            error("You exceeded your current quota", "insufficient_quota", "insufficient_quota"),
        )
    )
    assert answer.outcome == "rate_limited"
    assert "insufficient_quota" in answer.error


@pytest.mark.parametrize("code", [500, 502, 503, 529])
def test_an_error_of_the_server_after_its_retries(serve, code):
    server, endpoint = serve(*[status(code, "broken", SOON)] * 3, ok("never"), retries=2)
    answer = endpoint.ask(MESSAGES, LONG)
    assert (answer.outcome, len(server.requests)) == ("server_error", 3)
    assert f"status {code}: broken" in answer.error


def test_a_page_of_a_proxy(ask):
    assert ask(html(502)).error == "status 502: Sign in to the hotel's network"


@pytest.mark.parametrize(
    "step",
    [
        status(503, "Loading model", SOON),
        status(500, "x", SOON),
        status(429, "x", SOON),
        status(408, "x", SOON),
    ],
)
def test_a_temporary_failure_is_retried(serve, step):
    server, endpoint = serve(step, step, ok("hello"), retries=2)
    assert endpoint.ask(MESSAGES, LONG).text == "hello"
    assert len(server.requests) == 3


def test_a_broken_connection_is_retried(serve):
    server, endpoint = serve(reset_mid_body(), ok("hello"), retries=1)
    assert endpoint.ask(MESSAGES, LONG).text == "hello"
    assert len(server.requests) == 2


def test_a_connection_that_always_breaks(ask):
    assert ask(reset_mid_body()).outcome == "unreachable"


def test_nobody_listens(serve, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{probe.getsockname()[1]}/v1")
        answer = Endpoint.from_environment(Llm(model="scripted", retries=0)).ask(MESSAGES, LONG)
    assert answer.outcome == "unreachable"
    assert "ConnectError" in str(answer.error)


def test_a_host_without_an_address(monkeypatch):
    def no_address(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://endpoint.internal/v1")
    answer = Endpoint.from_environment(Llm(model="scripted", retries=0)).ask(MESSAGES, LONG)
    assert answer.outcome == "unreachable"
    assert "Name or service not known" in str(answer.error)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PROXY", "nonsense://x"),
        ("ALL_PROXY", "socks5://127.0.0.1:1"),
        ("SSL_CERT_FILE", "/no/such/file"),
    ],
)
def test_an_environment_that_the_client_cannot_use(serve, monkeypatch, name, value):
    server, endpoint = serve(ok("never"))
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    assert endpoint.ask(MESSAGES, LONG).outcome == "unreachable"
    assert server.requests == []


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\r\n\r\n",
        b"hello",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 999 What\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: \xff\xfe\r\nx-request-id: \xe4\r\n\r\n{}",
        b"HTTP/1.1 400 Bad\r\nContent-Encoding: br, gzip\r\n\r\nxx",
        *(
            b"HTTP/1.1 307 Go\r\nLocation: " + where + b"\r\n\r\n"
            for where in (b"", b"http://[::1", b"ftp://x/", b"http:///", b"\xff")
        ),
    ],
)
def test_no_answer_is_an_exception(serve, sent):
    server, endpoint = serve(lambda exchange: exchange.push(sent))
    answer = endpoint.ask(MESSAGES, LONG)
    assert answer.outcome in ("unreachable", "no_completion", "bad_request", "server_error")
    assert answer.error
    assert len(server.requests) >= 1


@pytest.mark.parametrize("code", [301, 307, 308])
def test_a_redirect_in_a_circle(ask, code):
    assert ask(*[status(code, b"", {"Location": "/v1/chat/completions"})] * 50).outcome in (
        "unreachable",
        "no_completion",
    )


# Limits


def test_an_answer_that_never_comes(serve):
    server, endpoint = serve(stall(), answer_seconds=0.3)
    answer = endpoint.ask(MESSAGES, LONG)
    assert (answer.outcome, len(server.requests)) == ("timeout", 1)
    assert "0.3 s" in str(answer.error)


@pytest.mark.parametrize("part", [b" ", b"x", b'{"choices": ['])
def test_an_answer_that_never_ends(ask, part):
    assert ask(drip(part), answer_seconds=0.4).outcome == "timeout"


def test_headers_that_never_end(ask):
    def step(exchange):
        exchange.push(b"HTTP/1.0 200 OK\r\n")
        while exchange.push(b"x-a: b\r\n") and not exchange.llm.closing.wait(0.02):
            pass

    assert ask(step, answer_seconds=0.4).outcome == "timeout"


def test_a_late_answer_is_retried(serve):
    server, endpoint = serve(stall(), ok("hello"), answer_seconds=1.5, retries=1)
    assert endpoint.ask(MESSAGES, LONG).text == "hello"
    assert len(server.requests) == 2


def test_all_retries_end_together(serve):
    server, endpoint = serve(*[stall()] * 9, answer_seconds=0.2, retries=8)
    answer = endpoint.ask(MESSAGES, 0.5)
    assert answer.outcome == "timeout"
    assert "within 0.5 s, retries included" in str(answer.error)
    assert len(server.requests) < 9


def test_a_pause_before_a_retry_counts_and_its_reason_is_known(serve):
    server, endpoint = serve(
        status(429, "slow down", {"retry-after": "100"}), ok("never"), retries=1
    )
    answer = endpoint.ask(MESSAGES, 2.0)
    assert (answer.outcome, answer.retry_after, len(server.requests)) == ("rate_limited", 100.0, 1)


def test_a_retry_that_is_late_is_a_timeout(serve):
    server, endpoint = serve(status(500, "x", SOON), stall(), retries=1)
    assert endpoint.ask(MESSAGES, 2.0).outcome == "timeout"
    assert len(server.requests) == 2


@pytest.mark.parametrize("seconds", [0.0, -5.0])
def test_zero_seconds_are_a_timeout(serve, seconds):
    server, endpoint = serve(ok("never"))
    assert endpoint.ask(MESSAGES, seconds).outcome == "timeout"
    assert server.requests == []


def cancel_soon(server, endpoint):
    """Cancels from another thread when the request has arrived."""

    def cancel():
        server.arrived.wait(LONG)
        endpoint.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "step", [stall(), drip(), status(429, "slow down", {"retry-after": "100"})]
)
def test_a_request_is_cancelled_from_another_thread(serve, step):
    server, endpoint = serve(step, retries=3)
    thread = cancel_soon(server, endpoint)
    answer = endpoint.ask(MESSAGES, LONG)
    thread.join()
    assert answer.outcome == "cancelled"
    assert answer.seconds < LONG / 2
    assert len(server.requests) == 1


def test_requests_of_several_threads_are_cancelled(serve):
    server, endpoint = serve(*[stall()] * 3)
    outcomes = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(endpoint.ask(MESSAGES, LONG).outcome))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LONG
    while len(server.requests) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    endpoint.cancel()
    for thread in threads:
        thread.join()
    assert outcomes == ["cancelled"] * 3


def test_a_request_after_a_cancel_is_cancelled(serve):
    server, endpoint = serve(ok("never"))
    endpoint.cancel()
    assert endpoint.ask(MESSAGES, LONG).outcome == "cancelled"
    assert server.requests == []


def test_a_cancel_after_the_answer_does_no_harm(serve):
    _, endpoint = serve(ok("hello"))
    assert endpoint.ask(MESSAGES, LONG).text == "hello"
    endpoint.cancel()


def test_a_signal_handler_cancels(serve):
    server, endpoint = serve(stall())
    before = signal.signal(signal.SIGUSR1, lambda *_: endpoint.cancel())
    main = threading.get_ident()

    def send():
        server.arrived.wait(LONG)
        signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        assert endpoint.ask(MESSAGES, LONG).outcome == "cancelled"
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def heeds_ctrl_c():
    """As any command does; one of the processes that share the suite ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_is_not_a_reply(serve):
    server, endpoint = serve(stall())
    main = threading.get_ident()

    def send():
        server.arrived.wait(LONG)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        endpoint.ask(MESSAGES, LONG)
    thread.join()


def test_a_pending_name_lookup_delays_nothing(monkeypatch):
    looking, found = threading.Event(), threading.Event()

    def look_up(*_, **__):
        looking.set()
        found.wait(LONG)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://endpoint.internal/v1")
    endpoint = Endpoint.from_environment(Llm(model="scripted"))

    def cancel():
        looking.wait(LONG)
        endpoint.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        assert endpoint.ask(MESSAGES, LONG).outcome == "cancelled"
    finally:
        found.set()
        thread.join()


def test_threads_ask_at_the_same_time(monkeypatch):
    texts = {}
    together = threading.Barrier(5)  # answers none before all have asked

    def answer(body):
        text = body["messages"][0]["content"]
        return lambda exchange: (together.wait(LONG), ok(text)(exchange))

    with LlmServer(answer) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        endpoint = Endpoint.from_environment(Llm(model="scripted"))

        def one(number):
            texts[number] = endpoint.ask([{"role": "user", "content": str(number)}], LONG).text

        threads = [threading.Thread(target=one, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == {number: str(number) for number in range(5)}


@pytest.mark.parametrize(
    "step", [ok("hello"), stall(), drip(), reset_mid_body(), html(), status(500, "x")]
)
def test_nothing_is_left_open(serve, step):
    _, endpoint = serve(step, answer_seconds=0.2, retries=0)
    before = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    endpoint.ask(MESSAGES, LONG)
    gc.collect()  # an unclosed client warns here, and warnings are errors
    assert len(os.listdir("/proc/self/fd")) <= before[1] + 1  # the server's end
    assert [
        thread.name
        for thread in threading.enumerate()
        if "AnyIO" in thread.name and thread not in before[0]
    ] == []


# What an endpoint does not take


NEWER = error(
    "Unsupported parameter: 'max_tokens' is not supported with this model. "
    "Use 'max_completion_tokens' instead.",
    param="max_tokens",
)


@pytest.mark.parametrize(
    "body",
    [NEWER, {"detail": [{"loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted"}]}],
)
@pytest.mark.parametrize("code", [400, 422])
def test_the_newer_name_of_max_tokens(serve, code, body):
    server, endpoint = serve(status(code, body), ok("one"), ok("two"))
    assert endpoint.ask(MESSAGES, LONG).text == "one"
    assert endpoint.ask(MESSAGES, LONG).text == "two"
    limits = [("max_tokens" in sent, "max_completion_tokens" in sent) for sent in server.requests]
    assert limits == [(True, False), (False, True), (False, True)]


def test_max_tokens_refused_under_both_names(serve):
    server, endpoint = serve(
        status(400, NEWER), status(400, error("max_completion_tokens is too large: 16384."))
    )
    answer = endpoint.ask(MESSAGES, LONG)
    assert (answer.outcome, len(server.requests)) == ("bad_request", 2)
    assert answer.error == (
        "[llm] max_tokens = 16384 is not accepted: status 400: max_completion_tokens is too large: "
        "16384. (invalid_request_error)"
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (400, "max_tokens is too large: 16384. This model supports at most 4096 completion tokens"),
        (400, "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]"),
        (422, "`max_new_tokens` must be strictly positive and at most 2048. Given: 16384"),
        (400, "max_output_tokens must be less than 8193"),
        (
            400,
            "This model's maximum context length is 4096 tokens. However, you requested 16400 "
            "tokens (16 in the messages, 16384 in the completion).",
        ),
        (200, "max_tokens: 16384 > 8192, which is the maximum allowed number of output tokens"),
    ],
)
def test_max_tokens_out_of_range_names_its_setting_at_once(serve, code, words):
    server, endpoint = serve(status(code, error(words)), ok("never"))
    answer = endpoint.ask(MESSAGES, LONG)
    assert answer.error.startswith("[llm] max_tokens = 16384 is not accepted: status ")
    assert words.partition(" (")[0] in answer.error
    assert len(server.requests) == 1


def test_the_change_of_name_is_not_a_retry(serve):
    server, endpoint = serve(
        status(500, "x", SOON), status(400, NEWER), status(500, "x", SOON), ok("hello"), retries=1
    )
    assert endpoint.ask(MESSAGES, LONG).text == "hello"
    assert len(server.requests) == 4


def test_a_temperature_that_is_not_supported(serve):
    refused = error(
        "Unsupported value: 'temperature' does not support 0.5 with this model.",
        param="temperature",
    )
    server, endpoint = serve(
        status(400, NEWER), status(400, refused), ok("one"), ok("two"), temperature=0.5
    )
    assert endpoint.ask(MESSAGES, LONG).text == "one"
    assert endpoint.ask(MESSAGES, LONG).text == "two"
    assert ["temperature" in sent for sent in server.requests] == [True, True, False, False]


def test_a_temperature_out_of_range_is_left_to_the_user(serve):
    server, endpoint = serve(
        status(400, error("temperature must be between 0 and 2")), ok("never"), temperature=5.0
    )
    answer = endpoint.ask(MESSAGES, LONG)
    assert (answer.outcome, len(server.requests)) == ("bad_request", 1)


# Secrets


@pytest.mark.parametrize(
    "step",
    [
        status(401, f"wrong key {FAKE_KEY}\nsk"),
        status(500, f"{'x' * 480}{FAKE_KEY}{FAKE_KEY}"),
        *(status(500, " " * spaces + FAKE_KEY) for spaces in (3965, 3980, 3999)),
        status(500, b"<p>" + b" " * 3965 + FAKE_KEY.encode()),
        status(400, {"echo": {"Authorization": f"Bearer {FAKE_KEY}"}}),
        error_body(f"wrong key {FAKE_KEY}"),
        ok(f"your key is {FAKE_KEY}"),
        refusal(FAKE_KEY),
        finish("length", FAKE_KEY),
        finish(FAKE_KEY, ""),
        status(200, FAKE_KEY.encode()),
    ],
)
def test_the_key_is_in_no_reply_and_no_log(ask, caplog, step):
    caplog.set_level(logging.DEBUG)
    answer = ask(step)
    for part in (FAKE_KEY, FAKE_KEY[:12], FAKE_KEY[-12:]):
        assert part not in f"{answer}"
        assert part not in caplog.text


def test_the_key_is_in_no_request_id(ask):
    assert ask(status(429, "x", {"x-request-id": FAKE_KEY})).request_id == "[key]"


def test_the_password_of_the_address_is_in_no_reply_and_no_log(serve, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    server, _ = serve(status(401, "who is someone:open-sesame?"), retries=0)
    monkeypatch.setenv(
        "OPENAI_BASE_URL", server.url.replace("http://", "http://someone:open-sesame@")
    )
    endpoint = Endpoint.from_environment(Llm(model="scripted"))
    assert "[key]" in str(endpoint.ask(MESSAGES, LONG).error)
    assert "open-sesame" not in caplog.text + endpoint.url + repr(endpoint)


def test_an_error_is_one_line(ask):
    answer = ask(status(400, "a\n\x1b[31mb\u202e\r\n" + "c" * 5000))
    assert answer.error.startswith("status 400: a [31mb cc")
    assert len(answer.error) == chat.MOST_ERROR


# Settings


def test_openai_without_an_address(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", FAKE_KEY + "\n")
    endpoint = Endpoint.from_environment(Llm(model="gpt"))
    assert (endpoint.url, endpoint.model) == ("https://api.openai.com/v1", "gpt")


def test_no_model_is_a_usage_error():
    with pytest.raises(
        UsageError,
        match=r"no model to ask: set `model` in the profile's \[llm\] table, or give --model",
    ):
        Endpoint.from_environment(Llm())


@pytest.mark.parametrize(
    "address",
    ["", "https://api.example.com/v1", "http://8.8.8.8/v1", "https://[2606:4700::1111]/v1"],
)
def test_no_key_for_a_far_host_is_a_usage_error(monkeypatch, address):
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    with pytest.raises(UsageError, match=r"OPENAI_API_KEY is not set, and .* set the key"):
        Endpoint.from_environment(Llm(model="gpt"))


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1:8080",
        "[::1]:8080",
        "192.168.1.7",
        "10.0.0.1",
        "[fe80::1]",
        "100.64.0.3",
        "ollama",
        "host.docker.internal",
    ],
)
def test_no_key_for_a_near_host(monkeypatch, host):
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://{host}/v1/")
    assert Endpoint.from_environment(Llm(model="gpt")).url == f"http://{host}/v1"


def test_an_endpoint_that_needs_no_key_gets_a_placeholder(serve, monkeypatch):
    server, _ = serve(ok("hello not-needed"))
    monkeypatch.delenv("OPENAI_API_KEY")
    answer = Endpoint.from_environment(Llm(model="scripted")).ask(MESSAGES, LONG)
    assert (answer.text, server.authorizations) == ("hello not-needed", ["Bearer not-needed"])


def test_a_key_that_is_a_word_is_left_in_an_answer(serve, monkeypatch):
    serve(ok("x = None"))
    monkeypatch.setenv("OPENAI_API_KEY", "None")
    assert Endpoint.from_environment(Llm(model="scripted")).ask(MESSAGES, LONG).text == "x = None"


@pytest.mark.parametrize(
    "address",
    [
        "api.example.com/v1",
        "ftp://h/v1",
        "http:///v1",
        "http://h:99999/v1",
        "http://[::1/v1",
        "http://a b/v1",
        "http://h/\u00e4",
        "http://h/\nv1",
    ],
)
def test_a_bad_address_is_a_usage_error(monkeypatch, address):
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    monkeypatch.setenv("OPENAI_API_KEY", FAKE_KEY)
    with pytest.raises(
        UsageError,
        match=r"OPENAI_BASE_URL is not the address .* set it to a complete http:// or https://",
    ):
        Endpoint.from_environment(Llm(model="gpt"))


@pytest.mark.parametrize("key", ["two words", "l\u00f6ng", "a\nb"])
def test_a_bad_key_is_a_usage_error(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UsageError, match=r"OPENAI_API_KEY has characters") as caught:
        Endpoint.from_environment(Llm(model="gpt"))
    assert key not in str(caught.value)


# The server itself


def test_the_end_of_the_script_is_reported(serve):
    server, endpoint = serve(ok("hello"))
    endpoint.ask(MESSAGES, LONG)
    answer = endpoint.ask(MESSAGES, LONG)
    assert answer.error.startswith("status 500: the script has no answer to request 2")
    assert len(server.requests) == 2


def test_the_fake_key_is_in_no_file():
    found = subprocess.run(
        ["git", "grep", "-lI", "--untracked", FAKE_KEY], cwd=ROOT, capture_output=True, text=True
    )
    assert (found.returncode, found.stdout) == (1, "")


def test_requests_to_the_server_are_written_to_a_file(tmp_path, monkeypatch):
    with LlmServer([ok("hello", USAGE)], transcript=tmp_path / "sent.jsonl") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        Endpoint.from_environment(Llm(model="scripted")).ask(MESSAGES, LONG)
    assert json.loads((tmp_path / "sent.jsonl").read_text())["messages"] == MESSAGES


def test_a_night_is_replayed(serve, tmp_path):
    log = CallLog(tmp_path / "llm_calls.jsonl")
    _, endpoint = serve(
        ok("one"),
        status(429, "slow down", SOON),
        finish("length", "half"),
        message({"content": None}),
    )
    replies = [endpoint.ask(MESSAGES, LONG) for _ in range(4)]
    for number, each in enumerate(replies, start=1):
        known: dict[str, Any] = {
            **dataclasses.asdict(each),
            "answer": each.text,
            "id": f"{number}.1",
            "trial": number,
        }
        del known["text"]
        where: dict[str, Any] = {
            "endpoint": endpoint.url,
            "model": endpoint.model,
            "messages": tuple(MESSAGES),
        }
        log.append(
            Call(
                **known,
                **where,
                purpose="propose",
                time=datetime.now(UTC).isoformat(),
                dollars=None,
            )
        )
    _, again = serve(*replay(log.path))
    for each in replies:
        reply = again.ask(MESSAGES, LONG)
        assert (reply.outcome, reply.text, reply.prompt_tokens) == (
            each.outcome,
            each.text,
            each.prompt_tokens,
        )
