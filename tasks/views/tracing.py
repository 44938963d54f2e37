"""Requests to language models as MLflow traces, under `Traces` on the page of their trial's run.

Each Call is a trace with one span. Its id is made from the night and the call, so it is found again
and never doubled; it is complete once its span is there. MLflow's public functions for this, its
client's start_trace and end_trace, go through the process's one tracer provider: to the global
tracking URI, from a queue that hides errors, under an id of MLflow's own choice. So this module
writes to the store itself, as that queue does in the end: first the trace's entry, then its span.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tasks.errors import NightlyError
from tasks.usage import Call
from tasks.views.mlflow_client import connect, plain

if TYPE_CHECKING:
    from mlflow.entities import Span, TraceInfo

MOST_FOUND = 500  # traces of a run; a trial has a few calls
LONGEST_PREVIEW = 1000  # characters, MLflow's own limit
ATTRIBUTES = ("id", "outcome", "error", "endpoint", "request_id", "estimated", "dollars")  # ours


def log_calls(uri: str, run_id: str, experiment_id: str, night: str, calls: Sequence[Call]) -> None:
    """Adds a trace to the run for each call that has none; `night` differs for every night.

    A complete trace is left as it is; one that a kill left without its span is completed. Raises
    NightlyError if MLflow fails.
    """
    if not calls:
        return
    with connect(uri):
        from mlflow.store.tracking.rest_store import RestStore
        from mlflow.tracing.client import TracingClient
        from mlflow.tracing.constant import TraceTagKey

        client = TracingClient(uri)
        found = client.search_traces(
            locations=[experiment_id], run_id=run_id, include_spans=False, max_results=MOST_FOUND
        )
        infos = [trace.info for trace in found]
        complete = {info.trace_id for info in infos if TraceTagKey.SPANS_LOCATION in info.tags}
        for call in calls:
            info = _info(call, run_id, experiment_id, night)
            if info.trace_id in complete:
                continue
            client.start_trace(info)
            try:
                client.log_spans(experiment_id, [_span(call, night)])
            except NotImplementedError as error:
                # A server before 3.4, or one that was slow to tell its version: forget that
                # version, or it stays "unknown" as long as this process lives.
                RestStore._get_server_version.cache_clear()
                raise NightlyError(
                    f"MLflow at {uri} did not accept a trace: {error}. llm_calls.jsonl has the call"
                ) from error


def _info(call: Call, run_id: str, experiment_id: str, night: str) -> TraceInfo:
    """The trace's entry, which lists and searches show."""
    from mlflow.entities import TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.constant import TraceTagKey

    is_ok = call.outcome == "ok"
    tags = {
        TraceTagKey.TRACE_NAME: call.purpose,
        "night": night,
        "trial": call.trial,
        "outcome": call.outcome,
    }
    answer = call.answer if is_ok else f"{call.outcome}: {call.error}"
    return TraceInfo(
        trace_id=_trace_id(night, call),
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=_began(call),
        execution_duration=round(call.seconds * 1000),
        state=TraceState.OK if is_ok else TraceState.ERROR,
        request_preview=f"{call.id} {call.purpose}",
        response_preview=plain(answer)[:LONGEST_PREVIEW],
        client_request_id=call.id,
        trace_metadata=_metadata(call, run_id),
        tags={key: plain(value) for key, value in tags.items()},
    )


def _metadata(call: Call, run_id: str) -> dict[str, str]:
    from mlflow.tracing.constant import (
        TRACE_SCHEMA_VERSION,
        TRACE_SCHEMA_VERSION_KEY,
        TraceMetadataKey,
    )

    metadata = {
        TRACE_SCHEMA_VERSION_KEY: str(TRACE_SCHEMA_VERSION),
        TraceMetadataKey.SOURCE_RUN: run_id,
    }
    if tokens := _tokens(call):
        metadata[TraceMetadataKey.TOKEN_USAGE] = json.dumps(tokens)
    if call.dollars is not None:
        metadata[TraceMetadataKey.COST] = json.dumps({"total_cost": call.dollars})
    return metadata


def _span(call: Call, night: str) -> Span:
    from mlflow.entities import Span

    began = _began(call) * 1_000_000
    digest = _digest(night, call)
    attributes = _attributes(call, night).items()
    return Span.from_dict(
        {
            "trace_id": base64.b64encode(digest[:16]).decode(),
            "span_id": base64.b64encode(digest[16:24]).decode(),
            "parent_span_id": None,
            "name": call.purpose,
            "start_time_unix_nano": began,
            "end_time_unix_nano": began + round(call.seconds * 1e9),
            "status": {
                "code": "STATUS_CODE_OK" if call.outcome == "ok" else "STATUS_CODE_ERROR",
                "message": plain(call.error or ""),
            },
            "attributes": {key: json.dumps(value, ensure_ascii=False) for key, value in attributes},
            "events": [],
        }
    )


def _attributes(call: Call, night: str) -> dict[str, Any]:
    from mlflow.entities import SpanType
    from mlflow.tracing.constant import SpanAttributeKey

    messages = [_message(message["role"], message["content"]) for message in call.messages]
    attributes: dict[str, Any] = {
        SpanAttributeKey.REQUEST_ID: _trace_id(night, call),
        SpanAttributeKey.SPAN_TYPE: SpanType.CHAT_MODEL,
        SpanAttributeKey.MESSAGE_FORMAT: "openai",
        SpanAttributeKey.MODEL: plain(call.model),
        SpanAttributeKey.INPUTS: {"messages": messages},
    }
    for name in ATTRIBUTES:
        if (value := getattr(call, name)) is not None:
            attributes[name] = plain(value) if isinstance(value, str) else value
    if call.answer is not None:
        choice = {"message": _message("assistant", call.answer)}
        attributes[SpanAttributeKey.OUTPUTS] = {"choices": [choice]}
    # MLflow gives tokens without a cost one from its own price list.
    if call.dollars is not None and (tokens := _tokens(call)):
        attributes[SpanAttributeKey.CHAT_USAGE] = tokens
        attributes[SpanAttributeKey.LLM_COST] = {"total_cost": call.dollars}
    return attributes


def _digest(night: str, call: Call) -> bytes:
    return hashlib.sha256(f"{night}:{call.id}".encode()).digest()


def _trace_id(night: str, call: Call) -> str:
    """OpenTelemetry's 16 bytes as MLflow writes them."""
    return f"tr-{_digest(night, call)[:16].hex()}"


def _began(call: Call) -> int:
    """Milliseconds since 1970."""
    return round(datetime.fromisoformat(call.time).timestamp() * 1000)


def _tokens(call: Call) -> dict[str, int]:
    """By MLflow's names; empty if there was no answer."""
    if call.prompt_tokens is None or call.completion_tokens is None:
        return {}
    tokens = {
        "input_tokens": call.prompt_tokens,
        "output_tokens": call.completion_tokens,
        "total_tokens": call.prompt_tokens + call.completion_tokens,
    }
    if call.cached_tokens is not None:
        tokens["cache_read_input_tokens"] = call.cached_tokens
    return tokens


def _message(role: str, text: str) -> dict[str, str]:
    """The text as it is, except for NUL and halves of surrogate pairs, which no store accepts.

    It is fenced as code, because MLflow's page renders Markdown: SEARCH blocks would be headings,
    and the reader's browser would load an image that an answer names.
    """
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    clean = text.replace("\0", "?").encode("utf-8", "replace").decode()
    return {"role": role, "content": f"{fence}\n{clean}\n{fence}"}
