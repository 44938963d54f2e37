"""How long a model's context is, as far as its endpoint tells, which many do not.

vLLM: max_model_len. OpenRouter: context_length. llama.cpp: n_ctx of /props, which is what a request
gets, or else meta.n_ctx_train. LM Studio: loaded_context_length, max_context_length. OpenAI tells
none. What the endpoint says is not trusted: a number out of range is no length.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx2

NAMES = ("max_model_len", "loaded_context_length", "context_length", "max_context_length")
LEAST, MOST = 256, 10**8  # tokens


async def asked(client: httpx2.AsyncClient, url: str, model: str) -> int | None:
    """The length in tokens; None if the endpoint does not say, whatever the reason."""
    import httpx2

    async def got(address: str) -> Any:
        answer = await client.get(address)
        return json.loads(answer.content) if answer.status_code == 200 else None

    try:
        models = await got(f"{url}/models")
        length = of_models(models, model)
        if "n_ctx_train" in json.dumps(models):
            length = of_props(await got(f"{url.removesuffix('/v1')}/props")) or length
        return length
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, RecursionError):
        return None


def of_models(listed: Any, model: str) -> int | None:
    """By the list of models, which has `model` or only one. None if it does not say."""
    entries = listed.get("data") if isinstance(listed, dict) else None
    entries = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    named = [one for one in entries if one.get("id") == model]
    found = named or (entries if len(entries) == 1 else [])
    if not found:
        return None
    meta = found[0].get("meta")
    inner = meta if isinstance(meta, dict) else {}
    said = [*(found[0].get(name) for name in NAMES), inner.get("n_ctx"), inner.get("n_ctx_train")]
    return next((length for length in map(_length, said) if length), None)


def of_props(props: Any) -> int | None:
    """By llama.cpp's /props: the context of one request."""
    given = props.get("default_generation_settings") if isinstance(props, dict) else None
    return _length(given.get("n_ctx")) if isinstance(given, dict) else None


def _length(said: Any) -> int | None:
    is_count = isinstance(said, int) and not isinstance(said, bool)
    return said if is_count and LEAST <= said <= MOST else None
