"""The files of a night's candidates and of the champions that they were made of, from its folder.

A file that is gone costs only what could have been made of it.
"""

from __future__ import annotations

from tasks.proposers.changes import baseline, candidate
from tasks.proposers.three_way_merge import three_way_of_files
from tasks.records import NightSoFar, Trial


def after(night: NightSoFar, trial: Trial) -> str | None:
    """The candidate of a trial; None if its file is gone."""
    return candidate(night, trial.number)


def before(night: NightSoFar, trial: Trial) -> str | None:
    """The champion that a trial's candidate was made for; None if its file is gone."""
    keeps = [each for each in night.trials if each.verdict == "keep"]
    if trial.parent == (keeps[-1].commit if keeps else trial.parent):
        return night.champion.source
    made = next((keep for keep in keeps if keep.commit == trial.parent), None)
    return after(night, made) if made else baseline(night)


def merged(night: NightSoFar, numbers: tuple[int, ...]) -> str | None:
    """The champion with what each of these trials changed in its own champion, one by one.

    None if one conflicts, adds nothing or shares a change with another, or its files are gone.
    """
    source, had = night.champion.source, set[int]()
    for trial in (trial for trial in night.trials if trial.number in numbers):
        base, theirs = before(night, trial), after(night, trial)
        changes = _changes(night, trial)
        if base is None or theirs is None or changes & had:
            return None
        with_it = three_way_of_files(base, source, theirs)
        if with_it is None or with_it == source:
            return None
        source, had = with_it, had | changes
    return source


def stacked(night: NightSoFar) -> set[int]:
    """The trials whose changes the champion has got as parts of a stack."""
    stacks = (t.idea for t in night.trials if t.idea.search == "stack" and t.verdict == "keep")
    return {number for idea in stacks for number in idea.built_on}


def _changes(night: NightSoFar, trial: Trial) -> set[int]:
    """The trials whose changes a candidate has: its own, and those that it is built on."""
    by_number, found, waiting = {t.number: t for t in night.trials}, {trial.number}, [trial]
    while waiting:
        earlier = set(waiting.pop().idea.built_on) - found
        found |= earlier
        waiting += [by_number[number] for number in earlier if number in by_number]
    return found
