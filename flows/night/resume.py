"""Which night a start means: a new one, or an old one that goes on; and an old one brought in order before it does.

`./run resume`, a start with the tag of a night, a retried flow run and a deployment's next run all come through here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from prefect import get_run_logger, runtime

from flows import state_home
from flows.night.night import Night, Request
from tasks.errors import NightlyError, UsageError
from tasks.history import champion, heartbeat, ledger, night_folder, trial_folder
from tasks.records import NightState
from tasks.views import costs

RESTART_HOURS = 12.0  # a deployment's run without a tag takes up its night that died so recently
LATEST = 30  # nights that are looked through for it


def choose_tag(request: Request) -> str:
    """The night that a start without a tag means.

    A flow run that is retried goes on with its own night. A run of a deployment goes on with that deployment's last night
    of the same kind if it died, and is refused with a UsageError while that is alive. Everything else is a new night.
    """
    home = state_home.locate()
    for folder, header in _latest(home):
        if header.get("flow_run") == str(runtime.flow_run.id):
            return folder.name
    deployment = runtime.deployment.name
    for folder, header in _latest(home) if deployment else ():
        if header.get("deployment") != deployment or not _same(header, request):
            continue
        beat, state = heartbeat.last(folder / night_folder.PULSE), night_folder.read_state(folder)
        if beat and beat.is_alive:
            raise UsageError(
                f"night {folder.name} of the deployment {deployment!r} is running (pid {beat.process.pid} on {beat.host}: "
                f"{beat.phase}): wait for it, `./run stop {folder.name}`, or give this one a tag"
            )
        wished = state.stopped is not None and not state.failed
        if (
            beat
            and not state.finished
            and not wished
            and abs(time.time() - beat.time) < RESTART_HOURS * 3600
        ):
            return folder.name
    return _free_tag(home)


def begins_anew(folder: Path) -> bool:
    """Whether there is nothing to go on with: no night, or one that has measured nothing yet."""
    if not ledger.exists(folder / night_folder.LEDGER):
        return True
    return (
        night_folder.read_state(folder).baseline is None
        and champion.tip(state_home.ROOT, folder.name) is None
    )


def is_retry(state: NightState) -> bool:
    """Whether this flow run is the one that began the night."""
    return state.header.get("flow_run") == str(runtime.flow_run.id)


def check_request(state: NightState, request: Request) -> None:
    """Raises UsageError where somebody asks a night to go on as another one."""
    header, tag = state.header, state.header["tag"]
    if request.model not in (None, costs.model(header)):
        raise UsageError(
            f"night {tag} exists and was begun with model {costs.model(header)!r}, not {request.model!r}: choose another --tag"
        )
    asked = {
        "profile": request.profile,
        "seed": request.seed,
        "proposer": request.proposer,
        "patches": request.patches,
    }
    for name, value in asked.items():
        if (
            value is not None
            and value != header[name]
            and not (name == "patches" and header["proposer"] != "replay")
        ):
            raise UsageError(
                f"night {tag} exists and was begun with {name} {header[name]!r}, not {value!r}: "
                f"`./run resume {tag}` goes on with it, or choose another --tag"
            )


def put_in_order(night: Night, state: NightState) -> None:
    """Makes git's refs and the trials' folders what the ledger says. Raises NightlyError where somebody moved a ref."""
    commits = {trial.number: trial.commit for trial in state.trials if trial.commit}
    if state.champion is None:
        return
    tips = [state.champion]
    if state.pending and state.pending.verdict == "keep":
        tips += filter(None, [champion.trial_commit(night.root, night.tag, state.pending.number)])
    mended = champion.reconcile(night.root, night.tag, commits, tips)
    for trial in state.trials:
        folder = night.folder / "trials" / str(trial.number)
        if trial.commit and not (folder / "train.py").is_file():
            source, parent = (
                champion.source_at(night.root, commit) for commit in (trial.commit, trial.parent)
            )
            trial_folder.restore(folder, source, parent)
            mended.append(f"the folder of trial {trial.number} was gone and is back from git")
    for what in mended:
        get_run_logger().warning(f"mended: {what}")


def _same(header: dict[str, Any], request: Request) -> bool:
    if request.model not in (None, costs.model(header)):
        return False
    return all(
        getattr(request, name) in (None, header.get(name))
        for name in ("profile", "proposer", "patches", "seed")
    )


def _latest(home: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folders and first events of the latest nights, newest first."""
    paths = sorted(
        (home / "nights").glob(f"*/{night_folder.LEDGER}"),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in paths[:LATEST]:
        with path.open("rb") as file:
            line = file.readline()
        if line.endswith(b"\n"):
            try:
                yield path.parent, json.loads(line)
            except ValueError:
                raise NightlyError(
                    f"{path}, line 1 is damaged: restore the file from a backup, or move its folder away"
                ) from None


def _free_tag(home: Path) -> str:
    """Today as in nov21; nov21-2 where that night has begun or its branch exists."""
    today = date.today().strftime("%b%d").lower()
    names = (today, *(f"{today}-{i}" for i in range(2, 1000)))
    return next(name for name in names if _is_free(home / "nights" / name))


def _is_free(folder: Path) -> bool:
    beat = heartbeat.last(folder / night_folder.PULSE)
    return (
        begins_anew(folder)
        and not (beat and beat.is_alive)
        and champion.tip(state_home.ROOT, folder.name) is None
    )
