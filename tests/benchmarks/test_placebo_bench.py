"""What the bench of placebos makes of a night's ledger, and the patches that it gives to a night."""

import ast
import dataclasses

import pytest

import configs
from tests.benchmarks import placebo_bench
from tests.trials import baseline_event, keep, make_trial, night_event


def test_each_placebo_has_the_degrees_of_freedom_that_it_was_judged_by():
    trials = [
        make_trial(1, placebo="discard", champion_scores=(1.61, 1.62)),
        make_trial(2, scores=(1.6, 1.7, 1.8)),
        make_trial(3, placebo="keep"),
        keep(4),
    ]
    events = [
        {"event": "night", "time": "t", "v": 4, "used": 0, **night_event()},
        {"event": "baseline", "time": "t", "used": 0, **baseline_event()},
    ]
    for trial in trials:
        told = {"trial": trial.number, "commit": "c", "time": "t", "used": 0}
        events += [
            {**told, "event": "started"},
            {**told, "event": "decided", "trial": dataclasses.asdict(trial)},
            {**told, "event": "applied"},
        ]
    # Three runs of the baseline; then two more, and the last two of trial 2.
    assert placebo_bench._freedoms(events) == [2, 5]


def test_the_simulation_is_of_the_rule_with_those_degrees_of_freedom():
    few, many = placebo_bench._simulated([2]), placebo_bench._simulated([28])
    assert 0.02 < few < 0.08
    assert 0.02 < many < 0.08
    assert placebo_bench._simulated([2, 28]) == pytest.approx((few + many) / 2)


def test_its_patches_change_the_champion_now_and_then_and_else_do_not_parse(tmp_path):
    checkout = placebo_bench._checkout(tmp_path, 13)
    profile = configs.load(str(tmp_path / "bench.toml"))
    assert profile.night.placebo_share == 0.5
    sources = [path.read_text() for path in sorted((tmp_path / "patches").iterdir())]
    parse = [number for number, source in enumerate(sources) if source != "("]
    assert parse == [0, 6, 12]
    before = (checkout.folder / "trainer" / "train.py").read_text()
    assert all(ast.parse(sources[number]) for number in parse)
    assert len({before, *(sources[number] for number in parse)}) == 4
