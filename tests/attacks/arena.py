"""What an attack is, and where it is run: its data set, its limits, its boxes, and the bait.

Every candidate in a real box, the honest ones too, starts with a few lines of ours that try to
create a file with a known name wherever a host would keep it, and look for that file from an
earlier box. An attack that gets through writes `GOT THROUGH` to its log; the suite looks from
outside for what an attack cannot know.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from configs import Audit, Budget, Data, Limits, Profile
from tasks.judge import processes, workplace
from tasks.judge.bwrap import Isolation, box_name
from tasks.records import Bench, Candidate, Caps, Dataset, RunResult
from tasks.statuses import Status
from tasks.trial.allowance import usual_costs
from tasks.trial.experiment import run_experiment
from tests.faults.stub_torch import assemble_with_stub
from trainer import packing, prepare

Room = Literal[
    "lying about the score",
    "peeking",
    "cheating time",
    "under-reporting",
    "training while scored",
    "breaking out",
]
Boxes = Literal["real", "stub", "forked"]
VOCAB, LENGTH, BOS = 64, 32, 63
SECRET = "sk-attack-suite-secret"
MARKER = "NIGHTLY_ATTACK_WAS_HERE"
THROUGH = "GOT THROUGH"
LEAKED = "LEAKED-VALIDATION"  # what an attack writes in front of validation text
# The real boxes of all attacks; `docker` needs an engine, and NIGHTLY_DOCKER_IMAGE to name its image
ISOLATION = cast(Isolation, os.environ.get("NIGHTLY_ATTACK_BOXES", "bwrap"))
HONEST = (Path(__file__).parent / "honest_candidate.py").read_text(encoding="utf-8")
BEFORE_TORCH = "import torch\nimport torch.nn.functional as F\n"

CAPS = Caps(
    cpu_seconds=None, wall_seconds=60.0, startup_seconds=60.0, audit_gap=1e-4, audit_position=1e-2
)
LIMITS = Limits(
    train_seconds=60, eval_seconds=60, memory_gib=2, tmp_mib=16, tasks=64, checkpoint_mib=64
)
BUDGET = Budget(kind="flops", amount=2e9)
AUDIT = Audit(positions=2048, share=0.0)
STOPPED_BY = {  # unless the attack itself says it better
    "ok": "nothing to gain",
    "startup_timeout": "the limit on start-up",
    "train_timeout": "the judge's clock",
    "bad_checkpoint": "the limits of the checkpoint",
    "protocol_error": "the limits of a message",
    "out_of_memory": "the watchdog on memory",
    "too_many_tasks": "the watchdog on tasks",
    "eval_startup_timeout": "the limit on loading",
    "eval_timeout": "the limit on scoring",
    "bad_claims": "the checks of the claims",
    "audit_timeout": "the limit on the audit",
    "audit_failed": "the audit",
    "dishonest_flops": "the count of a real step",
}


@dataclasses.dataclass(frozen=True)
class Attack:
    """A cheating or broken candidate: an edit of the honest one, and how the judge must end it."""

    name: str
    room: Room
    what: str  # one line: how it cheats
    edits: tuple[tuple[str, str], ...]  # (old, new); each old is in the honest source exactly once
    status: Status
    reason: str  # regular expression: somewhere in the result's reason
    gains_nothing: bool = False  # it ends ok, with the honest score
    by: str | None = None  # what stops it, where the status does not tell
    caps: Caps = CAPS
    limits: Limits = LIMITS
    budget: Budget = BUDGET
    audit: Audit = AUDIT
    forked: bool = False  # about the score alone: its boxes may be forks
    limited: bool = False  # its scoring may cost what the honest candidate's does, as in a night
    smoke: bool = False  # it has a smoke step first, as the first run of every trial

    @property
    def stopped_by(self) -> str:
        return self.by or STOPPED_BY.get(self.status, "its own end")


@dataclasses.dataclass(frozen=True)
class Control:
    """An unusual but honest candidate, which must be scored and pass its audit."""

    name: str
    what: str
    edits: tuple[tuple[str, str], ...]
    caps: Caps = CAPS
    limits: Limits = LIMITS
    budget: Budget = BUDGET
    audit: Audit = AUDIT
    forked: bool = True
    limited: bool = True
    smoke: bool = False


def before_torch(code: str) -> tuple[tuple[str, str], ...]:
    """The edit that runs `code` in every box before all else; it ends there and imports no torch."""
    return ((BEFORE_TORCH, code.strip("\n") + "\n" + BEFORE_TORCH),)


def boxes_of(candidate: Attack | Control) -> Boxes:
    """Real boxes, real ones with the stub of torch for candidates that need none, or forks."""
    if candidate.forked:
        return "forked"
    return "stub" if any(old == BEFORE_TORCH for old, _ in candidate.edits) else "real"


def edited(edits: tuple[tuple[str, str], ...]) -> str:
    """The honest source with all `edits`. Raises ValueError for one that does not match once."""
    source = HONEST
    for old, new in edits:
        if source.count(old) != 1:
            raise ValueError(f"{old!r} is {source.count(old)} times in the candidate, not once")
        source = source.replace(old, new)
    return source


@dataclasses.dataclass(frozen=True)
class Arena:
    """The data set of a suite and what an attack may know of the host: all but the secret.

    Each kind of box has a state folder of its own below `folder`.
    """

    dataset: Dataset
    folder: Path
    bait: dict[str, str | int]

    def home(self, boxes: Boxes) -> Path:
        return self.folder / "state" / boxes

    def source(self, candidate: Attack | Control) -> str:
        """The whole train.py. Forks share their scratch folders, so they create no files there."""
        lines = [
            "import os",
            f"BAIT = {self.bait!r}",
            "for folder in BAIT['folders'].split(':'):",
            f"    if os.path.exists(folder + '/{MARKER}'):",
            f"        raise SystemExit('{THROUGH} a file of another box in ' + folder)",
            f"    try: open(folder + '/{MARKER}', 'w').close()",
            "    except OSError: continue",
        ]
        start = "" if candidate.forked else "\n".join(lines) + "\n"
        return start + edited(candidate.edits)

    def run(self, candidate: Attack | Control, honest: Future[RunResult] | None) -> RunResult:
        """The candidate's run, audited whatever it claims; after the honest one's if `limited`."""
        caps = candidate.caps
        if candidate.limited and honest:
            caps = dataclasses.replace(caps, usual=usual_costs([honest.result()]))
        return run_experiment(
            Candidate.parse(self.source(candidate)),
            Bench(
                make_profile(candidate.limits, candidate.budget, candidate.audit),
                self.dataset,
                self.home(boxes_of(candidate)),
                "bwrap" if candidate.forked else ISOLATION,
                caps,
            ),
            seed=1,
            worth_audit=lambda claimed: True,
            smoke=candidate.smoke,
        )

    def assemble(self, source: str, work: Path) -> Path:
        """`workplace.assemble`, with the stub of torch for the boxes that have it."""
        stub = self.home("stub") in work.parents
        return (assemble_with_stub if stub else workplace.assemble)(source, work)


def make_profile(limits: Limits = LIMITS, budget: Budget = BUDGET, audit: Audit = AUDIT) -> Profile:
    data = Data(
        source="synthetic",
        train=("train",),
        validation="validation",
        license="none",
        validation_documents=32,
        vocab_sizes=(256,),  # the least a profile may name; the prepared one is VOCAB
        sequence_length=LENGTH,
    )
    return Profile(
        name="arena",
        description="the attack suite",
        device="cpu",
        data=data,
        budget=budget,
        limits=limits,
        audit=audit,
    )


def make_dataset(folder: Path, validation_documents: int = 32) -> Dataset:
    """Synthetic text of 48 letters and 15 pairs of them, in which each token has a few likely
    successors.

    32 validation documents are 128 rows of 32 tokens; training has 2400 documents.
    """
    random = np.random.default_rng(0)
    letters = [bytes([65 + i]) for i in range(48)]
    vocabulary = letters + [letters[3 * i] + letters[3 * i + 1] for i in range(15)]
    likely = np.stack([random.permutation(BOS)[:6] for _ in range(BOS)])
    train, lengths = _documents(random, likely, 2400)
    stream, _ = _documents(random, likely, validation_documents)
    public, rows, hidden = (folder / name for name in ("public", "train", "validation"))
    for path in (public, rows, hidden):
        path.mkdir(parents=True)
    ranks = [[b64encode(token).decode(), rank] for rank, token in enumerate(vocabulary)]
    (public / f"tokenizer_{VOCAB}.json").write_text(
        json.dumps({"pattern": ".", "ranks": ranks, "specials": {prepare.BOS: BOS}})
    )
    token_bytes = np.array([*map(len, vocabulary), 0], np.int32)
    np.save(public / f"token_bytes_{VOCAB}.npy", token_bytes)
    meta = prepare.Meta("arena", (VOCAB,), LENGTH, {VOCAB: BOS}, "none", prepare.METRIC_VERSION)
    (public / "meta.json").write_text(json.dumps(meta.to_dict()))
    train.tofile(rows / f"tokens_{VOCAB}_00000.bin")
    np.save(rows / f"lengths_{VOCAB}_00000.npy", lengths)
    np.save(rows / f"rows_{VOCAB}_{LENGTH}.npy", packing.pack_rows([train], lengths, LENGTH))
    np.save(hidden / f"stream_{VOCAB}.npy", stream)
    scored = int(token_bytes[stream].sum())
    (hidden / "manifest.json").write_text(
        json.dumps({"bytes": scored, "documents": validation_documents})
    )
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return Dataset("arena", str(public), str(rows), str(hidden), scored)


def _documents(
    random: np.random.Generator, likely: npt.NDArray[np.int64], count: int
) -> tuple[prepare.Tokens, npt.NDArray[np.int32]]:
    """(BOS-joined stream, tokens in each document) of a first-order Markov chain.

    Each token has six likely successors; a tenth of the tokens are noise.
    """
    lengths = np.full(count, 128, np.int32)
    tokens = np.empty((count, 128), np.uint16)
    tokens[:, 0] = BOS
    tokens[:, 1] = random.integers(BOS, size=count)
    for i in range(2, 128):
        choice = likely[
            tokens[:, i - 1], random.choice(6, size=count, p=(0.5, 0.2, 0.1, 0.1, 0.05, 0.05))
        ]
        tokens[:, i] = np.where(
            random.random(count) < 0.1, random.integers(BOS, size=count), choice
        )
    return tokens.reshape(-1), lengths


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP and an abstract unix socket of the host that no box should reach."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"\0nightly-attack-suite-{os.getpid()}")
        unix.listen()
        tcp.setblocking(False)
        unix.setblocking(False)
        yield tcp, unix


class Witness:
    """Records, from outside and twice a second, every process of every box of some state folders."""

    def __init__(self, *homes: Path) -> None:
        self._names = {box_name(home).encode() for home in homes}
        self._seen: set[processes.ProcessId] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.look()

    def look(self) -> None:
        for pid in processes.all_pids():
            with contextlib.suppress(OSError):
                argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if not self._names.isdisjoint(argv):
                    self._seen |= processes.process_tree(pid)

    @property
    def count(self) -> int:
        return len(self._seen)

    def survivors(self) -> list[int]:
        self.look()
        return [process.pid for process in self._seen if process.is_alive]
