"""When people are told of a night: it failed, finished, or has a new champion. A notice that is not taken costs a warning."""

from __future__ import annotations

import contextlib
from pathlib import Path

from prefect import get_run_logger

from tasks import notification, report
from tasks.records import NightlyError, NightState


def tell(kind: notification.Kind, state: NightState) -> None:
    """Sends one notice, its text made from the ledger's state."""
    facts = {
        "champion_bpb": state.champion_bpb,
        "baseline_bpb": state.baseline["val_bpb"] if state.baseline else None,
        "champion_commit": state.champion,
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


def leave_word(folder: Path, state: NightState) -> None:
    """After an end that nobody waited for: a report, as far as there is room for it, and a notice if it was our failure."""
    with contextlib.suppress(OSError):
        report.write(state, folder)
    if state.failed:
        tell("failed", state)
