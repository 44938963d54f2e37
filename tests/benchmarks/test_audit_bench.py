"""The simulation of audits, on two small shapes; `./run bench audit` takes all and many more."""

import json

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


def test_a_lottery_passes_as_often_as_arithmetic_says() -> None:
    """3 L / N: 1 - 3/N to the power of N is a twentieth."""
    lost = audit_bench.lost(cases(Shape(4, 4096, 4096), STRICT, 50), 10.0, 4096)
    assert lost == pytest.approx(3 * 10.0 / 4096, rel=0.3)


def test_the_table_has_a_row_for_each_shape_and_tolerance(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(audit_bench, "SHAPES", (LONG,))
    monkeypatch.setattr(audit_bench, "DRAWS", 2)
    monkeypatch.setattr(audit_bench, "DEBTS", (0.01,))
    assert audit_bench.run(1, tmp_path / "rows.json")
    assert "| strict | 2 x 8,192, 40 in the last | 0.0% |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 2
