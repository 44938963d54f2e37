"""What Prefect's cache lacks: keys that cannot collide, and results that are checked before use.

The policy `INPUTS` gives two tasks with equal inputs one result, and a result whose file is gone is
still a hit. So every cached task here takes `key` as its first argument, returns FileRefs (never
data), and is called by `ensure`. Results are stored under PREFECT_HOME, inside the state folder:
two state folders share nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from prefect import State, Task, get_run_logger
from prefect.context import TaskRunContext
from prefect.futures import wait
from prefect.utilities.annotations import quote

from tasks.files import FileRef

# Calls at a time: Prefect's threads have no limit, and a hub refuses hundreds of requests at once.
AT_ONCE = 16

P = ParamSpec("P")
R = TypeVar("R")


def key(task_name: str, version: int, **parts: Any) -> str:
    """`<task>:v<version>:<sha256 of the parts>`.

    Parts are plain JSON values; the folder of the output is one of them. Raises TypeError for a
    part without a JSON form, whose text could differ between processes.
    """
    canonical = json.dumps(parts, sort_keys=True)
    return f"{task_name}:v{version}:{hashlib.sha256(canonical.encode()).hexdigest()}"


def short(key: str) -> str:
    """A part of a key, long enough for a file name."""
    return key.rpartition(":")[2][:16]


def given_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """The `cache_key_fn` of every cached task: its caller makes the key."""
    return str(parameters["key"])


def ensure(task: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> tuple[R, bool]:
    """Calls a cached task inside a flow: its result, and whether it came from the cache.

    The files of a cached result are hashed. If one is gone or changed, the task runs again and its
    result replaces the cached one. Raises what the task raises.
    """
    state: State[R] = task(*args, **kwargs, return_state=True)
    result: R = state.result()
    if _trusted(state, result):
        return result, True
    if state.name == "Cached":
        result = task.with_options(refresh_cache=True)(*args, **kwargs)
    return result, False


def ensure_each(task: Task[..., R], calls: Sequence[tuple[Any, ...]]) -> tuple[list[R], bool]:
    """`ensure` for many calls on the flow's task runner; True when all results were cached.

    All calls end before the first failure is raised: one failed download does not stop the others.
    """
    states = _states(task, calls)
    results: list[R] = [state.result() for state in states]
    stale = [i for i, state in enumerate(states) if not _trusted(state, results[i])]
    again = [i for i in stale if states[i].name == "Cached"]
    refreshed = _states(task.with_options(refresh_cache=True), [calls[i] for i in again])
    for i, state in zip(again, refreshed, strict=True):
        results[i] = state.result()
    return results, not stale


def _states(task: Task[..., R], calls: Sequence[tuple[Any, ...]]) -> list[State[R]]:
    states: list[State[R]] = []
    for first in range(0, len(calls), AT_ONCE):
        futures = [task.submit(*call) for call in calls[first : first + AT_ONCE]]
        wait(futures)
        states.extend(future.state for future in futures)
    return states


def _trusted(state: State[R], result: R) -> bool:
    if state.name != "Cached":
        return False
    problem = damage(result)
    if problem:
        get_run_logger().warning(f"{problem}: it is made again")
    return problem is None


def damage(result: object) -> str | None:
    """The first file of a result that is gone or changed, as a message; None when all are intact.

    Every file is read completely.
    """
    for ref in _files(result):
        path = Path(ref.path)
        if not path.is_file():
            return f"{path} is gone"
        if (size := path.stat().st_size) != ref.bytes:
            return f"{path} has {size} bytes instead of {ref.bytes}"
        if FileRef.of(path).sha256 != ref.sha256:
            return f"{path} was changed: its sha256 differs"
    return None


def _files(result: object) -> Iterator[FileRef]:
    if isinstance(result, FileRef):
        yield result
    elif isinstance(result, Mapping):
        yield from (ref for value in result.values() for ref in _files(value))
    elif isinstance(result, list | tuple):
        yield from (ref for value in result for ref in _files(value))
    elif dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            yield from _files(getattr(result, field.name))


T = TypeVar("T")


def unscanned(value: T) -> T:
    """Wraps an argument of a task, so that Prefect does not search it for results of other tasks.

    That search walks through the whole value at every call: about a second for the record of a
    few hundred trials.
    """
    return cast(T, quote(value))
