"""What a night's certification says, for `./run certify`: a table, and what to merge."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from tasks.history import certified_branch, night_budget
from tasks.records import Claim, NightState
from tasks.text import counted, one_line, short_commit, shortened

WIDEST = 48  # characters of a change
HEADS = ("change", "gain", "z", "runs", "certificate")
WORDS = {"certified": "certified", "not_shown": "not shown to help", "open": "open"}


def as_json(state: NightState) -> dict[str, Any]:
    """The certification of the present champion; without one there are no claims."""
    found = state.certification
    if found is None or found.champion != state.champion:
        found = None
    return {
        "tag": state.header.tag,
        "champion": state.champion,
        "kept": night_budget.kept(state),
        "claims": [dataclasses.asdict(claim) for claim in found.claims] if found else [],
        "whole_runs": found.whole_runs if found else 0,
        "branch": certified_branch.name(state.header.tag) if found and found.tip else None,
        "commit": found.tip if found else None,
    }


def text(state: NightState) -> str:
    """The same for a person."""
    tag, found = state.header.tag, state.certification
    if not night_budget.kept(state):
        return f"night {tag} has kept no change: there is nothing to certify"
    if found is None or found.champion != state.champion:
        return f"night {tag}: {night_budget.uncertified(state)}"
    rows = [HEADS, *(_row(state, claim) for claim in found.claims)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    whole = f"compared with {counted(found.whole_runs, 'fresh run')} of the champion"
    of = f"{len(found.certified)} of {counted(night_budget.kept(state), 'kept change')}"
    head = f"night {tag}: {of} certified, {whole} ({short_commit(state.champion)})"
    return "\n".join([head, "", *lines, "", *_next_steps(state)])


def _row(state: NightState, claim: Claim) -> tuple[str, ...]:
    summaries = {trial.number: trial.idea.summary for trial in state.trials}
    names = " and ".join(f"{n}: {one_line(summaries[n])}" for n in claim.trials)
    return (
        shortened(names, WIDEST),
        "-" if claim.gain is None else f"{claim.gain:+.6f}",
        "-" if claim.z is None else f"{claim.z:.2f}",
        str(claim.runs),
        WORDS[claim.certificate],
    )


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    change, *figures, certificate = row
    cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:-1], strict=True)]
    return "  ".join([change.ljust(widths[0]), *cells, certificate])


def _next_steps(state: NightState) -> Iterator[str]:
    tag, found = state.header.tag, state.certification
    assert found is not None
    branch = certified_branch.name(tag)
    if found.tip is None:
        yield "Nothing is shown to help yet, so there is nothing to merge."
    elif len(found.certified) == night_budget.kept(state):
        yield f"To merge: {branch}, which has every change of the champion."
    else:
        yield f"To merge: {branch}, the baseline with the certified changes only."
    if any(claim.certificate == "open" for claim in found.claims):
        yield f"More runs may decide what is open: `./run certify {tag}` adds to these."
