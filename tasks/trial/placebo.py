"""Placebos: trials of the champion unchanged, to measure how often a null change is kept.

A placebo takes a candidate's whole way: box, claims, audit, as many runs as the verdict asks for.
Its seeds are new, and it is compared with scores by which nobody chose the champion: a champion
that was chosen for its luck is hard to beat, which would hide the rule's error. It is never kept.
"""

from __future__ import annotations

import dataclasses
import math
import random
from fractions import Fraction

from tasks.records import Candidate, Idea, Proposal, Verdict

NAME = "placebo"  # in a proposer's place
WHAT = "the champion unchanged"
CHAMPION_RUNS = 3  # that nobody chose the champion by: it is run afresh up to as many


def is_due(number: int, seed: int, share: float) -> bool:
    """Whether trial `number` of a night with this seed is a placebo.

    One in each block of 1 / `share` trials is, at a seeded place in the block's second half. So a
    short night has none, two never follow one another, and a resumed night decides the same.
    """
    if not share:
        return False
    exact = Fraction(share).limit_denominator(1000)  # as a float, 1 / 0.04 may be above 25
    block = math.ceil(number * exact) - 1
    before, last = math.floor(block / exact), math.floor((block + 1) / exact)
    places = range(before + (last - before) // 2 + 1, last + 1)
    return number == random.Random(f"placebo/{seed}/{block}").choice(places)


def proposal(champion: Candidate) -> Proposal:
    return Proposal(champion, Idea(f"{NAME}: {WHAT}", NAME))


def is_placebo(proposed: Proposal) -> bool:
    return proposed.idea.proposer == NAME


def never_kept(decided: Verdict) -> Verdict:
    """What becomes of a placebo of which the rule says `decided`."""
    what = f"a placebo, {WHAT}"
    if decided.z is not None:
        what += ": a false keep" if decided.decision == "keep" else ": rightly not kept"
    reason = f"{decided.reason}; {what}"
    return dataclasses.replace(decided, decision="discard", reason=reason)
