"""Certification: which kept changes are shown to help, by fresh runs. Pure, no I/O.

The search keeps what looks better, so its scores are chosen and prove nothing. Here every change
is taken out of the champion alone: runs without it, with seeds that nobody chose, are compared with
fresh runs of the whole champion. Undecided changes get the runs. The evidence of several nights
adds up: what to do next, and what is shown, follow from all fresh runs of the same champion.

The highest z are certified while at most 5 % of them are expected to be luck: the step-up rule of
Benjamini and Hochberg (1995), with the number of changes that do nothing estimated from the
candidates that the search has discarded, in the spirit of Storey (2002). `./run bench verdict`
simulates it.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping
from statistics import NormalDist

from configs import Rule
from tasks.noise import Noise
from tasks.records import Claim, Trial
from tasks.statuses import Certificate
from tasks.text import counted
from tasks.trial.verdict import RULE, z_score

LEAST_Z = 0.7  # nothing is certified below, however little may be luck
ENOUGH_Z = 3.0  # above, a certified change gets no further run
# Below this z a change is given up: after one run without it, after two, and after more.
HOPELESS_Z = (-0.25, 0.25, 0.75)
# The whole champion is compared with every other file, so it is run more often than each of them:
# as often for each run of the file that has most.
WHOLE_RUNS = 1.5
# Keeps that change nothing, for each candidate that was better in its one run and discarded. Of a
# hundred candidates that change nothing some 30 are such, and up to 5 are kept.
KEPT_NULLS = 0.14
LEAST_NULLS = 0.5
# The step-up rule bounds the share of false claims per night, on average over nights. Nights that
# certify nothing count as 0 there; this makes up for them if the claims of all nights are counted.
SPARED = 0.3


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Scores of fresh runs, in bits per byte: of a champion, and of it without some changes.

    A key of `without` holds the numbers of the kept trials that were taken out together, ascending;
    what is to be certified has a key before its first run.
    """

    whole: tuple[float, ...]
    without: Mapping[tuple[int, ...], tuple[float, ...]]

    def gain(self, group: tuple[int, ...]) -> float | None:
        """Bits per byte that the champion is better with the group; None without such runs."""
        if not (self.whole and self.without[group]):
            return None
        return statistics.fmean(self.without[group]) - statistics.fmean(self.whole)

    def z(self, group: tuple[int, ...], noise: Noise) -> float | None:
        """The gain in standard errors, as `verdict.z_score`; None without such runs."""
        if not (self.whole and self.without[group]):
            return None
        return z_score(self.without[group], self.whole, noise)


def null_candidates(trials: Iterable[Trial]) -> float:
    """How many keeps that change nothing are expected after these trials.

    Those that were a little better in their one run tell how many candidates that change nothing
    were tried. It is an estimate on the high side: some of them help.
    """
    near = sum(
        trial.verdict == "discard"
        and trial.placebo is None
        and len(trial.scores) == 1
        and trial.z is not None
        and trial.z > 0
        for trial in trials
    )
    return max(KEPT_NULLS * near, LEAST_NULLS)


def next_run(
    evidence: Evidence, noise: Noise, nulls: float = LEAST_NULLS, rule: Rule = RULE
) -> tuple[int, ...] | None:
    """The changes to take out in the next run; () is the whole champion, None that all is decided.

    Of the undecided groups that with the fewest runs, and of several the most promising one; the
    whole champion first and again after every few of them. Arguments as of `claims`.
    """
    undecided = _undecided(evidence, noise, nulls, rule)
    if not undecided:
        return None
    most = max(map(len, evidence.without.values()))
    if len(evidence.whole) < max(1, int(WHOLE_RUNS * most + 0.5)):
        return ()

    def order(group: tuple[int, ...]) -> tuple[int, float, tuple[int, ...]]:
        return len(evidence.without[group]), -(evidence.z(group, noise) or 0.0), group

    return min(undecided, key=order)


def claims(evidence: Evidence, noise: Noise, nulls: float, rule: Rule = RULE) -> tuple[Claim, ...]:
    """What the runs say of each group, by its first trial.

    `noise` is pooled over all repeats, the evidence's own among them; `nulls` is from
    `null_candidates`. A worse score without a change never weakens any claim.
    """
    certified = _certified(evidence, noise, nulls, rule)
    undecided = _undecided(evidence, noise, nulls, rule)

    def certificate(group: tuple[int, ...]) -> Certificate:
        if group in certified:
            return "certified"
        return "open" if group in undecided else "not_shown"

    return tuple(
        _claim(evidence, group, noise, certificate(group)) for group in sorted(evidence.without)
    )


def _certified(
    evidence: Evidence, noise: Noise, nulls: float, rule: Rule
) -> frozenset[tuple[int, ...]]:
    """As many of the groups with the highest z as are together expected to hold little luck."""
    found = {group: evidence.z(group, noise) for group in evidence.without}
    ranked = sorted(
        ((z, group) for group, z in found.items() if z is not None and z > LEAST_Z), reverse=True
    )
    count = 0
    for rank, (z, _) in enumerate(ranked, 1):
        if nulls * NormalDist().cdf(-z) <= rule.false_discovery_rate * (rank - SPARED):
            count = rank
    return frozenset(group for _, group in ranked[:count])


def _undecided(evidence: Evidence, noise: Noise, nulls: float, rule: Rule) -> list[tuple[int, ...]]:
    """The groups of which another run may change what is said."""
    certified = _certified(evidence, noise, nulls, rule)

    def is_decided(group: tuple[int, ...]) -> bool:
        runs, z = len(evidence.without[group]), evidence.z(group, noise)
        if runs >= rule.certification_runs:
            return True
        if z is None:
            return False
        hopeless = HOPELESS_Z[min(runs, len(HOPELESS_Z)) - 1]
        return z < hopeless or (z > ENOUGH_Z and group in certified)

    return [group for group in evidence.without if not is_decided(group)]


def _claim(
    evidence: Evidence, group: tuple[int, ...], noise: Noise, certificate: Certificate
) -> Claim:
    runs = len(evidence.without[group])
    gain, z = evidence.gain(group), evidence.z(group, noise)
    it = "it" if len(group) == 1 else "them"
    if gain is None or z is None:
        missing = "the whole champion" if runs else f"the champion without {it}"
        return Claim(group, certificate, None, None, runs, f"no fresh run of {missing} yet")
    change = "worse" if gain > 0 else "better"
    figures = (
        f"without {it} the champion is {change} by {abs(gain):.4f} bits per byte, {abs(z):.1f} "
        f"standard errors, over {counted(runs, 'run')} without {it} and {len(evidence.whole)} with"
    )
    return Claim(group, certificate, gain, z, runs, figures)
