"""What a night is doing now, from its ledger and heartbeat: for `./run status` and programs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tasks.errors import NightlyError
from tasks.history import false_keeps, heartbeat, llm_calls, night_budget, night_folder
from tasks.history.false_keeps import FalseKeeps
from tasks.history.heartbeat import Heartbeat
from tasks.records import Certification, NightState, Trial
from tasks.statuses import Decision, Search, Status
from tasks.text import counted, money, score, short_commit
from tasks.usage import Usage, total
from tasks.views import certificates, costs, fresh_scores, refusals, search_yield, standings
from tasks.views.fresh_scores import FreshScores
from tasks.views.search_yield import Yield
from tasks.views.standings import Standings

# The fields of these records are the keys of `--json`.


@dataclasses.dataclass(frozen=True)
class TrialResult:
    k: int
    status: Status
    verdict: Decision
    reason: str
    val_bpb: float | None
    commit: str | None
    placebo: Decision | None  # of the champion unchanged: what the rule said of it
    search: Search  # how the candidate came about
    built_on: tuple[int, ...]  # of which trials it is made


@dataclasses.dataclass(frozen=True)
class Results:
    """What a night has achieved so far; scores in bits per byte."""

    tag: str
    baseline: float | None
    champion: float | None
    trials: tuple[TrialResult, ...]
    certification: Certification | None  # the last one; None: not certified
    fresh: FreshScores | None  # baseline, champion and certified champion; None: no fresh run
    tournament: Standings | None  # None: a night without contenders


@dataclasses.dataclass(frozen=True)
class Quota:
    used: float | None  # None: unknown
    of: float | None  # None: without limit


@dataclasses.dataclass(frozen=True)
class Budget:
    trials: Quota
    hours: Quota
    tokens: Quota
    dollars: Quota


@dataclasses.dataclass(frozen=True)
class Process:
    """The process that wrote the last heartbeat."""

    host: str
    pid: int
    heartbeat_age: float  # seconds


@dataclasses.dataclass(frozen=True)
class NightStatus(Results):
    """A night at this moment; what is unknown is None."""

    # running; finished; stopped, because somebody asked for it; failed, with `last_error`; or
    # interrupted: its process is gone and has recorded no end
    state: str
    phase: str | None
    phase_seconds: float | None
    trial: int | None  # started, and not in git yet
    in_flight: int | None  # started, and not decided yet
    # Estimated from the trials so far; of a night that is not running, what a resume would take.
    seconds_left: float | None
    champion_commit: str | None
    kept: int
    uncertified: str | None  # what is left to certify, and how; None until a night is over
    searches: tuple[Yield, ...]  # what each way of searching brought
    placebos: int  # trials that are none of a proposer's
    false_keeps: FalseKeeps
    false_keeps_of_all: FalseKeeps  # of all nights whose scores can be compared with this one's
    budget: Budget
    last_error: str | None
    not_in_mlflow: str | None  # which runs MLflow does not take, and what to do
    stopped: str | None
    finished: str | None
    process: Process | None
    updated: str  # UTC time of the ledger's last event


def results(state: NightState) -> Results:
    return Results(
        tag=state.header.tag,
        baseline=state.baseline.val_bpb if state.baseline else None,
        champion=state.champion_bpb,
        trials=tuple(map(_result, state.trials)),
        certification=state.certification,
        fresh=fresh_scores.of_night(state) if state.fresh_runs else None,
        tournament=standings.of_night(state),
    )


def _result(trial: Trial) -> TrialResult:
    names = ("status", "verdict", "reason", "val_bpb", "placebo")
    fields = {name: getattr(trial, name) for name in names}
    fields |= {name: getattr(trial.idea, name) for name in ("search", "built_on")}
    return TrialResult(k=trial.number, commit=trial.commit, **fields)


def describe(folder: Path, others: Sequence[NightState] | None = None) -> NightStatus:
    """The night in this folder. Raises NightlyError if its ledger is damaged.

    `others` are the nights beside it, which are read if they are not given.
    """
    beat = heartbeat.last(folder / night_folder.PULSE)
    is_alive = beat is not None and beat.is_alive
    # Read after the heartbeat: a night that ends in between has its end on record.
    state = night_folder.read_state(folder)
    since = time.time() - beat.time if beat else 0.0
    elapsed = max(since, 0.0) if is_alive else 0.0
    used = max(state.used_seconds, beat.used_seconds if beat else 0.0) + elapsed
    left = night_budget.seconds_left(state, used)
    refused = refusals.read(folder)
    others = false_keeps.nights(folder.parent) if others is None else others
    return NightStatus(
        **vars(results(state)),
        state=_word(state, is_alive),
        phase=beat.phase if beat and is_alive else None,
        phase_seconds=round(beat.phase_seconds + elapsed, 1) if beat and is_alive else None,
        trial=(state.pending.number if state.pending else state.in_flight) or None,
        in_flight=state.in_flight,
        seconds_left=None if left is None else round(left, 1),
        champion_commit=state.champion,
        kept=len(state.keeps),
        uncertified=night_budget.uncertified(state) if state.finished else None,
        searches=search_yield.of_night(state),
        placebos=len(state.placebos),
        false_keeps=false_keeps.of_night(state),
        false_keeps_of_all=false_keeps.of_all(state, others),
        budget=_budget(state, used, _spent(folder, state)),
        last_error=_last_error(state, beat, is_alive),
        not_in_mlflow=refusals.message(folder.name, refused) if refused else None,
        stopped=state.stopped,
        finished=state.finished,
        process=Process(beat.host, beat.process.pid, round(since, 1)) if beat else None,
        updated=state.updated,
    )


def describe_all(folders: Iterable[Path]) -> tuple[list[NightStatus], dict[str, str]]:
    """These nights, the one with the latest event last; and what is wrong with each damaged one."""
    nights, damaged = [], {}
    folders = list(folders)
    others = false_keeps.nights(folders[0].parent) if folders else []
    for folder in folders:
        try:
            nights.append(describe(folder, others))
        except NightlyError as error:
            damaged[folder.name] = str(error)
    return sorted(nights, key=lambda night: night.updated), damaged


def _word(state: NightState, is_alive: bool) -> str:
    if is_alive:
        return "running"
    if state.finished:
        return "finished"
    if state.stopped:
        return "failed" if state.failed else "stopped"
    return "interrupted"


def _budget(state: NightState, used_seconds: float, spent: Usage | None) -> Budget:
    header, caps = state.header, state.header.settings.llm
    return Budget(
        trials=Quota(len(state.trials), header.trials),
        hours=Quota(round(used_seconds / 3600, 4), header.hours),
        tokens=Quota(costs.tokens(spent) if spent else None, caps.tokens),
        dollars=Quota(spent.dollars if spent else None, caps.dollars),
    )


def _spent(folder: Path, state: NightState) -> Usage | None:
    """For requests to language models, also those of trials under way or proposed ahead.

    None if the file of the requests is damaged: that must keep nobody from stopping the night.
    """
    on_record = {trial.number for trial in (*state.trials, state.pending) if trial}
    try:
        calls = llm_calls.read(folder / night_folder.CALLS)
    except NightlyError:
        return None
    others = [call for call in calls if call.trial not in on_record]
    return total([costs.of_night(state), costs.of_calls(others)])


def _last_error(state: NightState, beat: Heartbeat | None, is_alive: bool) -> str | None:
    if is_alive and beat:
        return beat.error
    if state.failed:
        return state.stopped
    if (state.finished or state.stopped) and (beat is None or beat.phase == heartbeat.OVER):
        return beat.error if beat else None
    who = f"its process {beat.process.pid} on {beat.host}" if beat else "its process"
    # Also in a finished night, if the process died while it wrote the report.
    doing = f" during: {beat.phase}" if beat and beat.phase != heartbeat.OVER else ""
    return f"{who} died{doing}"


def text(night: NightStatus) -> str:
    """The same for a person, in a few lines."""
    end = night.finished or night.stopped
    lines = (
        f"night {night.tag}: {night.state}: {_used(night)}",
        _model(night.budget),
        _now(night),
        f"end: {end}" if end else None,
        f"last error: {night.last_error}" if night.last_error else None,
        night.not_in_mlflow,
        _resume(night),
        _scores(night),
        search_yield.sentence(night.searches),
        certificates.certified(night.certification, night.kept, night.fresh),
        night.uncertified,
        night.tournament.verdict if night.tournament else None,
        false_keeps.sentence(night.false_keeps, night.false_keeps_of_all),
    )
    return "\n".join(line for line in lines if line)


def listing(nights: Sequence[NightStatus], damaged: Mapping[str, str]) -> str:
    """A line for each night, for a terminal."""
    rows = [("night", "state", "trials", "kept", "baseline", "champion", "last event (UTC)")]
    for night in nights:
        trials = night.budget.trials
        done = f"{trials.used:.0f}{f' of {trials.of:.0f}' if trials.of else ''}"
        figures = (done, str(night.kept), score(night.baseline), score(night.champion))
        rows.append((night.tag, night.state, *figures, night.updated[:16].replace("T", " ")))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"{tag}: {problem}" for tag, problem in damaged.items())])


def _used(night: NightStatus) -> str:
    trials, hours = night.budget.trials, night.budget.hours
    planned = f" of {trials.of}" if trials.of else ""
    limit = f" of {hours.of:g}" if hours.of else ""
    placebos = f", {counted(night.placebos, 'placebo')}" if night.placebos else ""
    return (
        f"{trials.used}{planned} trials done, {night.kept} kept{placebos}; "
        f"{hours.used:.2f}{limit} hours used"
    )


def _model(budget: Budget) -> str | None:
    tokens, dollars = budget.tokens, budget.dollars
    if not tokens.used:
        return None
    of_tokens = f" of {tokens.of:,}" if tokens.of else ""
    of_dollars = f" of {money(dollars.of)}" if dollars.of else ""
    return (
        f"language model: {tokens.used:,}{of_tokens} tokens used; "
        f"cost: {money(dollars.used)}{of_dollars}"
    )


def _now(night: NightStatus) -> str | None:
    if not (night.phase and night.process):
        return None
    left = ""
    if night.seconds_left is not None:
        left = f"; about {counted(round(night.seconds_left / 60), 'minute')} left"
    return f"now: {night.phase}, for {night.phase_seconds:.0f} s{left} (pid {night.process.pid})"


def _resume(night: NightStatus) -> str | None:
    is_over = night.state in ("stopped", "failed", "interrupted")
    return f"`./run resume {night.tag}` resumes it" if is_over else None


def _scores(night: NightStatus) -> str | None:
    if night.baseline is None:
        return None
    commit = short_commit(night.champion_commit)
    return f"baseline {score(night.baseline)}, champion {score(night.champion)} ({commit})"
