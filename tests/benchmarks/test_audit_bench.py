"""The simulation of audits, on two small shapes; `./run bench audit` takes all and many more."""

import json

import numpy as np
import pytest

from tasks.judge.audit import LAX, STRICT, Tolerance
from tests.benchmarks import audit_bench
from tests.benchmarks.audit_bench import Case, Shape

LONG = Shape(2, 8192, 40)
SHORT = Shape(128, 128, 5, count=1024)


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


@pytest.mark.parametrize("where", ["at random", "in a few rows", "where it costs most"])
def test_a_lottery_of_large_lies_is_lost(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """At equal odds it would be won in a third of the audits: (1 - 0.001 / 3) ** 4096."""
    monkeypatch.setattr(audit_bench, "LOTTERY_DRAWS", 20)
    shape = Shape(128, 128, 5)
    lottery = audit_bench.LOTTERIES[f"3 nats {where}"]
    won = audit_bench.won(shape, shape.text(), [STRICT, LAX], lottery, 0.0015)
    assert max(won) <= 0.05


def test_a_lottery_is_won_where_the_baselines_claims_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So the figure for it is no accident of how it is played."""
    monkeypatch.setattr(audit_bench, "LOTTERY_DRAWS", 20)
    text = SHORT.text()
    assert audit_bench.won(SHORT, text, [STRICT], audit_bench.knowing, 0.0015)[0] > 0.05
    assert audit_bench.won(SHORT, text, [STRICT], audit_bench.knowing, 0.1)[0] == 0


@pytest.mark.parametrize("debt", [0.0005, 0.004])
def test_the_lies_of_a_lottery_amount_to_its_debt(debt: float) -> None:
    text, random = SHORT.text(), np.random.default_rng(0)
    every = [*audit_bench.LOTTERIES.values(), *audit_bench.ADAPTIVE]
    for lies in (lottery(text, debt, random) for lottery in every):
        assert lies.sum() / text.scored.sum() == pytest.approx(debt, rel=0.3, abs=0.0006)
        assert (lies[~text.scored] == 0).all()
        assert (lies <= text.honest).all()


def test_the_table_has_a_row_for_each_shape_and_tolerance(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(audit_bench, "SHAPES", (LONG,))
    monkeypatch.setattr(audit_bench, "DRAWS", 2)
    monkeypatch.setattr(audit_bench, "LOTTERY_DRAWS", 2)
    monkeypatch.setattr(audit_bench, "LOTTERY_DEBTS", (0.01,))
    monkeypatch.setattr(audit_bench, "DEBTS", (0.01,))
    assert audit_bench.run(1, tmp_path / "rows.json")
    assert (
        "| strict | 2 x 8,192, 40 in the last | like the baseline | 0.0% |"
        in capsys.readouterr().out
    )
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 2
