"""What each way of searching brought, and how long it took: for the report and `./run status`."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence

from tasks.records import Idea, NightState, Trial
from tasks.statuses import Search
from tasks.text import counted, numbered
from tasks.views import margin
from tasks.views.trial_story import TrialStory

NAMES: Mapping[Search, str] = {
    "proposal": "the proposer's own ideas",
    "stack": "stack of near misses",
    "archive": "built on another file than the champion",
    "ablation": "the champion without some hunks",
    "constants": "constants turned by tpe",
}


@dataclasses.dataclass(frozen=True)
class Yield:
    """One way of searching: what it took, and by how much the champion is better for it.

    Gains are in bits per byte. `gain` is by the search's own scores, so it is optimistic.
    """

    search: Search
    trials: int
    runs: int  # trainings, the champion's fresh ones included
    hours: float  # wall clock of its trials
    kept: int
    gain: float
    gain_per_hour: float | None  # None: no trial has taken any time
    certified_gain: float | None  # by fresh runs; None: the night is not certified
    certified_per_hour: float | None


def of_night(state: NightState) -> tuple[Yield, ...]:
    """A row for each way that the night has used."""
    gains = {
        trial.number: before - trial.val_bpb
        for trial, before, _ in margin.champions(state)
        if trial.verdict == "keep" and trial.val_bpb is not None
    }
    certified = _certified(state)
    return tuple(
        _yield(search, trials, gains, certified)
        for search in NAMES
        if (trials := [trial for trial in state.candidates if trial.idea.search == search])
    )


def _yield(
    search: Search,
    trials: Sequence[Trial],
    gains: Mapping[int, float],
    certified: Mapping[int, float] | None,
) -> Yield:
    hours = sum(trial.wall_seconds or 0.0 for trial in trials) / 3600
    gain = sum(gains.get(trial.number, 0.0) for trial in trials)
    shown = None
    if certified is not None:
        shown = sum(certified.get(trial.number, 0.0) for trial in trials)
    return Yield(
        search=search,
        trials=len(trials),
        runs=sum(len(trial.seeds) + len(trial.champion_seeds) for trial in trials),
        hours=round(hours, 4),
        kept=sum(trial.verdict == "keep" for trial in trials),
        gain=gain,
        gain_per_hour=gain / hours if hours else None,
        certified_gain=shown,
        certified_per_hour=shown / hours if hours and shown is not None else None,
    )


def _certified(state: NightState) -> dict[int, float] | None:
    """What each certified trial is worth; of tied ones, an equal part of what they are together."""
    if state.certification is None:
        return None
    return {
        number: claim.gain / len(claim.trials)
        for claim in state.certification.claims
        if claim.certificate == "certified" and claim.gain is not None
        for number in claim.trials
    }


def section(state: NightState) -> list[str]:
    """The paragraphs of the report; none for a night that only took its proposer's ideas."""
    found, choices = of_night(state), _choices(state.candidates)
    if not choices and all(row.search == "proposal" for row in found):
        return []
    rows = [
        "| way | trials | runs | hours | kept | gain kept | per hour | certified gain | per hour |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(f"| {' | '.join(_cells(row))} |" for row in found),
        "",
        "Gains in bits per byte. *gain kept*: by the search's own scores, so optimistic. "
        "*certified gain*: by fresh runs; changes that are tied share theirs. *hours*: from a "
        "trial's start to its verdict.",
    ]
    return ["\n".join(rows), *choices]


def _cells(row: Yield) -> Iterator[str]:
    yield NAMES[row.search]
    yield from (str(row.trials), str(row.runs), f"{row.hours:.2f}", str(row.kept))
    for figure in (row.gain, row.gain_per_hour, row.certified_gain, row.certified_per_hour):
        yield "-" if figure is None else f"{figure:.4f}"


def _choices(trials: Sequence[Trial]) -> list[str]:
    """What was expected of the ideas that were chosen from several, and how many were kept."""
    chosen = [trial for trial in trials if len(trial.idea.choice) > 1]
    if not chosen:
        return []
    among = statistics.fmean(len(trial.idea.choice) for trial in chosen)
    expected = statistics.fmean(trial.idea.choice[0].expected for trial in chosen)
    kept = sum(trial.verdict == "keep" for trial in chosen)
    return [
        f"{counted(len(chosen), 'trial')} had an idea that was chosen from several, {among:.1f} "
        f"on average. On average it was expected to gain {expected:.4f} bits per byte; {kept} "
        f"{'was' if kept == 1 else 'were'} kept."
    ]


def sentence(found: Sequence[Yield]) -> str | None:
    """The same in a line; None for a night that only took its proposer's ideas."""
    if all(row.search == "proposal" for row in found):
        return None
    parts = (f"{row.search} {row.kept} of {row.trials}" for row in found)
    return f"kept by way of searching: {', '.join(parts)}"


def origin(idea: Idea | TrialStory) -> str | None:
    """How a candidate came about, in words; None for an idea of the night's proposer."""
    if idea.search == "proposal":
        return None
    of = f" ({numbered(idea.built_on)})" if idea.built_on else ""
    return f"{NAMES[idea.search]}{of}"


def by(idea: Idea) -> str:
    """Who proposed it, in a tournament which contender, and on which file: "llm, on trial 3"."""
    who = idea.contender or idea.proposer
    if idea.contender and idea.stands_in:
        who += f", {idea.proposer} stood in"
    if idea.search == "archive":
        return f"{who}, on {numbered(idea.built_on)}"
    return f"{who}, constants" if idea.search == "constants" else who


def choice(idea: Idea | TrialStory) -> str | None:
    """What it was chosen from, in a line; None if there was no choice."""
    if len(idea.choice) < 2:
        return None
    mine = idea.choice[0]
    return (
        f"from {counted(len(idea.choice), 'idea')}, with an expected gain of {mine.expected:.4f} "
        f"bits per byte, give or take {mine.sd:.4f}"
    )
