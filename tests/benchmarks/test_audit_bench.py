"""The simulation of audits, on two small shapes; `./run bench audit` takes all and many more."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from tasks.judge.audit import LAX, STRICT, Tolerance
from tests.benchmarks import audit_bench
from tests.benchmarks.audit_bench import OTHER, Case, Draws, Model, Shape

LONG = Shape(2, 8192, 40)
SHORT = Shape(128, 128, 5, positions=1024)
DRAWS = Draws(screened=4, measured=40, bisected=8)


def cases(shape: Shape, tolerance: Tolerance, draws: int) -> list[Case]:
    return audit_bench.cases(shape, tolerance, draws)


@pytest.mark.parametrize(("shape", "tolerance"), [(LONG, STRICT), (LONG, LAX), (SHORT, STRICT)])
@pytest.mark.parametrize("name", sorted(audit_bench.STRATEGIES.keys() - {"row ends"}))
def test_no_debt_that_is_spread_out_passes(shape: Shape, tolerance: Tolerance, name: str) -> None:
    for debt in (0.0015, 0.05):
        strategy = audit_bench.STRATEGIES[name]
        assert audit_bench.beaten(cases(shape, tolerance, 10), strategy, debt) <= 0.05


@pytest.mark.parametrize("tolerance", [STRICT, LAX])
def test_an_honest_model_is_not_stopped_for_its_rounding(tolerance: Tolerance) -> None:
    assert audit_bench.false_alarms(cases(LONG, tolerance, 20)) == 0


@pytest.mark.parametrize("tolerance", [STRICT, LAX])
@pytest.mark.parametrize("model", [audit_bench.LIKE, OTHER])
@pytest.mark.parametrize("where", ["at random", "in a few rows", "where it costs most"])
def test_a_lottery_of_large_lies_is_lost(where: str, model: Model, tolerance: Tolerance) -> None:
    """At equal odds it would be won in a fifth of the audits: (1 - 0.0015 / 3) ** 4096."""
    shape = Shape(128, 128, 5, model=model)
    lottery = audit_bench.LOTTERIES[f"3 nats {where}"]
    won = audit_bench.won(shape, shape.text(), tolerance, lottery, 0.0015, DRAWS)
    assert won(40) <= 0.05


@pytest.mark.parametrize("model", [audit_bench.LIKE, OTHER])
def test_who_knows_the_baselines_claims_hides_more_but_not_much_more(model: Model) -> None:
    """So the figure for it is no accident of how it is played."""
    shape = dataclasses.replace(SHORT, positions=2304, model=model)
    text = shape.text()

    def won(debt: float) -> float:
        lottery = audit_bench.knowing(0.7)
        return audit_bench.won(shape, text, STRICT, lottery, debt, DRAWS)(40)

    assert won(0.0015) > 0.05
    assert won(0.006) <= 0.05


@pytest.mark.parametrize("debt", [0.0005, 0.004])
def test_the_lies_of_a_lottery_amount_to_its_debt(debt: float) -> None:
    text, random = SHORT.text(), np.random.default_rng(0)
    every = [*audit_bench.LOTTERIES.values(), *itertools.chain(*audit_bench.ADAPTIVE)]
    for lies in (lottery(text, debt, random) for lottery in every):
        assert lies.sum() / text.scored.sum() == pytest.approx(debt, rel=0.3, abs=0.0006)
        assert (lies[~text.scored] == 0).all()
        assert (lies <= text.honest).all()


def test_the_best_cheat_is_measured_in_audits_that_did_not_choose_it() -> None:
    cheats = {("poor", 0.1): lambda audits: 0.1, ("good", 0.2): lambda audits: 1 / audits}
    assert audit_bench.best(cheats, DRAWS) == (1 / 40, "good", 0.2)


def test_the_table_has_a_row_for_each_shape_and_tolerance(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(audit_bench, "QUICK_SHAPES", (LONG,))
    monkeypatch.setattr(audit_bench, "QUICK", Draws(screened=4, measured=20, bisected=4))
    assert audit_bench.run(1, tmp_path / "rows.json", quick=True)
    strict, lax = capsys.readouterr().out.splitlines()[2:]
    assert strict.startswith("| strict | 2 x 8,192, 40 in the last | like the baseline | 4,")
    assert lax.startswith("| lax | 2 x 8,192")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["false_alarms"] for row in rows] == [0, 0]
