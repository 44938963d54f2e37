"""What a trial's record says beside its score."""

import types
from typing import Any

import configs
from flows.night import trial_steps
from flows.night.run_trial import Tried
from tasks.history.growth import Size
from tasks.records import Baseline, Candidate, Verdict
from tasks.trial import hardware
from tasks.trial.verdict import Noise
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
        bench=types.SimpleNamespace(isolation="bwrap", profile=configs.load("laptop")),
        baseline=Baseline((make_run(),), "h"),
    )
    runs = make_run(**LARGE, metrics={}), make_run(**{**LARGE, "parameters": 32}, metrics={})
    tried = Tried(runs, Verdict("keep", "better"), noise=Noise(0.004, 8))
    ended = trial_steps.Outcome(make_proposal("x = 1"), tried, 1.0)
    trial = trial_steps.trial_of(night, 1, "c0", ended, Size(**SMALL, peak_gpu_bytes=None))
    assert {name: getattr(trial, name) for name in LARGE} == LARGE
    assert trial.grown == "parameters 0.53 M -> 33 M, checkpoint 2 MiB -> 132 MiB"
    assert (trial.noise_sd, trial.noise_df) == (0.004, 8)
    assert trial.hardware == hardware.label("cpu", night.bench.profile.threads)


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
