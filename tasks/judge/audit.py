"""The audit: a fresh box predicts from secret prefixes what another claimed with all in view.

The claim box sees whole rows and may peek; the audit box sees only prefixes, one position of a row
at a time and the rest of the row filled with BOS, and returns logits, from which the judge computes
the loss itself. The audit box cannot know the answer, and the claim box could not know the
positions, which are drawn after its end. So the mean difference (the gap) estimates how far the
claims are below the candidate's true causal loss, however it cheats; honest models differ by
rounding alone. This is a difference estimator (Cochran, Sampling Techniques, 1977, ch. 7): its
noise is that of the difference, not of the loss.

Not every target is as likely to be asked about (see effort.py). So the gap counts what the score
counts by weights: each answer stands for as many targets as its chance of being asked for was small
(Horvitz and Thompson, 1952). A claim that is too high pays back rounding and no more. And where the
differences scatter so much that chance could hide the widest gap that is allowed, the claims are
not believed.

`./run bench audit` simulates this: no debt above 0.001 nats a target passes more than once in 20
audits, unless the cheat knows or guesses what the baseline claims. Then it may claim that at
targets where its own model is worse, which is less suspicious, and hides up to four times as much.
"""

from __future__ import annotations

import dataclasses
import heapq
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.judge.box import Box
from tasks.judge.effort import HEAVIEST
from tasks.judge.protocol import Stopped, blaming
from tasks.judge.scoring import Nats, Rows, Shape
from tasks.judge.wire import Wire

ANSWER_BYTES = 2**26  # of logits in one answer, which we hold in memory
HONEST_TIMES = 10  # a candidate may differ by this many times the baseline's own differences
MOST_ROUNDS = 16  # times that the rows may be claimed in, at most, is what an audit may take
EARLY = 4  # the first quarter of the targets
LAX_SHARE = 0.004  # of the positions may be off if the position tolerance is at its widest
# The share of the position tolerance that is taken for rounding: only so far does a claim that is
# too high pay back. It is twice the baseline's own largest difference. Without a limit, a model
# that has learnt from the questions would pay back more.
REPAID = 0.2
SURE = 2.0  # standard errors: chance lowers a mean by more than that less than once in 40 times
# How many lies of effort.DEBT should be met on average: none is with probability exp(-3.5) = 3 %.
# Where some answers may be off, a debt twice as large passes if half of its lies are met.
HITS, LAX_HITS = 3.5, 5.0

Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Weights = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """By how many nats claims may be below the answers: on average (`gap`) and at one position."""

    gap: float
    position: float

    def allowed(self, asked: int) -> float:
        """The share of the positions that may be off if so many are asked about.

        None below the widest tolerance; there, one answer may be, however much it stands for.
        """
        return 0.0 if self.position < LAX.position else max(LAX_SHARE, HEAVIEST / asked)

    @property
    def hits(self) -> float:
        """How many lies should be met on average, of a debt that should not pass."""
        return HITS if self.position < LAX.position else LAX_HITS


STRICT = Tolerance(gap=1e-4, position=1e-2)  # a CPU's rounding is below 1e-6
# Never wider: what a cheat gains below these is less than the noise of the seeds.
LAX = Tolerance(gap=1e-3, position=0.25)


def calibrate(gaps: list[float], worst: list[float]) -> Tolerance:
    """The tolerance from the baseline's own audits: their mean and largest differences in nats."""
    gap, position = HONEST_TIMES * max(map(abs, gaps)), HONEST_TIMES * max(worst)
    return Tolerance(
        min(max(gap, STRICT.gap), LAX.gap), min(max(position, STRICT.position), LAX.position)
    )


@dataclasses.dataclass(frozen=True)
class Questions:
    """Which targets are asked for, in this order: batch by batch."""

    rows: Index  # [n]
    positions: Index  # [n], ascending in a row: no answer is asked for after it was shown
    weights: Weights  # [n], how many scored targets each answer stands for
    batches: Index  # [n], ascending: 0, 1, ...; in a batch there is at most one question of a row

    def in_batches(self) -> list[Index]:
        """The questions of each batch, as indexes."""
        return np.split(np.arange(len(self.batches)), np.diff(self.batches).nonzero()[0] + 1)


def draw(odds: Nats, count: int, batch_rows: int, random: np.random.Generator) -> Questions:
    """`count` different targets, or all of those with `odds`, [R, T], and as often as these say.

    By Pareto sampling (Rosen, On sampling with probability proportional to size, 1997). The order
    is secret too: an audit box may learn from what it is asked, and so could a claim box that knew
    what its twin will have seen, and when. Raises ValueError if no target has odds.
    """
    T = odds.shape[1]
    places = np.flatnonzero(odds)
    if not len(places):
        raise ValueError("nothing can be audited: no target of the validation rows has bytes")
    chances = inclusion(odds.reshape(-1)[places].astype(np.float64), count)
    uniform = random.random(len(places))
    keys = uniform / (1 - uniform) * (1 - chances) / chances
    if count < len(places):
        drawn = np.sort(np.argpartition(keys, count)[:count])
        places, chances = places[drawn], chances[drawn]
    rows, positions = np.divmod(places, T)
    # In a single batch an audit box could learn from all rows before its first answer.
    lanes = min(batch_rows, -(-len(np.unique(rows)) // EARLY))
    batches = _batches(rows, positions, T, lanes, random)
    order = np.lexsort((random.random(len(rows)), batches))
    return Questions(rows[order], positions[order], 1 / chances[order], batches[order])


def inclusion(odds: Weights, count: int) -> Weights:
    """The probability of each target to be among `count`: in proportion to its odds, at most 1."""
    if count >= len(odds):
        return np.ones(len(odds))
    sure = np.zeros(len(odds), bool)
    while True:
        chances = odds * ((count - sure.sum()) / odds[~sure].sum())
        more = ~sure & (chances >= 1)
        if not more.any():
            return np.where(sure, 1.0, chances)
        sure |= more


def _batches(
    rows: Index, positions: Index, T: int, lanes: int, random: np.random.Generator
) -> Index:
    """The batch of each question; they are in order of row and position.

    The rows are asked one after the other in each of `lanes`. A row begins with the last target of
    the row before it, so it waits until that one was asked about.
    """
    drawn, first, asked = np.unique(rows, return_index=True, return_counts=True)
    waiting = np.isin(drawn, rows[positions == T - 1] + 1)
    turns = random.random(len(drawn))
    for i in waiting.nonzero()[0]:
        turns[i] = max(turns[i], turns[i - 1])
    free, ends, batches = [0] * lanes, np.zeros(len(drawn), np.int64), np.empty_like(rows)
    for i in np.argsort(turns, kind="stable"):
        begin = max(heapq.heappop(free), ends[i - 1] if waiting[i] else 0)
        ends[i] = begin + asked[i]
        heapq.heappush(free, int(ends[i]))
        batches[first[i] : first[i] + asked[i]] = np.arange(begin, ends[i])
    return batches


def ask(
    box: Box,
    wire: Wire,
    shape: Shape,
    rows: Rows,
    bos: int,
    questions: Questions,
    eval_seconds: float,
) -> npt.NDArray[Any]:
    """The losses at the questions, nats float64 [n], from a loaded box's logits. Raises Stopped.

    `eval_seconds` is the limit for claiming all rows. It is allowed again for each question that a
    row has on average, up to MOST_ROUNDS times: a candidate with few long rows is asked as much as
    any other, and may run out of time.
    """
    V, T = shape.vocab_size, shape.sequence_length
    allowed = eval_seconds * min(-(-len(questions.rows) // len(rows)), MOST_ROUNDS)
    deadline = time.monotonic() + allowed
    nats = np.zeros(len(questions.rows))
    most = max(1, ANSWER_BYTES // (4 * V))
    with blaming(box, "audit", allowed):
        for batch in questions.in_batches():
            for chosen in np.split(batch, range(most, len(batch), most)):
                asked, at = rows[questions.rows[chosen]], questions.positions[chosen]
                prefixes = np.where(np.arange(T) <= at[:, None], asked[:, :-1], bos)
                payload = prefixes.astype("<u2").tobytes() + at.astype("<i4").tobytes()
                wire.send({"msg": "logits", "rows": len(chosen)}, deadline, payload)
                answer = np.frombuffer(wire.read_bytes(len(chosen) * V * 4, deadline), "<f4")
                targets = asked[np.arange(len(chosen)), at + 1]
                nats[chosen] = cross_entropy(answer.reshape(-1, V), targets)
    return nats


def cross_entropy(logits: Nats, targets: Rows) -> npt.NDArray[Any]:
    """Nats float64 [n] of `targets`, uint16 [n], under `logits`, float32 [n, V].

    Minus infinity is the logit of what a model rules out. Raises Stopped if that is a target, and
    for NaN and infinity.
    """
    z = logits.astype(np.float64)
    wanted = z[np.arange(len(z)), targets]
    if np.isnan(z).any() or (z == np.inf).any() or not np.isfinite(wanted).all():
        raise Stopped(
            "audit_failed",
            "answered the audit with logits that are not finite: NaN, infinity, or minus infinity "
            "for the token that follows",
        )
    highest = z.max(axis=1, keepdims=True, initial=-np.inf)
    losses: npt.NDArray[Any] = np.log(np.exp(z - highest).sum(axis=1)) + highest[:, 0] - wanted
    return losses


@dataclasses.dataclass(frozen=True)
class Finding:
    """What an audit found: answers minus claims, in nats."""

    gap: float  # mean of all, or of the early ones if larger; to 1e-6, as claims are float32
    margin: float  # by how much chance may have lowered either mean: SURE standard errors
    worst: float  # the largest
    off: int  # answers above the tolerance
    off_share: float  # of all targets, that they stand for
    asked: int

    @classmethod
    def of(
        cls, questions: Questions, claims: Nats, nats: npt.NDArray[Any], tolerance: Tolerance
    ) -> Finding:
        """Compares the answers `nats` [n] with the claims, float32 [R, T].

        A claim that is too high counts up to REPAID: what exceeds it is no rounding, and pays for
        nothing. A model that learns from the questions predicts late ones better: its early ones
        count, the first that stand for a quarter of the targets.
        """
        difference = nats - claims[questions.rows, questions.positions]
        repaid, weights = np.maximum(difference, -REPAID * tolerance.position), questions.weights
        share = weights.cumsum() / weights.sum()
        early = int((share < 1 / EARLY).sum()) + 1
        found = [
            _mean(repaid[:first], weights[:first], float(share[first - 1]))
            for first in (len(weights), early)
        ]
        means, margins = zip(*found, strict=True)
        off = difference > tolerance.position
        return cls(
            gap=round(max(means), 6),
            margin=max(margins),
            worst=float(difference.max()),
            off=int(off.sum()),
            off_share=float(weights[off].sum() / weights.sum()),
            asked=len(weights),
        )

    def problem(self, tolerance: Tolerance) -> str | None:
        """Why the claims are not believed, or None."""
        allowed = tolerance.allowed(self.asked)
        if self.gap <= tolerance.gap and self.off_share <= allowed:
            if self.margin <= LAX.gap:
                return None
            return (
                "its claims and its predictions differ too much, sometimes in its favour and "
                f"sometimes against it: chance could hide {self.margin:.3g} nats per token in an "
                f"audit of {self.asked} positions (allowed {LAX.gap:g}); a model must "
                "predict the same each time"
            )
        return (
            f"claimed {self.gap:.3g} nats per token less than its predictions cost when what "
            f"follows is hidden (allowed {tolerance.gap:g}); {self.off} of {self.asked} audited "
            f"positions, which stand for {self.off_share:.2g} of all, are off by more than "
            f"{tolerance.position:g} (allowed {allowed:.2g}): it uses its targets, later tokens or "
            "other rows, or its loss is not the cross-entropy of its logits"
        )


def _mean(difference: Weights, weights: Weights, share: float) -> tuple[float, float]:
    """The weighted mean, and how far below the truth chance may put it: SURE standard errors.

    The questions are `share` of an audit: each is among them with probability share / weight. Where
    every target is asked about, chance has no part.
    """
    total = weights.sum()
    mean = float(weights @ difference / total)
    spread = (1 - share / weights) * (weights * (difference - mean)) ** 2
    return mean, SURE * float(np.sqrt(np.maximum(spread, 0).sum()) / total)
