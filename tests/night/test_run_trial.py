"""The runs of a trial: which are made and in which order, and which are audited."""

import dataclasses
import logging
from typing import Any

import pytest

from configs import Budget, Rule
from flows.night import quarantine, run_trial
from flows.night.run_trial import Comparison
from tasks.noise import Noise
from tasks.records import Candidate, Conditions, Dataset
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
    tried, made = run([1.693, 1.695, 1.699], [1.70, 1.70])
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

        def train(what, candidate, bench, seed, *, worth_audit, smoke, report, early, champion):
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


QUIET = Conditions(300.0, cpu_used=600.0, cpu_waited=1.0, cpu_others=6.0, cpu_stolen=0.0)
BUSY = dataclasses.replace(QUIET, cpu_waited=200.0, cpu_others=300.0)
USUAL = (QUIET, dataclasses.replace(QUIET, cpu_waited=2.0), QUIET)


@pytest.fixture
def run_on(monkeypatch, tmp_path):
    """A trial whose runs have made-up conditions, each with its score, and are all discarded."""
    monkeypatch.setattr(run_trial, "get_run_logger", logging.getLogger)
    monkeypatch.setattr(quarantine, "get_run_logger", logging.getLogger)

    def run_on(*made: tuple[float, Conditions | None], kind="seconds", **options: Any):
        runs, seeds = iter(made), []

        def train(what, candidate, bench, seed, *, worth_audit, smoke, report, early, champion):
            seeds.append((candidate.source[:5], seed, smoke))
            score, found = next(runs)
            return make_run(val_bpb=score, seed=seed, conditions=found)

        monkeypatch.setattr(run_trial, "train_candidate", train)
        bench = make_bench(Dataset("f00d", "public", "train", "validation", 1), tmp_path)
        budget = Budget(kind=kind, amount=300)
        profile = bench.profile.model_copy(update={"budget": budget})
        bench = dataclasses.replace(bench, profile=profile)
        compared = dataclasses.replace(comparison(scores=(1.7,)), usual=USUAL)
        return run_trial.run_trial(1, CANDIDATE, bench, 1, compared, **options), seeds

    return run_on


def test_a_run_on_a_machine_that_others_made_busy_is_run_again_with_its_seed(run_on):
    tried, seeds = run_on((1.9, BUSY), (1.8, QUIET))
    assert seeds == [("A = 1", 1, True), ("A = 1", 1, False)]
    assert tried.verdict.reason.startswith("worse by 0.1000 bits per byte")
    assert [run.val_bpb for run in tried.runs] == [1.8]
    (aside,) = tried.quarantined
    assert (aside.run.val_bpb, aside.on_record().seed, aside.of) == (1.9, 1, "candidate")
    assert "other processes used 1.00 CPUs (usually 0.02)" in aside.disturbance
    assert (tried.unusual, tried.machine_change) == (None, None)


def test_the_second_result_counts_whatever_it_is(run_on):
    tried, _ = run_on((1.8, BUSY), (1.9, QUIET))
    assert [run.val_bpb for run in tried.runs] == [1.9]


def test_a_run_that_is_disturbed_every_time_counts_in_the_end_and_is_marked(run_on):
    tried, seeds = run_on((1.9, BUSY), (1.8, BUSY), (1.85, BUSY))
    assert len(seeds) == 3
    assert [run.val_bpb for run in tried.runs] == [1.85]
    assert len(tried.quarantined) == 2
    assert tried.unusual is not None
    assert tried.unusual.startswith("a run counts although its threads waited")
    assert tried.machine_change is not None


def test_a_budget_of_flops_is_not_run_again_as_no_score_depends_on_the_machine(run_on):
    tried, seeds = run_on((1.9, BUSY), kind="flops")
    assert len(seeds) == 1
    assert tried.quarantined == ()


def test_without_time_a_disturbed_run_counts_at_once(run_on):
    tried, seeds = run_on((1.9, BUSY), no_time=lambda: True)
    assert len(seeds) == 1
    assert tried.unusual is not None


def test_a_fresh_run_of_the_champion_is_run_again_too(run_on):
    tried, seeds = run_on((1.693, QUIET), (1.75, BUSY), (1.70, QUIET), (1.71, QUIET))
    assert [(file, seed) for file, seed, _ in seeds] == [
        ("A = 1", 1),
        ("A = 0", 2),
        ("A = 0", 2),
        ("A = 1", 2),
    ]
    assert [run.val_bpb for run in tried.champion_runs] == [1.70]
    assert [aside.of for aside in tried.quarantined] == ["champion"]


def test_fewer_tokens_alone_mark_a_candidate_and_repeat_the_champion(run_on):
    many, few = (dataclasses.replace(QUIET, tokens=tokens) for tokens in (10**6, 9 * 10**5))
    runs = [(1.693, many), (1.70, many), (1.69, few), (1.9, few), (1.7, many), (1.75, many)]
    tried, seeds = run_on(*runs)
    candidates, champions = [("A = 1", 1), ("A = 1", 2), ("A = 1", 3)], [2, 3, 3]
    assert [(file, seed) for file, seed, _ in seeds if file == "A = 1"] == candidates
    assert [seed for file, seed, _ in seeds if file == "A = 0"] == champions
    assert [run.val_bpb for run in tried.champion_runs] == [1.7, 1.7]
    assert tried.unusual == "it trained on 900,000 tokens (the same file usually on 1,000,000)"


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
