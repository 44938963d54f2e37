"""What is certified of a night, in words: a sentence, a table of claims, what to merge.

For `./run certify`, the report, `./run status` and MLflow alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from tasks.history import certified_branch, night_budget
from tasks.records import Certification, Claim, NightState
from tasks.text import counted, one_line, short_commit, shortened
from tasks.views import fresh_scores
from tasks.views.fresh_scores import FreshScores

WIDEST, SHORTEST = 60, 12  # characters of what was changed, for one and for many tied changes
HEADS = ("trial", "change", "gain", "z", "runs without it", "result")
LEFT = (1, 5)  # columns of text
WORDS = {"certified": "certified", "not_shown": "not shown to help", "open": "open"}


def sentence(state: NightState) -> str:
    """How much of what a night kept is certified; empty while it may be certified at its end."""
    ours = fresh_scores.of_night(state)
    parts = (
        certified(state.certification, len(state.keeps), ours),
        night_budget.uncertified(state) if state.finished else None,
    )
    return " ".join(f"{part}." for part in parts if part)


def certified(found: Certification | None, kept: int, fresh: FreshScores | None) -> str | None:
    """How many of the `kept` changes, and what they are worth, in a sentence without its dot."""
    if found is None:
        return None
    ours = fresh and fresh.certified
    gain = ours.fresh_gain if ours else None
    worth = f", {gain} bits per byte better than the baseline with fresh seeds" if gain else ""
    return f"Certified: {len(found.certified)} of {counted(kept, 'kept change')}{worth}"


def cells(state: NightState, claim: Claim) -> tuple[str, ...]:
    """A row of the table below HEADS."""
    summaries = {trial.number: trial.idea.summary for trial in state.trials}
    most = max(WIDEST // len(claim.trials), SHORTEST)
    names = [shortened(one_line(summaries.get(n, "-")), most) for n in claim.trials]
    return (
        ", ".join(map(str, claim.trials)),
        "; ".join(names),
        "-" if claim.gain is None else f"{claim.gain:.6f}",
        "-" if claim.z is None else f"{claim.z:.2f}",
        str(claim.runs),
        WORDS[claim.certificate],
    )


def caption(found: Certification) -> str:
    """What the table says."""
    return (
        f"Gain: by how much the champion, mean of {counted(found.whole_runs, 'fresh run')}, is "
        "better in bits per byte than the champion without the change. Changes that cannot be "
        "taken out alone stand or fall together. Open: more runs may still show that it helps."
    )


def merge_steps(state: NightState) -> Iterator[str]:
    """What to merge, or why nothing; for a night that kept something."""
    tag, found = state.header.tag, state.certification
    start = short_commit(state.start_commit)
    everything = f"`git merge autoresearch/{tag}`"
    if found is None:
        yield f"Certify what was kept before you merge it: `./run certify {tag}`"
    elif found.tip:
        branch = certified_branch.name(tag)
        yield f"Read what is certified: `git diff {start} {branch} -- trainer/train.py`"
        yield f"Try it: `git switch --detach {branch}`. Merge it: `git merge {branch}`"
    else:
        yield "Merge nothing yet: no change is certified."
    if found and any(claim.certificate == "open" for claim in found.claims):
        yield f"More runs may decide what is open: `./run certify {tag}` adds to these."
    if found is None or len(found.certified) < len(state.keeps):
        yield (
            f"The search's champion, `autoresearch/{tag}`, has changes that are not certified. "
            "They may not help, and may make `train.py` more complex: keeping them is your "
            f"choice. All of it: `git diff {start} autoresearch/{tag} -- trainer/train.py`, "
            f"{everything}"
        )


def as_json(state: NightState) -> dict[str, Any]:
    """The certification of the present champion; without one there are no claims."""
    found = _present(state)
    return {
        "tag": state.header.tag,
        "champion": state.champion,
        "kept": len(state.keeps),
        "claims": [dataclasses.asdict(claim) for claim in found.claims] if found else [],
        "whole_runs": found.whole_runs if found else 0,
        "branch": certified_branch.name(state.header.tag) if found and found.tip else None,
        "commit": found.tip if found else None,
    }


def text(state: NightState) -> str:
    """The same for a person."""
    tag, found = state.header.tag, _present(state)
    if not state.keeps:
        return f"night {tag} has kept no change: there is nothing to certify"
    if found is None:
        return f"night {tag}: {night_budget.uncertified(state)}"
    rows = [HEADS, *(cells(state, claim) for claim in found.claims)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head = f"night {tag}. {certified(found, len(state.keeps), fresh_scores.of_night(state))}."
    table = [_line(row, widths) for row in rows]
    return "\n".join([head, "", *table, "", caption(found), "", *merge_steps(state)])


def _present(state: NightState) -> Certification | None:
    found = state.certification
    return found if found and found.champion == state.champion else None


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    padded = [
        cell.ljust(width) if column in LEFT else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()
