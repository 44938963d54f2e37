"""A full disk pauses a night: what can be made again is removed, then it waits for room and does its last step once more."""

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

RESERVE = (
    32 * 2**20
)  # bytes that must be free: a trial's files, git objects, a ledger line; a checkpoint is tried itself
LOOK_SECONDS = 5.0
SAY_SECONDS = 600.0
ROWS_KEPT = 3  # of lengths that candidates asked for


def prune(night: Night, most: int = ROWS_KEPT) -> None:
    """Removes packed rows of sequence lengths that candidates asked for, all but the latest."""
    data = night.profile.data
    own = [(size, data.sequence_length) for size in data.vocab_sizes]
    for gone in tokenization.prune_rows(Path(night.dataset.train), own, most):
        get_run_logger().info(f"removed {gone}: it can be packed again")


def made_room(night: Night, held: Session, error: BaseException) -> bool:
    """Whether `error` came of a full disk, on which there is room by now. Waits for that, or for somebody to end the night."""
    places = (night.home, night.root / ".git", Path(tempfile.gettempdir()))
    full = _without_room(places)
    if full is None and not _says_full(error):
        return False
    said = -SAY_SECONDS
    while full and not interruption.asked(held.folder):
        prune(night, most=0)
        if not (full := _without_room(places)):
            break
        short = f"the disk of {full} is full: {shutil.disk_usage(full).free / 2**20:.0f} MiB free, {RESERVE >> 20} needed"
        held.pulse.enter(f"paused: {short}")
        if time.monotonic() - said >= SAY_SECONDS:
            said = time.monotonic()
            get_run_logger().warning(
                f"paused: {short}. The night goes on as soon as there is room ({error})"
            )
        time.sleep(LOOK_SECONDS)
    if said > 0 and not full:
        get_run_logger().info("there is room again: the night goes on")
    return True


def _without_room(places: Sequence[Path]) -> Path | None:
    """The first folder that does not take RESERVE bytes: asked by writing, as quotas show in no figure."""
    for place in places:
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE)
        except OSError as error:
            if error.errno in FULL:
                return place  # another error than that is for whoever asks to tell of
    return None


def _says_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(os.strerror(code) in str(error) for code in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
