"""The progress of a download: a bar with rate and time left on a terminal, else log lines."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator

import tqdm

QUIET_BYTES = 32 << 20  # a smaller download logs no tenths: it is over soon
QUIET_SECONDS = 30.0  # the longest time between two lines of a download

Report = Callable[[int, int | None], None]  # bytes so far, bytes in all if known


@contextlib.contextmanager
def reporting(name: str, log: Callable[[str], None]) -> Iterator[Report]:
    """A function for the download of `name` to call: it draws on stderr if that is a terminal,
    else it calls `log`. Several may be open at a time, in several threads.
    """
    if not sys.stderr.isatty():
        yield lines(name, log)
        return
    size = shutil.get_terminal_size()  # tqdm draws nothing on a terminal of unknown size
    with tqdm.tqdm(
        desc=name, unit="B", unit_scale=True, leave=False, ncols=size.columns, nrows=size.lines
    ) as bar:
        yield _drawn(bar)


def lines(
    name: str, log: Callable[[str], None], now: Callable[[], float] = time.monotonic
) -> Report:
    """Calls `log` at each tenth of a large download, and every QUIET_SECONDS of any other."""
    begun = last = now()
    first, logged = -1, 0

    def report(done: int, total: int | None) -> None:
        nonlocal begun, last, first, logged
        if first < 0 or done < first:  # bytes of an earlier try are not part of the rate
            begun, first = now(), done
            logged = done * 10 // total if total else 0
        tenth = done * 10 // total if total and total > QUIET_BYTES else logged
        if tenth > logged or now() - last >= QUIET_SECONDS:
            logged, last = tenth, now()
            log(f"{name}: {_state(done, total, (done - first) / max(last - begun, 1e-3))}")

    return report


def _drawn(bar: tqdm.tqdm) -> Report:
    def report(done: int, total: int | None) -> None:
        if bar.total != total or done < bar.n:  # the first call, or another version of the file
            bar.reset(total)
            bar.initial = bar.n = bar.last_print_n = done
        bar.update(done - bar.n)

    return report


def _state(done: int, total: int | None, rate: float) -> str:
    """`rate` is in bytes a second."""
    of, left = "", ""
    if total is not None:
        of = f" of {total / 1e6:.0f}"
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
    return f"{done / 1e6:.0f}{of} MB, {rate / 1e6:.1f} MB/s{left}"
