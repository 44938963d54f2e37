"""When people are told of a night: it failed, finished, or has a new champion. A notice that is not taken costs a warning."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from prefect import get_run_logger

from flows import night_folder
from tasks import ledger, notification, report
from tasks.records import NightlyError, NightState


def tell(kind: notification.Kind, state: NightState) -> None:
    """Sends one notice, its text made from the ledger's state."""
    facts = {
        "champion_bpb": state.champion_bpb,
        "baseline_bpb": state.baseline["val_bpb"] if state.baseline else None,
        "champion": state.champion,
        "trials": len(state.trials),
        "kept": sum(trial.verdict == "keep" for trial in state.trials),
        "reason": state.finished or state.stopped,
    }
    tag = state.header["tag"]
    texts = {
        "failed": f"Night {tag} failed: {state.stopped}. `./run resume {tag}` goes on with it.",
        "finished": f"Night {tag} is over: {state.finished}.\n{report.headline(state)}",
        "new-champion": f"Night {tag} has a new champion.\n{report.headline(state)}",
    }
    try:
        notification.send(kind, tag, texts[kind].replace("**", ""), facts)
    except NightlyError as error:
        get_run_logger().warning(str(error))


@contextlib.contextmanager
def failure_told(folder: Path) -> Iterator[None]:
    """An error or an interruption that leaves the block leaves a report behind; an error is told to people."""
    try:
        yield
    except BaseException as error:
        if ledger.exists(folder / night_folder.LEDGER):
            state = night_folder.read_state(folder)
            with contextlib.suppress(OSError):  # a full disk may be what this is about
                report.write(state, folder)
            if isinstance(error, Exception) and state.failed:
                tell("failed", state)
        raise
