"""Waits for a state, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

WAIT_SECONDS = 600.0  # ends a hang; every wait is over in seconds on a machine that is not busy


def wait_for(what: Callable[[], object], name: str, seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name}: not within {seconds:.0f} s")
        time.sleep(0.02)
