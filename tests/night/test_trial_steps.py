"""What a trial's record says beside its score, and what a placebo is compared with."""

import dataclasses
import types
from typing import Any

import pytest

import configs
from flows.night import trial_steps
from flows.night.run_trial import Comparison, Tried
from tasks.history import champion, trial_folder
from tasks.history.growth import Size
from tasks.noise import Noise
from tasks.records import Baseline, Candidate, Remeasurement, Verdict
from tasks.trial import hardware, placebo
from tasks.usage import Usage
from tests.synthetic_night import make_run
from tests.trials import keep, make_baseline, make_proposal, make_state, make_trial

SMALL = {"parameters": 530_000, "checkpoint_bytes": 2 * 2**20, "peak_memory_bytes": 700 * 2**20}
LARGE = {"parameters": 33_000_000, "checkpoint_bytes": 132 * 2**20, "peak_memory_bytes": 2**30}


def test_the_champions_size_is_that_of_the_last_keep_and_else_the_baselines():
    base = make_baseline(**SMALL)
    assert trial_steps.champion_size(make_state(make_trial(1, **LARGE), baseline=base)) == Size(
        **SMALL, peak_gpu_bytes=None
    )
    later = make_state(keep(1, **LARGE), make_trial(2, **SMALL), baseline=base)
    assert trial_steps.champion_size(later) == Size(**LARGE, peak_gpu_bytes=None)


@pytest.fixture
def night(tmp_path) -> Any:
    """What these steps ask of a night."""
    return types.SimpleNamespace(
        tag="nov21",
        seed=1,
        folder=tmp_path,
        root=tmp_path,
        base=Candidate.parse("A = 1\n"),
        trial_folder=lambda number: tmp_path / str(number),
        calls=types.SimpleNamespace(usage=lambda number: Usage()),
        bench=types.SimpleNamespace(isolation="bwrap", profile=configs.load("laptop")),
        baseline=Baseline((make_run(),), "h"),
    )


def test_a_trial_records_its_size_and_what_is_much_larger_than_its_champions(night):
    runs = make_run(**LARGE, metrics={}), make_run(**{**LARGE, "parameters": 32}, metrics={})
    tried = Tried(runs, Verdict("keep", "better"), noise=Noise(0.004, 8))
    ended = trial_steps.Outcome(make_proposal("x = 1"), tried, 1.0)
    trial = trial_steps.trial_of(night, 1, "c0", ended, Size(**SMALL, peak_gpu_bytes=None))
    assert {name: getattr(trial, name) for name in LARGE} == LARGE
    assert trial.grown == "parameters 0.53 M -> 33 M, checkpoint 2 MiB -> 132 MiB"
    assert (trial.noise_sd, trial.noise_df) == (0.004, 8)
    assert trial.hardware == hardware.label("cpu", night.bench.profile.threads)


def test_a_placebo_that_the_rule_would_keep_is_recorded_and_not_kept(night):
    run = make_run(metrics={}, seed=7001)
    tried = Tried((run,), Verdict("keep", "better: kept", 3.2), (make_run(metrics={}, seed=4),))
    proposed = placebo.proposal(Candidate.parse("A = 1\n"))
    trial = trial_steps.trial_of(
        night, 7, "c0", trial_steps.Outcome(proposed, tried, 1.0), Size.of_runs([run])
    )
    assert (trial.placebo, trial.verdict, trial.z) == ("keep", "discard", 3.2)
    assert trial.reason == "better: kept; a placebo, the champion unchanged: a false keep"
    assert (trial.seeds, trial.champion_seeds) == ((7001,), (4,))


def test_a_placebo_is_compared_with_scores_that_did_not_choose_the_champion():
    champion = Candidate.parse("A = 1\n")
    compared = Comparison(champion, (1.5, 1.6), (1, 2), Noise(0.01, 9), 0)
    fair = trial_steps.unselected(compared, make_state(champion_fresh=(1.6,)))
    assert (fair.champion_scores, fair.champion_runs) == ((1.6,), 3)
    assert fair.champion_seeds == (1, 2)


def test_a_proposer_hears_nothing_of_placebos(night, monkeypatch):
    monkeypatch.setattr(champion, "source_at", lambda root, commit: "A = 1\n")
    tried, unheard = (Candidate.parse(source).digest for source in ("A = 2\n", "A = 3\n"))
    state = make_state(
        make_trial(1, digest=tried),
        make_trial(2, digest=unheard, placebo="keep"),
        make_trial(3, digest=tried),
    )
    so_far = trial_steps.night_so_far(night, state)
    assert [trial.number for trial in so_far.trials] == [1, 3]
    assert tried in so_far.seen
    assert unheard not in so_far.seen
    assert (so_far.next_trial, so_far.turn) == (4, 3)
    later = trial_steps.while_in_flight(so_far, placebo.proposal(so_far.champion))
    assert (later.next_trial, later.turn, later.in_flight) == (5, 3, None)
    assert later.seen == so_far.seen
    real = trial_steps.while_in_flight(so_far, make_proposal("B = 1"))
    assert (real.next_trial, real.turn) == (5, 4)


def test_candidates_of_a_night_that_an_older_version_began_are_still_known(tmp_path, monkeypatch):
    """Its ledger has digests of another form: they are computed again from the sources."""
    sources = {1: "def f():\n    x = 1\n", 2: "A = 2\n"}
    for number, source in sources.items():
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "train.py").write_text(source)
    crashed = tmp_path / "2" / "attempts" / "1"
    crashed.mkdir(parents=True)
    (crashed / "train.py").write_text("A = 3\n")
    monkeypatch.setattr("tasks.history.champion.source_at", lambda root, commit: "A = 1\n")
    base = Candidate.parse("A = 1\n")
    night: Any = types.SimpleNamespace(
        tag="nov21",
        seed=1,
        root=tmp_path,
        folder=tmp_path,
        base=base,
        trial_folder=lambda number: tmp_path / str(number),
    )
    current = Candidate.parse("A = 4\n").digest
    state = make_state(
        make_trial(1, digest="ab" * 32),
        make_trial(2, digest="cd" * 32, crashed=("ef" * 32,)),
        make_trial(3, digest=current),
    )
    seen = trial_steps.night_so_far(night, state).seen
    renamed = Candidate.parse("def f():\n    y = 1\n")
    assert seen == {
        renamed.digest: 1,
        Candidate.parse("A = 2\n").digest: 2,
        Candidate.parse("A = 3\n").digest: 2,
        current: 3,
        base.digest: 0,
    }


def test_a_candidate_is_compared_with_the_runs_of_its_champion_if_their_tokens_are_alike(tmp_path):
    first, last = ((5, 3.0), (9, 2.5)), ((6, 3.1), (8, 2.4))
    night: Any = types.SimpleNamespace(
        trial_folder=lambda number: tmp_path / str(number),
        bench=types.SimpleNamespace(profile=configs.load("h100")),
        baseline=Baseline((make_run(tenths=first), make_run(tenths=last)), "h"),
    )
    one, other = Candidate.parse("VOCAB_SIZE = 8192\n"), Candidate.parse("VOCAB_SIZE = 4096\n")

    def asked(state, candidate=one):
        return trial_steps.tenths_to_match(night, state, one, candidate)

    start = make_state(make_trial(1))
    assert asked(start) == ((5, 3.1), (8, 2.5))
    assert asked(start, other) == ()
    (tmp_path / "2").mkdir()
    trial_folder.write_result(tmp_path / "2", (make_run(tenths=last),), keep(2))
    kept = make_state(make_trial(1), keep(2), make_trial(3))
    assert asked(kept) == last
    again = Remeasurement("it changed", 3, "h", (), (), None, (), (), ())
    assert asked(dataclasses.replace(kept, remeasurements=(again,))) == ()
    assert asked(dataclasses.replace(start, remeasurements=(again,))) == ()
    moved = dataclasses.replace(again, baseline=make_baseline(hardware="h"))
    assert asked(dataclasses.replace(kept, remeasurements=(moved,))) == ()
    assert asked(dataclasses.replace(start, remeasurements=(moved,))) == asked(start)
    (tmp_path / "2" / "result.json").unlink()
    assert asked(kept) == ()
    night.bench.profile = configs.load("laptop")
    assert asked(start) == ()
