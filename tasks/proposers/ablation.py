"""A champion without some of its changes: the other changes, replayed onto the baseline. Pure.

A change is taken out by a three-way merge, as git's `revert` does it. Not every one can be taken
out alone: a later change may be built on it, or the rest may not run without it. Such changes are
tied together, and stand or fall as one. Taking out all of them leaves the baseline, so there always
is a file to run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from tasks.proposers import proposal
from tasks.proposers.three_way_merge import three_way_of_files
from tasks.records import Candidate

Group = tuple[int, ...]  # numbers of kept trials, ascending


@dataclasses.dataclass(frozen=True)
class Changes:
    """A night's baseline and its keeps, each made on the one before it: whole files."""

    base: str
    keeps: Mapping[int, str]  # by the number of the trial, in order

    def replayed(self, left_out: Collection[int]) -> dict[int, str]:
        """The files that the other keeps lead to, in order, one after the other.

        Raises Conflict for the first keep that cannot be made without those left out.
        """
        files: dict[int, str] = {}
        before = ours = self.base
        for number, theirs in self.keeps.items():
            if number not in left_out:
                merged = theirs if ours == before else three_way_of_files(before, ours, theirs)
                if merged is None:
                    raise Conflict(number)
                files[number] = ours = merged
            before = theirs
        return files

    def without(self, left_out: Collection[int]) -> Candidate:
        """The champion without these keeps: without all of them the baseline. Raises Conflict."""
        files = self.replayed(left_out)
        return Candidate.parse(list(files.values())[-1] if files else self.base)


class Conflict(Exception):
    """A keep whose change cannot be merged without those that are left out."""

    def __init__(self, number: int) -> None:
        super().__init__(f"trial {number} conflicts")
        self.number = number


def groups(changes: Changes, crashed: Collection[Group] = ()) -> tuple[Group, ...]:
    """The keeps by what can be taken out of the champion, each in one group, by its first trial.

    `crashed` are the groups without which the champion has turned out not to run. Raises
    NightlyError if git fails.
    """
    found: list[set[int]] = []
    waiting = [{number} for number in changes.keeps]
    while waiting:
        group = set(removable(changes, waiting.pop(), crashed))
        touching = [other for other in found if other & group]
        found = [other for other in found if other not in touching]
        if touching:  # joined, they may tie further ones
            waiting.append(group.union(*touching))
        else:
            found.append(group)
    return tuple(sorted(tuple(sorted(group)) for group in found))


def removable(changes: Changes, wanted: Iterable[int], crashed: Collection[Group] = ()) -> Group:
    """These keeps, and those that are tied to them: what can be taken out of the champion.

    A keep that conflicts without them is tied to them. A crash does not say which keep
    needs them: the next one after the first of them is tied, and if there is none, the last.
    """
    group = set(wanted)
    while len(group) < len(changes.keeps):
        try:
            candidate = changes.without(group)
        except Conflict as conflict:
            group.add(conflict.number)
            continue
        ascending = tuple(sorted(group))
        if ascending not in crashed and proposal.check(candidate, {}) is None:
            return ascending
        others = [number for number in changes.keeps if number not in group]
        group.add(next((number for number in others if number > ascending[0]), others[-1]))
    return tuple(sorted(group))
