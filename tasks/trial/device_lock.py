"""One night on a device: two that train on one GPU at once falsify each other's scores.

They may also take each other's memory. A CPU under a budget of FLOPs needs no lock: its scores do
not depend on how long a training takes. Not covered: nights of different state folders, and one GPU
under two names (0 and GPU-...).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from configs import Profile
from tasks.errors import UsageError
from tasks.files import sign
from tasks.judge import gpu


def device_of(profile: Profile) -> str | None:
    """The device that a night of this profile needs for itself; None if it needs none.

    "cpu", "mps", or the first visible GPU: "cuda-0". Raises UsageError if no GPU is visible.
    """
    if profile.device == "cpu" and profile.budget.kind == "flops":
        return None
    if profile.device != "cuda":
        return profile.device
    name = gpu.first_visible()
    if name is None:
        raise UsageError(
            f"CUDA_VISIBLE_DEVICES = {os.environ['CUDA_VISIBLE_DEVICES']!r} hides every GPU, and "
            "the profile trains on one: name one there, or unset the variable"
        )
    return f"cuda-{name.replace('/', '_')}"


def check(home: Path, profile: Profile, who: str) -> None:
    """Raises UsageError if `who` could not have the device of this profile now."""
    with held(home, device_of(profile), who):
        pass


@contextlib.contextmanager
def held(home: Path, device: str | None, who: str) -> Iterator[None]:
    """Holds the device for `who`, such as "night nov21", as long as the block or the process lives.

    Raises UsageError if another process of this state folder holds it.
    """
    if device is None:
        yield
        return
    with (home / f"device-{device}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder, _, pid = (lock.read() or "an unknown process").rpartition(" ")
            raise UsageError(
                f"{who} would train on {device}, on which {holder} is running (pid {pid}), and "
                "both scores would be wrong: wait for it, end it, or name another GPU in "
                "CUDA_VISIBLE_DEVICES"
            ) from None
        sign(lock, f"{who} {os.getpid()}")
        yield
