"""Which runs of a trial are audited: all that could enter a keep."""

import pytest

from flows.night import run_trial
from flows.night.run_trial import Comparison
from tasks.records import Candidate, Dataset
from tasks.trial.verdict import Noise
from tests.boxes import make_bench
from tests.synthetic_night import make_run

CHAMPION = (1.7, 1.71, 1.72)
CANDIDATE = Candidate.parse("A = 1\n")


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
        comparison = Comparison(CANDIDATE, CHAMPION, (1, 2, 3), Noise(0.005, 20), statements_added)
        run_trial.run_trial(1, CANDIDATE, bench, 1, comparison)
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
