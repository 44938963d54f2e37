"""Certification: which kept changes are shown to help, by fresh runs. Pure, no I/O.

The search keeps what looks better, so its scores are chosen. Here every change is taken out of the
champion alone: runs without it, with seeds that nobody chose, are compared with fresh runs of the
whole champion. Undecided changes get the runs. The evidence of several nights adds up: what to do
next, and what is shown, follow from all fresh runs of the same champion.

A change must help in its fresh runs. How sure that is, all its runs say, the trial's among them: as
they were chosen from many, it is asked how many of all candidates that do nothing would look as
good. The best are certified while at most 5 % of them are expected to be such luck: the step-up
rule of Benjamini and Hochberg (1995), with the number of candidates that do nothing estimated from
those that the search has discarded, in the spirit of Storey (2002). `./run bench verdict` simulates
it.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping
from statistics import NormalDist

from configs import Rule
from tasks.noise import Noise
from tasks.records import Claim, Trial
from tasks.statuses import Certificate
from tasks.text import counted
from tasks.trial.verdict import RULE, as_normal, as_students_t, z_score

LEAST_Z = 0.5  # of the fresh runs: nothing is certified below, however little may be luck
ENOUGH_Z = 3.5  # of all runs: above, a certified change gets no further run
# Below this z of the fresh runs a change is given up: after one run without it, two, and more.
HOPELESS_Z = (-0.5, 0.0, 0.5)
# The whole champion is compared with every other file, so it is run more often than each of them:
# as often for each run of the file that has most.
WHOLE_RUNS = 1.5
# Candidates that do nothing, for each that was better in its one run and discarded; and at least so
# many. More are tried, but most meet a champion whose luck hides theirs. Set by the simulation.
NULLS = 0.9
LEAST_NULLS = 2.0
# The step-up rule bounds the share of false claims per night, on average over nights. Nights that
# certify nothing count as 0 there; this makes up for them if the claims of all nights are counted.
SPARED = 0.5
# Of the champion that a candidate was compared with: how many its trial does not say, and about so
# many they mostly are.
CHAMPION_RUNS = 3


@dataclasses.dataclass(frozen=True)
class Searched:
    """What the trials of some kept changes say of them."""

    gain: float  # bits per byte
    variance: float  # of that, in variances of one run

    @classmethod
    def by(cls, trials: Iterable[Trial]) -> Searched | None:
        """Of all together. None if one does not say what it gained, as older nights' do not."""
        gain = variance = 0.0
        for trial in trials:
            if trial.z is None or trial.noise_sd is None or trial.noise_df is None:
                return None
            squared = 1 / CHAMPION_RUNS + 1 / len(trial.scores)
            gain += as_students_t(trial.z, trial.noise_df) * trial.noise_sd * math.sqrt(squared)
            variance += squared
        return cls(gain, variance) if variance else None


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Scores of fresh runs, in bits per byte: of a champion, and of it without some changes.

    A key of `without` holds the numbers of the kept trials that were taken out together, ascending;
    what is to be certified has a key before its first run. `searched` has what is known of some.
    """

    whole: tuple[float, ...]
    without: Mapping[tuple[int, ...], tuple[float, ...]]
    searched: Mapping[tuple[int, ...], Searched] = dataclasses.field(default_factory=dict)

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

    def z_of_all(self, group: tuple[int, ...], noise: Noise) -> float | None:
        """As `z`, with what the search has seen: the mean gain, weighted by its certainty."""
        searched, gain = self.searched.get(group), self.gain(group)
        if gain is None or searched is None:
            return self.z(group, noise)
        fresh, search = 1 / (1 / len(self.whole) + 1 / len(self.without[group])), searched.variance
        mean = (gain * fresh + searched.gain / search) / (fresh + 1 / search)
        t = mean * math.sqrt(fresh + 1 / search) / noise.sd
        return as_normal(t, noise.degrees_of_freedom)


def null_candidates(trials: Iterable[Trial]) -> float:
    """Of how many candidates that do nothing luck must be expected after these trials.

    Those that were a little better in their one run tell how many were tried.
    """
    near = sum(
        trial.verdict == "discard"
        and trial.placebo is None
        and len(trial.scores) == 1
        and trial.z is not None
        and trial.z > 0
        for trial in trials
    )
    return max(NULLS * near, LEAST_NULLS)


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
    helping = [group for group in evidence.without if (evidence.z(group, noise) or 0.0) > LEAST_Z]
    ranked = sorted(
        ((evidence.z_of_all(group, noise) or 0.0, group) for group in helping), reverse=True
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
        if group in certified:
            return (evidence.z_of_all(group, noise) or 0.0) > ENOUGH_Z
        return z < HOPELESS_Z[min(runs, len(HOPELESS_Z)) - 1]

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
    if group in evidence.searched:
        figures += f"; {evidence.z_of_all(group, noise):.1f} with the search's runs too"
    return Claim(group, certificate, gain, z, runs, figures)
