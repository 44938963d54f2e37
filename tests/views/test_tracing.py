"""A night's requests to language models in real SQLite stores and a real MLflow server."""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import NightlyError
from tasks.usage import Call
from tasks.views import tracing
from tasks.views.mlflow_client import connect
from tests.checkouts import ROOT, Checkout
from tests.faults.outages import MlflowServer, proxy
from tests.trials import make_call
from tests.waiting import wait_for

NIGHT = "nov21:2026-11-21T22:00:00+00:00"
STRANGE = "\0\x1b[31m \ud800\udfff\r\n\ttab \u202e \U0001f600 ```` ![](http://127.0.0.1/x.png)\u2028</script>"
KEPT = STRANGE.replace("\0", "?").replace("\ud800\udfff", "??")
UNANSWERED = {
    "answer": None,
    "prompt_tokens": None,
    "cached_tokens": None,
    "completion_tokens": None,
}
DOWN: dict[str, Any] = {
    **UNANSWERED,
    "outcome": "unreachable",
    "error": "Connection refused",
    "dollars": None,
}

pytestmark = [
    pytest.mark.slow,  # a new store costs seconds: it is made once and copied
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # mlflow on sqlalchemy 2.1
]


@pytest.fixture
def store(empty_store, tmp_path):
    return Store(f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}")


@pytest.fixture(scope="module")
def server(empty_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server") / "checkout"
    folder.mkdir()
    server = MlflowServer(Checkout(folder))
    server.checkout.home.mkdir()
    shutil.copy(empty_store, server.checkout.home / "mlflow.db")
    server.start()
    yield server
    server.kill()


class Store:
    """A store with one experiment and a run, written by tasks.views.tracing, read by MLflow."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        with connect(uri) as client:
            found = client.get_experiment_by_name("night")
            self.experiment = found.experiment_id if found else client.create_experiment("night")
        self.run = self.new_run()

    @property
    def client(self):
        import mlflow

        return mlflow.MlflowClient(self.uri)

    def new_run(self) -> str:
        return self.client.create_run(self.experiment).info.run_id

    def log(self, *calls: Call) -> None:
        tracing.log_calls(self.uri, self.run, self.experiment, NIGHT, calls)

    def traces(self) -> list:
        """Those of the run, the first one first."""
        return self.client.search_traces(
            locations=[self.experiment],
            run_id=self.run,
            order_by=["timestamp_ms ASC"],
            max_results=500,
        )

    def trace(self):
        (trace,) = self.traces()
        return trace

    def everything(self) -> list:
        found = self.client.search_traces(
            locations=[self.experiment], max_results=500, include_spans=False
        )
        return [trace.info.trace_id for trace in found]


def said(message: dict) -> str:
    """What is in the fence."""
    fence, _, rest = message["content"].partition("\n")
    text, _, end = rest.rpartition("\n")
    assert (set(fence), end) == ({"`"}, fence)
    return text


def attempts(number: int, **changes) -> list[Call]:
    """Calls for one trial, a minute after one another."""
    times = [f"2026-11-21T22:{minute:02d}:00.250000+00:00" for minute in range(number)]
    return [make_call(7, i + 1, time=time, **changes) for i, time in enumerate(times)]


def test_a_call_is_a_trace_of_its_trials_run(store):
    store.log(make_call(7, 2, time="2026-11-21T22:05:00.250000+00:00", request_id="r1"))
    trace = store.trace()
    info, (span,) = trace.info, trace.data.spans
    assert (info.tags["mlflow.traceName"], info.client_request_id, info.state.value) == (
        "propose",
        "7.2",
        "OK",
    )
    assert info.tags.items() >= {"night": NIGHT, "trial": "7", "outcome": "ok"}.items()
    assert (info.request_preview, info.response_preview) == ("7.2 propose", "the answer")
    assert info.token_usage == {
        "input_tokens": 10_000,
        "output_tokens": 500,
        "total_tokens": 10_500,
        "cache_read_input_tokens": 4_000,
    }
    assert info.cost == {"total_cost": 0.025}
    assert (span.span_type, span.status.status_code.value, span.model_name) == (
        "CHAT_MODEL",
        "OK",
        "m1",
    )
    assert [(message["role"], said(message)) for message in span.inputs["messages"]] == [
        ("user", "the prompt")
    ]
    assert [said(choice["message"]) for choice in span.outputs["choices"]] == ["the answer"]
    assert span.get_attribute("mlflow.chat.tokenUsage") == info.token_usage
    assert (
        span.attributes.items()
        >= {"id": "7.2", "request_id": "r1", "dollars": 0.025, "estimated": False}.items()
    )


def test_a_trace_is_as_old_and_as_long_as_its_call(store):
    call = make_call(time="2026-11-21T22:05:00.250000+00:00", seconds=12.25)
    store.log(call)
    info, (span,) = store.trace().info, store.trace().data.spans
    began = round(datetime.fromisoformat(call.time).timestamp() * 1000)
    assert (info.request_time, info.execution_duration) == (began, 12_250)
    assert (span.start_time_ns, span.end_time_ns) == (
        began * 1_000_000,
        (began + 12_250) * 1_000_000,
    )


def test_traces_are_in_the_order_of_the_calls(store):
    calls = attempts(5)
    store.log(*calls[3:], *calls[:3])
    assert [trace.info.client_request_id for trace in store.traces()] == [call.id for call in calls]


def test_a_call_without_an_answer_is_an_error_that_says_why(store):
    store.log(make_call(**DOWN))
    info, (span,) = store.trace().info, store.trace().data.spans
    assert (info.state.value, info.response_preview) == ("ERROR", "unreachable: Connection refused")
    assert (span.status.status_code.value, span.status.description) == (
        "ERROR",
        "Connection refused",
    )
    assert (info.token_usage, info.cost, span.outputs) == (None, None, None)


def test_an_answer_without_a_patch_that_can_be_run_is_an_error_and_there_to_read(store):
    store.log(make_call(outcome="not_found", error="block 1: SEARCH is not in the file"))
    info, (span,) = store.trace().info, store.trace().data.spans
    assert (info.state.value, info.response_preview) == (
        "ERROR",
        "not_found: block 1: SEARCH is not in the file",
    )
    assert said(span.outputs["choices"][0]["message"]) == "the answer"


def test_an_unknown_cost_is_not_invented(store):
    store.log(make_call(model="gpt-4o", dollars=None))  # whose price at its vendor's MLflow knows
    info, (span,) = store.trace().info, store.trace().data.spans
    assert (info.cost, span.llm_cost, span.model_name) == (None, None, "gpt-4o")
    assert info.token_usage["total_tokens"] == 10_500


def test_calls_that_are_logged_twice_are_there_once_and_left_alone(store):
    calls = attempts(12)
    store.log(*calls)
    store.log(*(dataclasses.replace(call, answer="another answer") for call in calls))
    assert [
        said(trace.data.spans[0].outputs["choices"][0]["message"]) for trace in store.traces()
    ] == ["the answer"] * 12
    assert len(store.everything()) == 12


def test_missing_traces_are_added(store):
    calls = attempts(4)
    store.log(*calls[:1])
    store.log(*calls)
    assert [trace.info.client_request_id for trace in store.traces()] == [
        "7.1",
        "7.2",
        "7.3",
        "7.4",
    ]


def test_a_trace_without_its_span_is_completed(store):
    """As a kill between the two leaves it."""
    from mlflow.tracing.client import TracingClient

    calls = attempts(3)
    store.log(*calls[:1])
    TracingClient(store.uri).start_trace(
        tracing._info(calls[1], store.run, store.experiment, NIGHT)
    )
    with pytest.raises(NightlyError), connect(store.uri) as client:
        client.get_trace(tracing._trace_id(NIGHT, calls[1]))
    store.log(*calls)
    assert [len(trace.data.spans) for trace in store.traces()] == [1, 1, 1]
    assert [trace.info.token_usage["total_tokens"] for trace in store.traces()] == [10_500] * 3
    assert len(store.everything()) == 3


def test_the_traces_of_a_killed_writer_are_completed(store, tmp_path):
    code = (
        "import sys; from tasks.views import tracing\n"
        "from tests.views.test_tracing import NIGHT, attempts\n"
        "tracing.log_calls(sys.argv[1], sys.argv[2], sys.argv[3], NIGHT, attempts(60))"
    )
    argv = [sys.executable, "-c", code, store.uri, store.run, store.experiment]
    with (tmp_path / "log").open("w") as log:
        writer = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)
    wait_for(lambda: bool(store.everything()) or writer.poll() is not None, "the first trace")
    writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    store.log(*attempts(60))
    assert [trace.info.client_request_id for trace in store.traces()] == [
        f"7.{i}" for i in range(1, 61)
    ]
    assert {len(trace.data.spans) for trace in store.traces()} == {1}


def test_a_run_that_replaces_a_deleted_one_gets_the_traces(store):
    """Somebody deleted the first one on MLflow's page."""
    store.log(*attempts(2))
    store.client.delete_run(store.run)
    store.run = store.new_run()
    store.log(*attempts(2))
    assert len(store.traces()) == len(store.everything()) == 2


def test_writers_at_the_same_time_make_one_trace_a_call(store):
    with ThreadPoolExecutor(4) as threads:
        for written in [threads.submit(store.log, *attempts(5)) for _ in range(4)]:
            written.result()
    assert [len(trace.data.spans) for trace in store.traces()] == [1] * 5
    assert len(store.everything()) == 5


def test_nothing_of_the_process_is_changed_and_nothing_is_left_running(store, monkeypatch, capfd):
    import mlflow
    from mlflow.tracing.provider import provider

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # where nothing of this may go
    before = mlflow.get_tracking_uri(), provider.get(), set(threading.enumerate())
    store.log(*attempts(3))
    assert (mlflow.get_tracking_uri(), provider.get(), set(threading.enumerate())) == before
    assert capfd.readouterr().out == ""


def test_no_calls_make_no_requests(tmp_path):
    tracing.log_calls(f"sqlite:///{tmp_path}/none.db", "r", "1", NIGHT, ())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "`",
        "~~~\n```\n",
        '{"role": "system"}',
        '"quoted"',
        "null",
        STRANGE * 100,
        "\u00e4" * 1_000_000,
    ],
    ids=["empty", "newline", "backtick", "fences", "object", "quoted", "null", "strange", "long"],
)
def test_any_text_is_stored_as_it_is(store, text):
    text = text.replace("\0", "").replace("\ud800\udfff", "")
    store.log(make_call(messages=({"role": "system", "content": text},), answer=text))
    (span,) = store.trace().data.spans
    assert said(span.inputs["messages"][0]) == text
    assert said(span.outputs["choices"][0]["message"]) == text


def test_characters_that_no_store_accepts_are_replaced(store):
    store.log(strange())
    check_strange(store)


def strange() -> Call:
    every: dict[str, Any] = dict.fromkeys(
        ("endpoint", "model", "error", "request_id", "answer"), STRANGE
    )
    return make_call(messages=({"role": "user", "content": STRANGE},), outcome="malformed", **every)


def check_strange(store: Store) -> None:
    (span,) = store.trace().data.spans
    assert said(span.inputs["messages"][0]) == said(span.outputs["choices"][0]["message"]) == KEPT
    assert "\0" not in span.model_name + store.trace().info.response_preview


@given(st.text(alphabet="`~\n\r \tx#", max_size=30))
def test_no_text_escapes_its_fence(text):
    """By CommonMark, 4.5: a fence is ended by a line of as many backticks or more."""
    fence, *lines = tracing._message("user", text)["content"].splitlines()
    assert lines.pop() == fence
    assert not any(fence in line for line in lines)


def test_a_server_that_is_down_is_a_message():
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(NightlyError, match="Ledger and git have the data"):
            tracing.log_calls(
                f"http://127.0.0.1:{taken.getsockname()[1]}", "r", "1", NIGHT, attempts(300)
            )


def test_a_damaged_store_is_a_message(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database, whatever its name says")
    with pytest.raises(NightlyError, match="Ledger and git have the data"):
        tracing.log_calls(f"sqlite:///{tmp_path}/mlflow.db", "r", "1", NIGHT, attempts(1))


def test_a_store_that_lost_the_run_is_a_message(store):
    with pytest.raises(NightlyError, match="Ledger and git have the data"):
        tracing.log_calls(store.uri, "0" * 32, store.experiment, NIGHT, attempts(1))


def test_a_server_has_what_a_file_has(store, server):
    calls = [*attempts(3), make_call(8, 1, **DOWN), make_call(8, 2, model="gpt-4o", dollars=None)]
    remote = Store(server.url)
    for place in (store, remote, remote):
        place.log(*calls)
    for here, there in zip(store.traces(), remote.traces(), strict=True):
        assert [span.to_dict() for span in here.data.spans] == [
            span.to_dict() for span in there.data.spans
        ]
        shown = (
            "client_request_id",
            "state",
            "request_time",
            "execution_duration",
            "token_usage",
            "cost",
        )
        assert [getattr(here.info, name) for name in shown] == [
            getattr(there.info, name) for name in shown
        ]
    assert len(remote.traces()) == len(calls)


def test_a_server_is_sent_only_characters_that_it_accepts(server):
    remote = Store(server.url)
    remote.log(dataclasses.replace(strange(), id="9.1"))
    check_strange(remote)


def test_a_server_that_did_not_tell_its_version_is_asked_again(server):
    from mlflow.tracing.client import TracingClient

    with proxy(server.port) as between:
        remote = Store(f"http://127.0.0.1:{between.port}")
        rest = TracingClient(remote.uri).store
        between.turn("fail")
        assert rest._get_server_version(rest.get_host_creds()) is None  # which MLflow keeps in mind
        between.turn("forward")
        with pytest.raises(NightlyError, match="did not accept a trace"):
            remote.log(make_call(10, 1))
        remote.log(make_call(10, 1))
        assert [len(trace.data.spans) for trace in remote.traces()] == [1]
