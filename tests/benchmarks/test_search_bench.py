"""The simulated researcher, with few nights; `./run bench search` takes more of each."""

import dataclasses
import json

import numpy as np

from tests.benchmarks import search_bench as bench

ONE, _, IN_ORDER, _, CHOSEN = bench.SEARCHERS[:5]


def test_the_best_of_four_ideas_gains_more_than_one_idea_a_call_at_equal_runs():
    one, chosen = (bench.outcome(searcher, 0.25, 8) for searcher in (ONE, CHOSEN))
    assert chosen.search.mean() > 1.15 * one.search.mean()
    assert chosen.certified.mean() > 1.15 * one.certified.mean()


def test_ideas_that_wait_their_turn_save_calls_and_gain_nothing():
    one, in_order = (bench.outcome(searcher, 1.0, 8) for searcher in (ONE, IN_ORDER))
    assert in_order.calls < 0.35 * one.calls
    assert abs(in_order.search.mean() / one.search.mean() - 1) < 0.3


def test_a_night_is_the_same_each_time_and_has_a_hundred_runs():
    everything = dataclasses.replace(CHOSEN, stack=0.2, archive=0.2, ablation=0.1)
    first, second = (bench.Night(everything, 1.0, 3) for _ in range(2))
    for night in (first, second):
        night.run()
    assert first.gains == second.gains
    assert first.file.truth == second.file.truth
    last = len(first.reserved) - 1
    assert first.used + first.reserved[min(len(first.kept), last)] >= bench.RUNS - bench.RESERVED


def test_estimates_are_as_good_as_they_are_said_to_be():
    researcher = bench.Researcher(ONE, 1)
    ideas = researcher.ideas(0, bench.Family(0.0, 0.0), 20_000)
    gains = [idea.gain for idea in ideas]
    own = [idea.features.estimate.gain for idea in ideas if idea.features.estimate]
    assert abs(np.corrcoef(gains, own)[0, 1] - bench.CORRELATION) < 0.05
    assert abs(np.mean(np.array(gains) > 0) - 0.15) < 0.01


def test_the_table_has_a_row_for_each_way_and_noise(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "NIGHTS", 2)
    monkeypatch.setattr(bench, "SDS", (1.0,))
    monkeypatch.setattr(bench, "SEARCHERS", bench.SEARCHERS[:3])
    assert bench.run(3, tmp_path / "rows.json")
    assert "| 1 | one idea a call |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 3
