"""The runs of a trial: which are made and in which order, and which are audited."""

import dataclasses
import logging
from typing import Any

import pytest

from configs import Rule
from flows.night import run_trial
from flows.night.run_trial import Comparison
from tasks.records import Candidate, Dataset
from tasks.trial.verdict import Noise
from tests.boxes import make_bench
from tests.synthetic_night import make_run

CHAMPION = (1.7, 1.71, 1.72)
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

        def train(what, candidate, bench, seed, *, worth_audit, smoke, report, early):
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

    def train(what, candidate, bench, seed, *, worth_audit, smoke, report, early):
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

        def train(what, candidate, bench, seed, *, worth_audit, smoke, report, early):
            score = next(scores[candidate.source])
            made.append((candidate.source[:5], seed))
            assert worth_audit(9.9) == (candidate.source == "A = 0\n")
            assert smoke == (not made[1:])
            status = "ok" if score else "train_timeout"
            return make_run(status=status, val_bpb=score, seed=seed)

        monkeypatch.setattr(run_trial, "train_candidate", train)
        monkeypatch.setattr(run_trial, "get_run_logger", logging.getLogger)
        bench = make_bench(Dataset("f00d", "public", "train", "validation", 1), tmp_path)
        compared = comparison(scores=(1.700,))
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


def test_what_is_undecided_when_the_nights_time_is_over_is_discarded(run):
    tried, made = run([1.69], [], no_time=lambda: True)
    assert len(made) == 1
    assert tried.verdict.decision == "discard"
    assert tried.verdict.reason.endswith("but the night has no time for another run")


def test_a_profiles_thresholds_decide_and_limit_the_champions_runs():
    rule = Rule(keep=(2.0, 1.0), drop=(0.0, 1.0), champion_runs=1)
    patient = dataclasses.replace(comparison(scores=(1.700,)), rule=rule)
    assert patient.decide([1.693]).decision == "confirm"
    assert patient.decide([1.693, 1.693]).decision == "keep"
    assert comparison(scores=(1.700,)).decide([1.693, 1.693]).decision == "confirm"
    assert not patient.champion_is_due(fresh=0, runs=1)
    assert comparison(scores=(1.700,)).champion_is_due(fresh=0, runs=1)
