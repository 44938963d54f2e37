"""Arguments that Prefect hands to a task as they are."""

from __future__ import annotations

from typing import TypeVar, cast

from prefect.utilities.annotations import quote

T = TypeVar("T")


def whole(value: T) -> T:
    """The value, for a task's argument. Else Prefect walks through all of it at each call, looking for other tasks' results.

    That costs a second for the record of a few hundred trials.
    """
    return cast(T, quote(value))
