"""The surrogate: what a candidate is expected to gain, learned from the night's record. Pure.

A Gaussian process over what can be said of a candidate before it is run: its kind, the size of its
patch, the parts of train.py that it touches, whether it was made against an older champion. Its
mean is what the proposer expects of its own ideas, as far as earlier expectations came true. What
is run next has the largest expected improvement over the champion (Jones et al. 1998), a second of
a usual trial; candidates without a score only tell how often their kind fails.

The choice of one of several candidates by a process over described changes is that of LDM
(arXiv 2608.15669).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from tasks.records import Estimate

Floats = npt.NDArray[np.float64]

LEAST_SCORED = 4  # trials with a score; with fewer, the proposers' own estimates decide
MOST_SCORED = 150  # the latest; a decision costs some milliseconds
MOST_PARTS = 60
CHAMPION_RUNS = 4  # that a trial was compared with, roughly
# Of a proposer's estimates before any came true: the share of an expected gain that is believed,
# and the correlation with what comes of it, as sure as so many trials.
BELIEVED, CORRELATION, TRIALS_FOR_IT = 0.25, 0.4, 10.0
# Of the variance of gains that noise does not explain, the share that kind, size and parts can.
EXPLAINED = 0.4
KIND, SIZE, PARTS, STALE = 1.0, 0.25, 1.0, 0.5  # distances, in length scales
FAILURES, TRIALS = 0.5, 4.0  # of candidates without a score, before any was seen


@dataclasses.dataclass(frozen=True)
class Features:
    """What is known of a candidate before it is run."""

    kind: str | None = None
    lines: int = 0  # that its patch adds or removes
    parts: frozenset[str] = frozenset()  # functions, classes and knobs that it touches
    estimate: Estimate | None = None  # the proposer's own
    is_stale: bool = False  # made against an older champion


@dataclasses.dataclass(frozen=True)
class Tried:
    """What came of a candidate."""

    features: Features
    gain: float | None  # bits per byte that it was better than its champion; None: no score
    runs: int = 1
    seconds: float | None = None  # of the whole trial


@dataclasses.dataclass(frozen=True)
class Expectation:
    gain: float  # bits per byte
    sd: float  # of that
    score: float  # expected improvement, bits per byte in the time of a usual trial


class Surrogate:
    """Learns from the candidates that were tried; `noise` is the sd of one run, bits per byte."""

    def __init__(self, tried: Sequence[Tried], noise: float) -> None:
        self._tried, self._noise = tried, noise
        self._scored = [one for one in tried if one.gain is not None][-MOST_SCORED:]
        self._fitted = _Fitted(self._scored, noise) if len(self._scored) >= LEAST_SCORED else None

    def expect(self, candidates: Sequence[Features]) -> list[Expectation]:
        """One for each candidate, which does not depend on the others."""
        if not candidates:
            return []
        means, sds = (
            self._fitted.predict(candidates) if self._fitted else self._believed(candidates)
        )
        fails = {kind: self._fails(kind) for kind in {one.kind for one in candidates}}
        seconds = {kind: self._relative_seconds(chance) for kind, chance in fails.items()}
        found = []
        for one, mean, sd in zip(candidates, means.tolist(), sds.tolist(), strict=True):
            better = (1 - fails[one.kind]) * expected_improvement(mean, sd)
            figures = (mean, sd, better / seconds[one.kind])
            # The last digits depend on what else is asked, and equals must stay equal.
            found.append(Expectation(*(float(f"{each:.6g}") for each in figures)))
        return found

    def _believed(self, candidates: Sequence[Features]) -> tuple[Floats, Floats]:
        """Without a record: a part of what the proposer expects."""
        own = [one.estimate or Estimate(0.0, self._noise) for one in candidates]
        means = np.array([BELIEVED * estimate.gain for estimate in own])
        return means, np.array([max(estimate.sd, self._noise) for estimate in own])

    def _fails(self, kind: str | None) -> float:
        """The chance that a candidate of this kind gets no score."""
        failed = [one.gain is None for one in self._tried]
        usual = (sum(failed) + FAILURES) / (len(failed) + TRIALS)
        alike = [one.gain is None for one in self._tried if one.features.kind == kind]
        return (sum(alike) + TRIALS * usual) / (len(alike) + TRIALS)

    def _relative_seconds(self, fails: float) -> float:
        """What such a trial costs, in those of a trial with a score."""
        with_score, without = (
            [one.seconds for one in self._tried if one.seconds and (one.gain is None) == failed]
            for failed in (False, True)
        )
        if not (with_score and without):
            return 1.0
        ratio = float(np.mean(without) / np.mean(with_score))
        return 1 - fails + fails * ratio


class _Fitted:
    """Calibrated estimates, and a Gaussian process over what they leave."""

    def __init__(self, scored: Sequence[Tried], noise: float) -> None:
        gains = np.array([one.gain for one in scored], dtype=float)
        # How bad a bad idea is tells nothing of the good ones.
        gains = np.maximum(gains, -max(2 * noise, float(gains.max())))
        noises = noise**2 * np.array([1 / max(one.runs, 1) + 1 / CHAMPION_RUNS for one in scored])
        self._kinds = sorted({str(one.features.kind) for one in scored})
        counts: dict[str, int] = {}
        for one in scored:
            for part in one.features.parts:
                counts[part] = counts.get(part, 0) + 1
        self._parts = sorted(counts, key=lambda part: (-counts[part], part))[:MOST_PARTS]
        variance = max(float(gains.var()), noise**2, 1e-18)
        real = max(variance - float(noises.mean()), 0.1 * variance)  # of the true gains
        self._calibrate(scored, gains, 1 / (noises + real))
        rest = gains - self._means([one.features for one in scored])
        self._own = (1 - EXPLAINED) * real  # variance of what no feature tells
        # Slow to import, and most commands choose nothing.
        from sklearn.gaussian_process import (  # type: ignore[import-untyped]
            GaussianProcessRegressor,
        )
        from sklearn.gaussian_process.kernels import (  # type: ignore[import-untyped]
            RBF,
            ConstantKernel,
        )

        kernel = ConstantKernel(EXPLAINED * real, "fixed") * RBF(1.0, "fixed")
        self._process = GaussianProcessRegressor(kernel, alpha=noises + self._own, optimizer=None)
        self._process.fit(self._vectors([one.features for one in scored]), rest)

    def _calibrate(self, scored: Sequence[Tried], gains: Floats, weights: Floats) -> None:
        """A line through gains by estimates, shrunk to a weak correlation."""
        self._mean = float(np.average(gains, weights=weights))
        given = [i for i, one in enumerate(scored) if one.features.estimate]
        self._centre, self._slope = 0.0, 0.0
        if not given:
            return
        own = np.array([scored[i].features.estimate.gain for i in given])  # type: ignore[union-attr]
        weights, gains = weights[given] / weights[given].mean(), gains[given]
        self._centre = float(np.average(own, weights=weights))
        spread = float(np.average((own - self._centre) ** 2, weights=weights))
        if spread <= 0:
            return
        both = float((weights * (own - self._centre) * (gains - self._mean)).sum())
        usual = CORRELATION * math.sqrt(float(gains.var()) / spread)
        prior = TRIALS_FOR_IT * spread
        self._slope = (both + prior * usual) / (len(given) * spread + prior)

    def _means(self, candidates: Sequence[Features]) -> Floats:
        own = [self._centre if one.estimate is None else one.estimate.gain for one in candidates]
        return self._mean + self._slope * (np.array(own) - self._centre)

    def predict(self, candidates: Sequence[Features]) -> tuple[Floats, Floats]:
        """(expected gains, sds of the true gains)."""
        rest, sds = self._process.predict(self._vectors(candidates), return_std=True)
        return self._means(candidates) + rest, np.hypot(sds, math.sqrt(self._own))

    def _vectors(self, candidates: Sequence[Features]) -> Floats:
        """A row a candidate; distances are in length scales of the process."""
        rows = np.zeros((len(candidates), 2 + len(self._kinds) + len(self._parts)))
        for row, one in zip(rows, candidates, strict=True):
            touched = [i for i, part in enumerate(self._parts) if part in one.parts]
            row[0] = SIZE * math.log2(1 + one.lines)
            row[1] = STALE * one.is_stale
            if str(one.kind) in self._kinds:
                row[2 + self._kinds.index(str(one.kind))] = KIND
            for i in touched:
                row[2 + len(self._kinds) + i] = PARTS / math.sqrt(len(touched))
        return rows


def expected_improvement(mean: float, sd: float) -> float:
    """Of a normal number, sd above 0, that counts as 0 where it is below 0."""
    normal, z = NormalDist(), mean / sd
    return mean * normal.cdf(z) + sd * normal.pdf(z)
