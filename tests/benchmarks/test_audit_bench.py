"""The simulation of audits, on two small shapes; `./run bench audit` takes all and many more."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from tasks.judge.audit import LAX, STRICT, Tolerance
from tests.benchmarks import audit_bench
from tests.benchmarks.audit_bench import LIKE, OTHER, Case, Gamble, Model, Shape

LONG = Shape(2, 8192, 40)
SHORT = Shape(128, 128, 5, positions=1024)


def cases(shape: Shape, tolerance: Tolerance, audits: int) -> list[Case]:
    return audit_bench.cases(shape, tolerance, audits)


@pytest.mark.parametrize(("shape", "tolerance"), [(LONG, STRICT), (LONG, LAX), (SHORT, STRICT)])
@pytest.mark.parametrize("name", sorted(audit_bench.STRATEGIES.keys() - {"row ends"}))
def test_no_debt_that_is_spread_out_passes(shape: Shape, tolerance: Tolerance, name: str) -> None:
    for debt in (0.0015, 0.05):
        strategy = audit_bench.STRATEGIES[name]
        assert audit_bench.beaten(cases(shape, tolerance, 20), strategy, debt) <= 0.05


@pytest.mark.parametrize("tolerance", [STRICT, LAX])
def test_an_honest_model_is_not_stopped_for_its_rounding(tolerance: Tolerance) -> None:
    assert audit_bench.false_alarms(cases(LONG, tolerance, 40)) == 0


@pytest.mark.parametrize("tolerance", [STRICT, LAX])
@pytest.mark.parametrize("model", [LIKE, OTHER])
@pytest.mark.parametrize("where", ["at random", "in a few rows", "where it costs most"])
def test_a_lottery_of_large_lies_is_lost(where: str, model: Model, tolerance: Tolerance) -> None:
    """At equal odds it would be won in a fifth of the audits: (1 - 0.0015 / 3) ** 4096."""
    shape = Shape(128, 128, 5, model=model)
    lottery = audit_bench.LOTTERIES[f"3 nats {where}"]
    assert Gamble(shape, shape.text(), tolerance, lottery, 0.0015).won(40) <= 0.05


@pytest.mark.parametrize("model", [LIKE, OTHER])
def test_who_knows_the_baselines_claims_hides_more_but_not_much_more(model: Model) -> None:
    """So the figure for it is no accident of how it is played."""
    shape = dataclasses.replace(SHORT, positions=2304, model=model)
    hidden = audit_bench.lost(shape, shape.text(), STRICT, audit_bench.knowing(0.7))
    assert 0.0015 < hidden < 0.005


@pytest.mark.parametrize("tolerance", [STRICT, LAX])
@pytest.mark.parametrize("debt", [0.0015, 0.003])
def test_a_lottery_is_won_as_often_as_its_lies_are_likely_to_be_missed(
    tolerance: Tolerance, debt: float
) -> None:
    shape = dataclasses.replace(SHORT, positions=2304)
    gamble = Gamble(shape, shape.text(), tolerance, audit_bench.knowing(0.7), debt)
    assert gamble.won(200) == pytest.approx(gamble.likely(1000), abs=0.12)


@pytest.mark.parametrize("debt", [0.0005, 0.004])
def test_the_lies_of_a_lottery_amount_to_its_debt(debt: float) -> None:
    text, random = SHORT.text(), np.random.default_rng(0)
    every = [*audit_bench.LOTTERIES.values(), *itertools.chain(*audit_bench.ADAPTIVE)]
    for lies in (lottery(text, debt, random) for lottery in every):
        assert lies.sum() / text.scored.sum() == pytest.approx(debt, rel=0.3, abs=0.0006)
        assert (lies[~text.scored] == 0).all()
        assert (lies <= text.honest).all()


def test_the_table_has_a_row_for_each_shape_and_tolerance(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(audit_bench, "QUICK_SHAPES", (LONG,))
    monkeypatch.setattr(audit_bench, "AUDITS", 80)
    assert audit_bench.run(1, tmp_path / "rows.json", quick=True)
    strict, lax = capsys.readouterr().out.splitlines()[2:]
    assert strict.startswith("| strict | 2 x 8,192, 40 in the last | like the baseline | 4,")
    assert lax.startswith("| lax | 2 x 8,192")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["false_alarms"] for row in rows] == [0, 0]
