"""The audit: a fresh box predicts from secret prefixes what another claimed with all in view.

The claim box sees whole rows and may peek; the audit box sees only prefixes, one position of a row
at a time and the rest of the row filled with BOS, and returns logits, from which the judge computes
the loss itself. The audit box cannot know the answer, and the claim box could not know the
positions, which are drawn after its end. So the mean difference (the gap) estimates how far the
claims are below the candidate's true causal loss, however it cheats; honest models differ by
rounding alone. This is a difference estimator (Cochran, Sampling Techniques, 1977, ch. 7): its
noise is that of the difference, not of the loss.

The gap counts what the score counts. Each answer stands for as many targets as its chance of being
asked for was small (Horvitz and Thompson, 1952), or a debt on long rows could be repaid on a short
one that is asked whole. A claim that is too high pays back rounding and no more. And where the
differences scatter so much that chance could hide the widest gap that is allowed, the claims are
not believed. `./run bench audit` simulates this: no debt above 0.001 nats a target that is spread
out passes more than once in 20 audits. What is left is luck: a lie of L nats at a share f of the
targets is not asked about with probability (1-f)^N, so one audit in 20 misses a debt of 3L/N.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.judge.box import Box
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

Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Weights = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """By how many nats claims may be below the answers: on average (`gap`) and at one position."""

    gap: float
    position: float

    def allowed(self, asked: int) -> int:
        """How many of the `asked` positions may be off: none below the widest tolerance."""
        return 0 if self.position < LAX.position else max(1, int(LAX_SHARE * asked))


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
    """Which targets are asked for, in this order: batch by batch, and in a batch by position."""

    rows: Index  # [n]; batch_rows of them are a batch
    positions: Index  # [n, K], ascending in a row: no answer is asked for after it was shown
    # [n, K], how many scored targets each answer stands for. 0: the answer does not count, as the
    # target has no bytes or a prefix shown before gives it away.
    weights: Weights
    batch_rows: int

    @property
    def counted(self) -> Mask:
        return self.weights > 0


def draw(scored: Mask, count: int, batch_rows: int, random: np.random.Generator) -> Questions:
    """About `count` targets of `scored`, bool [R, T]: as many in each of some different rows.

    Their order is secret too: an audit box may learn from what it is asked, and so could a claim
    box that knew what its twin will have seen, and when. A row begins with the last target of the
    row before it, so that target counts only if it is asked for in an earlier batch.
    """
    R, T = scored.shape
    rows = random.permutation(R)[:count].astype(np.int64)
    K = min(T, count // len(rows))
    # In a single batch every row would give away the last target of the row before it.
    batch_rows = min(batch_rows, -(-len(rows) // EARLY))
    keys = random.random((len(rows), T)) + ~scored[rows]  # targets without bytes are last
    positions = np.sort(np.argpartition(keys, K - 1, axis=1)[:, :K], axis=1)
    batch_of = np.full(R + 1, R)  # a row that is not drawn is never shown
    batch_of[rows] = np.arange(len(rows)) // batch_rows
    given_away = batch_of[rows + 1] <= batch_of[rows]
    last = positions == T - 1
    counted = scored[rows[:, None], positions] & ~(given_away[:, None] & last)
    in_row = scored[rows].sum(axis=1)
    weights = (R / len(rows)) * (in_row / np.clip(in_row, 1, K))[:, None] * counted
    weights[last & (rows < R - 1)[:, None]] /= _last_counts(R, len(rows), batch_rows)
    return Questions(rows, positions, weights, batch_rows)


def _last_counts(R: int, drawn: int, batch_rows: int) -> float:
    """The probability that the last target of a drawn row is not given away.

    Not for the last of the R rows, which no other row can give away.
    """
    if drawn == 1:
        return 1.0
    whole, rest = divmod(drawn, batch_rows)
    pairs = whole * batch_rows * (batch_rows - 1) + rest * (rest - 1)
    same_batch = pairs / (drawn * (drawn - 1))
    return 1 - (drawn - 1) / (R - 1) * (1 + same_batch) / 2


def ask(
    box: Box,
    wire: Wire,
    shape: Shape,
    rows: Rows,
    bos: int,
    questions: Questions,
    eval_seconds: float,
) -> npt.NDArray[Any]:
    """The losses at the questions, nats float64 [n, K], from a loaded box's logits. Raises Stopped.

    An answer that does not count is not looked at; its loss is 0 here.
    `eval_seconds` is the limit for claiming all rows. It is allowed again for each of the K
    positions of a row, up to MOST_ROUNDS times: a candidate with few long rows is asked as much as
    any other, and may run out of time.
    """
    V, T = shape.vocab_size, shape.sequence_length
    allowed = eval_seconds * min(questions.positions.shape[1], MOST_ROUNDS)
    deadline = time.monotonic() + allowed
    nats = np.zeros(questions.positions.shape)
    most = max(1, ANSWER_BYTES // (4 * V))
    with blaming(box, "audit", allowed):
        for first in range(0, len(questions.rows), questions.batch_rows):
            members = np.arange(first, min(first + questions.batch_rows, len(questions.rows)))
            for k in range(questions.positions.shape[1]):
                for chosen in np.split(members, range(most, len(members), most)):
                    asked, at = rows[questions.rows[chosen]], questions.positions[chosen, k]
                    prefixes = np.where(np.arange(T) <= at[:, None], asked[:, :-1], bos)
                    payload = prefixes.astype("<u2").tobytes() + at.astype("<i4").tobytes()
                    wire.send({"msg": "logits", "rows": len(chosen)}, deadline, payload)
                    answer = np.frombuffer(
                        wire.read_bytes(len(chosen) * V * 4, deadline), "<f4"
                    ).reshape(-1, V)
                    targets = asked[np.arange(len(chosen)), at + 1]
                    here = questions.counted[chosen, k]
                    nats[chosen[here], k] = cross_entropy(answer[here], targets[here])
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
    off: int  # positions above the tolerance
    asked: int  # positions that count

    @classmethod
    def of(
        cls, questions: Questions, claims: Nats, nats: npt.NDArray[Any], tolerance: Tolerance
    ) -> Finding:
        """Compares the answers `nats` [n, K] with the claims, float32 [R, T], where they count.

        A claim that is too high counts up to REPAID: what exceeds it is no rounding, and pays for
        nothing. A model that learns from the questions predicts late ones better: its early ones
        count, the first rows that stand for a quarter of the targets.
        """
        difference = nats - claims[questions.rows[:, None], questions.positions]
        weights, counted = questions.weights, questions.counted
        if not counted.any():
            raise ValueError("no position was audited: no target of the validation rows has bytes")
        share = np.cumsum(weights.sum(axis=1)) / weights.sum()
        early = int((share < 1 / EARLY).sum()) + 1
        means, margins = [], []
        for first in (len(weights), early):
            here = counted[:first]
            mean, margin = _mean(
                np.maximum(difference[:first][here], -REPAID * tolerance.position),
                weights[:first][here],
                float(share[first - 1]),
            )
            means.append(mean)
            margins.append(margin)
        counting = difference[counted]
        off = int((counting > tolerance.position).sum())
        return cls(round(max(means), 6), max(margins), float(counting.max()), off, len(counting))

    def problem(self, tolerance: Tolerance) -> str | None:
        """Why the claims are not believed, or None."""
        allowed = tolerance.allowed(self.asked)
        if self.gap <= tolerance.gap and self.off <= allowed:
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
            f"positions are off by more than {tolerance.position:g} (allowed "
            f"{allowed}): it uses its targets, later tokens or other rows, "
            "or its loss is not the cross-entropy of its logits"
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
