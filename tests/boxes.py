"""A tiny version of all that a run needs: a dataset of a few bytes and a candidate of a few lines.

The candidate computes with numpy, so it runs on the real torch and on tests/faults/torch_stub.
"""

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from configs import Audit, Budget, Data, Limits, Profile
from tasks.judge.box import Box
from tasks.judge.bwrap import BoxSpec, Gate, box_name
from tasks.judge.processes import ProcessId, all_pids, process_tree
from tasks.records import Bench, Caps, Dataset
from tasks.trial.baseline import first_caps

VOCAB, LENGTH = 256, 8
KERNEL_THREAD = 0x00200000  # PF_KTHREAD of linux/sched.h
STREAM = np.array([255, 1, 2, 3, 255, 4, 5, 6, 7, 8, 9], np.uint16)  # two documents, BOS = 255

# For a box without a harness: `say` sends a value, for `answer` to read.
SAY = """
import json, os, socket, sys, time
if "NIGHTLY_SOCKET" in os.environ:
    wire = socket.socket(socket.AF_UNIX)
    wire.connect(os.environ["NIGHTLY_SOCKET"])
else:
    wire = socket.socket(fileno=int(os.environ["NIGHTLY_FD"]))
def say(value):
    wire.sendall(json.dumps(value).encode() + b"\\n")
"""
# Uses 0.4 CPU-seconds in children that nobody waits for.
UNWAITED = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(20):
    if os.fork() == 0:
        while time.process_time() < 0.02: pass
        os._exit(0)
    try: os.wait()
    except ChildProcessError: pass
"""
HONEST = """
import numpy as np
import torch
import trainer.harness as harness
from trainer import prepare

VOCAB_SIZE = 256
MAX_SEQ_LEN = 8
DEVICE_BATCH_SIZE = 2


class Uniform:
    def __init__(self, logits):
        self.logits = logits

    def eval(self):
        return self

    def __call__(self, idx, targets=None, reduction="mean"):
        logits = np.tile(self.logits, (*idx.shape, 1))
        if targets is None:
            return torch.from_numpy(logits)
        norm = np.log(np.exp(logits).sum(axis=-1))
        loss = norm - np.take_along_axis(logits, targets.numpy()[..., None], -1)[..., 0]
        return torch.from_numpy(loss.reshape(-1))


def load_model(path, device):
    return Uniform(torch.load(path)["logits"].numpy())


def main():
    budget = harness.ready(flops_per_token=1.0)
    rows = prepare.train_rows(MAX_SEQ_LEN)
    tokens = 0
    while budget.progress(tokens) < 1.0:
        tokens += rows[:, 1:].size
        harness.log(step=tokens, tokens=tokens, loss=1.0)
    logits = np.zeros(256, np.float32)
    harness.finish({"logits": torch.from_numpy(logits)}, answer=42)
"""


def make_profile(share=0.0, positions=8, **limits) -> Profile:
    """A CPU profile whose budget is a few hundred tokens."""
    data = Data(
        source="corpus",
        train=("a",),
        validation="b",
        license="none",
        validation_documents=2,
        vocab_sizes=(VOCAB,),
        sequence_length=LENGTH,
        tokenizer_characters=1,
    )
    defaults = {"startup_seconds": 60, "train_seconds": 30, "eval_seconds": 30, "memory_gib": 2}
    return Profile(
        name="tiny",
        description="for tests",
        device="cpu",
        data=data,
        budget=Budget(kind="flops", amount=300),
        limits=Limits(**{**defaults, **limits}),
        audit=Audit(positions=positions, share=share),
    )


def make_dataset(folder: Path) -> Dataset:
    """A prepared dataset of bytes. Nine are scored, and a uniform guess scores 8 bits per byte."""
    public, train, validation = (folder / name for name in ("public", "train", "validation"))
    for path in (folder, public, train, validation):
        path.mkdir(exist_ok=True)
    token_bytes = np.ones(VOCAB, dtype=np.int32)
    token_bytes[255] = 0
    np.save(public / f"token_bytes_{VOCAB}.npy", token_bytes)
    meta = {
        "fingerprint": "test",
        "vocab_sizes": [VOCAB],
        "sequence_length": LENGTH,
        "bos": {str(VOCAB): 255},
        "license": "none",
        "metric_version": 1,
    }
    (public / "meta.json").write_text(json.dumps(meta))
    rows = np.arange(4 * (LENGTH + 1), dtype=np.uint16)
    rows.tofile(train / f"tokens_{VOCAB}_00000.bin")
    np.save(train / f"rows_{VOCAB}_{LENGTH}.npy", rows.reshape(4, -1))
    np.save(train / f"lengths_{VOCAB}_00000.npy", np.full(4, LENGTH + 1, np.int32))
    np.save(validation / f"stream_{VOCAB}.npy", STREAM)
    (validation / "manifest.json").write_text(json.dumps({"bytes": 9, "documents": 2}))
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return Dataset("test", str(public), str(train), str(validation), 9)


def with_holdout(dataset: Dataset, folder: Path) -> Dataset:
    """The dataset with a holdout of six bytes, none of which the validation has."""
    folder.mkdir()
    stream = np.array([255, 20, 21, 22, 255, 23, 24, 25], np.uint16)
    np.save(folder / f"stream_{VOCAB}.npy", stream)
    (folder / "manifest.json").write_text(json.dumps({"bytes": 6, "documents": 2}))
    return dataclasses.replace(dataset, holdout=str(folder), holdout_bytes=6)


def make_spec(folder: Path, **changes) -> BoxSpec:
    """A box whose parts are in `folder`, with an empty package in the candidate's place."""
    code, content, public = folder / "code", folder / "content", folder / "public"
    for path in (code, content, public):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
    (content / "rows").write_text("rows")
    (content / "rows").chmod(0o644)
    parts = {
        "role": "train",
        "code": code,
        "public": public,
        "gate": Gate.closed(folder / "gate", content),
        "home": folder,
        "isolation": "bwrap",
        "seed": 1,
        "device": "cpu",
        "threads": 1,
        "memory_bytes": 512 * 2**20,
        "tasks": 32,
        "tmp_bytes": 16 * 2**20,
    }
    return BoxSpec(**{**parts, **changes})


def answer(box: Box) -> Any:
    """What the code in the box says next."""
    box.wire.settimeout(None)
    data = b""
    while not data.endswith(b"\n"):
        chunk = box.wire.recv(65536)
        assert chunk, f"the box ended: {box.log.text()}"
        data += chunk
    return json.loads(data)


def verdict(box: Box) -> tuple[str, str]:
    """The watchdog's verdict on a box that runs until it is ended."""
    box.process.wait()
    box.watchdog.stop()
    assert box.watchdog.verdict is not None
    return box.watchdog.verdict


def alive(tree: set[ProcessId]) -> list[int]:
    """The pids of those that still run."""
    return [process.pid for process in tree if process.is_alive]


def live_boxes(home: Path) -> set[ProcessId]:
    """The live processes of every box of a state folder, whoever their parent is.

    The processes that make a box have its name in their command line, and all others are below.
    """
    name = box_name(home).encode()
    found: set[ProcessId] = set()
    for pid in all_pids():
        with contextlib.suppress(OSError):
            if name in _argv(pid):
                found |= process_tree(pid)
    return {process for process in found if process.is_alive}


def _argv(pid: int) -> list[bytes]:
    """A process's command line. It is empty for a moment during an exec: read again. OSError."""
    for _ in range(100):
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2]
        state, *_, flags = stat.split()[:7]
        if argv != [b""] or state in "ZX" or int(flags) & KERNEL_THREAD:
            return argv
        time.sleep(0.001)
    return []


def make_bench(
    dataset: Dataset,
    home: Path,
    profile: Profile | None = None,
    caps: Caps | None = None,
    isolation: str = "bwrap",
) -> Bench:
    """What a test measures candidates on; by default with the first caps of `make_profile`."""
    profile = profile or make_profile()
    return Bench(profile, dataset, home, isolation, caps or first_caps(profile))
