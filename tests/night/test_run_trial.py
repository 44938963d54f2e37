"""The runs of a trial: which are made and in which order, and which are audited."""

import dataclasses
import logging
from typing import Any

import pytest

from flows.night import run_trial
from flows.night.run_trial import Comparison
from tasks.noise import Noise
from tasks.records import Candidate, Dataset
from tests.boxes import make_bench
from tests.synthetic_night import make_run

CHAMPION = (1.7, 1.71, 1.72)
TENTHS = ((5, 3.0), (9, 2.5))
CANDIDATE = Candidate.parse("A = 1\n")


def comparison(statements_added: int = 0, scores: tuple[float, ...] = CHAMPION) -> Comparison:
    seeds = tuple(range(1, len(scores) + 1))
    champion = Candidate.parse("A = 0\n")
    return Comparison(champion, scores, seeds, Noise(0.005, 20), statements_added)


@pytest.fixture
def is_audited(monkeypatch, tmp_path):
    """Whether the last of these runs is worth an audit; the runs are made up."""

    def ask(*scores: float, statements_added: int = 0) -> bool:
        asked = []

        def train(what, candidate, bench, seed, *, worth_audit, smoke, report, early, champion):
            score = scores[seed - 1] if seed <= len(scores) else scores[-1]
            asked.append(worth_audit(score))
            return make_run(val_bpb=score, seed=seed)

        monkeypatch.setattr(run_trial, "train_candidate", train)
        dataset = Dataset("f00d", "public", "train", "validation", 1)
        bench = make_bench(dataset, tmp_path)
        run_trial.run_trial(1, CANDIDATE, bench, 1, comparison(statements_added))
        return asked[len(scores) - 1]

    return ask


def test_a_score_that_would_be_discarded_needs_no_audit(is_audited):
    assert not is_audited(1.72)
    assert not is_audited(1.703, 1.716)


def test_a_score_that_would_be_kept_or_confirmed_does(is_audited):
    assert is_audited(1.60)
    assert is_audited(1.703)
    assert is_audited(1.703, 1.702)


def test_so_does_a_tie_with_fewer_statements(is_audited):
    assert not is_audited(1.71)
    assert is_audited(1.71, statements_added=-3)


class BesideIt:
    """A made-up run that has begun beside the present one."""

    def __init__(self) -> None:
        self.is_begun = True

    def watching(self, report):
        return report

    def end(self) -> None:
        self.is_begun = False


@pytest.mark.parametrize("ends", ["ok", "out_of_memory"])
def test_a_run_that_runs_out_of_memory_beside_another_is_run_once_more_alone(
    monkeypatch, tmp_path, ends
):
    beside: Any = BesideIt()
    statuses, alone = iter(["out_of_memory", ends]), []

    def train(what, candidate, bench, seed, *, worth_audit, smoke, report, early, champion):
        alone.append(not beside.is_begun)
        status = next(statuses)
        return make_run(status=status, val_bpb=1.9 if status == "ok" else None, seed=seed)

    monkeypatch.setattr(run_trial, "train_candidate", train)
    monkeypatch.setattr(run_trial, "get_run_logger", logging.getLogger)
    bench = make_bench(Dataset("f00d", "public", "train", "validation", 1), tmp_path)
    tried = run_trial.run_trial(1, CANDIDATE, bench, 1, comparison(), next_run=beside)
    assert [run.status for run in tried.runs] == [ends]
    assert alone == [False, True]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A trial of a champion with one score, whose runs are made up: scores by file; None stops."""

    def run(candidate: list[float], champion: list[float | None], **options: Any):
        scores = {"A = 1\n": iter(candidate), "A = 0\n": iter(champion)}
        made: list[tuple[str, int]] = []

        def train(what, candidate, bench, seed, *, worth_audit, smoke, report, early, champion):
            score = next(scores[candidate.source])
            made.append((candidate.source[:5], seed))
            # Only a candidate is stopped for what the champion did better.
            assert champion == (TENTHS if candidate is CANDIDATE else ())
            assert worth_audit(9.9) == (candidate.source == "A = 0\n")
            assert smoke == (not made[1:])
            status = "ok" if score else "train_timeout"
            return make_run(status=status, val_bpb=score, seed=seed)

        monkeypatch.setattr(run_trial, "train_candidate", train)
        monkeypatch.setattr(run_trial, "get_run_logger", logging.getLogger)
        bench = make_bench(Dataset("f00d", "public", "train", "validation", 1), tmp_path)
        compared = dataclasses.replace(comparison(scores=(1.700,)), tenths=TENTHS)
        return run_trial.run_trial(1, CANDIDATE, bench, 1, compared, **options), made

    return run


def test_the_champion_is_run_afresh_between_the_runs_of_a_candidate_that_may_be_lucky(run):
    tried, made = run([1.693, 1.695, 1.697], [1.70, 1.70])
    assert made == [("A = 1", 1), ("A = 0", 2), ("A = 1", 2), ("A = 0", 3), ("A = 1", 3)]
    assert [each.val_bpb for each in tried.champion_runs] == [1.70, 1.70]
    assert (tried.verdict.decision, len(tried.runs)) == ("discard", 3)


def test_a_champion_that_was_lucky_is_found_out_by_its_fresh_runs(run):
    tried, _ = run([1.692, 1.692, 1.692], [1.71, 1.715])
    assert tried.verdict.decision == "keep"


def test_a_fresh_run_of_the_champion_that_is_stopped_does_not_count(run):
    tried, made = run([1.69, 1.69, 1.69, 1.69], [None, None, None])
    assert [file for file, _ in made[:3]] == ["A = 1", "A = 0", "A = 1"]
    assert tried.champion_runs == ()


@pytest.fixture
def placebo(monkeypatch, tmp_path):
    """A placebo's trial, whose runs are made up: these scores by seed; None stops the run."""

    def run(fresh: tuple[float, ...], scores: dict[int, float | None], **options: Any):
        made: list[int] = []

        def train(what, candidate, bench, seed, *, worth_audit, smoke, report, early):
            made.append(seed)
            score = scores.get(seed, 1.7)
            status = "ok" if score else "train_timeout"
            return make_run(status=status, val_bpb=score, seed=seed)

        monkeypatch.setattr(run_trial, "train_candidate", train)
        monkeypatch.setattr(run_trial, "get_run_logger", logging.getLogger)
        bench = make_bench(Dataset("f00d", "public", "train", "validation", 1), tmp_path)
        champion = Candidate.parse("A = 0\n")
        compared = Comparison(champion, fresh, (1, 2), Noise(0.005, 20), 0, champion_runs=3)
        tried = run_trial.run_trial(7, champion, bench, 7001, compared, **options)
        return tried, made

    return run


def test_before_a_placebo_the_champion_has_three_runs_that_nobody_chose_it_by(placebo):
    tried, made = placebo((), {})
    assert made == [3, 4, 5, 7001]
    assert len(tried.champion_runs) == 3
    assert placebo((1.7, 1.71), {})[1] == [3, 7001]
    assert placebo((1.7, 1.71, 1.7, 1.7), {})[1] == [7001]


def test_a_placebo_is_run_again_like_any_candidate_with_seeds_of_its_own(placebo):
    tried, made = placebo((1.7, 1.7, 1.7), {7001: 1.693, 7002: 1.7})
    assert made == [7001, 7002]
    assert tried.verdict.decision == "discard"


def test_a_placebo_is_not_run_without_a_champion_to_compare_it_with(placebo):
    stopped = dict.fromkeys((3, 4, 5), None)
    for tried, _ in (placebo((), stopped), placebo((), {}, no_time=lambda: True)):
        assert (tried.runs, tried.verdict.z) == ((), None)
        assert tried.verdict.reason == "not run: no fresh run of the champion has a score"
    assert placebo((1.7,), stopped)[0].runs != ()


def test_what_is_undecided_when_the_nights_time_is_over_is_discarded(run):
    tried, made = run([1.69], [], no_time=lambda: True)
    assert len(made) == 1
    assert tried.verdict.decision == "discard"
    assert tried.verdict.reason.endswith("but the night has no time for another run")
