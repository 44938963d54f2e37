"""The simulation of keep rules, with fewer nights; `./run bench verdict` takes 1000 of each."""

import json

import numpy as np
import pytest

from tasks.noise import Noise
from tasks.trial import certification, verdict
from tasks.trial.certification import Evidence, Searched
from tests.benchmarks import verdict_bench as bench

OURS = bench.RULES[-1]
MOST_RUNS = len(OURS.keep)
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
        scores = random.normal(-0.01, 0.02, (MOST_RUNS, 200))
        for runs in range(1, MOST_RUNS + 1):
            night.sum, night.runs = scores[:runs].sum(axis=0), np.full(200, float(runs))
            kept, discarded = night.verdicts()
            for i in range(200):
                champion = [night.champion_sum[i] / 3] * 3
                noise = Noise(float(np.sqrt(night.squares[i] / df)), df)
                decided = verdict.decide(champion, scores[:runs, i].tolist(), noise, 0).decision
                expected = "keep" if kept[i] else "discard" if discarded[i] else "confirm"
                assert decided == expected


def test_the_simulated_certification_is_the_one_that_decides():
    count, width, sd = 200, 5, 0.01
    random = np.random.default_rng(0)
    kept = bench.Kept(count)
    kept.number = random.integers(0, width + 1, count)
    kept.number[0] = width
    kept.cut()
    kept.gains = random.normal(2 * sd, sd, (count, width))
    kept.certainties = random.uniform(0.5, 2, (count, width))
    real, nulls = kept.real, random.uniform(0.5, 10, count)
    work = bench.Certifications(bench.OURS, kept, nulls)
    whole, without = random.normal(0, sd, (8, count)), random.normal(sd, sd, (8, count, width))
    whole_runs = random.integers(0, 9, count)
    runs = random.integers(0, 7, (count, width)) * real
    for n in range(8):
        work.whole.add(n < whole_runs, whole[n])
        work.without.add(n < runs, without[n])
    squares, df = sd**2 * random.chisquare(4, count), np.full(count, 4.0)
    z = work.z_scores(squares, df)
    certified, (to_whole, to_change, which) = work.certified(*z), work.following(*z)
    for i in range(count):
        groups: dict[tuple[int, ...], tuple[float, ...]] = {
            (k,): tuple(without[: runs[i, k], i, k].tolist()) for k in range(width) if real[i, k]
        }
        search = {
            group: Searched(float(kept.gains[i, k]), 1 / float(kept.certainties[i, k]))
            for k, group in enumerate(groups)
        }
        evidence = Evidence(tuple(whole[: whole_runs[i], i].tolist()), groups, search)
        scatter = squares[i] + work.whole.scatter[i] + work.without.scatter[i].sum()
        freedom = 4 + int(work.whole.freedom[i] + work.without.freedom[i].sum())
        noise = Noise(float(np.sqrt(scatter / freedom)), freedom)
        claims = certification.claims(evidence, noise, float(nulls[i]))
        assert [c.certificate == "certified" for c in claims] == certified[i][real[i]].tolist()
        expected = () if to_whole[i] else (int(which[i]),) if to_change[i] else None
        assert certification.next_run(evidence, noise, float(nulls[i])) == expected


@pytest.mark.parametrize("world", bench.WORLDS)
def test_few_certified_changes_are_luck_and_most_of_greedys_progress_is_certified(world):
    sd, df = 0.5, 8
    ours = bench.nights(OURS, bench.WORLDS[world], sd, df, 400, certify=True)
    greedy = bench.nights(GREEDY, bench.WORLDS[world], sd, df, 400)
    assert ours.false_claims <= 0.06
    assert ours.certified_progress >= 0.72 * greedy.progress


def test_the_champion_runs_afresh_where_the_rule_asks_for_it():
    champion, candidate = np.meshgrid(np.arange(1.0, 8), np.arange(1.0, 6))
    asked = [
        verdict.champion_is_due(int(a), int(b))
        for a, b in zip(champion.flat, candidate.flat, strict=True)
    ]
    assert bench.due(champion, candidate).ravel().tolist() == asked


def test_the_table_has_a_row_for_each_rule_and_world(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "NIGHTS", 30)
    monkeypatch.setattr(bench, "NULLS", 1000)
    monkeypatch.setattr(bench, "SDS", (1.0,))
    monkeypatch.setattr(bench, "FREEDOMS", (8,))
    assert bench.run(3, tmp_path / "rows.json")
    assert "| 15 % good | 8 | greedy |" in capsys.readouterr().out
    table = json.loads((tmp_path / "rows.json").read_text())
    assert len(table) == len(bench.RULES) * len(
        bench.WORLDS
    )  # and one number of degrees of freedom
