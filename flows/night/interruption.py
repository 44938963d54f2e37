"""How a night is asked to end: Ctrl-C once is after this trial, twice is now, SIGTERM is now (a cancelled flow run gets one).

`./run stop` asks by a file in the night's folder, and so does the first Ctrl-C. Whatever ends a night, its boxes are ended
on the way out, and the next process goes on with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

ASKED = "stop"  # file in the night's folder; its text says who asked
SAID = b"\nThe night ends after this trial. Ctrl-C again ends it now; this trial is then run again by ./run resume.\n"


def ask(folder: Path, who: str) -> None:
    """Asks the night of this folder to end after its current trial."""
    (folder / ASKED).touch()
    with contextlib.suppress(OSError):  # a full disk takes the name of a file and no text
        (folder / ASKED).write_text(who, encoding="utf-8")


def asked(folder: Path) -> str | None:
    """Who asked for the end, or None."""
    try:
        return (folder / ASKED).read_text(encoding="utf-8") or "./run stop"
    except FileNotFoundError:
        return None


def terminate(signum: int, frame: FrameType | None) -> None:
    """A command's handler of SIGTERM. While a flow runs, Prefect has its own, which cleans up and then calls this one."""
    raise KeyboardInterrupt("SIGTERM")


@contextlib.contextmanager
def heeded(folder: Path, in_trial: Callable[[], bool]) -> Iterator[None]:
    """Heeds Ctrl-C in the block, in the main thread. Outside a trial there is nothing to wait for.

    Raises KeyboardInterrupt in the block when the night is to end now.
    """
    (folder / ASKED).unlink(missing_ok=True)  # it was meant for an earlier process
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if not in_trial() or asked(folder):
            raise KeyboardInterrupt("Ctrl-C")
        try:
            ask(folder, "Ctrl-C")
        except OSError:  # it cannot be asked any more
            raise KeyboardInterrupt("Ctrl-C") from None
        with contextlib.suppress(OSError):  # nobody may be there to read it
            os.write(2, SAID)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
