"""Which kept changes are certified, and what fresh runs score, in Markdown: a part of the report.

A night that was not certified says so, and how it can be.
"""

from __future__ import annotations

from collections.abc import Iterator

from tasks.history import night_budget
from tasks.records import Certification, Claim, NightState
from tasks.text import counted, in_markdown, score, short_commit
from tasks.views import certificates, fresh_scores
from tasks.views.fresh_scores import CONFIDENCE, Estimate, FileScores, FreshScores


def section(state: NightState) -> Iterator[str]:
    """The paragraphs of the section, none for a night that has nothing to certify or to tell."""
    found, ours = state.certification, fresh_scores.of_night(state)
    if ours is None or not state.keeps:
        return
    if found is None:
        yield _not_certified(state)
    else:
        yield _claims(state, found)
        if missing := _missing(state, found):
            yield missing
    if table := scores(state):
        yield table
    if notes := "\n".join(_notes(state, ours)):
        yield notes


def _not_certified(state: NightState) -> str:
    kept = counted(len(state.keeps), "change")
    waits = not state.finished and state.header.settings.night.certify_share > 0
    who = "At its end the night" if waits else f"`./run certify {state.header.tag}`"
    return (
        f"**Not certified.** The search's own scores are the only evidence for the {kept} that it "
        f"kept. {who} takes each out alone, makes fresh runs without it, and says which are shown "
        "to help."
    )


def _missing(state: NightState, found: Certification) -> str | None:
    """What was kept since, if this is the certification of an earlier champion."""
    left = night_budget.uncertified(state)
    earlier = f"This certification is of an earlier champion, {short_commit(found.champion)}"
    return f"{earlier}. {left}." if left else None


def _claims(state: NightState, found: Certification) -> str:
    rows = [
        f"| {' | '.join(certificates.HEADS)} | why |",
        "|--:|---|--:|--:|--:|---|---|",
        *(f"| {' | '.join(_claim(state, claim))} |" for claim in found.claims),
        "",
        certificates.caption(found),
    ]
    return "\n".join(rows)


def _claim(state: NightState, claim: Claim) -> Iterator[str]:
    yield from map(in_markdown, certificates.cells(state, claim))
    yield in_markdown(claim.reason)


def scores(state: NightState) -> str:
    """A table of what each file has scored; empty without a fresh run that has."""
    ours = fresh_scores.of_night(state)
    if ours is None or not any(file.fresh for file in ours.files().values()):
        return ""
    names = {
        "baseline": "baseline",
        "champion": "search champion",
        "certified": "certified champion",
    }
    files = {names[name]: file for name, file in ours.files().items()}
    rows = [
        "| | search | fresh seeds | runs | holdout | runs |",
        "|---|--:|--:|--:|--:|--:|",
        *(_row(name, file) for name, file in files.items()),
        *(_gains(name, file) for name, file in files.items() if file.trials),
        "",
        f"Bits per byte, lower is better; a gain is over the baseline, higher is better. In "
        f"brackets: {CONFIDENCE:.0%} interval by Student's t. *search*: the score that "
        "the search chose by. *fresh seeds*, *holdout*: runs of the night's end, which decided "
        "nothing.",
    ]
    return "\n".join(rows)


def _row(name: str, file: FileScores) -> str:
    commit = f" {short_commit(file.commit)}" if file.commit else ""
    cells = (*_cells(file.fresh), *_cells(file.holdout))
    return f"| {name}{commit} | {score(file.search)} | {' | '.join(cells)} |"


def _gains(name: str, file: FileScores) -> str:
    searched = "-" if file.search_gain is None else f"{file.search_gain:.6f}"
    gains = (file.fresh_gain, file.holdout_gain)
    fresh, holdout = ("-" if gain is None else str(gain) for gain in gains)
    return f"| *gain of the {name}* | {searched} | {fresh} | | {holdout} | |"


def _cells(estimate: Estimate | None) -> tuple[str, str]:
    return ("-", "-") if estimate is None else (str(estimate), str(estimate.runs))


def _notes(state: NightState, ours: FreshScores) -> Iterator[str]:
    for name, file in (("search", ours.champion), ("certified", ours.certified)):
        if file and file.optimism is not None and file.fresh_gain:
            yield f"- Optimism of the {name} champion: {_optimism(file.optimism, file.fresh_gain)}"
    if not state.fresh_runs:
        return
    if not any(file.fresh for file in ours.files().values()):
        yield "- Fresh seeds: no run of the night's end has a score yet."
    has_holdout = state.header.settings.data.holdout is not None
    if not has_holdout:
        yield "- Holdout: none, as the profile names no `[data] holdout`."
    elif any(run.purpose == "end" for run in state.fresh_runs):
        yield "- Holdout: scored at the night's end only; it decides nothing."
    for run in state.fresh_runs:
        if run.val_bpb is None:
            yield f"- A fresh run with seed {run.seed} has no score: {in_markdown(run.reason)}."
        elif run.purpose == "end" and run.holdout_bpb is None and has_holdout:
            yield f"- The run with seed {run.seed} has no holdout score: {in_markdown(run.reason)}."
        if run.quarantined:
            times = "once" if len(run.quarantined) == 1 else f"{len(run.quarantined)} times"
            why = in_markdown(run.quarantined[-1].disturbance)
            yield f"- The run with seed {run.seed} was set aside {times} and made again: {why}."
        if run.unusual:
            yield f"- The run with seed {run.seed}: {in_markdown(run.unusual)}."


def _optimism(optimism: float, fresh: Estimate) -> str:
    said = f"{optimism:.6f}, the search's gain minus that of fresh seeds. "
    if fresh.low is None or fresh.high is None:
        return f"{said}One run of each file cannot show how much of it is chance."
    if fresh.low <= fresh.mean + optimism <= fresh.high:
        return f"{said}The search's gain is within the interval of the fresh one."
    return f"{said}The search's gain is outside the interval of the fresh one."
