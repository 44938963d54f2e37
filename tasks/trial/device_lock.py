"""One night a device: two that train on one GPU at once falsify each other's scores, and may take its memory from each other.

A CPU with a budget of FLOPs needs no lock: its scores do not depend on how long a training takes.
Not covered: nights of different state folders, and one GPU under two names (0 and GPU-...).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.errors import UsageError
from tasks.files import sign


def device_of(settings: Mapping[str, Any]) -> str | None:
    """The device that a night with these settings of a profile must have to itself: cpu, mps, cuda-0; None if none."""
    device = str(settings["device"])
    if device == "cpu" and settings["budget"]["kind"] == "flops":
        return None
    if device != "cuda":
        return device
    first = (
        os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
    )  # as boxes see it
    return f"cuda-{first.replace('/', '_')}"


@contextlib.contextmanager
def held(home: Path, device: str | None, who: str) -> Iterator[None]:
    """Holds the device for `who`, such as "night nov21", for as long as the block or the process lives.

    Raises UsageError while somebody else of the state folder has it.
    """
    if device is None:
        yield
        return
    with (home / f"device-{device}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder, _, pid = (lock.read() or "somebody unknown").rpartition(" ")
            raise UsageError(
                f"{who} would train on {device}, on which {holder} is running (pid {pid}), and both would be measured wrong: "
                f"wait for it, end it, or name another GPU in CUDA_VISIBLE_DEVICES"
            ) from None
        sign(lock, f"{who} {os.getpid()}")
        yield
