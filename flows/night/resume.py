"""Which night a start means, a new one or an old one, and the repair of an old one.

`./run resume`, a start with the tag of an existing night, a retried flow run and a deployment's
next run all come through here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

from prefect import get_run_logger, runtime

from flows import state_home
from flows.night.night import Night, Request
from tasks.errors import NightlyError, UsageError
from tasks.history import champion, heartbeat, ledger, night_folder, trial_folder
from tasks.records import Contender, NightHeader, NightState

# A deployment's run without a tag resumes that deployment's last night if it died so recently ...
RESTART_HOURS = 12.0
LATEST = 30  # ... and is among so many of the latest nights.


def choose_tag(request: Request) -> str:
    """The night that a start without a tag means.

    A retried flow run resumes its own night. A run of a deployment resumes the deployment's last
    night of the same kind if that died, and is refused with a UsageError while it is alive.
    Anything else starts a new night.
    """
    home = state_home.locate()
    for folder, header in _latest(home):
        if header.flow_run == str(runtime.flow_run.id):
            return folder.name
    deployment = runtime.deployment.name
    for folder, header in _latest(home) if deployment else ():
        if header.deployment != deployment or not _is_same(header, request):
            continue
        beat = heartbeat.last(folder / night_folder.PULSE)
        state = night_folder.read_state(folder)
        if beat and beat.is_alive:
            raise UsageError(
                f"night {folder.name} of the deployment {deployment!r} is running "
                f"(pid {beat.process.pid} on {beat.host}: {beat.phase}): wait for it, "
                f"`./run stop {folder.name}`, or give this one a tag"
            )
        on_request = state.stopped is not None and not state.failed
        recent = beat is not None and abs(time.time() - beat.time) < RESTART_HOURS * 3600
        if recent and not state.finished and not on_request:
            return folder.name
    return _free_tag(home)


def request_of(tag: str, trials: int | None, hours: float | None) -> Request:
    """What a resumed night asks for: what it began with, and new limits.

    Raises UsageError if there is no such night.
    """
    folder = night_folder.find(state_home.locate(), tag)
    header = night_folder.read_state(folder).header
    if starts_over(folder) and not (trials or hours):
        trials, hours = header.trials, header.hours
    return Request(
        profile=header.profile,
        trials=trials,
        hours=hours,
        proposer=header.proposer,
        patches=header.patches,
        seed=header.seed,
        allow_unsandboxed=header.isolation == "none",
        model=_model(header),
        notes=header.notes_of,
        contenders=header.contenders,
    )


def starts_over(folder: Path) -> bool:
    """Whether there is nothing to resume: no night, or one that has measured nothing yet."""
    if not ledger.exists(folder / night_folder.LEDGER):
        return True
    if night_folder.read_state(folder).baseline is not None:
        return False
    return champion.tip(state_home.ROOT, folder.name) is None


def is_retry(state: NightState) -> bool:
    """Whether this flow run is the one that started the night."""
    return state.header.flow_run == str(runtime.flow_run.id)


def check_request(state: NightState, request: Request) -> None:
    """Raises UsageError if the request asks for another night than the one it would resume."""
    header, tag = state.header, state.header.tag
    model = _model(header)
    if request.model not in (None, model):
        raise UsageError(
            f"night {tag} exists and was started with model {model!r}, not "
            f"{request.model!r}: choose another --tag"
        )
    asked: dict[str, tuple[object, object]] = {
        "profile": (request.profile, header.profile),
        "seed": (request.seed, header.seed),
        "proposer": (request.proposer, header.proposer),
        "notes": (request.notes, header.notes_of),
    }
    if header.proposer == "replay":
        asked["patches"] = (request.patches, header.patches)
    if request.contenders:
        asked["contenders"] = (_competing(request.contenders), _competing(header.contenders))
    for name, (value, began) in asked.items():
        if value not in (None, began):
            raise UsageError(
                f"night {tag} exists and was started with {name} {began!r}, not {value!r}: "
                f"`./run resume {tag}` resumes it, or choose another --tag"
            )


def _model(header: NightHeader) -> str | None:
    """The model as a request names it: None if each contender has its own."""
    return None if any(contender.model for contender in header.contenders) else header.model


def _competing(contenders: Iterable[Contender]) -> str:
    """Who competes, as it was asked for."""
    return ", ".join(
        contender.file or contender.model or contender.proposer for contender in contenders
    )


def repair(night: Night, state: NightState) -> None:
    """Makes git's refs and the trials' folders match the ledger.

    Raises NightlyError if somebody moved a ref.
    """
    commits = {trial.number: trial.commit for trial in state.trials if trial.commit}
    if state.champion is None:
        return
    tips = [state.champion]
    if state.pending and state.pending.verdict == "keep":
        kept = champion.trial_commit(night.root, night.tag, state.pending.number)
        tips += [kept] if kept else []
    repaired = champion.reconcile(night.root, night.tag, commits, tips)
    for trial in state.trials:
        folder = night.trial_folder(trial.number)
        if trial.commit and not (folder / "train.py").is_file():
            source = champion.source_at(night.root, trial.commit)
            parent = champion.source_at(night.root, trial.parent)
            trial_folder.restore(folder, source, parent)
            repaired.append(f"the folder of trial {trial.number} was gone: restored from git")
    for what in repaired:
        get_run_logger().warning(f"repaired: {what}")


def _is_same(header: NightHeader, request: Request) -> bool:
    """Whether the request could have started that night."""
    return (
        request.profile == header.profile
        and request.seed == header.seed
        and request.model in (None, header.model)
        and request.proposer in (None, header.proposer)
        and request.patches in (None, header.patches)
        and request.notes in (None, header.notes_of)
    )


def _latest(home: Path) -> Iterator[tuple[Path, NightHeader]]:
    """The folders and headers of the latest nights, newest first."""
    paths = (home / "nights").glob(f"*/{night_folder.LEDGER}")
    newest_first = sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest_first[:LATEST]:
        with path.open("rb") as file:
            line = file.readline()
        if line.endswith(b"\n"):
            yield path.parent, _header(path, line)


def _header(path: Path, line: bytes) -> NightHeader:
    try:
        event: dict[str, Any] = json.loads(line)
        return NightHeader.from_json(event)
    except (ValueError, KeyError, TypeError):
        raise NightlyError(
            f"{path}, line 1 is damaged: restore the file from a backup, or move its folder away"
        ) from None


def _free_tag(home: Path) -> str:
    """Today as in nov21; nov21-2 if that night has started or its branch exists."""
    today = date.today().strftime("%b%d").lower()
    names = (today, *(f"{today}-{i}" for i in range(2, 1000)))
    return next(name for name in names if _is_free(home / "nights" / name))


def _is_free(folder: Path) -> bool:
    beat = heartbeat.last(folder / night_folder.PULSE)
    is_alive = beat is not None and beat.is_alive
    names = (folder.name, f"{folder.name}{champion.CERTIFIED}")
    no_branch = all(champion.tip(state_home.ROOT, name) is None for name in names)
    return starts_over(folder) and not is_alive and no_branch
