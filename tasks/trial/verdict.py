"""The keep rule: keep, discard or confirm. Pure, no I/O.

A clear gain is kept at once, a possible one is run again with a new seed, and of two candidates
that score alike the simpler one wins. Gains are measured in standard errors of the difference, so
that a lucky seed is not taken for an idea. Everything else being equal, a better score never gets
a worse verdict.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from tasks.records import Verdict
from tasks.statuses import Decision, Status
from tasks.text import counted

# Bits per byte. Three runs may agree by chance, and no hardware repeats itself better than this.
SD_FLOOR = 5e-4
KEEP = 2.0  # a single run above this z is kept at once
TIE = 0.3  # |z| up to this is a tie; a single run above it is worth a second one
CONFIRMED = 0.5  # two runs above this z are kept
STATEMENTS_PER_Z = 50  # added statements that must buy one more standard error


def pooled_sd(groups: Iterable[Sequence[float]], floor: float = SD_FLOOR) -> float:
    """Standard deviation of one run, bits per byte: the pooled variance of groups of repeats.

    Each group is one file with several seeds; a group of one run says nothing. Returns the floor if
    there is nothing to pool, or if the floor is larger.
    """
    repeats = [group for group in groups if len(group) > 1]
    if not repeats:
        return floor
    squares = [(score - statistics.fmean(group)) ** 2 for group in repeats for score in group]
    degrees_of_freedom = sum(len(group) - 1 for group in repeats)
    return max(math.sqrt(math.fsum(squares) / degrees_of_freedom), floor)


def z_score(champion: Sequence[float], candidate: Sequence[float], sd: float) -> float:
    """Standard errors by which the candidate's mean is better (lower).

    Raises ValueError without scores or an sd.
    """
    if not (len(champion) and len(candidate) and sd > 0):
        raise ValueError(
            f"{len(champion)} champion and {len(candidate)} candidate scores, sd {sd}: "
            "all must be positive"
        )
    error = sd * math.sqrt(1 / len(champion) + 1 / len(candidate))
    return (statistics.fmean(champion) - statistics.fmean(candidate)) / error


def needed(statements_added: int) -> float:
    """The z that two runs must exceed: a tie is enough for code that shrank, growth must pay.

    One standard error for STATEMENTS_PER_Z statements, but never more than KEEP, which a single run
    may pass alone: a second run must not do harm.
    """
    if statements_added < 0:
        return -TIE
    return min(CONFIRMED + statements_added / STATEMENTS_PER_Z, KEEP)


def decide(
    champion: Sequence[float], candidate: Sequence[float], sd: float, statements_added: int
) -> Verdict:
    """The verdict on scores in bits per byte; `confirm` asks for one more run, and never after two.

    `sd` is of one run; `statements_added` is negative if the code shrank. Raises ValueError like
    `z_score`.
    """
    z = z_score(champion, candidate, sd)
    decide_runs = _decide_one_run if len(candidate) == 1 else _decide_two_runs
    decision, why = decide_runs(z, statements_added)
    gain = statistics.fmean(champion) - statistics.fmean(candidate)
    figures = "the same score"
    if gain:
        better = "better" if gain > 0 else "worse"
        figures = f"{better} by {abs(gain):.4f} bits per byte, {abs(z):.1f} standard errors"
    runs = "" if len(candidate) == 1 else f" over {len(candidate)} runs"
    return Verdict(decision, f"{figures}{runs}: {why}", z)


def _decide_one_run(z: float, statements_added: int) -> tuple[Decision, str]:
    if z > KEEP:
        return "keep", "kept at once"
    if z > TIE:
        return "confirm", "may be luck, a second seed decides"
    if z < -TIE:
        return "discard", "no gain"
    if statements_added < 0:
        return "confirm", f"a tie with {_statements(statements_added)}, a second seed decides"
    return "discard", "a tie"


def _decide_two_runs(z: float, statements_added: int) -> tuple[Decision, str]:
    change, must = _statements(statements_added), needed(statements_added)
    if z > max(must, CONFIRMED):
        return "keep", "kept"
    if z > must:
        tie = "a tie" if z <= TIE else "a small gain"
        return "keep", f"{tie} with {change}, kept as simpler"
    if z > CONFIRMED:
        return "discard", f"too little for {change}, which must gain {must:.1f}"
    return "discard", "no gain" if z < -TIE else "not confirmed"


def _statements(added: int) -> str:
    return counted(abs(added), f"{'fewer' if added < 0 else 'more'} statement")


def failed(status: Status, reason: str) -> Verdict:
    """The verdict on a candidate without a score: its patch was rejected or its run was stopped."""
    return Verdict("discard", f"{'not run' if status == 'rejected_patch' else 'stopped'}: {reason}")
