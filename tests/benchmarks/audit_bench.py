"""How often the audit believes claims that are too low, and how often it stops an honest model.

Simulated with the judge's own odds, questions and findings, on losses made up like those that
profile `laptop` has. Two kinds of cheat are tried, each with a `debt`, the mean of answers minus
claims over the scored targets in nats. A strategy spreads it out and is the difference at each
question; the questions are those that an honest model is asked, as small lies hardly change the
odds. A lottery tells few large lies and hopes that none is asked about; it changes the claims, and
the odds follow. An audit is beaten if it passes the claims and charges at least SHORTFALL less than
the debt. All ways to cheat are tried in few audits, and the best of them is then measured in many.
Seeded: the same figures each time.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.judge.audit import LAX, STRICT, Finding, Questions, Tolerance, draw, inclusion
from tasks.judge.effort import Effort

SHORTFALL = 0.001  # nats a target
ONCE_IN = 20
HONEST_ONCE_IN = 50
AUDITS = 600  # of the best way to cheat, and of honest models
SCREENED = 24  # of each strategy, to see which is best
LIKELY = 1000  # of each lottery, simulated in short
PLACEMENTS = 4  # of a lottery's lies; its audits are divided among them
BATCH_ROWS = 16
TIMES = 2  # audits with each set of questions, of differences drawn anew
DEBTS = (0.00101, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.05, 0.25)
# Standard deviation of an honest model's differences: float32, and bfloat16 at its worst.
ROUNDING = {STRICT: 1e-6, LAX: 0.01}
NAMES = {STRICT: "strict", LAX: "lax"}
LOTTERY_DEBTS = (0.00101, 0.0015, 0.002, 0.003)
LIES = (1.0, 3.0, 8.0)  # nats: a token costs 4.3 on average
ROUNDED = 1e-6  # nats: claims are float32

Differences = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Nats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Model:
    """How an honest candidate's losses are related to the reference, the mean of three runs."""

    name: str
    scatter: float  # standard deviation of their differences, nats, where the loss is 3


# Measured with profile `laptop`: seed 4 of the baseline, and three times the baseline's budget.
# MAX_SEQ_LEN = 64 is between them, and so is DEPTH = 1.
LIKE = Model("like the baseline", 0.42)
OTHER = Model("quite another", 0.9)


@dataclasses.dataclass(frozen=True)
class Text:
    """What is scored, what is expected there, and what an honest candidate predicts; nats."""

    scored: Mask  # [R, T]
    expected: Nats  # [n], of the scored targets
    honest: Nats  # [R, T]

    @functools.cached_property
    def in_row(self) -> npt.NDArray[np.int64]:
        return self.scored.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The validation rows of a candidate, and how many positions its profile audits."""

    rows: int
    length: int
    in_last_row: int  # its scored targets; the rest of it is filled up
    positions: int = 4096
    few: bool = False  # a tenth of the rows have three scored targets
    model: Model = LIKE
    tolerances: tuple[Tolerance, ...] = (STRICT, LAX)

    def __str__(self) -> str:
        few = ", a tenth nearly empty" if self.few else ""
        return f"{self.rows:,} x {self.length:,}, {self.in_last_row:,} in the last{few}"

    def text(self) -> Text:
        """All but one target in 500 are scored, and the beginning of the last row."""
        random = np.random.default_rng(0)
        scored = random.random((self.rows, self.length)) > 0.002
        if self.few:
            scored[::10, 3:] = False
        scored[-1] = np.arange(self.length) < self.in_last_row
        expected, honest = losses(int(scored.sum()), self.model, random)
        filled = np.zeros(scored.shape, np.float32)
        filled[scored] = honest
        return Text(scored, expected, filled)


def losses(n: int, model: Model, random: np.random.Generator) -> tuple[Nats, Nats]:
    """What is expected for n targets, and what the model predicts."""
    expected: Differences = random.gamma(2.7, 1.6, n)
    honest = expected + scatter(expected, model) * random.standard_t(4, n) * (2 / 4) ** 0.5
    return expected.astype(np.float32), np.maximum(honest, 0).astype(np.float32)


def scatter(expected: Nats | Differences, model: Model) -> Differences:
    """Standard deviations, nats."""
    return model.scatter * (expected.astype(np.float64) / 3) ** 0.5


LAPTOP = Shape(480, 128, 5, positions=2304, tolerances=(STRICT,))
# Only a GPU has the lax tolerances, and its profiles have no fewer positions than 4096. What counts
# is how many rows there are and how many questions: longer rows only take longer to simulate.
QUICK_SHAPES = (
    Shape(1, 2**16, 60_000),
    LAPTOP,
    dataclasses.replace(LAPTOP, model=OTHER),
    Shape(10_240, 16, 1),
)
SHAPES = tuple(
    dataclasses.replace(shape, model=model)
    for shape in (
        Shape(1, 128, 90, tolerances=(STRICT,)),
        Shape(1, 2**16, 60_000),
        Shape(2, 2**16, 2_000),
        Shape(40, 2_048, 20),
        LAPTOP,
        Shape(512, 128, 5, few=True),
        Shape(10_240, 16, 1),
    )
    for model in (LIKE, OTHER)
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One audit's questions of an honest model, and what a cheat knows of the rows."""

    questions: Questions
    text: Text
    tolerance: Tolerance
    random: np.random.Generator

    @property
    def late(self) -> Mask:
        """[n]: asked after questions that stand for a quarter of the targets."""
        weights = self.questions.weights
        late: Mask = weights.cumsum() - weights >= weights.sum() / 4
        return late

    def where(self, chosen: Mask, yes: float, no: float) -> Differences:
        return np.where(np.broadcast_to(chosen, self.questions.rows.shape), yes, no)

    def chance(self, share: float, yes: float, no: float) -> Differences:
        return self.where(self.random.random(self.questions.rows.shape) < share, yes, no)


Strategy = Callable[[Case, float], Differences]


def even(case: Case, debt: float) -> Differences:
    """The same everywhere."""
    return case.where(np.array(True), debt, debt)


def short_rows(case: Case, debt: float) -> Differences:
    """Repaid on the shortest rows, if they are asked whole: as much as an unweighted mean needs."""
    in_row = case.text.in_row
    short = in_row <= max(in_row.min(), 3)
    if short.all():
        return even(case, debt)
    asked = np.bincount(case.questions.rows, minlength=len(in_row))
    repaid = asked[~short].sum() / max(asked[short].sum(), 1)
    share = in_row[short].sum() / in_row.sum()
    owed = debt / max(1 - share - share * repaid, 0.1)
    return case.where(short[case.questions.rows], -owed * repaid, owed)


def row_ends(case: Case, debt: float) -> Differences:
    """On the last target of each row alone, if that is no lottery."""
    scored = case.text.scored
    ends = int(scored[:, -1].sum())
    if ends * LAX.position < debt * scored.sum():
        return even(case, debt)
    last = case.questions.positions == scored.shape[1] - 1
    return case.where(last, debt * scored.sum() / ends, 0.0)


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
    return case.random.normal(0.0, ROUNDING[case.tolerance], case.questions.rows.shape)


# From the text and a debt to the lies, nats [R, T].
Lottery = Callable[[Text, float, np.random.Generator], Nats]


def _told(text: Text, wanted: Nats, order: npt.NDArray[np.int64], debt: float) -> Nats:
    """The lies of `wanted`, one for each scored target, in this order until the debt is reached.

    No lie is larger than what the target costs.
    """
    possible = np.minimum(wanted, text.honest[text.scored])[order]
    told = order[: int(np.searchsorted(possible.cumsum(dtype=float), debt * len(wanted))) + 1]
    lies = np.zeros_like(text.honest)
    scored = np.zeros_like(wanted)
    scored[told] = np.minimum(wanted, text.honest[text.scored])[told]
    lies[text.scored] = scored
    return lies


def of_size(lie: float, where: str) -> Lottery:
    """`lie` nats each, at targets that cost more."""

    def lies(text: Text, debt: float, random: np.random.Generator) -> Nats:
        costs = text.honest[text.scored]
        wanted = np.where(costs > lie, np.float32(lie), np.float32(0))
        order = np.arange(len(wanted))
        if where == "in a few rows":
            return _told(text, wanted, np.roll(order, random.integers(len(order))), debt)
        if where == "at row ends":
            ends = np.broadcast_to(np.arange(text.scored.shape[1]), text.scored.shape)[text.scored]
            return _told(text, wanted, np.lexsort((random.random(len(order)), -ends)), debt)
        if where == "where it costs most":
            return _told(text, wanted, np.argsort(-costs), debt)
        return _told(text, wanted, random.permutation(order), debt)

    return lies


def two_models(part: float) -> Lottery:
    """A second model says where the first is worse, and `part` of the difference is claimed.

    It is another run of the baseline. Of three runs' mean, two others differ with a correlation of
    a quarter. A part, as a run that claims much less is probably below the mean of others too.
    """

    def lies(text: Text, debt: float, random: np.random.Generator) -> Nats:
        claims = text.honest[text.scored]
        apart = text.expected + 0.25 * (claims - text.expected)
        guess = apart + 0.97 * scatter(text.expected, LIKE) * random.normal(size=len(claims))
        wanted = np.maximum(part * (claims - guess), 0).astype(np.float32)
        return _told(text, wanted, np.argsort(-wanted), debt)

    return lies


def knowing(part: float) -> Lottery:
    """The same by one who knows the reference to the last digit."""

    def lies(text: Text, debt: float, random: np.random.Generator) -> Nats:
        wanted = np.maximum(part * (text.honest[text.scored] - text.expected), 0)
        return _told(text, wanted, np.argsort(-wanted), debt)

    return lies


LOTTERIES: dict[str, Lottery] = {
    f"{lie:g} nats {where}": of_size(lie, where)
    for lie in LIES
    for where in ("at random", "in a few rows", "at row ends", "where it costs most")
    if lie == 3.0 or where != "at row ends"
}
# The parts that hide most, by trying: more of it is suspicious, less needs more lies.
ADAPTIVE = (
    tuple(two_models(part) for part in (0.75, 1.0)),
    tuple(knowing(part) for part in (0.7, 0.85)),
)


def found(case: Case, differences: Differences) -> Finding:
    claims = np.broadcast_to(np.float32(0), case.text.scored.shape)
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
        if finding.asked == case.text.in_row.sum():  # what is drawn at random has its own mean
            owed = differences.mean()
        verdicts.append(
            finding.problem(case.tolerance) is None and owed - max(0.0, finding.gap) > SHORTFALL
        )
    return share(verdicts)


@dataclasses.dataclass(frozen=True)
class Gamble:
    """A lottery with a debt, and how often it beats the audits of a shape."""

    shape: Shape
    text: Text
    tolerance: Tolerance
    lottery: Lottery
    debt: float

    def played(self) -> Iterator[tuple[Nats, Effort, Nats, np.random.Generator]]:
        """PLACEMENTS times: lies and odds, [R, T], the audit's effort, and what is still random."""
        effort = Effort(self.shape.positions, self.tolerance.hits)
        for seed in range(PLACEMENTS):
            random = np.random.default_rng(seed)
            lies = self.lottery(self.text, self.debt, random)
            claims = self.text.honest - lies
            yield lies, effort, effort.odds(self.text.scored, claims, self.text.expected), random

    def likely(self, audits: int) -> float:
        """The share of audits it wins if each lie is met by itself, with its own probability.

        Nothing else of an audit is simulated, so this takes a moment.
        """
        verdicts = []
        n = self.text.in_row.sum()
        for lies, effort, odds, random in self.played():
            chances = inclusion(odds[odds > 0].astype(float), effort.questions(odds))
            told = lies[odds > 0] > 0
            sizes, chances = lies[odds > 0][told].astype(float), chances[told]
            met = random.random((audits // PLACEMENTS, len(sizes))) < chances
            gap = met @ (sizes / chances) / n
            believed = gap <= self.tolerance.gap
            if self.tolerance.allowed(1) == 0:
                believed &= ~met.any(axis=1)
            verdicts.append(believed & (sizes.sum() / n - gap > SHORTFALL))
        return float(np.mean(verdicts))

    def won(self, audits: int) -> float:
        """The share of audits it wins, with all that an audit does."""
        verdicts = []
        for lies, effort, odds, random in self.played():
            owed = float(lies.sum(dtype=float)) / self.text.in_row.sum()
            claims = self.text.honest - lies
            for _ in range(audits // PLACEMENTS):
                questions = draw(odds, effort.questions(odds), BATCH_ROWS, random)
                predicted = self.text.honest[questions.rows, questions.positions]
                answers = predicted + random.normal(0, ROUNDED, len(predicted))
                finding = Finding.of(questions, claims, answers, self.tolerance)
                believed = finding.problem(self.tolerance) is None
                verdicts.append(believed and owed - max(0.0, finding.gap) > SHORTFALL)
        return share(verdicts)


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of one shape under one tolerance; shares of all audits."""

    shape: str
    model: str
    tolerance: str
    questions: int  # of an honest model
    false_alarms: float
    passed: float  # of the best strategy and debt
    strategy: str
    debt: float
    lottery_won: float  # of the best lottery and debt
    lottery: str
    lottery_debt: float
    adaptive: tuple[float, ...]  # of ADAPTIVE, the largest debt that passes once in ONCE_IN

    def __str__(self) -> str:
        best = f"{self.passed:.1%} ({self.strategy}, {self.debt:g})" if self.passed else "0"
        lottery = f"{self.lottery}, {self.lottery_debt:g}"
        lost = " | ".join(f"{debt:.4f}" for debt in self.adaptive)
        return (
            f"| {self.tolerance} | {self.shape} | {self.model} | {self.questions:,} "
            f"| {self.false_alarms:.1%} | {best} "
            f"| {self.lottery_won:.1%} ({lottery}) | {lost} |"
        )


def cases(shape: Shape, tolerance: Tolerance, audits: int) -> list[Case]:
    """Audits of the honest model, TIMES with each set of questions."""
    text, random = shape.text(), np.random.default_rng(1)
    effort = Effort(shape.positions, tolerance.hits)
    odds = effort.odds(text.scored, text.honest, text.expected)
    return [
        Case(asked, text, tolerance, random)
        for seed in range(audits // TIMES)
        for asked in [draw(odds, effort.questions(odds), BATCH_ROWS, np.random.default_rng(seed))]
        for _ in range(TIMES)
    ]


def false_alarms(cases: Iterable[Case]) -> float:
    return share(found(case, honest(case)).problem(case.tolerance) is not None for case in cases)


def row_of(shape: Shape, tolerance: Tolerance, audits: int) -> Row:
    these = cases(shape, tolerance, audits)
    text = these[0].text
    _, name, debt = max(
        (beaten(these[:SCREENED], strategy, debt), name, debt)
        for (name, strategy), debt in itertools.product(STRATEGIES.items(), DEBTS)
    )
    passed = beaten(these, STRATEGIES[name], debt)
    _, lottery, lottery_debt = max(
        (Gamble(shape, text, tolerance, lottery, debt).likely(LIKELY), name, debt)
        for (name, lottery), debt in itertools.product(LOTTERIES.items(), LOTTERY_DEBTS)
    )
    best = Gamble(shape, text, tolerance, LOTTERIES[lottery], lottery_debt)
    return Row(
        *(str(shape), shape.model.name, NAMES[tolerance], len(these[0].questions.rows)),
        *(false_alarms(these), passed, name, debt),
        *(best.won(audits), lottery, lottery_debt),
        tuple(max(lost(shape, text, tolerance, way) for way in ways) for ways in ADAPTIVE),
    )


def lost(shape: Shape, text: Text, tolerance: Tolerance, lottery: Lottery) -> float:
    """The largest debt of a lottery, to 10 %, that beats one audit in ONCE_IN."""
    low, high = 0.001, 0.1
    while high > 1.1 * low:
        debt = (low * high) ** 0.5
        wins = Gamble(shape, text, tolerance, lottery, debt).likely(LIKELY)
        low, high = (debt, high) if wins > 1 / ONCE_IN else (low, debt)
    return low


def rows(shapes: Iterable[Shape], audits: int) -> Iterator[Row]:
    """A row for each shape and tolerance, in order, by as many processes as there are cores."""
    cells = [(shape, tolerance, audits) for shape in shapes for tolerance in shape.tolerances]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=spawn) as processes:
        yield from processes.map(row_of, *zip(*cells, strict=True))


def run(repeats: int, json_file: Path | None = None, quick: bool = False) -> bool:
    """Prints the table, or with `quick` four of its shapes from fewer audits.

    False if some debt passes more than once in ONCE_IN, but by ADAPTIVE, or if an honest model is
    stopped more than once in HONEST_ONCE_IN.
    """
    print(
        "| tolerance | rows | model | questions | false alarms | debts that pass, spread out "
        "| lotteries won | largest debt of two models | and of one who knows the reference |"
    )
    print("|---|---|---|--:|--:|---|---|--:|--:|")
    shapes, audits = (QUICK_SHAPES, AUDITS // 4) if quick else (SHAPES, AUDITS)
    found = []
    for row in rows(shapes, audits):
        print(row, flush=True)
        found.append(row)
    if json_file:
        json_file.write_text(json.dumps(list(map(dataclasses.asdict, found)), indent=1))
    return all(
        max(row.passed, row.lottery_won) <= 1 / ONCE_IN and row.false_alarms <= 1 / HONEST_ONCE_IN
        for row in found
    )
