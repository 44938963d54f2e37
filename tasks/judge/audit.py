"""The audit: a fresh box predicts from secret prefixes what another one claimed while it saw everything.

The claim box sees whole rows and may peek; the audit box sees prefixes only, one position of a row at a time, the rest of
the row filled with BOS, and returns logits, from which the judge computes the loss itself. It cannot know the answer; the
claim box could not know the positions, which are drawn after its end. So the mean difference (the gap) estimates without
bias what the claims are short of the candidate's true causal loss, however it cheats, and honest models differ by rounding
alone. A difference estimator (Cochran, Sampling Techniques, 1977, ch. 7): its noise is that of the difference, not of the loss.
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

ANSWER_BYTES = 2**26  # most logits of one answer that we hold in memory
HONEST_TIMES = 10  # a candidate may differ by this many times what the baseline's audits did
MOST_ROUNDS = 16  # over the rows that an audit's time is reckoned for
EARLY = 4  # the first quarter of the batches
LAX_SHARE = 0.004  # of the positions may be off where the position tolerance is at its widest

Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far claims may be below the answers, nats: in the mean (`gap`) and at one position."""

    gap: float
    position: float

    def allowed(self, asked: int) -> int:
        """How many positions may be off. One is too many, unless this hardware's own noise reaches the widest tolerance."""
        return 0 if self.position < LAX.position else max(1, int(LAX_SHARE * asked))


STRICT = Tolerance(gap=1e-4, position=1e-2)  # a CPU's rounding is below 1e-6
LAX = Tolerance(
    gap=1e-3, position=0.25
)  # never wider; an undetected lottery is worth less than the seeds' noise


def calibrate(gaps: list[float], worst: list[float]) -> Tolerance:
    """The tolerance after the baseline's own audits, from their mean and largest differences in nats."""
    gap, position = HONEST_TIMES * max(map(abs, gaps)), HONEST_TIMES * max(worst)
    return Tolerance(
        min(max(gap, STRICT.gap), LAX.gap), min(max(position, STRICT.position), LAX.position)
    )


@dataclasses.dataclass(frozen=True)
class Questions:
    """Which targets are asked, in the order of asking: one batch of rows after the other, each position by position."""

    rows: Index  # [n]; batch_rows of them are a batch
    positions: Index  # [n, K] ascending in each row: an answer is given before the prefix that contains it is shown
    counted: Mask  # [n, K] whether the answer counts: the target has bytes and no prefix shown by then gives it away
    batch_rows: int


def draw(scored: Mask, count: int, batch_rows: int, random: np.random.Generator) -> Questions:
    """About `count` targets of `scored`, bool [R, T]: rows without replacement, the same number of positions in each.

    Their order is a secret as well: an audit box may learn from what it is asked, and so could a claim box if it knew what
    its twin will have seen by when. A row starts with the last target of the row before it, which therefore counts only
    where it is asked in an earlier batch.
    """
    R, T = scored.shape
    rows = random.permutation(R)[:count].astype(np.int64)
    batch_rows = min(
        batch_rows, -(-len(rows) // EARLY)
    )  # in one batch every row would give away the one before it
    keys = random.random((len(rows), T)) + ~scored[rows]  # targets without bytes come last
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
    """The losses of the questions by a loaded box's logits, nats float64 [n, K]. Raises Stopped.

    `eval_seconds` is what claiming all rows may take: here it is allowed for each of the K positions of a row, but not
    without end. A candidate with few long rows is asked as much as any other, and may run out of time.
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
    """Nats float64 [n] of `targets`, uint16 [n], under `logits`, float32 [n, V]. Raises Stopped if one is not finite."""
    if not np.isfinite(logits).all():
        raise Stopped("audit_failed", "answered the audit with logits that are not finite")
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    losses: npt.NDArray[Any] = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), targets]
    return losses


@dataclasses.dataclass(frozen=True)
class Finding:
    """What an audit found: answers less claims, in nats."""

    gap: float  # mean over all, or over the first ones if that is larger; rounded to 1e-6, as claims are float32
    worst: float  # the largest
    off: int  # positions above the tolerance
    asked: int

    @classmethod
    def of(
        cls, questions: Questions, claims: Nats, nats: npt.NDArray[Any], tolerance: Tolerance
    ) -> Finding:
        """Compares `nats` [n, K] with the claims, float32 [R, T], at the questions that count.

        A model that learns from the questions predicts late ones better than early ones: the early ones speak for it.
        """
        difference = nats - claims[questions.rows[:, None], questions.positions]
        early = -(-len(questions.rows) // (EARLY * questions.batch_rows)) * questions.batch_rows
        means = [
            float(part.mean())
            for first in (len(difference), early)
            if len(part := difference[:first][questions.counted[:first]])
        ]
        if not means:
            raise ValueError(
                "no position was audited: the validation rows hold no target with bytes"
            )
        counting = difference[questions.counted]
        off = int((counting > tolerance.position).sum())
        return cls(round(max(means), 6), float(counting.max()), off, len(counting))

    def problem(self, tolerance: Tolerance) -> str | None:
        """Why the claims are not believed, or None."""
        if self.gap <= tolerance.gap and self.off <= tolerance.allowed(self.asked):
            return None
        return (
            f"claimed {self.gap:.3g} nats a token less than its predictions cost once what follows is hidden "
            f"(allowed {tolerance.gap:g}); {self.off} of {self.asked} audited positions are off by more than "
            f"{tolerance.position:g} (allowed {tolerance.allowed(self.asked)}): "
            "it uses its targets, later tokens or other rows, or its loss is not the cross-entropy of its logits"
        )
