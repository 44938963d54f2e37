"""Nights side by side, each from its ledger alone: what they won, how sure that is, and what it cost.

Scores of different data, metrics, budgets or hardware are never compared: `obstacles` says where two nights differ in them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from configs import Budget
from tasks.records import NightState
from tasks.text import money, one_line
from tasks.views import costs

WIDEST = 32  # characters of a cell
GAIN = 0.001  # bits per byte, the unit that a gain is paid by


@dataclasses.dataclass(frozen=True)
class NightFigures:
    """One night. Scores in bits per byte; None is what the ledger does not tell, or cannot be."""

    tag: str
    profile: str
    proposer: str
    model: str | None
    program: str | None  # name of the researcher's instructions
    program_sha256: str | None
    finished: bool
    trials: int
    keeps: int
    own_keeps: (
        int  # of a model or an agent; those of a stand-in, and tpe's in a mixed night, cost nothing
    )
    stood_in: int  # proposed by another, as the model or the agent could not
    rejected: int  # not run: their patch could not be used
    stopped: int  # run and stopped, for whatever reason
    baseline: float | None
    sd: float | None  # of one run
    best: float | None  # the champion's mean over its runs
    gain: float | None  # of the best over the baseline
    gain_sd: float | None
    confirmed: bool | None  # the best is a mean over at least two seeds; None when nothing was kept
    trials_to_best: int | None  # the trial that made the champion
    hours: float
    calls: (
        int | None
    )  # to language models, for these trials; None, as the next two: an agent's own account has them
    tokens: int | None
    dollars: float | None  # None: no prices, too
    dollars_per_keep: float | None  # of its own
    dollars_per_gain: float | None  # for each GAIN
    keeps_by_kind: dict[str, int]
    dataset: str | None  # fingerprint of the data, the tokenizer and the metric
    budget: str | None
    hardware: str | None


def figures(state: NightState) -> NightFigures:
    """The night's figures at its ledger's last event."""
    header, baseline, usage = state.header, state.baseline, costs.of_night(state)
    kept = [trial.number for trial in state.trials if trial.verdict == "keep"]
    base, sd = (baseline.val_bpb, baseline.sd) if baseline else (None, None)
    best = state.champion_bpb
    gain = None if base is None or best is None else base - best if kept else 0.0
    dollars, agent = usage.dollars, header.asks_an_agent
    own = sum(trial.verdict == "keep" and costs.is_own(trial) for trial in state.trials)
    return NightFigures(
        tag=header.tag,
        profile=header.profile,
        proposer=header.proposer,
        model=header.model,
        program=header.program.name if header.program else None,
        program_sha256=header.program.sha256 if header.program else None,
        finished=state.finished is not None,
        trials=len(state.trials),
        keeps=len(kept),
        own_keeps=own,
        stood_in=sum(trial.idea.stands_in is not None for trial in state.trials),
        rejected=sum(trial.status == "rejected_patch" for trial in state.trials),
        stopped=sum(trial.status not in ("ok", "rejected_patch") for trial in state.trials),
        baseline=base,
        sd=sd,
        best=best,
        gain=gain,
        gain_sd=gain / sd if gain is not None and sd else None,
        confirmed=len(state.champion_scores) > 1 if kept else None,
        trials_to_best=kept[-1] if kept else None,
        hours=state.used_seconds / 3600,
        calls=None if agent else usage.calls,
        tokens=None if agent else costs.tokens(usage),
        dollars=dollars,
        dollars_per_keep=dollars / own if dollars is not None and own else None,
        dollars_per_gain=dollars / gain * GAIN
        if dollars is not None and gain is not None and gain > 0
        else None,
        keeps_by_kind=costs.keeps_by_kind(state.trials),
        dataset=baseline.dataset if baseline else None,
        budget=_budget(header.settings.budget),
        hardware=baseline.hardware if baseline else None,
    )


def obstacles(nights: Sequence[NightFigures]) -> list[str]:
    """Why these nights must not be compared, a line for each reason; what a ledger does not tell is one, too."""
    found = []
    for what, name in (
        ("data or metric", "dataset"),
        ("budget", "budget"),
        ("hardware", "hardware"),
    ):
        values = [getattr(night, name) for night in nights]
        if None in values or len(set(values)) > 1:
            tags = {
                value: ", ".join(night.tag for night in nights if getattr(night, name) == value)
                for value in values
            }
            said = "; ".join(
                f"{tags[value]}: {_short(value) if value else 'not on record'}" for value in tags
            )
            found.append(
                f"Not comparable: {'different' if len(tags) > 1 else 'unknown'} {what}: {said}"
            )
    return found


def text(nights: Sequence[NightFigures]) -> str:
    """The nights as columns of a table for a terminal, and below it why they must not be compared."""
    kinds = dict.fromkeys(kind for night in nights for kind in night.keeps_by_kind)
    columns = [_column(night, kinds) for night in nights]
    names = list(columns[0])
    cells = [[name, *(_clipped(column[name]) for column in columns)] for name in names]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns) + 1)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in cells
    ]
    return "\n".join([*lines, "", *obstacles(nights)]).rstrip()


def _column(night: NightFigures, kinds: Iterable[str]) -> dict[str, str]:
    sure = {None: "-", True: "yes", False: "no: one seed"}[night.confirmed]
    return {
        "night": night.tag,
        "profile": PurePath(night.profile).name.removesuffix(".toml"),
        "proposer": night.proposer,
        "model": night.model or "-",
        "program": night.program or "-",
        "  sha256": (night.program_sha256 or "-")[:12],
        "finished": "yes" if night.finished else "no",
        "hours": f"{night.hours:.2f}",
        "trials": str(night.trials),
        "  kept": str(night.keeps),
        "  stood in for": str(night.stood_in),
        "  rejected": str(night.rejected),
        "  stopped": str(night.stopped),
        "baseline": _score(night.baseline),
        "best": _score(night.best),
        "gain": _score(night.gain),
        "  in sd": "-" if night.gain_sd is None else f"{night.gain_sd:.1f}",
        "  confirmed": sure,
        "trials to best": "-" if night.trials_to_best is None else str(night.trials_to_best),
        "model calls": "unknown" if night.calls is None else str(night.calls),
        "tokens": "unknown" if night.tokens is None else f"{night.tokens:,}",
        "cost": money(night.dollars),
        "  per own keep": "-" if not night.own_keeps else money(night.dollars_per_keep),
        f"  per {GAIN} gained": "-"
        if not night.gain or night.gain < 0
        else money(night.dollars_per_gain),
        **{f"keeps: {one_line(kind)}": str(night.keeps_by_kind.get(kind, 0)) for kind in kinds},
    }


def _budget(budget: Budget) -> str:
    """Of one training, exactly: where seconds are counted, the slack is part of it."""
    slack = f", {budget.slack_seconds} slack" if budget.kind == "seconds" else ""
    return f"{budget.amount} {budget.kind}{slack}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}"


def _short(value: str) -> str:
    """A fingerprint's first characters tell it from another one."""
    return value[:12] if len(value) == 64 else one_line(value)


def _clipped(cell: str) -> str:
    line = one_line(cell)
    return line if len(line) <= WIDEST else f"{line[: WIDEST - 3]}..."
