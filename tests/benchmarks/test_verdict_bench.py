"""The simulation of keep rules, with fewer nights; `./run bench verdict` takes 1000 of each."""

import json

import numpy as np
import pytest

from tasks.noise import Noise
from tasks.trial import verdict
from tests.benchmarks import verdict_bench as bench

OURS = bench.RULES[-1]
GREEDY = bench.RULES[0]


@pytest.mark.parametrize("df", bench.FREEDOMS)
def test_five_in_a_hundred_changes_of_nothing_are_kept_at_most(df):
    assert bench.kept_share(OURS, 0.0, df, count=20_000) <= 0.05


@pytest.mark.parametrize("sd", bench.SDS)
def test_a_night_makes_nearly_the_progress_of_a_greedy_one_with_a_tenth_of_its_luck(sd):
    world = bench.WORLDS["15 % good"]
    ours, greedy = (bench.nights(rule, world, sd, 8, count=400) for rule in (OURS, GREEDY))
    assert ours.progress >= 0.88 * greedy.progress
    assert ours.false_keeps <= 0.4 * greedy.false_keeps


def test_the_simulated_rule_is_the_one_that_decides():
    random = np.random.default_rng(0)
    for df in (2, 8):
        night = bench._Nights(OURS, 0.01, df, 200, 1)
        scores = random.normal(-0.01, 0.02, (verdict.MOST_RUNS, 200))
        for runs in range(1, verdict.MOST_RUNS + 1):
            night.sum, night.runs = scores[:runs].sum(axis=0), np.full(200, float(runs))
            kept, discarded = night.verdicts()
            for i in range(200):
                champion = [night.champion_sum[i] / 3] * 3
                noise = Noise(float(np.sqrt(night.squares[i] / df)), df)
                decided = verdict.decide(champion, scores[:runs, i].tolist(), noise, 0).decision
                expected = "keep" if kept[i] else "discard" if discarded[i] else "confirm"
                assert decided == expected


def test_the_champion_runs_afresh_where_the_rule_asks_for_it():
    champion, candidate = np.meshgrid(np.arange(1.0, 8), np.arange(1.0, 5))
    asked = [
        verdict.champion_is_due(int(a), int(b))
        for a, b in zip(champion.flat, candidate.flat, strict=True)
    ]
    assert bench.due(champion, candidate).ravel().tolist() == asked


def test_the_table_has_a_row_for_each_rule_and_world(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "NIGHTS", 30)
    monkeypatch.setattr(bench, "SDS", (1.0,))
    monkeypatch.setattr(bench, "FREEDOMS", (8,))
    assert bench.run(3, tmp_path / "rows.json")
    assert "| 15 % good | greedy |" in capsys.readouterr().out
    table = json.loads((tmp_path / "rows.json").read_text())
    assert len(table) == len(bench.RULES) * len(bench.WORLDS)
