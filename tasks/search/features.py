"""What can be said of a candidate before it is run: from its idea, its patch and the night."""

from __future__ import annotations

import ast
import difflib
import functools
import io
import re
from pathlib import Path

from configs import knobs
from tasks.errors import NightlyError
from tasks.history import trial_folder
from tasks.records import Idea, NightSoFar, Trial
from tasks.search.surrogate import Features, Tried

HUNK = re.compile(r"@@ -\d+(?:,\d+)? \+(\d+)(?:,(\d+))? @@")
# Ways of searching whose trials tell what a researcher's ideas are worth.
RESEARCHED = ("proposal", "archive")


def of_idea(base: str, source: str, idea: Idea, *, is_stale: bool) -> Features:
    lines, parts = _patch(_diff(base, source), source)
    return Features(_kind(idea), lines, parts, idea.estimate, is_stale)


def tried(night: NightSoFar) -> list[Tried]:
    """What came of the researched candidates that were run.

    One that was built on another file than the champion gained on that one.
    """
    scores = {trial.number: trial.val_bpb for trial in night.trials}
    found = []
    for trial in night.trials:
        idea = trial.idea
        if trial.status == "rejected_patch" or idea.search not in RESEARCHED:
            continue
        before = (
            scores.get(idea.built_on[0]) if idea.search == "archive" and idea.built_on else None
        )
        before = night.to_beat.get(trial.number) if before is None else before
        gain = None
        if trial.val_bpb is not None:
            if before is None:
                continue  # nothing to compare with
            gain = before - trial.val_bpb
        lines, parts = _of_trial(night.folder, trial.number, trial.digest)
        features = Features(_kind(idea), lines, parts, idea.estimate, _was_stale(trial, night))
        found.append(Tried(features, gain, max(len(trial.scores), 1), trial.wall_seconds))
    return found


def _kind(idea: Idea) -> str:
    return idea.kind or idea.proposer


def _was_stale(trial: Trial, night: NightSoFar) -> bool:
    """Whether another champion came between its proposal and its run."""
    if trial.idea.queued is None:
        return False
    made = int(trial.idea.queued.partition(".")[0])
    return any(t.verdict == "keep" and made <= t.number < trial.number for t in night.trials)


@functools.lru_cache(maxsize=2048)
def _of_trial(folder: Path | None, number: int, digest: str | None) -> tuple[int, frozenset[str]]:
    """From a finished trial's folder; nothing if that was lost."""
    if folder is None:
        return 0, frozenset()
    place = folder / "trials" / str(number)
    try:
        patch = (place / "patch.diff").read_text(encoding="utf-8", errors="replace")
        return _patch(patch, trial_folder.read_source(place))
    except (OSError, NightlyError):
        return 0, frozenset()


@functools.lru_cache(maxsize=256)
def _diff(base: str, source: str) -> str:
    before, after = (list(io.StringIO(text, newline="\n")) for text in (base, source))
    return "".join(difflib.unified_diff(before, after, n=0))


@functools.lru_cache(maxsize=256)
def _patch(patch: str, source: str) -> tuple[int, frozenset[str]]:
    """(lines added and removed, names at module level whose lines they are) of a unified diff."""
    changed, lines, line = set(), 0, 0
    for text in patch.split("\n"):
        if found := HUNK.match(text):
            # A hunk that only removes lines names the line before it.
            line = int(found[1]) + (found[2] == "0")
        elif text.startswith(("+++ ", "--- ")) and not line:
            continue
        elif text[:1] in ("+", "-"):
            changed.add(line)
            lines += 1
            line += text[0] == "+"
        elif text[:1] == " ":
            line += 1
    return lines, _names(source, frozenset(changed))


def _names(source: str, changed: frozenset[int]) -> frozenset[str]:
    try:
        tree = knobs.parse(source)
    except SyntaxError:
        return frozenset()
    found = set()
    for node in tree.body:
        if changed.isdisjoint(range(node.lineno, (node.end_lineno or node.lineno) + 1)):
            continue
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Assign():
                found |= {each.id for each in node.targets if isinstance(each, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return frozenset(found)
