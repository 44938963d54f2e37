"""A process that prints its figures as JSON lines and must end by a deadline.

Whatever happens to it, the figures of its last complete line are kept, and why there are no more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from flows import state_home

Status = Literal["ok", "failed", "did not fit", "not run"]
GRACE_SECONDS = 5.0  # after Ctrl-C, to end what it started; then it is killed


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a measurement: what it found, and what became of it."""

    status: Status
    seconds: float
    figures: dict[str, Any]
    reason: str | None = None  # why it is not ok
    log: str = ""  # the end of its stderr


class MeasuredProcess:
    """Runs `argv` in the checkout, with its stdout and stderr in files of `folder`."""

    def __init__(self, argv: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self._out, self._err = folder / "stdout", folder / "stderr"
        self.started = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                argv,
                cwd=state_home.ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def figures(self) -> dict[str, Any]:
        """Those of the last complete line so far; empty without one."""
        for line in reversed(self._out.read_text(errors="replace").splitlines(keepends=True)):
            if line.startswith("{") and line.endswith("\n"):
                with contextlib.suppress(ValueError):  # what else a candidate prints
                    found: dict[str, Any] = json.loads(line)
                    return found
        return {}

    def log(self) -> str:
        return self._err.read_text(errors="replace")

    def part(self, seconds: float) -> Part:
        """Waits for its end, `seconds` at most; it is over in any case when this returns."""
        status: Status = "ok"
        reason = None
        try:
            if code := self._process.wait(max(seconds, 0.0)):
                status, reason = "failed", self._last_line() or f"exit code {code}"
        except subprocess.TimeoutExpired:
            status, reason = "did not fit", f"ended after the {seconds:.0f} s that it had"
        finally:
            if self._process.returncode is None:
                self._end()
        took = time.monotonic() - self.started
        return Part(status, took, self.figures(), reason, self.log()[-2000:] if reason else "")

    def _last_line(self) -> str:
        lines = [line.strip() for line in self.log().splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""

    def _end(self) -> None:
        """As by Ctrl-C, so that it ends its own children first; then all that is left by force.

        It is reaped last: until then no other process can have its number.
        """
        pid, deadline = self._process.pid, time.monotonic() + GRACE_SECONDS
        self._process.send_signal(signal.SIGINT)
        seen = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while os.waitid(os.P_PID, pid, seen) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(pid, signal.SIGKILL)
        self._process.wait()
