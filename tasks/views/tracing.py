"""Requests to language models as MLflow traces: one trace with one span a Call, under `Traces` on the page of its trial's run.

A trace's id is made from the night and the call, so it is found again and never doubled; it is whole once its span is
there. MLflow's public calls for this, start_trace and end_trace of its client, go through the process's one tracer
provider: to the global tracking URI, from a queue that lets no error through, under an id of its own choosing. So the
traces go where that queue takes them in the end: to the store, first what lists show of a trace, then its span.
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
from tasks.views.mlflow_client import plain, speaking_to

if TYPE_CHECKING:
    from mlflow.entities import Span, TraceInfo

MOST_FOUND = 500  # a trial has a few calls
LONGEST_PREVIEW = 1000  # characters, MLflow's own


def log_calls(uri: str, run_id: str, experiment_id: str, night: str, calls: Sequence[Call]) -> None:
    """A trace of the run for each call that has none; `night` is what no other night has, its tag and when it started.

    A trace that is there and whole is left as it is; one that a kill left without its span is completed.
    """
    if not calls:
        return
    with speaking_to(uri):
        from mlflow.store.tracking.rest_store import RestStore
        from mlflow.tracing.client import TracingClient
        from mlflow.tracing.constant import TraceTagKey

        client = TracingClient(uri)
        found = client.search_traces(
            locations=[experiment_id], run_id=run_id, include_spans=False, max_results=MOST_FOUND
        )
        whole = {
            trace.info.trace_id for trace in found if TraceTagKey.SPANS_LOCATION in trace.info.tags
        }
        for call in calls:
            info = _info(call, run_id, experiment_id, night)
            if info.trace_id in whole:
                continue
            client.start_trace(info)
            try:
                client.log_spans(experiment_id, [_span(call, night)])
            except (
                NotImplementedError
            ) as error:  # a server before 3.4, or one that was slow to tell its version
                RestStore._get_server_version.cache_clear()  # where "unknown" would stay until this process ends
                raise NightlyError(
                    f"MLflow at {uri} did not take a trace: {error}. llm_calls.jsonl has the call"
                ) from error


def _info(call: Call, run_id: str, experiment_id: str, night: str) -> TraceInfo:
    """What lists and searches show of the trace."""
    from mlflow.entities import TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.constant import (
        TRACE_SCHEMA_VERSION,
        TRACE_SCHEMA_VERSION_KEY,
        TraceMetadataKey,
        TraceTagKey,
    )

    metadata = {
        TRACE_SCHEMA_VERSION_KEY: str(TRACE_SCHEMA_VERSION),
        TraceMetadataKey.SOURCE_RUN: run_id,
    }
    if tokens := _tokens(call):
        metadata[TraceMetadataKey.TOKEN_USAGE] = json.dumps(tokens)
    if call.dollars is not None:
        metadata[TraceMetadataKey.COST] = json.dumps({"total_cost": call.dollars})
    tags = {
        TraceTagKey.TRACE_NAME: call.purpose,
        "night": night,
        "trial": call.trial,
        "outcome": call.outcome,
    }
    return TraceInfo(
        trace_id=_trace_id(night, call),
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=_began(call),
        execution_duration=round(call.seconds * 1000),
        state=TraceState.OK if call.outcome == "ok" else TraceState.ERROR,
        request_preview=f"{call.id} {call.purpose}",
        response_preview=plain(
            call.answer if call.outcome == "ok" else f"{call.outcome}: {call.error}"
        )[:LONGEST_PREVIEW],
        client_request_id=call.id,
        trace_metadata=metadata,
        tags={key: plain(value) for key, value in tags.items()},
    )


def _span(call: Call, night: str) -> Span:
    from mlflow.entities import Span, SpanType
    from mlflow.tracing.constant import SpanAttributeKey

    ours = {
        name: getattr(call, name)
        for name in ("id", "outcome", "error", "endpoint", "request_id", "estimated", "dollars")
    }
    attributes: dict[str, Any] = {
        SpanAttributeKey.REQUEST_ID: _trace_id(night, call),
        SpanAttributeKey.SPAN_TYPE: SpanType.CHAT_MODEL,
        SpanAttributeKey.MESSAGE_FORMAT: "openai",
        SpanAttributeKey.MODEL: plain(call.model),
        SpanAttributeKey.INPUTS: {
            "messages": [_message(message["role"], message["content"]) for message in call.messages]
        },
        **{
            name: plain(value) if isinstance(value, str) else value
            for name, value in ours.items()
            if value is not None
        },
    }
    if call.answer is not None:
        attributes[SpanAttributeKey.OUTPUTS] = {
            "choices": [{"message": _message("assistant", call.answer)}]
        }
    if (
        tokens := _tokens(call)
    ) and call.dollars is not None:  # tokens without a cost get one from MLflow's own price list
        attributes[SpanAttributeKey.CHAT_USAGE] = tokens
        attributes[SpanAttributeKey.LLM_COST] = {"total_cost": call.dollars}
    began = _began(call) * 1_000_000
    digest = _digest(night, call)
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
            "attributes": {
                key: json.dumps(value, ensure_ascii=False) for key, value in attributes.items()
            },
            "events": [],
        }
    )


def _digest(night: str, call: Call) -> bytes:
    return hashlib.sha256(f"{night}:{call.id}".encode()).digest()


def _trace_id(night: str, call: Call) -> str:
    """OpenTelemetry's 16 bytes as MLflow writes them."""
    return f"tr-{_digest(night, call)[:16].hex()}"


def _began(call: Call) -> int:
    """Milliseconds since 1970."""
    return round(datetime.fromisoformat(call.time).timestamp() * 1000)


def _tokens(call: Call) -> dict[str, int]:
    """By MLflow's names; empty when there was no answer."""
    if call.prompt_tokens is None or call.completion_tokens is None:
        return {}
    cached = {} if call.cached_tokens is None else {"cache_read_input_tokens": call.cached_tokens}
    total = call.prompt_tokens + call.completion_tokens
    return {
        "input_tokens": call.prompt_tokens,
        "output_tokens": call.completion_tokens,
        "total_tokens": total,
        **cached,
    }


def _message(role: str, text: str) -> dict[str, str]:
    """The text as it was said, but for what a store or the wire refuses: NUL and halves of surrogate pairs.

    Fenced as code, since MLflow's page takes it for Markdown: SEARCH blocks would be headings, and an image in an answer
    would be fetched by the browser of whoever reads it.
    """
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    said = text.replace("\0", "?").encode("utf-8", "replace").decode()
    return {"role": role, "content": f"{fence}\n{said}\n{fence}"}
