"""Real runs of small candidates in real boxes: what each does wrong and what the judge makes of it.

The boxes have the stub of torch, but for those of two tests: an honest run and compiled kernels.
"""

import dataclasses
import hashlib
import json
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import BaselineStopped, BoxError, DataError
from tasks.files import FileRef
from tasks.judge import audit, workplace
from tasks.judge.contention import Contention
from tasks.judge.processes import ProcessId
from tasks.judge.reference import Reference
from tasks.records import Candidate, RunResult
from tasks.trial import conditions, experiment
from tasks.trial.baseline import first_caps, measure_baseline
from tests.boxes import HONEST, make_bench, make_dataset, make_profile
from tests.faults.stub_torch import assemble_with_stub
from tests.synthetic_night import make_run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def run(dataset, tmp_path, monkeypatch):
    """Runs a candidate and checks that no folder of its boxes is left."""

    def run(
        source: str,
        caps: dict[str, Any] | None = None,
        audit=False,
        smoke=False,
        export_kernels=None,
        keep_claims=None,
        real_torch=False,
        **profile_changes,
    ):
        assemble = workplace.assemble if real_torch else assemble_with_stub
        monkeypatch.setattr(experiment, "assemble", assemble)
        profile = make_profile(**profile_changes)
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
            keep_claims=keep_claims,
        )
        assert list(tmp_path.glob("boxes/*")) == []
        return result

    return run


@pytest.mark.parametrize("length", ["131_073", "400_000_000"])
def test_a_length_beyond_the_longest_row_opens_no_box(run, monkeypatch, length):
    monkeypatch.setattr(experiment, "open_box", None)  # would fail
    result = run(f"{HONEST}\nMAX_SEQ_LEN = {length}\n")
    assert result.status == "rejected_patch"
    assert result.reason.startswith(f"MAX_SEQ_LEN = {int(length)} is beyond")


def changed(old: str, new: str) -> str:
    assert old in HONEST
    return HONEST.replace(old, new)


@pytest.mark.slow
def test_an_honest_candidate_is_scored_by_the_judge_and_leaves_no_kernels(run, tmp_path):
    kernels = tmp_path / "kernels"
    result = run(HONEST, audit=True, smoke=True, export_kernels=kernels, real_torch=True)
    assert not kernels.exists()  # it compiled nothing
    facts = (result.status, result.seed, result.isolation, result.metric_version)
    assert facts == ("ok", 7, "bwrap", 1)
    assert result.val_bpb == pytest.approx(8.0, abs=1e-6)
    assert result.claimed_bpb == result.val_bpb
    assert result.audit_gap == 0.0
    assert result.tokens == 320
    assert result.metrics["answer"] == 42.0
    assert result.metrics["tokens_per_second"] > 0
    assert len(result.curve) == 10
    assert result.startup_seconds > result.seconds > 0
    assert result.peak_memory_bytes > 10e6
    assert result.checkpoint_bytes > 4 * result.parameters > 0


def test_a_containers_engine_is_none_of_the_others_for_which_a_run_is_made_again():
    seen = Contention(seconds=10.0, waited=9.0, others=5.0, stolen=1.0)
    for isolation, others in (("bwrap", 5.0), ("none", 5.0), ("docker", None)):
        found = experiment._conditions(make_run(isolation=isolation), seen, 20.0, None)
        assert found.cpu_others == others
        quiet = (dataclasses.replace(found, cpu_waited=0.0, cpu_others=others and 0.0),)
        assert (conditions.disturbance(found, quiet) is None) == (isolation == "docker")


def test_the_conditions_of_a_run_are_on_record_also_if_it_is_stopped(run):
    ended = run(
        changed("    budget = ", "    os = __import__('os')\n    budget = ").replace(
            "    logits = np.zeros(256", "    os._exit(3)\n    logits = np.zeros(256"
        )
    )
    for result, tokens in ((run(HONEST), 320), (ended, None)):
        found = result.conditions
        assert found is not None
        assert (found.tokens, found.sm_clock) == (tokens, None)
        assert found.seconds > 0
        assert found.cpu_used is not None
        assert found.cpu_others is not None
        assert result == RunResult.from_json(json.loads(json.dumps(dataclasses.asdict(result))))


def test_a_run_that_is_not_worth_an_audit_has_none(run):
    result = run(HONEST)
    assert (result.status, result.audit_gap) == ("ok", None)
    assert result.val_bpb == result.claimed_bpb == pytest.approx(8.0, abs=1e-6)


@pytest.fixture
def reference(tmp_path):
    """Claims of a baseline for the nine bytes: ever less, but much for the sixth."""
    nats = np.linspace(6, 1, 9, dtype=np.float32)
    nats[5] += 4
    return FileRef.write(tmp_path / "claims", Reference(256, nats).save)


def test_the_claims_of_a_trusted_source_are_kept_in_the_order_of_the_text(run):
    kept: list[Reference] = []
    run(HONEST, keep_claims=kept.append)
    assert [one.vocab_size for one in kept] == [256]
    assert kept[0].nats == pytest.approx(np.full(9, np.log(256)))


@pytest.mark.parametrize("length", [8, 3])
def test_an_audit_asks_where_a_claim_is_far_below_the_baselines(
    run, reference, monkeypatch, length
):
    """Whatever the length of the candidate's rows."""
    found, plain = [], audit.draw

    def draw(odds, *how):
        found.append(odds)
        return plain(odds, *how)

    monkeypatch.setattr(audit, "draw", draw)
    source = changed("MAX_SEQ_LEN = 8", f"MAX_SEQ_LEN = {length}")
    falling = "(loss * np.linspace(1.1, 0.2, 9)[(targets.numpy() - 1).clip(0, 8)]).reshape(-1)"
    run(source.replace("loss.reshape(-1)", falling), audit=True, caps={"reference": reference})
    (odds,) = found
    assert (odds > 0).sum() == 9
    assert odds.argmax() == 6  # of the targets, as the fourth is BOS


def test_claims_of_the_baseline_that_were_changed_are_our_failure(run, reference):
    Path(reference.path).write_bytes(b"lower")
    with pytest.raises(DataError, match=r"what the baseline claimed: .*claims has 5 bytes"):
        run(HONEST, caps={"reference": reference})


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
        ("np.zeros(256,", "np.full(256, np.nan,", "bad_claims", "not finite"),
        ("loss.reshape(-1)", "loss.reshape(-1) - 9", "bad_claims", "above 1"),
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
def test_a_broken_candidate_is_a_result_with_its_reason(run, old, new, status, reason):
    result = run(changed(old, new))
    assert status in (result.status, result.status.replace("eval_startup", "eval"))
    assert reason in result.reason
    assert result.val_bpb is None


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        ('3.0 if tokens < 30 else float("nan")', "not finite at 20 points in a row since"),
        ("3.0 if tokens < 30 else 5.0", r"was 5 or more at 20 points in a row up to step 49,"),
    ],
    ids=["no number", "exploded"],
)
def test_a_training_that_has_diverged_is_stopped_with_its_curve_and_log(run, loss, reason):
    """Long before its budget is spent, which here it never is."""
    source = changed("rows[:, 1:].size", "1").replace("loss=1.0", f"loss={loss}")
    source = source.replace("    tokens = 0\n", "    tokens = 0\n    print('begun', flush=True)\n")
    result = run(source.replace("< 1.0", "< 2.0"))
    assert result.status == "train_crashed"
    assert re.search(reason, result.reason)
    assert result.reason.endswith("it has diverged")
    assert [loss for *_, loss in result.curve][:29] == [3.0] * 29
    assert result.log == "begun\n"
    assert result.val_bpb is None


def test_a_candidate_that_is_never_ready_is_stopped(run):
    result = run("import time\ntime.sleep(600)", startup_seconds=6)
    assert result.status == "startup_timeout"
    assert "6 s" in result.reason


def test_a_candidate_that_never_finishes_is_stopped_at_its_time_limit(run):
    result = run(
        changed("    tokens = 0\n", "    import time; time.sleep(600)\n"),
        caps={"wall_seconds": 1.0},
    )
    assert result.status == "train_timeout"


def test_a_candidate_that_burns_cpu_is_stopped_at_the_cap(run):
    result = run(
        changed("    tokens = 0\n", "    while True: pass\n"),
        caps={"cpu_seconds": 1.0, "wall_seconds": 600.0},
    )
    assert result.status == "train_timeout"
    assert "CPU-seconds" in result.reason


def test_a_candidate_that_closes_its_socket_and_lives_on_is_stopped(run):
    code = "    import os, time; os.close(int(os.environ['NIGHTLY_FD'])); time.sleep(600)\n"
    assert run(changed("    tokens = 0\n", code)).status == "train_crashed"


def test_a_checkpoint_over_the_limit_is_refused_unread(run):
    source = changed("np.zeros(256,", "np.zeros(2**20,")
    assert run(source, checkpoint_mib=1).status == "bad_checkpoint"


@pytest.mark.parametrize(
    ("old", "new", "status", "reason"),
    [
        ("loss.reshape(-1)", "0.97 * loss.reshape(-1)", "audit_failed", "nats per token less"),
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
            "from_numpy(logits)\n",
            "from_numpy(logits + float('inf'))\n",
            "audit_failed",
            "not finite",
        ),
        (
            "            return torch",
            "            raise RuntimeError(f'seen {idx.numpy()}')\n            return torch",
            "audit_crashed",
            "withheld",
        ),
        (
            "            return torch",
            "            import time; time.sleep(600)\n            return torch",
            "audit_timeout",
            "being audited after 8 s",
        ),
        (
            "    return Uniform(",
            "    assert os.environ['NIGHTLY_ROLE'] != 'audit'\n    return Uniform(",
            "audit_startup_crashed",
            "withheld",
        ),
    ],
    ids=["3% less", "another length", "no length", "infinite", "crash", "hang", "no load"],
)
def test_what_an_audit_stops_has_no_score_and_shows_no_row(run, old, new, status, reason):
    """One question a row, so that an audit may take `eval_seconds` and not a multiple of it."""
    result = run("import os\n" + changed(old, new), audit=True, eval_seconds=8, positions=2)
    assert (result.status, result.val_bpb) == (status, None)
    assert result.claimed_bpb is not None
    assert reason in result.reason
    assert "seen" not in result.reason + result.log


def test_a_random_share_is_audited_though_it_decides_nothing(run):
    assert run(HONEST, share=1.0).audit_gap == 0.0


def test_a_smoke_step_stops_what_cannot_be_evaluated_before_it_is_trained(run):
    result = run(changed("from_numpy(logits)\n", "from_numpy(logits[0])\n"), smoke=True)
    assert result.status == "startup_crashed"
    assert "smoke step" in result.reason
    assert "[B, T, V]" in result.reason
    assert result.seconds is None
    assert "Traceback" in result.log


@pytest.mark.parametrize(
    ("edits", "status", "reason"),
    [
        (
            (
                (
                    "    budget = harness.ready",
                    "    prepare.train_rows(8)\n    budget = harness.ready",
                ),
            ),
            "startup_crashed",
            "smoke step, .*Permission denied",
        ),
        (
            (("        tokens += rows", "        assert tokens == 0\n        tokens += rows"),),
            "startup_crashed",
            "smoke step, .*AssertionError",
        ),
        (
            (
                ("    tokens = 0\n", "    global SCALE\n    SCALE = 1.0\n    tokens = 0\n"),
                ("Uniform(torch", "Uniform(SCALE * torch"),
            ),
            "startup_crashed",
            "smoke step, .*SCALE",
        ),
        (
            (("finish({", "finish({'more': torch.from_numpy(np.zeros(2**18)), "),),
            "bad_checkpoint",
            "must have 1 to 1048576",
        ),
        (
            (("VOCAB_SIZE = 256", "VOCAB_SIZE = 257"), ("np.zeros(256,", "np.zeros(257,")),
            "bad_claims",
            "VOCAB_SIZE = 257 is not prepared",
        ),
    ],
    ids=["data before ready", "second step", "a name that main makes", "checkpoint", "vocabulary"],
)
def test_a_smoke_step_finds_what_would_cost_a_whole_budget(run, edits, status, reason):
    source = HONEST
    for old, new in edits:
        assert source.count(old) == 1
        source = source.replace(old, new)
    result = run(source, smoke=True, checkpoint_mib=1)
    assert (result.status, result.startup_seconds) == (status, None), result.reason
    assert re.search(reason, result.reason), result.reason


def test_the_log_of_a_smoke_step_is_not_that_of_the_run(run):
    result = run(changed("    tokens = 0\n", "    tokens = 0; print('training')\n"), smoke=True)
    assert (result.status, result.log) == ("ok", "training\n")


def test_what_the_scoring_boxes_print_is_kept_apart(run):
    source = changed("        logits =", "        print('seen', idx.numpy())\n        logits =")
    result = run(source)
    assert "seen [[" in result.judge_log
    assert "seen" not in result.log


def test_300_mb_of_output_are_capped(run):
    result = run(
        changed("    tokens = 0\n", "    for _ in range(300): print('x' * 2**20)\n    tokens = 0\n")
    )
    assert result.status == "ok"
    assert len(result.log) < 70_000


def test_the_error_of_a_scoring_box_is_in_no_reason_and_no_log(run):
    crash = "        raise RuntimeError(f'seen {idx.numpy()}')\n        logits ="
    result = run(changed("        logits =", crash))
    assert result.status == "eval_crashed"
    assert "seen" not in result.reason + result.log


def test_a_candidate_can_change_none_of_the_data(run, dataset):
    def hashes():
        return {
            path: hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in (dataset.public, dataset.train)
            for path in Path(folder).iterdir()
        }

    before = hashes()
    vandal = """
    import glob, os
    for path in glob.glob('/data/d/*') + glob.glob('/dataset/*') + ['/box/trainer/prepare.py']:
        crimes = (
            lambda: open(path, 'wb'), lambda: os.unlink(path), lambda: os.chmod(path, 0o777)
        )
        for crime in crimes:
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


def test_the_next_run_removes_what_a_killed_one_left(run, tmp_path):
    boxes = tmp_path / "boxes"
    dead, alive = (
        boxes / f"{platform.node()}~{process}~x"
        for process in (ProcessId(999999999, 1, "x"), ProcessId.of(1))
    )
    for folder in (dead, alive):
        (folder / "train-gate").mkdir(parents=True)
        (folder / "train-gate").chmod(0)
    with pytest.raises(AssertionError, match="~1"):  # `run` finds the folder of process 1
        run("import nothing_like_that")
    assert list(boxes.iterdir()) == [alive]
    (alive / "train-gate").chmod(0o755)


def test_a_baseline_that_is_stopped_is_the_users_error(dataset, tmp_path):
    with pytest.raises(BaselineStopped, match="startup_crashed"):
        measure_baseline(
            Candidate.parse("import nothing_like_that"),
            make_bench(dataset, tmp_path),
            "here",
            tmp_path / "k",
            tmp_path / "c",
        )


def test_a_baseline_says_which_of_its_seeds_it_trains_by_made_up_runs(
    dataset, tmp_path, monkeypatch
):
    def made_up(*_, keep_claims, report, **__):
        report("training")
        keep_claims(Reference(64, np.array([1, 2, len(said)], np.float32)))
        return make_run()

    said: list[str] = []
    monkeypatch.setattr("tasks.trial.baseline.run_experiment", made_up)
    bench = make_bench(dataset, tmp_path)
    found = measure_baseline(
        Candidate.parse(""), bench, "here", tmp_path / "k", tmp_path / "c", said.append
    )
    assert found.reference is not None
    kept = Reference.load(Path(found.reference.path))
    assert (kept.vocab_size, list(kept.nats)) == (64, [1, 2, 2])  # the mean of their claims
    trainings = [f"baseline, seed {seed} of 3: training" for seed in (1, 2, 3)]
    assert said == [*trainings, "baseline: being studied"]
    assert found.study is not None
    assert found.study.problems  # there is nothing to study, which is no reason to have no baseline


@pytest.mark.usefixtures("without_bwrap")
def test_a_box_that_never_starts_is_no_candidates_fault(run):
    with pytest.raises(BoxError, match="3 tries"):
        run(HONEST)


def test_a_gpu_that_fell_off_is_no_candidates_fault_by_a_made_up_driver(
    dataset, tmp_path, monkeypatch
):
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


EXHAUSTED = "RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate')"
# Where a candidate runs out of a GPU's memory, and what is said of it. A claim box has then sent
# the claims of a batch.
PLACES = {
    "    budget = ": ("", "starting up: .*CUBLAS_STATUS_ALLOC_FAILED"),
    "    tokens = 0\n": ("", "training: .*CUBLAS_STATUS_ALLOC_FAILED"),
    '    return Uniform(torch.load(path)["logits"].numpy())': (
        "",
        "loading its checkpoint: .*CUBLAS_STATUS_ALLOC_FAILED",
    ),
    "        norm = np": ("if 8 in idx.numpy(): ", "scoring: its log is withheld"),
    "            return torch": ("", "being audited: its log is withheld"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_made_up_gpu_without_memory_ends_a_run_as_out_of_memory_in_every_phase(run, place):
    condition, reason = PLACES[place]
    indent = " " * (len(place) - len(place.lstrip()))
    source = changed(place, f"{indent}{condition}raise {EXHAUSTED}\n{place}")
    result = run(source.replace("DEVICE_BATCH_SIZE = 2", "DEVICE_BATCH_SIZE = 1"), audit=True)
    assert result.status == "out_of_memory"
    assert re.fullmatch(f"ran out of memory while {reason}.*", result.reason)
    assert "CUBLAS" in result.log + result.judge_log


def test_a_run_without_a_sandbox_says_so(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "assemble", assemble_with_stub)
    result = experiment.run_experiment(
        Candidate.parse(HONEST),
        make_bench(dataset, tmp_path, isolation="none"),
        seed=1,
        worth_audit=lambda claimed: True,
        smoke=True,
    )
    assert (result.status, result.isolation) == ("ok", "none")
    assert result.val_bpb == pytest.approx(8.0, abs=1e-6)


def test_rows_of_the_candidates_own_length_are_packed_before_its_budget_runs(run):
    rows = "    rows = prepare.train_rows(MAX_SEQ_LEN)\n"
    source = changed(rows, f"{rows}    assert isinstance(rows, np.memmap), type(rows)\n")
    assert run(source).status == "ok"
    assert run(source.replace("MAX_SEQ_LEN = 8", "MAX_SEQ_LEN = 4")).status == "ok"
    assert run(source.replace("MAX_SEQ_LEN = 8", "MAX_SEQ_LEN = 10**5")).status == "train_crashed"


# The compiler need not try out which vector instructions work (15 CPU-seconds in each fresh box),
# nor start processes that compile beside it (7).
COMPILED = """
    import torch._inductor.config
    torch._inductor.config.cpp.vec_isa_ok = False
    torch._inductor.config.compile_threads = 1
    step = torch.compile(lambda x: (x * 2).sin().sum())
    step(torch.ones(1000))
    from torch._dynamo.utils import counters
    hits = counters["inductor"]["fxgraph_cache_hit"]
    budget = harness.ready(flops_per_token=1.0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="on a CPU torch.compile needs g++")
def test_the_kernels_that_a_run_compiled_serve_the_next(run, tmp_path):
    source = changed("    budget = harness.ready(flops_per_token=1.0)\n", COMPILED).replace(
        "answer=42", "hits=hits"
    )
    first, second = tmp_path / "first", tmp_path / "second"
    patience = {"startup_seconds": 300, "real_torch": True}
    assert run(source, export_kernels=first, **patience).metrics["hits"] == 0.0
    # torch names kernels differently once some are loaded, so it is the second file that serves.
    seeded = {"kernels": str(first)}
    assert run(source, caps=seeded, export_kernels=second, **patience).status == "ok"
    before = second.read_bytes()
    assert run(source, caps={"kernels": str(second)}, **patience).metrics["hits"] == 1.0
    assert second.read_bytes() == before
