"""The harness over a real socket. Most of the processes have the stub of torch."""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tasks.judge.workplace import FIXED_FILES
from tests.faults.stub_torch import STUB
from trainer import alone, harness, prepare
from trainer.link import Link

TRAINER = Path(harness.__file__).parent
ROWS = np.arange(15, dtype="<u2").reshape(3, 5)

TRAINS = """
import trainer.harness as harness

def main():
    budget = harness.ready(flops_per_token=2.0)
    tokens = 0
    while (done := budget.progress(tokens)) < 1.0:
        tokens += 5
        harness.log(step=tokens // 5, tokens=tokens, loss=float("nan") if tokens == 10 else 1.5)
    harness.finish({}, seed=harness.seed(), nan=float("nan"), depth=3)
"""
CLAIMS = """
import os, sys
import torch

VOCAB_SIZE, MAX_SEQ_LEN, DEVICE_BATCH_SIZE = 16, 4, 2
assert not torch.is_grad_enabled()

@torch.compile(fullgraph=True)
def compiled(x):
    return x

class Model:
    def eval(self):
        return self
    def __call__(self, idx, targets, reduction):
        assert idx.shape == targets.shape == (2, 4) and reduction == "none"
        return torch.from_numpy((idx.numpy() + targets.numpy() / 100).reshape(-1))

def load_model(path, device):
    assert (path, device) == (os.environ["NIGHTLY_CHECKPOINT"] + "/model.pt", "cpu")
    assert sys.modules[__name__].load_model is load_model
    assert not torch.is_grad_enabled()
    return torch.compile(compiled)(Model())
"""


class Judge:
    """The judge's end of the candidate's socket."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[str]) -> None:
        self.stream = sock.makefile("rwb")
        self.sock, self.process = sock, process

    def read(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.stream.readline() or '{"msg": "nothing"}')
        return message

    def send(self, payload: bytes = b"", **message: Any) -> None:
        self.stream.write(json.dumps(message).encode() + b"\n" + payload)
        self.stream.flush()

    def hang_up(self) -> tuple[int, str]:
        """Closes the socket; the exit status and the output."""
        self.sock.shutdown(socket.SHUT_RDWR)
        printed, _ = self.process.communicate()
        return self.process.returncode, printed


@contextmanager
def candidate(folder: Path, source: str, role: str, real_torch: bool = False) -> Iterator[Judge]:
    """A process that runs `source` as train.py under the harness; it ends with the block."""
    package = folder / "trainer"
    package.mkdir()
    if not real_torch:
        shutil.copytree(STUB.parent, folder / "torch")
    for name in FIXED_FILES:
        (package / name).write_bytes((TRAINER / name).read_bytes())
    (package / "train.py").write_text(source)
    ours, theirs = socket.socketpair()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(folder),
        "NIGHTLY_FD": str(theirs.fileno()),
        "NIGHTLY_ROLE": role,
        "NIGHTLY_SEED": "7",
        "NIGHTLY_DEVICE": "cpu",
        "NIGHTLY_CHECKPOINT": str(folder),
    }
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", "from trainer import harness; harness.enter()"],
        env=environment,
        cwd=folder,
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    theirs.close()
    with ours, process:
        try:
            yield Judge(ours, process)
        finally:
            process.kill()


def test_a_training_sends_up_ready_log_done(tmp_path: Path) -> None:
    with candidate(tmp_path, TRAINS, "train") as judge:
        assert judge.read() == {"msg": "up", "python": sys.version}
        assert judge.read() == {"msg": "ready", "flops_per_token": 2.0}
        judge.send(msg="go", kind="flops", amount=30.0)
        logs = [judge.read() for _ in range(3)]
        assert [(log["msg"], log["step"], log["tokens"]) for log in logs] == [
            ("log", k, 5 * k) for k in (1, 2, 3)
        ]
        assert [log["loss"] for log in logs] == [1.5, None, 1.5]  # NaN is not JSON
        done = judge.read()
        assert (done["msg"], done["tokens"]) == ("done", 15)
        assert done["metrics"].pop("tokens_per_second") > 0
        assert done["metrics"] == {"seed": 7.0, "depth": 3.0}
        assert len(judge.stream.read(done["bytes"])) == done["bytes"]
        status, _ = judge.hang_up()
        assert status == 0  # it waited until the judge hung up


def test_a_candidate_that_crashes_sends_nothing_after_up(tmp_path: Path) -> None:
    with candidate(tmp_path, "raise RuntimeError('broken on import')", "train") as judge:
        assert judge.read()["msg"] == "up"
        assert judge.read()["msg"] == "nothing"
        status, printed = judge.hang_up()
        assert status != 0
        assert "broken on import" in printed


def test_claims_are_the_nats_of_every_target_in_order(tmp_path: Path) -> None:
    with candidate(tmp_path, CLAIMS, "claim") as judge:
        assert [judge.read()["msg"], judge.read()["msg"]] == ["up", "warm"]
        judge.send(msg="load")
        assert judge.read() == {
            "msg": "ready",
            "vocab_size": 16,
            "sequence_length": 4,
            "batch_rows": 2,
        }
        judge.send(ROWS.tobytes(), msg="nll", rows=3)
        claims = np.frombuffer(judge.stream.read(3 * 4 * 4), "<f4").reshape(3, 4)
        assert claims == pytest.approx(ROWS[:, :-1] + ROWS[:, 1:] / 100)


ANSWERS = """
import numpy as np
import torch

VOCAB_SIZE, MAX_SEQ_LEN, DEVICE_BATCH_SIZE = 16, 4, 2

class Model:
    def eval(self):
        return self
    def __call__(self, idx, targets=None, reduction="mean"):
        assert idx.shape == (2, 4)
        logits = np.zeros((2, 4, 16))
        logits[:, :, 0] = np.arange(4.0)
        logits[:, :, 1] = idx.numpy().sum(axis=1, keepdims=True)
        if targets is None:
            return torch.from_numpy(logits)
        losses = np.log(np.exp(logits).sum(axis=2)).reshape(-1)
        return torch.from_numpy(losses)

def load_model(path, device):
    return Model()

def main():
    import trainer.harness as harness
    budget = harness.ready(flops_per_token=2.0)
    steps = 0
    while budget.progress(steps * 8) < 1.0:
        steps += 1
    assert steps == 2
    harness.finish({"steps": torch.from_numpy(np.array(steps))})
"""


def test_answers_are_the_logits_at_the_positions_asked_for(
    tmp_path: Path,
) -> None:
    with candidate(tmp_path, ANSWERS, "audit") as judge:
        assert [judge.read()["msg"], judge.read()["msg"]] == ["up", "warm"]
        judge.send(msg="load")
        assert judge.read()["msg"] == "ready"
        for positions in ([2, 0], [3]):
            count = len(positions)
            judge.send(
                ROWS[:count, :4].tobytes() + np.array(positions, "<i4").tobytes(),
                msg="logits",
                rows=count,
            )
            answer = np.frombuffer(judge.stream.read(count * 16 * 4), "<f4").reshape(count, 16)
            assert answer[:, 0].tolist() == positions
            assert answer[:, 1].tolist() == ROWS[:count, :4].sum(axis=1).tolist()


def test_no_line_of_a_candidate_runs_in_a_scoring_box_before_load(tmp_path: Path) -> None:
    with candidate(tmp_path, "raise RuntimeError('it ran')", "claim") as judge:
        assert [judge.read()["msg"], judge.read()["msg"]] == ["up", "warm"]
        judge.send(msg="load")
        assert judge.read()["msg"] == "nothing"
        assert "it ran" in judge.hang_up()[1]


@pytest.mark.parametrize("real_torch", [False, True])
def test_a_smoke_step_is_two_steps_and_one_evaluation(tmp_path: Path, real_torch: bool) -> None:
    with candidate(tmp_path, ANSWERS, "smoke", real_torch) as judge:
        assert [judge.read()["msg"], judge.read()["msg"]] == ["up", "ready"]
        judge.send(msg="go", kind="flops", amount=1e9)
        smoked = judge.read()
        assert smoked["msg"] == "smoked"
        assert smoked["bytes"] > 0
        shape = {"vocab_size": 16, "sequence_length": 4, "batch_rows": 2}
        assert {name: smoked[name] for name in shape} == shape


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_box_that_is_ready_holds_no_memory_of_its_start_up_on_a_made_up_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    importlib.import_module("trainer.flops")  # which needs the real torch
    freed: list[str] = []
    cuda = SimpleNamespace(empty_cache=lambda: freed.append(device))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setenv("NIGHTLY_DEVICE", device)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(harness, "_link", lambda: Link(theirs))
        ours.sendall(b'{"msg": "go", "kind": "seconds", "amount": 1}\n')
        harness.ready(1.0)
    assert freed == ["cuda"] * (device == "cuda")


@pytest.mark.parametrize("kind", ["flops", "seconds"])
def test_a_smoke_budget_is_two_steps_of_any_size(kind: str) -> None:
    budget = harness._SmokeBudget(kind, 1e12, 1.0)
    assert [budget.progress(tokens) for tokens in (0, 5, 10)] == [0.0, 0.5, 1.0]


def test_a_smoke_budget_of_flops_lasts_as_long_as_no_token_is_reported() -> None:
    budget = harness._SmokeBudget("flops", 1e12, 1.0)
    assert [budget.progress(0) for _ in range(5)] == [0.0] * 5


METRICS = """
import numpy as np
import torch
import trainer.harness as harness

def main():
    budget = harness.ready(flops_per_token=2.0)
    harness.log(step="1", tokens=None, loss="a loss")
    budget.progress(np.int64(5))
    harness.finish({}, **METRICS)
"""


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ("{'name': 'adamw', 'text': '3', 'raw': b'3', 'none': None, 'ok': 1}", {"ok": 1.0}),
        ("{'list': [1], 'set': {1}, 'complex': 1j, 'ok': np.float32(2)}", {"ok": 2.0}),
        ("{'large': 10**400, 'inf': float('inf'), 'ok': np.array(3)}", {"ok": 3.0}),
        ("{'several': torch.ones(2), 'one': torch.tensor(4.0)}", {"one": 4.0}),
        ("{'n' * 41: 1, 'm' * 40: 5}", {"m" * 40: 5.0}),
        ("{f'm{i}': i for i in range(10_000)}", {f"m{i}": float(i) for i in range(29)}),
    ],
)
def test_metrics_that_are_no_numbers_are_left_out(
    tmp_path: Path, metrics: str, shown: dict[str, float]
) -> None:
    source = METRICS.replace("METRICS", metrics)
    with candidate(tmp_path, source, "train", real_torch="torch." in metrics) as judge:
        assert [judge.read()["msg"], judge.read()["msg"]] == ["up", "ready"]
        judge.send(msg="go", kind="flops", amount=10.0)
        assert judge.read() == {"msg": "log", "step": None, "tokens": None, "loss": None}
        done = judge.read()
        assert done["tokens"] == 5
        assert done["metrics"].pop("tokens_per_second") > 0
        assert done["metrics"] == shown


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "from_numpy(logits)\n",
            "from_numpy(logits[:, -1])\n",
            "logits of shape (2, 16), not [B, T, V] = (2, 4, 16)",
        ),
        ("from_numpy(losses)", "from_numpy(losses[:1])", "gave 1 losses for 8 targets"),
        ("harness.finish({", "({", "exit"),
        ("return Model()", "raise RuntimeError('no such weights')", "no such weights"),
    ],
    ids=["logits", "losses", "no checkpoint", "load_model"],
)
def test_a_smoke_step_finds_faults_that_would_show_after_the_budget(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in ANSWERS
    with candidate(tmp_path, ANSWERS.replace(old, new, 1), "smoke") as judge:
        judge.read()
        judge.read()
        judge.send(msg="go", kind="flops", amount=1.0)
        assert judge.read()["msg"] == "nothing"
        assert said in judge.hang_up()[1] or said == "exit"


def test_a_judge_that_hangs_up_early_ends_a_training(tmp_path: Path) -> None:
    with candidate(tmp_path, TRAINS, "train") as judge:
        judge.read()
        judge.read()
        status, printed = judge.hang_up()
        assert status != 0
        assert "the judge closed the socket where 'go' was due" in printed


def test_a_message_out_of_turn_is_refused(tmp_path: Path) -> None:
    with candidate(tmp_path, CLAIMS, "claim") as judge:
        judge.read()
        judge.read()
        judge.send(msg="go")
        assert judge.read()["msg"] == "nothing"
        assert "the judge sent 'go' where 'load' was due" in judge.hang_up()[1]


def test_progress_of_flops_is_exact_at_the_last_step() -> None:
    flops_per_token = 1966848
    budget = harness.Budget("flops", float(190 * 1024 * flops_per_token), flops_per_token)
    assert budget.progress(189 * 1024) < 1.0
    assert budget.progress(190 * 1024) == 1.0


@pytest.mark.parametrize(
    ("checkpoint_bytes", "save_seconds"),
    [(0, 0.75), (250_000_000, 1.0), (3_000_000_000, 3.75), (10**12, 5.75)],
)
def test_progress_of_seconds_holds_back_a_step_and_the_save(
    monkeypatch: pytest.MonkeyPatch, checkpoint_bytes: int, save_seconds: float
) -> None:
    clock = iter([0.0, 0.0, 4.0, 8.0, 93.0, 95.0])
    monkeypatch.setattr(harness, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    budget = harness.Budget("seconds", 100.0, 1.0, checkpoint_bytes)
    assert budget.progress(0) == 0.0
    usable = 100 - 4 - save_seconds  # the longest step takes 4 s
    assert budget.progress(1) == pytest.approx(4 / usable)
    assert budget.progress(2) == pytest.approx(8 / usable)
    assert budget.progress(3) == 1.0


def test_progress_never_falls() -> None:
    budget = harness.Budget("flops", 100.0, 1.0)
    assert [budget.progress(tokens) for tokens in (0, 50, 20, 500)] == [0.0, 0.5, 0.5, 1.0]


def test_a_curve_has_a_thousand_points_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        budget = harness.Budget("flops", 1e5, 1.0)
        monkeypatch.setattr(harness, "_link", lambda: Link(theirs))
        monkeypatch.setattr(harness._Run, "budget", budget)
        monkeypatch.setattr(harness._Run, "logged", -1)
        seen = io.BytesIO()
        for step in range(5000):
            budget.progress(20 * step)
            harness.log(step=step, tokens=20 * step, loss=1.0)
            if step % 100 == 99:  # drained, or the socket would fill up
                seen.write(ours.recv(1 << 20))
        lines = seen.getvalue().splitlines()
        assert 900 < len(lines) <= 1001
        assert json.loads(lines[-1])["step"] >= 4990


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_flop_count_that_is_not_positive_and_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="positive finite"):
        harness.ready(flops_per_token=value)


def test_enter_outside_a_box_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_link", lambda: None)
    with pytest.raises(RuntimeError, match="NIGHTLY_FD"):
        harness.enter()


def test_the_summary_has_the_form_of_upstreams() -> None:
    text = alone.summary({"val_bpb": 1.5, "training_seconds": 20.04, "num_steps": 190, "depth": 3})
    assert text.splitlines()[:3] == ["---", "val_bpb:          1.500000", "training_seconds: 20.0"]
    assert "mfu_percent:\n" in text
    assert text.splitlines()[-1] == "depth:            3"


def test_a_run_outside_a_box_scores_itself_as_the_judge_would(tmp_path: Path) -> None:
    source = f"""
import torch
import trainer.harness as harness

VOCAB_SIZE, MAX_SEQ_LEN, DEVICE_BATCH_SIZE = 16, 4, 2

def load_model(path, device):
    class Uniform(torch.nn.Module):
        def forward(self, idx, targets, reduction):
            return torch.full((idx.numel(),), {math.log(16)!r})
    assert torch.load(path)["w"].item() == 5.0
    return Uniform()

def main():
    budget = harness.ready(flops_per_token=1.0)
    budget.progress(2_000_000)
    harness.finish({{"w": torch.tensor(5.0)}}, num_steps=2)

if __name__ == "__main__":
    main()
"""
    data = tmp_path / "home" / "data"
    for part in ("public", "validation"):
        (data / part).mkdir(parents=True)
    meta = prepare.Meta("f", (16,), 4, {16: 15}, "none", prepare.METRIC_VERSION)
    (data / "public" / "meta.json").write_text(json.dumps(meta.to_dict()))
    np.save(data / "public" / "token_bytes_16.npy", np.array([2] * 15 + [0], np.int32))
    np.save(data / "validation" / "stream_16.npy", np.array([15, 1, 2, 15, 3, 4, 5, 6], np.uint16))
    (data / "validation" / "manifest.json").write_text(json.dumps({"documents": 2, "bytes": 12}))
    places = {part: str(data / part) for part in ("public", "validation")}
    budget = {"kind": "flops", "amount": 10.0}
    (data / "current.json").write_text(json.dumps(places | {"budget": budget, "device": "cpu"}))
    (tmp_path / "train.py").write_text(source)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(TRAINER.parent),
        "NIGHTLY_HOME": str(tmp_path / "home"),
    }
    run = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    figures = dict(line.split(":") for line in run.stdout.splitlines()[1:])
    assert float(figures["val_bpb"]) == pytest.approx(2.0)  # 6 tokens of 4 bits, 12 bytes
    assert float(figures["total_tokens_M"]) == pytest.approx(2.0)
    assert "unsandboxed" in run.stderr
