"""How often the audit believes claims that are too low, and how often it stops an honest model.

Simulated with the judge's own questions and findings: a strategy is the difference between answers
and claims, nats at each question, as a cheat could choose it, and `debt` is its mean over the
scored targets. An audit is beaten if it passes the claims and charges at least SHORTFALL less than
the debt. Seeded: the same figures each time.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.judge.audit import LAX, STRICT, Finding, Questions, Tolerance, draw

SHORTFALL = 0.001  # nats a target
ONCE_IN = 20
DRAWS = 100  # sets of questions for each shape
TIMES = 2  # audits with each, of differences drawn anew
DEBTS = (0.00101, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.05, 0.25)
# Standard deviation of an honest model's differences: float32, and bfloat16 at its worst.
ROUNDING = {STRICT: 1e-6, LAX: 0.01}
NAMES = {STRICT: "strict", LAX: "lax"}
LIES = (3.0, 10.0)  # nats: what a token costs on average, and a rare one

Differences = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Shape:
    """The validation rows of a candidate, and how many questions it is asked."""

    rows: int
    length: int
    in_last_row: int  # its scored targets; the rest of it is filled up
    count: int = 4096
    few: bool = False  # a tenth of the rows have three scored targets
    tolerances: tuple[Tolerance, ...] = (STRICT, LAX)

    def __str__(self) -> str:
        few = ", a tenth nearly empty" if self.few else ""
        return f"{self.rows:,} x {self.length:,}, {self.in_last_row:,} in the last{few}"

    def scored(self) -> npt.NDArray[np.bool_]:
        """Bool [R, T]: all but one in 500, and the end of the last row."""
        scored = np.random.default_rng(0).random((self.rows, self.length)) > 0.002
        if self.few:
            scored[::10, 3:] = False
        scored[-1] = np.arange(self.length) < self.in_last_row
        return scored


# Only a GPU has the lax tolerances, and its profiles have no fewer questions than 4096.
SHAPES = (
    Shape(1, 128, 90, tolerances=(STRICT,)),
    Shape(1, 2**17, 100_000),
    Shape(2, 2**17, 1),
    Shape(2, 2**17, 2_000),
    Shape(40, 2_048, 20),
    Shape(512, 128, 5, count=1024, tolerances=(STRICT,)),
    Shape(512, 128, 5, few=True),
    Shape(10_240, 128, 1),
    Shape(10_240, 2_048, 60, few=True),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One audit's questions, and what a cheat knows of the rows."""

    questions: Questions
    in_row: npt.NDArray[np.int64]  # [R], scored targets
    ends: int  # rows whose last target is scored
    length: int
    tolerance: Tolerance
    random: np.random.Generator

    @property
    def late(self) -> npt.NDArray[np.bool_]:
        """[n, K]: asked when prefixes that stand for a quarter of the targets were shown."""
        seen = self.in_row[self.questions.rows].cumsum()
        late = seen - self.in_row[self.questions.rows] >= seen[-1] / 4
        return np.broadcast_to(late[:, None], self.questions.weights.shape)

    def where(self, chosen: npt.NDArray[np.bool_], yes: float, no: float) -> Differences:
        return np.where(np.broadcast_to(chosen, self.questions.weights.shape), yes, no)

    def chance(self, share: float, yes: float, no: float) -> Differences:
        return self.where(self.random.random(self.questions.weights.shape) < share, yes, no)


Strategy = Callable[[Case, float], Differences]


def even(case: Case, debt: float) -> Differences:
    """The same everywhere."""
    return case.where(np.array(True), debt, debt)


def short_rows(case: Case, debt: float) -> Differences:
    """Repaid on the shortest rows, which are asked whole: as much as an unweighted mean needs."""
    short = case.in_row <= max(case.in_row.min(), 3)
    if short.all():
        return even(case, debt)
    asked = np.minimum(case.in_row, case.questions.positions.shape[1])
    repaid = asked[~short].sum() / asked[short].sum()
    share = case.in_row[short].sum() / case.in_row.sum()
    owed = debt / max(1 - share - share * repaid, 0.1)
    return case.where(short[case.questions.rows][:, None], -owed * repaid, owed)


def row_ends(case: Case, debt: float) -> Differences:
    """On the last target of each row alone, which often does not count, if that is no lottery."""
    if case.ends * LAX.position < debt * case.in_row.sum():
        return even(case, debt)
    last = case.questions.positions == case.length - 1
    return case.where(last, debt * case.in_row.sum() / case.ends, 0.0)


def scattered(repaid: float, lie: float = 1.0) -> Strategy:
    """At random places just below the position tolerance, and repaid at the others."""

    def differences(case: Case, debt: float) -> Differences:
        low = -repaid * case.tolerance.position
        high = max(lie * case.tolerance.position, debt)
        return case.chance((debt - low) / (high - low), high, low)

    return differences


def rarely_repaid(case: Case, debt: float) -> Differences:
    """Everywhere, and repaid by 20 nats at one target in 1000."""
    return case.chance(0.001, -20.0, (debt + 0.02) / 0.999)


def learner(case: Case, debt: float) -> Differences:
    """Everywhere, but once it has seen a quarter of the text it answers better than it claimed."""
    return np.where(case.late, -case.tolerance.position, debt)


def scattered_learner(case: Case, debt: float) -> Differences:
    """The same with a debt that is scattered."""
    return np.where(case.late, -case.tolerance.position, scattered(1.0)(case, debt))


STRATEGIES: dict[str, Strategy] = {
    "even": even,
    "short rows": short_rows,
    "row ends": row_ends,
    "scattered, repaid fully": scattered(1.0),
    "scattered, repaid by a tenth": scattered(0.1),
    "scattered, not repaid": scattered(0.0),
    "scattered by a tenth": scattered(0.1, 0.1),
    "rarely repaid": rarely_repaid,
    "learner": learner,
    "scattered learner": scattered_learner,
}


def honest(case: Case) -> Differences:
    deviation = ROUNDING[case.tolerance]
    return case.random.normal(0.0, deviation, case.questions.weights.shape)


def lottery(lie: float) -> Strategy:
    """`lie` nats at random targets."""
    return lambda case, debt: case.chance(debt / lie, lie, 0.0)


def found(case: Case, differences: Differences) -> Finding:
    claims = np.broadcast_to(np.float32(0), (len(case.in_row), case.length))
    return Finding.of(case.questions, claims, differences, case.tolerance)


def share(verdicts: Iterable[bool]) -> float:
    verdicts = list(verdicts)
    return sum(verdicts) / len(verdicts)


def beaten(cases: Iterable[Case], strategy: Strategy, debt: float) -> float:
    """The share of the audits that pass a debt and charge at least SHORTFALL less."""
    verdicts = []
    for case in cases:
        differences = strategy(case, debt)
        finding = found(case, differences)
        owed = debt
        if finding.asked == case.in_row.sum():  # what is drawn at random has a mean of its own
            owed = differences[case.questions.counted].mean()
        verdicts.append(
            finding.problem(case.tolerance) is None and owed - max(0.0, finding.gap) > SHORTFALL
        )
    return share(verdicts)


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of one shape under one tolerance; shares of all audits."""

    shape: str
    tolerance: str
    false_alarms: float
    passed: float  # of the best strategy and debt
    strategy: str
    debt: float
    lotteries: tuple[float, ...]  # for each of LIES, the largest debt that passes once in ONCE_IN

    def __str__(self) -> str:
        best = f"{self.passed:.1%} ({self.strategy}, {self.debt:g})" if self.passed else "0"
        lost = " | ".join(f"{debt:.4f}" for debt in self.lotteries)
        return f"| {self.tolerance} | {self.shape} | {self.false_alarms:.1%} | {best} | {lost} |"


def cases(shape: Shape, tolerance: Tolerance, draws: int) -> list[Case]:
    """TIMES audits with each of `draws` sets of questions."""
    scored, random = shape.scored(), np.random.default_rng(1)
    in_row, ends = scored.sum(axis=1), int(scored[:, -1].sum())
    return [
        Case(asked, in_row, ends, shape.length, tolerance, random)
        for seed in range(draws)
        for asked in [draw(scored, shape.count, 16, np.random.default_rng(seed))]
        for _ in range(TIMES)
    ]


def false_alarms(cases: Iterable[Case]) -> float:
    return share(found(case, honest(case)).problem(case.tolerance) is not None for case in cases)


def rows() -> Iterator[Row]:
    """The table, row by row."""
    for shape in SHAPES:
        strict = cases(shape, STRICT, DRAWS)
        for tolerance in shape.tolerances:
            these = [dataclasses.replace(case, tolerance=tolerance) for case in strict]
            best = max(
                (beaten(these, strategy, debt), name, debt)
                for (name, strategy), debt in itertools.product(STRATEGIES.items(), DEBTS)
            )
            lotteries = tuple(lost(these, lie, shape.count) for lie in LIES)
            yield Row(str(shape), NAMES[tolerance], false_alarms(these), *best, lotteries)


def lost(cases: list[Case], lie: float, count: int) -> float:
    """The largest debt of a lottery, to 3 %, that passes once in ONCE_IN audits."""
    low, high = 0.0, 6 * lie / count
    while high - low > 0.03 * high:
        debt = (low + high) / 2
        passes = share(
            found(case, lottery(lie)(case, debt)).problem(case.tolerance) is None for case in cases
        )
        low, high = (debt, high) if passes >= 1 / ONCE_IN else (low, debt)
    return low


def run(repeats: int, json_file: Path | None = None) -> bool:
    """Prints the table; False if some debt that is spread out passes more than once in ONCE_IN."""
    lies = " | ".join(f"lottery of {lie:g} nats" for lie in LIES)
    print(f"| tolerance | rows | false alarms | debts that pass | {lies} |")
    print("|---|---|--:|---|" + "--:|" * len(LIES))
    found = []
    for row in rows():
        print(row, flush=True)
        found.append(row)
    if json_file:
        json_file.write_text(json.dumps(list(map(dataclasses.asdict, found)), indent=1))
    return all(row.passed <= 1 / ONCE_IN for row in found)
