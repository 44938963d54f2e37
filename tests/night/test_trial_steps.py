"""What a trial's record says beside its score."""

import types
from typing import Any

import configs
from flows.night import trial_steps
from flows.night.run_trial import Tried
from tasks.history import trial_folder
from tasks.history.growth import Size
from tasks.records import Baseline, Candidate, Verdict
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


def test_a_trial_records_its_size_and_what_is_much_larger_than_its_champions(tmp_path):
    night: Any = types.SimpleNamespace(
        trial_folder=lambda number: tmp_path / str(number),
        calls=types.SimpleNamespace(usage=lambda number: Usage()),
        bench=types.SimpleNamespace(isolation="bwrap", profile=types.SimpleNamespace(device="cpu")),
        baseline=Baseline((make_run(),), "h"),
    )
    runs = make_run(**LARGE, metrics={}), make_run(**{**LARGE, "parameters": 32}, metrics={})
    ended = trial_steps.Outcome(make_proposal("x = 1"), Tried(runs, Verdict("keep", "better")), 1.0)
    trial = trial_steps.trial_of(night, 1, "c0", ended, Size(**SMALL, peak_gpu_bytes=None))
    assert {name: getattr(trial, name) for name in LARGE} == LARGE
    assert trial.grown == "parameters 0.53 M -> 33 M, checkpoint 2 MiB -> 132 MiB"


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
    (tmp_path / "2" / "result.json").unlink()
    assert asked(kept) == ()
    night.bench.profile = configs.load("laptop")
    assert asked(start) == ()
