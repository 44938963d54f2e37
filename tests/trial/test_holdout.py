"""Real runs, in boxes with the stub of torch, that are scored on the holdout as well."""

import math

import pytest

from tasks.judge.box import open_box
from tasks.records import Candidate
from tasks.trial import experiment
from tests.boxes import HONEST, make_bench, make_dataset, with_holdout
from tests.faults.stub_torch import assemble_with_stub

# It expects the tokens of the validation, 1 to 9, twice as much as any other.
BETTER = HONEST.replace(
    "logits = np.zeros(256, np.float32)\n",
    "logits = np.zeros(256, np.float32); logits[1:10] = np.log(2)\n",
)
VALIDATION, HOLDOUT = math.log2(265) - 1, math.log2(265)  # bits per byte


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a candidate on a dataset with a holdout; the roles of its boxes in order come along."""
    monkeypatch.setattr(experiment, "assemble", assemble_with_stub)
    opened: list[str] = []

    def opening(spec):
        opened.append(spec.role)
        return open_box(spec)

    monkeypatch.setattr(experiment, "open_box", opening)
    plain = make_dataset(tmp_path / "dataset")
    dataset = with_holdout(plain, tmp_path / "holdout")

    def run(source: str, holdout: bool = True, has_one: bool = True):
        bench = make_bench(dataset if has_one else plain, tmp_path)
        found = experiment.run_experiment(
            Candidate.parse(source), bench, 7, worth_audit=lambda _: False, holdout=holdout
        )
        assert list(tmp_path.glob("boxes/*")) == []
        return found, opened

    return run


def test_the_same_checkpoint_is_scored_and_audited_on_the_holdout(run):
    found, opened = run(BETTER)
    assert (found.status, found.reason) == ("ok", "trained and scored")
    assert found.val_bpb == pytest.approx(VALIDATION, abs=1e-6)
    assert found.holdout_bpb == pytest.approx(HOLDOUT, abs=1e-6)
    assert found.audit_gap is None  # of the validation: this run was not worth it
    assert opened == ["train", "claim", "audit", "claim", "audit"]


@pytest.mark.parametrize("choice", [{"holdout": False}, {"has_one": False}])
def test_the_holdout_is_opened_only_where_it_is_asked_for_and_there(run, choice):
    found, opened = run(BETTER, **choice)
    assert (found.status, found.holdout_bpb) == ("ok", None)
    assert opened == ["train", "claim", "audit"]


SEEN = "targets is not None and ((targets.numpy() > 19) & (targets.numpy() < 26)).any()"
STOPPED = {
    f"        if {SEEN}: raise SystemExit(f'it says {{targets.numpy()}}')\n": (
        "eval_crashed: ended while scoring: its log is withheld"
    ),
    f"        if {SEEN}: return torch.from_numpy(np.zeros(targets.numpy().size, 'f4'))\n": (
        "audit_failed: claimed "
    ),
}


@pytest.mark.parametrize("line", STOPPED)
def test_a_run_that_is_stopped_on_the_holdout_keeps_its_score_and_says_why(run, line):
    place = "        logits = np.tile(self.logits, (*idx.shape, 1))\n"
    assert place in BETTER
    found, _ = run(BETTER.replace(place, line + place))
    assert found.status == "ok"
    assert found.val_bpb == pytest.approx(VALIDATION, abs=1e-6)
    assert found.holdout_bpb is None
    why = f"trained and scored, but not on the holdout: {STOPPED[line]}"
    assert found.reason.startswith(why)
    # The text of the holdout, if its box prints it, is where no proposer looks.
    assert ("it says" in found.judge_log) == ("SystemExit" in line)
    assert "it says" not in found.log + found.reason
