"""A full disk pauses a night: files that can be made again are removed, then it waits for room."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from prefect import get_run_logger

from flows.night import interruption
from flows.night.night import Night
from flows.night.session import Session
from tasks.data import tokenization
from tasks.files import FULL

# Bytes that must be free: a trial's files, git objects, a ledger line. A checkpoint needs more, and
# is simply tried.
RESERVE = 32 * 2**20
POLL_SECONDS = 5.0
REMIND_SECONDS = 600.0
ROWS_KEPT = 3  # of sequence lengths that candidates asked for


def prune(night: Night, most: int = ROWS_KEPT) -> None:
    """Removes packed rows of sequence lengths that candidates asked for, except the latest."""
    data = night.bench.profile.data
    own = [(size, data.sequence_length) for size in data.vocab_sizes]
    for gone in tokenization.prune_rows(Path(night.bench.dataset.train), own, most):
        get_run_logger().info(f"removed {gone}: it can be packed again")


def made_room(night: Night, held: Session, error: BaseException) -> bool:
    """Whether `error` came from a full disk that has room again.

    Waits for the room, or for somebody to end the night.
    """
    places = (night.bench.home, night.root / ".git", Path(tempfile.gettempdir()))
    full = _without_room(places)
    if full is None and not _is_about_space(error):
        return False
    reminded: float | None = None
    while full and not interruption.requested_by(held.folder):
        prune(night, most=0)
        full = _without_room(places)
        if full is None:
            break
        free = shutil.disk_usage(full).free / 2**20
        short = f"the disk of {full} is full: {free:.0f} MiB free, {RESERVE >> 20} needed"
        held.pulse.enter(f"paused: {short}")
        if reminded is None or time.monotonic() - reminded >= REMIND_SECONDS:
            reminded = time.monotonic()
            get_run_logger().warning(
                f"paused: {short}. The night continues as soon as there is room ({error})"
            )
        time.sleep(POLL_SECONDS)
    if reminded is not None and not full:
        get_run_logger().info("there is room again: the night continues")
    return True


def _without_room(places: Sequence[Path]) -> Path | None:
    """The first folder that does not take RESERVE bytes: written, as no figure shows quotas."""
    for place in places:
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE)
        except OSError as error:
            if error.errno in FULL:  # any other error will be reported where it matters
                return place
    return None


def _is_about_space(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(os.strerror(code) in str(error) for code in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
