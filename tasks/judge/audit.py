"""The audit: a fresh box predicts from secret prefixes what another claimed with all in view.

The claim box sees whole rows and may peek; the audit box sees only prefixes, one position of a row
at a time and the rest of the row filled with BOS, and returns logits, from which the judge computes
the loss itself. The audit box cannot know the answer, and the claim box could not know the
positions, which are drawn after its end. So the mean difference (the gap) estimates without bias
how far the claims are below the candidate's true causal loss, however it cheats; honest models
differ by rounding alone. This is a difference estimator (Cochran, Sampling Techniques, 1977,
ch. 7): its noise is that of the difference, not of the loss.
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
EARLY = 4  # the first quarter of the batches
LAX_SHARE = 0.004  # of the positions may be off if the position tolerance is at its widest

Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


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
    counted: Mask  # [n, K]: the target has bytes, and no prefix shown before gives it away
    batch_rows: int


def draw(scored: Mask, count: int, batch_rows: int, random: np.random.Generator) -> Questions:
    """About `count` targets of `scored`, bool [R, T]: as many in each of some different rows.

    Their order is secret too: an audit box may learn from what it is asked, and so could a claim
    box that knew what its twin will have seen, and when. A row begins with the last target of the
    row before it, so that target counts only if it is asked for in an earlier batch.
    """
    R, T = scored.shape
    rows = random.permutation(R)[:count].astype(np.int64)
    # In a single batch every row would give away the last target of the row before it.
    batch_rows = min(batch_rows, -(-len(rows) // EARLY))
    keys = random.random((len(rows), T)) + ~scored[rows]  # targets without bytes are last
    positions = np.sort(np.argsort(keys, axis=1)[:, : min(T, count // len(rows))], axis=1)
    batch_of = np.full(R + 1, R)  # a row that is not drawn is never shown
    batch_of[rows] = np.arange(len(rows)) // batch_rows
    given_away = batch_of[rows + 1] <= batch_of[rows]
    counted = scored[rows[:, None], positions] & ~(given_away[:, None] & (positions == T - 1))
    return Questions(rows, positions, counted, batch_rows)


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

    `eval_seconds` is the limit for claiming all rows. It is allowed again for each of the K
    positions of a row, up to MOST_ROUNDS times: a candidate with few long rows is asked as much as
    any other, and may run out of time.
    """
    V, T = shape.vocab_size, shape.sequence_length
    allowed = eval_seconds * min(questions.positions.shape[1], MOST_ROUNDS)
    deadline = time.monotonic() + allowed
    nats = np.empty(questions.positions.shape)
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
                    nats[chosen, k] = cross_entropy(answer, asked[np.arange(len(chosen)), at + 1])
    return nats


def cross_entropy(logits: Nats, targets: Rows) -> npt.NDArray[Any]:
    """Nats float64 [n] of `targets`, uint16 [n], under `logits`, float32 [n, V].

    Raises Stopped if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise Stopped("audit_failed", "answered the audit with logits that are not finite")
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    losses: npt.NDArray[Any] = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), targets]
    return losses


@dataclasses.dataclass(frozen=True)
class Finding:
    """What an audit found: answers minus claims, in nats."""

    gap: float  # mean of all, or of the early ones if larger; to 1e-6, as claims are float32
    worst: float  # the largest
    off: int  # positions above the tolerance
    asked: int  # positions that count

    @classmethod
    def of(
        cls, questions: Questions, claims: Nats, nats: npt.NDArray[Any], tolerance: Tolerance
    ) -> Finding:
        """Compares the answers `nats` [n, K] with the claims, float32 [R, T], where they count.

        A model that learns from the questions predicts late ones better: its early ones count.
        """
        difference = nats - claims[questions.rows[:, None], questions.positions]
        early = -(-len(questions.rows) // (EARLY * questions.batch_rows)) * questions.batch_rows
        means = [
            float(part.mean())
            for first in (len(difference), early)
            if len(part := difference[:first][questions.counted[:first]])
        ]
        if not means:
            raise ValueError("no position was audited: no target of the validation rows has bytes")
        counting = difference[questions.counted]
        off = int((counting > tolerance.position).sum())
        return cls(round(max(means), 6), float(counting.max()), off, len(counting))

    def problem(self, tolerance: Tolerance) -> str | None:
        """Why the claims are not believed, or None."""
        if self.gap <= tolerance.gap and self.off <= tolerance.allowed(self.asked):
            return None
        return (
            f"claimed {self.gap:.3g} nats a token less than its predictions cost when what "
            f"follows is hidden (allowed {tolerance.gap:g}); {self.off} of {self.asked} audited "
            f"positions are off by more than {tolerance.position:g} (allowed "
            f"{tolerance.allowed(self.asked)}): it uses its targets, later tokens or other rows, "
            "or its loss is not the cross-entropy of its logits"
        )
