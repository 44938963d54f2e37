"""Keep, discard or confirm: the whole rule, pure, no I/O.

The starting rule of the design: a clear gain is kept at once, a possible one is run again with a new seed, and of two
that score alike the simpler one wins. Gains are measured in standard errors of the difference, so that a lucky seed
is not taken for an idea.
"""

from __future__ import annotations

import ast
import math
import statistics
from collections.abc import Iterable, Sequence

from configs import knobs
from tasks.records import Verdict
from tasks.statuses import Status
from tasks.text import counted

SD_FLOOR = 5e-4  # bits per byte: three runs may agree by chance, and hardware never repeats itself better than this
KEEP = 2.0  # z of one run that is kept at once
CONFIRM = 0.3  # z of one run that is worth a second one; |z| below it is a tie
CONFIRMED = 0.5  # z of two runs that is kept
STATEMENTS_PER_Z = 50  # added ones that must buy one more standard error


def pooled_sd(groups: Iterable[Sequence[float]], floor: float = SD_FLOOR) -> float:
    """Standard deviation of one run, bits per byte, from groups of repeats of one file each (pooled variance).

    A group of one run says nothing. The floor is returned where there is nothing to pool, or where it is larger.
    """
    repeats = [group for group in groups if len(group) > 1]
    if not repeats:
        return floor
    squares = sum(
        math.fsum((score - statistics.fmean(group)) ** 2 for score in group) for group in repeats
    )
    return max(math.sqrt(squares / sum(len(group) - 1 for group in repeats)), floor)


def z_score(champion: Sequence[float], candidate: Sequence[float], sd: float) -> float:
    """Standard errors by which the candidate's mean is better (lower). Raises ValueError without scores or an sd."""
    if not (len(champion) and len(candidate) and sd > 0):
        raise ValueError(
            f"{len(champion)} champion and {len(candidate)} candidate scores, sd {sd}: all must be positive"
        )
    error = sd * math.sqrt(1 / len(champion) + 1 / len(candidate))
    return (statistics.fmean(champion) - statistics.fmean(candidate)) / error


def statements(source: str) -> int:
    """How much code there is: comments, docstrings, blank lines and layout neither cost nor earn anything.

    Raises SyntaxError.
    """
    nodes = (node for node in ast.walk(knobs.parse(source)) if isinstance(node, ast.stmt))
    return sum(
        not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in nodes
    )


def needed(statements_added: int) -> float:
    """The z that two runs must pass: code that grew must buy more, one standard error for 50 statements.

    Never more than KEEP, which one run alone passes: else a second run could only do harm.
    """
    return min(CONFIRMED + max(statements_added, 0) / STATEMENTS_PER_Z, KEEP)


def decide(
    champion: Sequence[float], candidate: Sequence[float], sd: float, statements_added: int
) -> Verdict:
    """The verdict on scores in bits per byte; `confirm` asks for one more run and is never said of two.

    `sd` is of one run, `statements_added` the growth of the code and negative where it shrank. Raises ValueError as z_score.
    """
    z = z_score(champion, candidate, sd)
    gain = statistics.fmean(champion) - statistics.fmean(candidate)
    figures = f"{'better' if gain > 0 else 'worse'} by {abs(gain):.4f} bits per byte, {abs(z):.1f} standard errors"
    figures = figures if gain else "the same score"
    change = counted(abs(statements_added), "statement")
    if len(candidate) == 1:
        if z > KEEP:
            return Verdict("keep", f"{figures}: kept at once", z)
        if z > CONFIRM:
            return Verdict("confirm", f"{figures}: may be luck, a second seed decides", z)
        if abs(z) <= CONFIRM and statements_added < 0:
            return Verdict(
                "confirm", f"{figures}: a tie with {change} less, a second seed decides", z
            )
        return Verdict("discard", f"{figures}: {'no gain' if z < -CONFIRM else 'a tie'}", z)
    runs = f"{figures} over {len(candidate)} runs"
    if z > needed(statements_added):
        return Verdict("keep", f"{runs}: kept", z)
    if z > CONFIRMED:
        return Verdict(
            "discard",
            f"{runs}: too little for {change} more, which must buy {needed(statements_added):.1f}",
            z,
        )
    if abs(z) < CONFIRM and statements_added < 0:
        return Verdict("keep", f"{runs}: a tie with {change} less, kept as simpler", z)
    return Verdict("discard", f"{runs}: {'no gain' if z < -CONFIRM else 'not confirmed'}", z)


def failed(status: Status, reason: str) -> Verdict:
    """The verdict on a candidate without a score: its patch was rejected or its run was stopped."""
    return Verdict("discard", f"{'not run' if status == 'rejected_patch' else 'stopped'}: {reason}")
