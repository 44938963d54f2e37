"""A process that has imported all that a night needs and forks one for each command: four seconds less a command.

Run in a checkout as `python -m tests.faults.warm_commands`; each line of its input is an order, each of its output the exit
code, negative for a signal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.faults.stub_checkout import StubCheckout


class WarmCommands:
    """The other end: runs `./run ARGUMENTS` in a checkout whose Prefect server stands."""

    def __init__(self, checkout: StubCheckout) -> None:
        self.log = checkout.home / "warm.log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm_commands"],
            cwd=checkout.folder,
            env=checkout.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **changes: str) -> tuple[int, str]:
        """The exit code and what the command said."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.log.unlink(missing_ok=True)
        order = {"arguments": arguments, "changes": changes, "log": str(self.log)}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()), self.log.read_text()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.communicate()  # the end of its input is its end


def serve() -> None:
    """Forks a process for each order and waits for it."""
    from flows import state_home
    from flows.command_line.cli import main

    state_home.configure(state_home.locate())
    import mlflow
    import optuna

    import flows.nightly_research
    import tasks.views.chart

    assert all(
        (mlflow, optuna, flows.nightly_research, tasks.views.chart)
    )  # what takes the seconds
    for line in sys.stdin:
        order = json.loads(line)
        if (pid := os.fork()) == 0:
            log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update(order["changes"])
            sys.exit(main(order["arguments"]))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    Path(os.environ["NIGHTLY_HOME"]).mkdir(parents=True, exist_ok=True)
    serve()
