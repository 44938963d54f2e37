"""What Prefect's cache does not do: keys that cannot collide, and results that are checked before they are believed.

A bare `INPUTS` policy gives two tasks with equal inputs one result, and a hit on a result whose file is gone is still a
hit. So every cached task here takes `key` as its first argument, returns FileRefs (never data), and is called by
`ensure`. Results lie under PREFECT_HOME, inside the state folder: two state folders share nothing.
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

AT_ONCE = 16  # of Prefect's threads, which have no limit of their own: a hub refuses the requests of hundreds

P = ParamSpec("P")
R = TypeVar("R")


def key(task_name: str, version: int, **parts: Any) -> str:
    """`<task>:v<version>:<sha256 of the parts>`. Parts are plain JSON values; an output's folder is one of them.

    Raises TypeError for a part that has no JSON form: its text could differ from one process to the next.
    """
    canonical = json.dumps(parts, sort_keys=True)
    return f"{task_name}:v{version}:{hashlib.sha256(canonical.encode()).hexdigest()}"


def short(key: str) -> str:
    """Enough of a key to name a file after."""
    return key.rpartition(":")[2][:16]


def given_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """The `cache_key_fn` of every cached task: the key is made by its caller."""
    return str(parameters["key"])


def ensure(task: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> tuple[R, bool]:
    """Calls a cached task inside a flow; its result, and whether it came from the cache.

    Files of a cached result are hashed; if one is gone or changed, the task runs again and its result replaces the
    cached one. Raises what the task raises.
    """
    state: State[R] = task(*args, **kwargs, return_state=True)
    result: R = state.result()
    if _trusted(state, result):
        return result, True
    if state.name == "Cached":
        result = task.with_options(refresh_cache=True)(*args, **kwargs)
    return result, False


def ensure_each(task: Task[..., R], calls: Sequence[tuple[Any, ...]]) -> tuple[list[R], bool]:
    """`ensure` for many calls at once, on the flow's task runner; True when every result came from the cache.

    All calls end before the first failure is raised, so that a download that goes well is not lost to one that does not.
    """
    states = _states(task, calls)
    results: list[R] = [state.result() for state in states]
    stale = [i for i, state in enumerate(states) if not _trusted(state, results[i])]
    again = [i for i in stale if states[i].name == "Cached"]
    for i, state in zip(
        again,
        _states(task.with_options(refresh_cache=True), [calls[i] for i in again]),
        strict=True,
    ):
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
        get_run_logger().warning(f"{problem}: made anew")
    return problem is None


def damage(result: object) -> str | None:
    """What is wrong with the first file of a result that is not as it was made, or None. Reads every file whole."""
    for ref in _files(result):
        path = Path(ref.path)
        if not path.is_file():
            return f"{path} is gone"
        if (size := path.stat().st_size) != ref.bytes:
            return f"{path} has {size} bytes instead of {ref.bytes}"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != ref.sha256:
                return f"{path} was changed: its sha256 is another"
    return None


def _files(result: object) -> Iterator[FileRef]:
    if isinstance(result, FileRef):
        yield result
    elif isinstance(result, Mapping):
        yield from (ref for value in result.values() for ref in _files(value))
    elif isinstance(result, list | tuple):
        yield from (ref for value in result for ref in _files(value))
    elif dataclasses.is_dataclass(result):
        yield from (
            ref
            for field in dataclasses.fields(result)
            for ref in _files(getattr(result, field.name))
        )


T = TypeVar("T")


def unscanned(value: T) -> T:
    """Wraps an argument of a Prefect task so that Prefect does not search it for other tasks' results.

    That search walks through the whole value at every call: about a second for the record of a
    few hundred trials.
    """
    return cast(T, quote(value))
