"""Real runs of small candidates through real boxes: what each does to itself, and what the judge makes of it."""

import dataclasses
import hashlib
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import BaselineStopped, BoxError
from tasks.judge.processes import ProcessId
from tasks.records import Candidate
from tasks.trial import experiment
from tasks.trial.baseline import first_caps, measure_baseline
from tests.boxes import HONEST, make_bench, make_dataset, make_profile

pytestmark = pytest.mark.slow  # torch is imported in every box


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def run(dataset, tmp_path):
    def run(
        source: str,
        caps: dict[str, Any] | None = None,
        audit=False,
        smoke=False,
        share=0.0,
        export_kernels=None,
        **limits,
    ):
        profile = make_profile(share=share, **limits)
        result = experiment.run_experiment(
            Candidate.parse(source),
            make_bench(
                dataset,
                tmp_path,
                profile,
                dataclasses.replace(first_caps(profile), **(caps or {})),
            ),
            seed=7,
            worth_audit=lambda claimed: audit,
            smoke=smoke,
            export_kernels=export_kernels,
        )
        assert list((tmp_path / "boxes").iterdir()) == []
        return result

    return run


def changed(old: str, new: str) -> str:
    assert old in HONEST
    return HONEST.replace(old, new)


def test_an_honest_candidate_is_scored_by_the_judge(run):
    result = run(HONEST)
    assert (result.status, result.seed, result.isolation, result.metric_version) == (
        "ok",
        7,
        "bwrap",
        1,
    )
    assert result.val_bpb == pytest.approx(8.0, abs=1e-6)
    assert result.claimed_bpb == result.val_bpb
    assert result.audit_gap is None
    assert result.tokens == 320
    assert result.metrics["answer"] == 42.0
    assert result.metrics["tokens_per_second"] > 0
    assert len(result.curve) == 10
    assert result.startup_seconds > result.seconds > 0
    assert result.peak_memory_bytes > 10e6


def test_the_judges_seed_reaches_the_candidate(run):
    assert run(changed("answer=42", "answer=harness.seed()")).metrics["answer"] == 7.0


@pytest.mark.parametrize(
    ("old", "new", "status", "reason"),
    [
        (
            "import torch\n",
            "import torch, nothing_like_that\n",
            "startup_crashed",
            "nothing_like_that",
        ),
        ("def main():", "def main(:", "startup_crashed", "SyntaxError"),
        (
            "    tokens = 0\n",
            "    raise RuntimeError('in mid-run')\n",
            "train_crashed",
            "in mid-run",
        ),
        ("    tokens = 0\n", "    return\n", "train_crashed", "no output"),
        ("def load_model", "def load_other", "eval_crashed", "load_model"),
        ("torch.zeros(256)", "torch.full((256,), float('nan'))", "bad_claims", "not finite"),
        (
            "targets, reduction=reduction)",
            "targets, reduction=reduction) - 9",
            "bad_claims",
            "above 1",
        ),
        (
            "MAX_SEQ_LEN = 8",
            "MAX_SEQ_LEN = 8\nimport os; os.write(int(os.environ['NIGHTLY_FD']), b'nonsense\\n')",
            "protocol_error",
            "not JSON",
        ),
        ("VOCAB_SIZE = 256", "VOCAB_SIZE = 257", "bad_claims", "257"),
    ],
    ids=[
        "import",
        "syntax",
        "mid-run",
        "no checkpoint",
        "no load_model",
        "nan",
        "negative",
        "garbage",
        "vocabulary",
    ],
)
def test_a_broken_candidate_is_a_value_with_its_reason(run, old, new, status, reason):
    result = run(changed(old, new))
    assert status in (result.status, result.status.replace("eval_startup", "eval"))
    assert reason in result.reason
    assert result.val_bpb is None


def test_one_that_never_says_ready_is_stopped(run):
    result = run("import time\ntime.sleep(600)", startup_seconds=2)
    assert result.status == "startup_timeout"
    assert "2 s" in result.reason


def test_one_that_never_finishes_is_stopped_at_its_wall(run):
    result = run(
        changed("    tokens = 0\n", "    import time; time.sleep(600)\n"),
        caps={"wall_seconds": 1.0},
    )
    assert result.status == "train_timeout"


def test_one_that_burns_cpu_is_stopped_at_the_cap(run):
    result = run(
        changed("    tokens = 0\n", "    while True: pass\n"),
        caps={"cpu_seconds": 1.0, "wall_seconds": 60.0},
    )
    assert result.status == "train_timeout"
    assert "CPU-seconds" in result.reason


def test_one_that_closes_its_socket_and_lives_on_is_stopped(run):
    code = "    import os, time; os.close(int(os.environ['NIGHTLY_FD'])); time.sleep(600)\n"
    assert run(changed("    tokens = 0\n", code)).status == "train_crashed"


def test_a_checkpoint_over_the_limit_is_refused_unread(run):
    result = run(changed("Uniform().state_dict()", "{'x': torch.zeros(2**20)}"), checkpoint_mib=1)
    assert result.status == "bad_checkpoint"


def test_an_honest_candidate_passes_its_audit_and_is_charged_nothing(run):
    result = run(HONEST, audit=True)
    assert (result.status, result.audit_gap) == ("ok", 0.0)
    assert abs(result.audit_worst) < 1e-5
    assert result.val_bpb == result.claimed_bpb


@pytest.mark.parametrize(
    ("old", "new", "status", "reason"),
    [
        (
            "reduction=reduction)",
            "reduction=reduction) * 0.97",
            "audit_failed",
            "nats a token less",
        ),
        (
            "MAX_SEQ_LEN = 8",
            "MAX_SEQ_LEN = 8 - (os.environ['NIGHTLY_ROLE'] == 'audit')",
            "audit_failed",
            "another shape",
        ),
        (
            "MAX_SEQ_LEN = 8",
            "MAX_SEQ_LEN = 8 * (os.environ['NIGHTLY_ROLE'] != 'audit')",
            "audit_failed",
            "MAX_SEQ_LEN = 0",
        ),
        (
            "            return logits\n",
            "            return logits + float('inf')\n",
            "audit_failed",
            "not finite",
        ),
        (
            "            return logits\n",
            "            raise RuntimeError(str(idx))\n",
            "audit_crashed",
            "withheld",
        ),
        (
            "            return logits\n",
            "            import time; time.sleep(600)\n",
            "audit_timeout",
            "being audited",
        ),
        (
            "    model = Uniform()\n",
            "    model = Uniform(); assert os.environ['NIGHTLY_ROLE'] != 'audit'\n",
            "audit_startup_crashed",
            "withheld",
        ),
    ],
    ids=["3% less", "another length", "no length", "infinite", "crash", "hang", "no load"],
)
def test_what_an_audit_stops_has_no_score_and_shows_no_row(run, old, new, status, reason):
    result = run("import os\n" + changed(old, new), audit=True, eval_seconds=4)
    assert (result.status, result.val_bpb) == (status, None)
    assert result.claimed_bpb is not None
    assert reason in result.reason
    assert "tensor" not in result.reason + result.log


def test_a_random_share_is_audited_though_it_decides_nothing(run):
    assert run(HONEST, share=1.0).audit_gap == 0.0


def test_a_smoke_step_stops_what_cannot_be_evaluated_before_it_is_trained(run):
    result = run(
        changed("            return logits\n", "            return logits[0]\n"), smoke=True
    )
    assert result.status == "startup_crashed"
    assert "smoke step" in result.reason
    assert "[B, T, V]" in result.reason
    assert result.seconds is None
    assert "Traceback" in result.log


def test_a_smoke_step_leaves_the_log_to_the_run_itself(run):
    result = run(changed("    tokens = 0\n", "    tokens = 0; print('training')\n"), smoke=True)
    assert (result.status, result.log) == ("ok", "training\n")


def test_what_the_scoring_boxes_print_is_kept_apart(run):
    result = run(
        changed(
            "        logits = self", "        print('seen', idx.tolist())\n        logits = self"
        )
    )
    assert "seen [[" in result.judge_log
    assert "seen" not in result.log


def test_300_mb_of_output_are_capped(run):
    result = run(
        changed("    tokens = 0\n", "    for _ in range(300): print('x' * 2**20)\n    tokens = 0\n")
    )
    assert result.status == "ok"
    assert len(result.log) < 70_000


def test_what_a_scoring_box_says_reaches_nobody(run):
    result = run(
        changed(
            "        logits = self",
            "        raise RuntimeError(f'seen {idx.tolist()}')\n        logits = self",
        )
    )
    assert result.status == "eval_crashed"
    assert "seen" not in result.reason + result.log


def test_a_candidate_can_change_none_of_the_data(run, dataset):
    def hashes():
        return {
            p: hashlib.sha256(p.read_bytes()).hexdigest()
            for f in (dataset.public, dataset.train)
            for p in Path(f).iterdir()
        }

    before = hashes()
    vandal = """
    import glob, os
    for path in glob.glob('/data/d/*') + glob.glob('/dataset/*') + ['/box/trainer/prepare.py']:
        for crime in (lambda: open(path, 'wb'), lambda: os.unlink(path), lambda: os.chmod(path, 0o777)):
            try:
                crime()
                raise SystemExit('got through: ' + path)
            except OSError:
                pass
    tokens = 0
"""
    assert run(changed("    tokens = 0\n", vandal)).status == "ok"
    assert hashes() == before


def test_validation_data_is_nowhere_in_a_train_box(run):
    search = """
    import os
    for top, folders, files in os.walk('/'):
        folders[:] = [] if top.startswith(('/proc', '/sys', '/usr', '/venv')) else folders
        assert not [f for f in files if f.startswith('stream_')], top
    tokens = 0
"""
    assert run(changed("    tokens = 0\n", search)).status == "ok"


def test_what_a_killed_run_left_behind_is_removed_by_the_next(run, tmp_path):
    dead, alive = (
        tmp_path / "boxes" / f"{platform.node()}~{process}~x"
        for process in (ProcessId(999999999, 1, "x"), ProcessId.of(1))
    )
    for folder in (dead, alive):
        (folder / "train-gate").mkdir(parents=True)
        (folder / "train-gate").chmod(0)
    with pytest.raises(
        AssertionError, match="~1"
    ):  # `run` wants an empty folder, and finds that of process 1
        run("import nothing_like_that")
    assert list((tmp_path / "boxes").iterdir()) == [alive]
    (alive / "train-gate").chmod(0o755)


def test_a_baseline_that_is_stopped_is_our_users_business(dataset, tmp_path):
    with pytest.raises(BaselineStopped, match="startup_crashed"):
        measure_baseline(
            Candidate.parse("import nothing_like_that"),
            make_bench(dataset, tmp_path),
            "here",
            tmp_path / "k",
        )


def test_a_box_that_never_starts_blames_nobody(run, monkeypatch):
    monkeypatch.setattr("tasks.judge.bwrap.find_bwrap", lambda: Path("/bin/false"))
    with pytest.raises(BoxError, match="3 tries"):
        run(HONEST)


def test_a_gpu_that_fell_off_is_no_patchs_fault_by_a_made_up_driver(dataset, tmp_path, monkeypatch):
    asked = []

    def lost() -> str:
        asked.append("again")
        return "the GPU does not answer: GPU is lost"

    monkeypatch.setattr("tasks.judge.nvml.lost", lost)
    profile = make_profile().model_copy(update={"device": "cuda"})
    with pytest.raises(BoxError, match="3 tries: the GPU does not answer"):
        experiment.run_experiment(
            Candidate.parse("raise SystemExit(1)"),
            make_bench(dataset, tmp_path, profile),
            seed=1,
            worth_audit=lambda claimed: False,
        )
    assert len(asked) == 3


def test_without_a_sandbox_it_runs_and_says_so(dataset, tmp_path):
    result = experiment.run_experiment(
        Candidate.parse(HONEST),
        make_bench(dataset, tmp_path, isolation="none"),
        seed=1,
        worth_audit=lambda claimed: True,
        smoke=True,
    )
    assert (result.status, result.isolation) == ("ok", "none")
    assert result.val_bpb == pytest.approx(8.0, abs=1e-6)


def test_rows_of_the_candidates_own_length_are_packed_before_it_pays_for_them(run):
    check = "    rows = prepare.train_rows(MAX_SEQ_LEN)\n    assert isinstance(rows, np.memmap), type(rows)\n"
    source = changed("    rows = prepare.train_rows(MAX_SEQ_LEN)\n", check).replace(
        "import torch\n", "import numpy as np\nimport torch\n", 1
    )
    assert run(source).status == "ok"
    assert run(source.replace("MAX_SEQ_LEN = 8", "MAX_SEQ_LEN = 4")).status == "ok"
    assert run(source.replace("MAX_SEQ_LEN = 8", "MAX_SEQ_LEN = 10**6")).status == "train_crashed"


COMPILED = """
    step = torch.compile(lambda x: (x * 2).sin().sum())
    step(torch.ones(1000))
    from torch._dynamo.utils import counters
    hits = counters["inductor"]["fxgraph_cache_hit"]
    budget = harness.ready(flops_per_token=1.0)
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="on a CPU torch.compile needs g++")
def test_kernels_of_a_run_that_had_some_serve_the_next(run, tmp_path):
    source = changed("    budget = harness.ready(flops_per_token=1.0)\n", COMPILED).replace(
        "answer=42", "hits=hits"
    )
    first, second, patience = tmp_path / "first", tmp_path / "second", {"startup_seconds": 300}
    assert run(source, export_kernels=first, **patience).metrics["hits"] == 0.0
    assert (
        run(source, caps={"kernels": str(first)}, export_kernels=second, **patience).status == "ok"
    )
    before = second.read_bytes()
    assert run(source, caps={"kernels": str(second)}, **patience).metrics["hits"] == 1.0
    assert second.read_bytes() == before


def test_a_run_that_compiled_nothing_leaves_no_kernels(run, tmp_path):
    assert run(HONEST, export_kernels=tmp_path / "kernels").status == "ok"
    assert not (tmp_path / "kernels").exists()
