"""Ablation by hunks: after a keep of many hunks, the cheapest of them are taken out in one trial.

A patch that was kept as a whole may carry hunks that do nothing. The smallest ones, up to half of
them, are taken out together. What is left has fewer statements, so a tie is enough for the search
rule to keep it as simpler. Hunks that need each other, as one defines a name that the other uses,
are taken out together or not at all.
"""

from __future__ import annotations

import builtins
import dataclasses
import difflib
import io
import itertools
import keyword
import tokenize
from collections.abc import Collection, Iterator, Sequence

from tasks.proposers import proposal
from tasks.proposers.three_way_merge import three_way_of_files
from tasks.records import Candidate, Idea, NightSoFar, Proposal, Trial
from tasks.search import trial_sources
from tasks.statuses import Search
from tasks.text import counted, one_line, shortened

LEAST_HUNKS = 3  # of a keep that is worth it
CONTEXT = 3  # equal lines between two hunks, at least twice as many, as in patch.diff
KNOWN = {*dir(builtins), *keyword.kwlist}  # names that tie no hunks
LONGEST_NAME = 60  # characters of the kept trial in the words for its ablation


@dataclasses.dataclass(frozen=True)
class HunkAblation:
    """A strategy: one trial for each keep of several hunks, the latest first."""

    @property
    def name(self) -> Search:
        return "ablation"

    def propose(self, night: NightSoFar) -> Proposal | None:
        ideas = [trial.idea for trial in night.trials]
        ideas += [night.in_flight.idea] if night.in_flight else []
        done = {n for idea in ideas if idea.search == self.name for n in idea.built_on}
        for trial in reversed(night.trials):
            is_due = trial.verdict == "keep" and trial.idea.search != self.name
            if is_due and trial.number not in done and (made := _ablated(night, trial)):
                return made
        return None


def _ablated(night: NightSoFar, kept: Trial) -> Proposal | None:
    """The champion without the smallest hunks of a keep, as many as leave a file to run."""
    before, after = trial_sources.before(night, kept), trial_sources.after(night, kept)
    if before is None or after is None:
        return None
    patch = Hunks.between(before, after)
    taken = patch.cheapest()
    for count in range(len(taken), 0, -1):
        out = sorted(itertools.chain.from_iterable(taken[:count]))
        source = three_way_of_files(after, night.champion.source, patch.without(out))
        if source is None:
            continue
        candidate = Candidate.parse(source)
        saved = night.champion.statements - candidate.statements
        if saved > 0 and proposal.check(candidate, night.seen) is None:
            return Proposal(candidate, _idea(kept, len(out), len(patch.hunks), saved))
    return None


@dataclasses.dataclass(frozen=True)
class Hunks:
    """A patch, hunk by hunk: lines [a, b) of the old file became [c, d) of the new, from 0."""

    old: Sequence[str]
    new: Sequence[str]
    hunks: tuple[tuple[tuple[int, int, int, int], ...], ...]  # the edits of each

    @classmethod
    def between(cls, before: str, after: str) -> Hunks:
        """As difflib's unified diff has them, which is what patch.diff shows."""
        old, new = (list(io.StringIO(text, newline="\n")) for text in (before, after))
        groups = difflib.SequenceMatcher(None, old, new).get_grouped_opcodes(CONTEXT)
        edits = (tuple((a, b, c, d) for tag, a, b, c, d in g if tag != "equal") for g in groups)
        return cls(old, new, tuple(edits))

    def without(self, out: Collection[int]) -> str:
        """The new file with these hunks as they were in the old one."""
        lines = list(self.new)
        for number in sorted(out, reverse=True):
            for a, b, c, d in reversed(self.hunks[number]):
                lines[c:d] = self.old[a:b]
        return "".join(lines)

    def cheapest(self) -> list[tuple[int, ...]]:
        """Groups of hunks that can be taken out, the smallest first, up to half of all hunks.

        Nothing of a patch of too few hunks.
        """
        if len(self.hunks) < LEAST_HUNKS:
            return []
        taken: list[tuple[int, ...]] = []
        room = len(self.hunks) // 2
        for group in sorted(self._tied(), key=lambda group: (self._size(group), group)):
            if len(group) <= room:
                taken.append(group)
                room -= len(group)
        return taken

    def _size(self, group: Collection[int]) -> int:
        """Lines that are added or removed."""
        return sum(b - a + d - c for number in group for a, b, c, d in self.hunks[number])

    def _tied(self) -> Iterator[tuple[int, ...]]:
        """The hunks in groups that share no name which one of the two files does not have."""
        old, new = _names(self.old), _names(self.new)
        only_one = (set().union(*old) ^ set().union(*new)) - KNOWN
        groups: list[tuple[set[int], set[str]]] = []
        for number, edits in enumerate(self.hunks):
            lines = [line for a, b, c, d in edits for line in (*old[a:b], *new[c:d])]
            members, names = {number}, set().union(*lines) & only_one
            for other in [group for group in groups if group[1] & names]:
                members, names = members | other[0], names | other[1]
                groups.remove(other)
            groups.append((members, names))
        return (tuple(sorted(members)) for members, _ in groups)


def _names(lines: Sequence[str]) -> list[set[str]]:
    """The names in each line of a file; attributes with their dot, methods with and without it.

    A string that is a name counts as an attribute, which it is to register_buffer and getattr.
    """
    found: list[set[str]] = [set() for _ in lines]
    before = ""
    for token in tokenize.generate_tokens(iter(lines).__next__):
        here, word = token.start[0] - 1, token.string
        if token.type == tokenize.NAME:
            found[here].add(f".{word}" if before == "." else word)
        if before in ("def", "class"):
            found[here].add(f".{word}")
        if token.type == tokenize.STRING and word[1:-1].isidentifier():
            found[here].add(f".{word[1:-1]}")
        before = word
    return found


def _idea(kept: Trial, out: int, of: int, saved: int) -> Idea:
    what = shortened(one_line(kept.idea.summary), LONGEST_NAME)
    return Idea(
        summary=f"trial {kept.number} without {out} of its {of} hunks",
        proposer="ablation",
        kind="simplification",
        hypothesis=f"not all of a kept patch may be what helps: {what}",
        expected=f"a tie with {counted(saved, 'statement')} fewer",
        search="ablation",
        built_on=(kept.number,),
    )
