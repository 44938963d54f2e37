"""The search rule: keep a candidate, discard it, or run it again. Pure, no I/O.

A sequential test: one run decides what is clear, and what may be luck gets up to four more, with
fresh runs of the champion in between. So a champion that was kept on one lucky run loses its luck,
and a machine that has drifted has drifted for both. Gains are measured in standard errors of the
difference. Everything else being equal, a better score never gets a worse verdict.

`./run bench verdict` simulates it beside other rules: of changes that change nothing it keeps 4 to
5 % against a champion that was not lucky, and a night of 100 runs makes about 90 % or more of the
progress of one that keeps every better score, half of whose keeps are luck.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from configs import Rule
from tasks.noise import Noise
from tasks.records import Verdict
from tasks.statuses import Decision, Status
from tasks.text import counted

RULE = Rule()  # the thresholds of a profile that names none
TIE = 0.3  # down to minus this, code that shrank is as good
STATEMENTS_PER_Z = 50  # added statements that must buy one more standard error


def z_score(champion: Sequence[float], candidate: Sequence[float], noise: Noise) -> float:
    """Standard errors by which the candidate's mean is better (lower).

    With few degrees of freedom the sd may be too small by chance: the difference is Student's t,
    and what is returned is the z that is as unlikely. Raises ValueError without scores or an sd.
    """
    if not (len(champion) and len(candidate) and noise.sd > 0):
        raise ValueError(
            f"{len(champion)} champion and {len(candidate)} candidate scores, sd {noise.sd}: "
            "all must be positive"
        )
    error = noise.sd * math.sqrt(1 / len(champion) + 1 / len(candidate))
    t = (statistics.fmean(champion) - statistics.fmean(candidate)) / error
    return as_normal(t, noise.degrees_of_freedom)


def as_normal(t: float, degrees_of_freedom: float) -> float:
    """The z that is as unlikely as Student's t: Wallace's approximation (1959), good to 3 %.

    With 0 degrees of freedom t is a z: the sd is the floor, which is nobody's estimate.
    """
    if not (df := degrees_of_freedom):
        return t
    return math.copysign(math.sqrt(df * math.log1p(t * t / df)) * (8 * df + 1) / (8 * df + 3), t)


def as_students_t(z: float, degrees_of_freedom: float) -> float:
    """The inverse of `as_normal`."""
    if not (df := degrees_of_freedom):
        return z
    exponent = (z * (8 * df + 3) / (8 * df + 1)) ** 2 / df
    return math.copysign(math.sqrt(df * math.expm1(exponent)), z)


def thresholds(runs: int, statements_added: int, rule: Rule = RULE) -> tuple[float, float]:
    """(below which it is discarded, above which it is kept) after so many runs, as z.

    Added statements must pay, but what may be kept after one run is enough for any of them. Code
    that shrank is run to the end while it is no worse than a tie, and then a tie is enough.
    """
    drop, keep = rule.drop[runs - 1], rule.keep[runs - 1]
    if statements_added < 0:
        return -TIE, -TIE if runs == len(rule.keep) else keep
    price = statements_added / STATEMENTS_PER_Z
    return min(drop + price, rule.keep[0]), min(keep + price, rule.keep[0])


def decide(
    champion: Sequence[float],
    candidate: Sequence[float],
    noise: Noise,
    statements_added: int,
    rule: Rule = RULE,
) -> Verdict:
    """The verdict on scores in bits per byte; `confirm` asks for one more run of the candidate.

    It never does after as many runs as the rule has thresholds. `statements_added` is negative if
    the code shrank. Raises ValueError like `z_score`, and for more runs than that.
    """
    runs, most = len(candidate), len(rule.keep)
    if runs > most:
        raise ValueError(f"{runs} runs of a candidate: {most} decide")
    z = z_score(champion, candidate, noise)
    drop, keep = thresholds(runs, statements_added, rule)
    gain = statistics.fmean(champion) - statistics.fmean(candidate)
    figures = "the same score"
    if gain:
        better = "better" if gain > 0 else "worse"
        figures = f"{better} by {abs(gain):.4f} bits per byte, {abs(z):.1f} standard errors"
    over = "" if runs == 1 else f" over {runs} runs"
    if z > keep:
        decision, why = _kept(z, runs, statements_added, rule)
    elif z < drop or runs == most:
        decision, why = _discarded(z, runs, statements_added, rule)
    else:
        decision, why = _confirmed(z, statements_added, rule)
    return Verdict(decision, f"{figures}{over}: {why}", z)


def champion_is_due(champion_runs: int, candidate_runs: int, rule: Rule = RULE) -> bool:
    """Whether a fresh run of the champion comes before the candidate's next run."""
    return champion_runs < min(candidate_runs + 1, rule.champion_runs)


def _kept(z: float, runs: int, added: int, rule: Rule) -> tuple[Decision, str]:
    if z > rule.keep[runs - 1]:
        return "keep", "kept at once" if runs == 1 else "kept"
    gain = "a tie" if z <= TIE else "a small gain"
    return "keep", f"{gain} with {_statements(added)}, kept as simpler"


def _discarded(z: float, runs: int, added: int, rule: Rule) -> tuple[Decision, str]:
    _, must = thresholds(runs, added, rule)
    if runs > 1 and z > rule.keep[runs - 1]:
        return "discard", f"too little for {_statements(added)}, which must gain {must:.1f}"
    if z > TIE:
        return "discard", "too little to be worth another run" if runs == 1 else "not confirmed"
    return "discard", "no gain" if z < -TIE else "a tie"


def _confirmed(z: float, added: int, rule: Rule) -> tuple[Decision, str]:
    if z > rule.drop[0]:
        return "confirm", "may be luck, another seed decides"
    return "confirm", f"a tie with {_statements(added)}, another seed decides"


def _statements(added: int) -> str:
    return counted(abs(added), f"{'fewer' if added < 0 else 'more'} statement")


def failed(status: Status, reason: str) -> Verdict:
    """The verdict on a candidate without a score: its patch was rejected or its run was stopped."""
    return Verdict("discard", f"{'not run' if status == 'rejected_patch' else 'stopped'}: {reason}")
