"""Requests to end a night.

Ctrl-C once ends it after this trial or run, twice ends it now, and so does SIGTERM, which a
cancelled flow run gets. `./run stop` leaves a file in the night's folder, and so does the first
Ctrl-C. Whatever ends a night, its boxes are ended on the way out, and a later process can resume
it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

REQUEST = "stop"  # file in the night's folder; its text says who asked
MESSAGE = "\nThe night ends after this {what}. Press Ctrl-C again to end it now: {then}.\n"


def request(folder: Path, who: str) -> None:
    """Asks the night of this folder to end after its current trial."""
    (folder / REQUEST).touch()
    with contextlib.suppress(OSError):  # a full disk takes the name of a file and no text
        (folder / REQUEST).write_text(who, encoding="utf-8")


def requested_by(folder: Path) -> str | None:
    """Who asked the night to end, or None."""
    try:
        return (folder / REQUEST).read_text(encoding="utf-8") or "./run stop"
    except FileNotFoundError:
        return None


def terminate(signum: int, frame: FrameType | None) -> None:
    """A command's SIGTERM handler. While a flow runs, Prefect's own cleans up, then calls it."""
    raise KeyboardInterrupt("SIGTERM")


@contextlib.contextmanager
def ctrl_c_handled(folder: Path, unfinished: Callable[[], str | None]) -> Iterator[None]:
    """Handles Ctrl-C in the block, in the main thread.

    It ends the night at once unless something is `unfinished`, a trial or a run. Raises
    KeyboardInterrupt in the block when the night is to end now.
    """
    (folder / REQUEST).unlink(missing_ok=True)  # it was meant for an earlier process
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        what = unfinished()
        if what is None or requested_by(folder):
            raise KeyboardInterrupt("Ctrl-C")
        try:
            request(folder, "Ctrl-C")
        except OSError:  # the file cannot be made: there is no way to end later
            raise KeyboardInterrupt("Ctrl-C") from None
        with contextlib.suppress(OSError):  # nobody may be there to read it
            os.write(2, MESSAGE.format(what=what, then=_repeat(what, folder.name)).encode())

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _repeat(what: str, tag: str) -> str:
    """What becomes of the work in hand. A run may be one of `./run certify`, long after a night."""
    if what == "trial":
        return f"`./run resume {tag}` then runs this trial again"
    return f"this {what} is repeated when it continues"


def reached(step: str) -> None:
    """Names a place between two durable steps where a machine may die.

    Does nothing: tests end the process here.
    """
