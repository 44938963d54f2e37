"""The archive: a few files other than the champion that a researcher may build on.

A search that only ever builds on its champion stays in one valley. Here wait candidates that scored
nearly as well and are made differently: another depth, another optimizer. The branch stays the
champion's, and what is built on one of these is compared with the champion.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from configs import knobs
from tasks.proposers.touched import touched
from tasks.records import Candidate, NightSoFar, Parent, Trial
from tasks.search import trial_sources

NEAR = 4.0  # sd of one run by which a file may be worse than the champion
# Trials on one parent. What has led to nothing by then is given up.
MOST_BUILT = 3
MOST_COMPARED = 30  # of the best candidates, by what they touch


@dataclasses.dataclass(frozen=True)
class Archive:
    """Implements Parents."""

    size: int  # files at most

    def parent(self, night: NightSoFar) -> Parent | None:
        """The one that has been built on least, of the best ones first; None if none is left."""
        members = self.members(night)
        built = dict.fromkeys(members, 0)
        ideas = [trial.idea for trial in night.trials]
        ideas += [night.in_flight.idea] if night.in_flight else []
        for idea in ideas:
            for number in idea.built_on if idea.search == "archive" else ():
                built[number] = built.get(number, 0) + 1
        left = [number for number in members if built[number] < MOST_BUILT]
        if not left:
            return None
        number = min(left, key=lambda number: built[number])
        trial = next(trial for trial in night.trials if trial.number == number)
        source = trial_sources.after(night, trial)
        if source is None or trial.val_bpb is None:
            return None
        return Parent(number, Candidate.parse(source), trial.val_bpb)

    def members(self, night: NightSoFar) -> tuple[int, ...]:
        """The trials whose files wait, in the order in which they were chosen."""
        if not night.sd:
            return ()
        limit, stacked = NEAR * night.sd, trial_sources.stacked(night)
        worse = {
            trial.number: trial.val_bpb - night.champion_bpb
            for trial in night.trials
            if trial.verdict == "discard"
            and trial.val_bpb is not None
            and trial.number >= night.first_comparable
            and trial.number not in stacked
        }
        near = sorted((n for n in worse if worse[n] <= limit), key=lambda n: worse[n])
        trials = {trial.number: trial for trial in night.trials}
        made = {number: _design(night, trials[number]) for number in near[:MOST_COMPARED]}
        designs = {number: parts for number, parts in made.items() if parts}
        scores = {number: 1 - max(worse[number], 0.0) / limit for number in designs}
        return diverse(scores, designs, self.size)


def diverse(
    scores: Mapping[int, float], designs: Mapping[int, frozenset[str]], size: int
) -> tuple[int, ...]:
    """Up to `size` of the `designs`, good ones that are unlike each other.

    `scores` are from 0 to 1, `designs` the parts and knobs that each changes. Greedy: the next one
    has the largest sum of its score and of its distance from those that are chosen (Jaccard's, from
    0 to 1). A design that is chosen already is not chosen again.
    """
    chosen: list[int] = []
    while len(chosen) < size:
        apart = {
            number: min((_distance(designs[number], designs[c]) for c in chosen), default=1.0)
            for number in designs
        }
        left = [number for number, distance in apart.items() if distance > 0]
        if not left:
            break
        chosen.append(max(left, key=lambda n: (scores[n] + apart[n], -n)))
    return tuple(chosen)


def _distance(one: frozenset[str], other: frozenset[str]) -> float:
    return 1 - len(one & other) / len(one | other)


@functools.lru_cache(maxsize=16)
def _knobs(source: str) -> Mapping[str, Any]:
    return knobs.read(source)


def _design(night: NightSoFar, trial: Trial) -> frozenset[str]:
    """What a candidate is made of otherwise than its champion: knobs with values, parts of code.

    Empty if only rates are different, which is no other design, or if its files are gone.
    """
    before, after = trial_sources.before(night, trial), trial_sources.after(night, trial)
    if before is None or after is None:
        return frozenset()
    old, new = _knobs(before), trial.knobs
    turned = {name for name in new if name in old and new[name] != old[name]}
    rates = {name for name in turned if isinstance(new[name], float | tuple)}
    values = {f"{name} = {new[name]}" for name in turned - rates}
    parts = {name for name in touched(before, after).names if name not in turned}
    return frozenset(values | parts)
