"""Nights side by side, each from its ledger alone: gains, how certain they are, and their cost.

Scores from different data, metrics, budgets or hardware are never compared: `obstacles` names such
differences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from configs import Budget
from tasks.noise import noise_of
from tasks.records import NightState
from tasks.text import money, one_line, score, shortened
from tasks.views import costs, fresh_scores
from tasks.views.fresh_scores import Estimate

WIDEST = 32  # characters of a cell
GAIN = 0.001  # bits per byte: the unit for the price of a gain


@dataclasses.dataclass(frozen=True)
class NightFigures:
    """One night. Scores in bits per byte; None is what is unknown or does not exist."""

    tag: str
    profile: str
    proposer: str
    model: str | None
    program: str | None  # name of the researcher's instructions
    program_sha256: str | None
    finished: bool
    trials: int  # without placebos
    placebos: int
    keeps: int
    # By a model or an agent: those of a stand-in, and of tpe in a mixed night, cost nothing.
    own_keeps: int
    stood_in: int  # trials of a stand-in for the model or the agent
    rejected: int  # not run: their patch could not be used
    stopped: int  # run and stopped, whatever the reason
    baseline: float | None
    sd: float | None  # of one run
    best: float | None  # the champion's mean over its runs
    gain: float | None  # of the best over the baseline
    gain_sd: float | None
    certified: int | None  # of the keeps: shown to help by fresh runs; None: not certified
    # With fresh seeds, of the champion: its gain, that on the holdout, and by how much the search's
    # gain is larger than the first. And the gain of what is certified.
    fresh_gain: Estimate | None
    holdout_gain: Estimate | None
    optimism: float | None
    certified_gain: Estimate | None
    confirmed: bool | None  # whether the best is a mean of two seeds or more; None without a keep
    trials_to_best: int | None  # the trial that made the champion
    hours: float
    # Of language models for these trials; unknown if an agent was asked, who has its own account.
    calls: int | None
    tokens: int | None
    dollars: float | None  # also unknown without prices
    dollars_per_keep: float | None  # of own_keeps
    dollars_per_gain: float | None  # for each GAIN
    keeps_by_kind: dict[str, int]
    dataset: str | None  # fingerprint of the data, the tokenizer and the metric
    budget: str
    hardware: str | None


def figures(state: NightState) -> NightFigures:
    """The night's figures at its ledger's last event."""
    header, baseline, program = state.header, state.baseline, state.header.program
    tried = state.candidates
    kept = [trial for trial in tried if trial.verdict == "keep"]
    own = sum(map(costs.is_own, kept))
    sd = noise_of(state).sd if baseline else None
    gain = _gain(state, bool(kept))
    gained = gain if gain is not None and gain > 0 else None
    usage, agent = costs.of_night(state), header.asks_an_agent
    dollars = usage.dollars
    fresh = fresh_scores.of_night(state) if state.fresh_runs else None
    champion, certified = (fresh.champion, fresh.certified) if fresh else (None, None)
    return NightFigures(
        tag=header.tag,
        profile=header.profile,
        proposer=header.proposer,
        model=header.model,
        program=program.name if program else None,
        program_sha256=program.sha256 if program else None,
        finished=state.finished is not None,
        trials=len(tried),
        placebos=len(state.placebos),
        keeps=len(kept),
        own_keeps=own,
        stood_in=sum(trial.idea.stands_in is not None for trial in tried),
        rejected=sum(trial.status == "rejected_patch" for trial in tried),
        stopped=sum(trial.status not in ("ok", "rejected_patch") for trial in tried),
        baseline=baseline.val_bpb if baseline else None,
        sd=sd,
        best=state.champion_bpb,
        gain=gain,
        gain_sd=gain / sd if gain is not None and sd is not None else None,
        certified=len(state.certification.certified) if state.certification else None,
        fresh_gain=champion.fresh_gain if champion else None,
        holdout_gain=champion.holdout_gain if champion else None,
        optimism=champion.optimism if champion else None,
        certified_gain=certified.fresh_gain if certified else None,
        confirmed=len(state.champion_scores) > 1 if kept else None,
        trials_to_best=kept[-1].number if kept else None,
        hours=state.used_seconds / 3600,
        calls=None if agent else usage.calls,
        tokens=None if agent else costs.tokens(usage),
        dollars=dollars,
        dollars_per_keep=dollars / own if dollars is not None and own else None,
        dollars_per_gain=dollars / gained * GAIN if dollars is not None and gained else None,
        keeps_by_kind=costs.keeps_by_kind(state.trials),
        dataset=baseline.dataset if baseline else None,
        budget=_budget(header.settings.budget),
        hardware=baseline.hardware if baseline else None,
    )


def _gain(state: NightState, is_kept: bool) -> float | None:
    """0 without a keep: the champion's mean is then the baseline's, up to rounding."""
    if state.baseline is None or state.champion_bpb is None:
        return None
    return state.baseline.val_bpb - state.champion_bpb if is_kept else 0.0


def _budget(budget: Budget) -> str:
    """Of one training, exactly: where seconds are counted, the slack is part of it."""
    slack = f", {budget.slack_seconds:.15g} slack" if budget.kind == "seconds" else ""
    return f"{budget.amount:.15g} {budget.kind}{slack}"


def obstacles(nights: Sequence[NightFigures]) -> list[str]:
    """Why these nights must not be compared, a line for each reason; an unknown value is one."""
    names = {"data or metric": "dataset", "budget": "budget", "hardware": "hardware"}
    found = []
    for what, name in names.items():
        tags: dict[str | None, list[str]] = {}
        for night in nights:
            tags.setdefault(getattr(night, name), []).append(night.tag)
        if len(tags) > 1 or None in tags:
            differs = "different" if len(tags) > 1 else "unknown"
            groups = "; ".join(
                f"{', '.join(those)}: {_fingerprint(value) if value else 'not recorded'}"
                for value, those in tags.items()
            )
            found.append(f"Not comparable: {differs} {what}: {groups}")
    return found


def text(nights: Sequence[NightFigures]) -> str:
    """A table for a terminal, a column for each night, and below it why not to compare them."""
    kinds = dict.fromkeys(kind for night in nights for kind in night.keeps_by_kind)
    columns = [_column(night, kinds) for night in nights]
    rows = [
        [name, *(shortened(one_line(column[name]), WIDEST) for column in columns)]
        for name in columns[0]
    ]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip()
        for name, *cells in rows
    ]
    return "\n".join([*lines, "", *obstacles(nights)]).rstrip()


def _column(night: NightFigures, kinds: Iterable[str]) -> dict[str, str]:
    """A night's cells by the name of their row."""
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
        "  stand-ins": str(night.stood_in),
        "  rejected": str(night.rejected),
        "  stopped": str(night.stopped),
        "placebos": str(night.placebos),
        "baseline": score(night.baseline),
        "best": score(night.best),
        "gain": score(night.gain),
        "  in sd": "-" if night.gain_sd is None else f"{night.gain_sd:.1f}",
        "  confirmed": {None: "-", True: "yes", False: "no: one seed"}[night.confirmed],
        "  fresh seeds": str(night.fresh_gain or "-"),
        "  holdout": str(night.holdout_gain or "-"),
        "  optimism": score(night.optimism),
        "certified": "no" if night.certified is None else f"{night.certified} of {night.keeps}",
        "  certified gain": str(night.certified_gain or "-"),
        "trials to best": "-" if night.trials_to_best is None else str(night.trials_to_best),
        **_spending(night),
        **{f"keeps: {one_line(kind)}": str(night.keeps_by_kind.get(kind, 0)) for kind in kinds},
    }


def _spending(night: NightFigures) -> dict[str, str]:
    """Dashes for a night that asked no model: one that cost nothing is no bargain."""
    names = ("model calls", "tokens", "cost", "  per own keep", f"  per {GAIN} gained")
    if night.calls == 0:
        return dict.fromkeys(names, "-")
    is_gain = night.gain is not None and night.gain > 0
    cells = (
        "unknown" if night.calls is None else str(night.calls),
        "unknown" if night.tokens is None else f"{night.tokens:,}",
        money(night.dollars),
        money(night.dollars_per_keep) if night.own_keeps else "-",
        money(night.dollars_per_gain) if is_gain else "-",
    )
    return dict(zip(names, cells, strict=True))


def _fingerprint(value: str) -> str:
    """A sha256 by its first characters; any other value as it is."""
    return value[:12] if len(value) == 64 else one_line(value)
