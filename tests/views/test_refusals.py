"""The record of runs that MLflow does not take."""

from __future__ import annotations

import pytest

from tasks.views import refusals


def test_the_record_is_there_as_long_as_something_is_refused(tmp_path):
    assert refusals.read(tmp_path) == {}
    refused = {"nov21:3": "no \ud800", "nov21:baseline:1": "because"}
    refusals.write(tmp_path, refused)
    assert refusals.read(tmp_path) == refused
    refusals.write(tmp_path, {})
    refusals.write(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damaged", ["", "{", "[]", "1", "\0"])
def test_a_damaged_record_is_none(tmp_path, damaged):
    (tmp_path / refusals.FILE).write_text(damaged)
    assert refusals.read(tmp_path) == {}


def test_the_message_names_the_runs_the_first_reason_and_the_remedy():
    refused = {"nov21:baseline:1": "x" * 900 + "\n", "nov21:12": "b"}
    said = refusals.message("nov21", refused)
    assert said.startswith("MLflow lacks baseline seed 1, trial 12 (xxx")
    assert said.endswith("x...): `./run rebuild nov21` tries again")
    assert "\n" not in said
    many = {f"nov21:{number}": "why" for number in range(1, 11)}
    assert "trial 8 and 2 other runs (why)" in refusals.summary("nov21", many)
