"""The records that cross a task's border, and the errors that end a command.

Every record is frozen and complete when it is built: a field that can be unknown is ``None`` and says why.
A candidate that crashes, hangs or cheats is a value (`RunResult.status`); an exception means that we failed.

    NightlyError            base; its text names the value, the limit and the remedy
      UsageError            the person at the keyboard must act: flag, profile, tag, checkout       exit 2
      DataError             the data must be mended: missing, corrupt or overlapping shards         exit 1
      BoxError              this machine cannot run the sandbox or it broke                         exit 1
      BaselineStopped       the unpatched train.py itself does not get through                      exit 3
"""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

from tasks.files import FileRef as FileRef
from tasks.statuses import Decision as Decision
from tasks.statuses import Outcome as Outcome
from tasks.statuses import Status as Status
from tasks.usage import Usage as Usage

TRAIN = "trainer/train.py"  # the file that is edited, from the checkout's root


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset. `public` may be read by a candidate at any time, `train` only after go, `validation` never."""

    fingerprint: str  # sha256 over the shards, the tokenizer and the preparation's version
    public: str  # folder: meta.json, tokenizer_<V>.json, token_bytes_<V>.npy
    train: str  # folder: tokens_<V>_<shard>.bin, lengths_<V>_<shard>.npy, rows_<V>_<T>.npy
    validation: str  # folder: stream_<V>.npy, manifest.json
    validation_bytes: int  # UTF-8 bytes of the scored documents, the denominator of bits per byte
    cached: tuple[str, ...] = ()  # the steps that were served from the cache this time
    attention_kernels: tuple[
        FileRef, ...
    ] = ()  # manifests of native code that a box may load, read-only


@dataclasses.dataclass(frozen=True)
class Caps:
    """What a run may use and how far its claims may be off, from the baseline's own figures."""

    cpu_seconds: float | None  # go to checkpoint; None is no limit
    wall_seconds: float  # go to checkpoint, of a `flops` budget
    startup_seconds: float
    audit_gap: float  # nats a target, mean
    audit_position: float  # nats at one position
    kernels: str | None = None  # file: what the baseline compiled on this GPU, a copy for each run


@dataclasses.dataclass(frozen=True)
class RunResult:
    """One training of one candidate with one seed, as the judge saw it. Scores are in bits per byte, `None` unless ok."""

    status: Status
    reason: str
    val_bpb: float | None
    claimed_bpb: float | None
    audit_gap: (
        float | None
    )  # nats per target by which the claims are too low; None unless the run is audited
    seconds: float | None  # go to the checkpoint's last byte, the judge's clock
    cpu_seconds: float | None  # the same span, whole process tree
    tokens: int | None  # self-reported
    startup_seconds: float | None
    isolation: str
    metric_version: int
    profile: str
    seed: int
    peak_memory_bytes: int | None = None
    metrics: dict[str, float] = dataclasses.field(
        default_factory=dict
    )  # self-reported, shown, never trusted
    curve: tuple[
        tuple[int, int, float], ...
    ] = ()  # (step, tokens, training loss in nats), self-reported
    log: str = ""  # the training box's stdout and stderr, first and last 32 KiB
    judge_log: str = ""  # the scoring boxes': they have seen validation text, so it is for humans and no proposer
    audit_worst: float | None = None  # nats at one position, the largest
    startup_gpu_seconds: float | None = (
        None  # how long the GPU was busy before ready; None without one
    )
    wall_seconds: float | None = None  # all of it: every box from its first to its last moment

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> RunResult:
        """A run from its JSON, in which the curve's tuples have become lists."""
        return cls(**{**saved, "curve": tuple(map(tuple, saved["curve"]))})


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The unpatched train.py on this dataset, budget and hardware: runs with seeds 1, 2, 3."""

    runs: tuple[RunResult, ...]
    hardware: str  # fingerprint; scores of different fingerprints are never compared
    kernels: str | None = None  # file: what it compiled; None on a CPU

    @property
    def scores(self) -> tuple[float, ...]:
        return tuple(run.val_bpb for run in self.runs if run.val_bpb is not None)

    @property
    def val_bpb(self) -> float:
        return statistics.fmean(self.scores)


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A candidate train.py and where it came from. `problem` is set when the proposer's patch could not be used."""

    source: str  # the whole candidate file
    summary: str  # one line, a git subject: "DEPTH 3 -> 2"
    proposer: str  # tpe, llm, command, replay
    problem: str | None = None
    outcome: Outcome | None = None  # of the last request to a language model; None without one
    kind: str | None = None  # one of llm_calls.KINDS, None when nobody said
    hypothesis: str | None = None  # why it should help, in the proposer's words
    expected: str | None = None  # what effect it expects
    stands_in: str | None = (
        None  # why its proposer was asked, and not the model or the agent whose turn it was
    )
    note: str | None = (
        None  # how it came about, where that is unusual: "made against champion ... and carried over"
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the rule says of a trial. `z` is in standard errors, positive when the candidate is better, None when unscored."""

    decision: Decision
    reason: str
    z: float | None = None


@dataclasses.dataclass(frozen=True)
class Trial:
    """One finished trial: what the ledger holds of it, and all that a proposer may learn from."""

    number: int  # 1, 2, ...; the baseline is 0
    proposer: str
    summary: str
    status: Status
    verdict: Decision
    reason: str
    z: float | None
    val_bpb: float | None  # mean over its runs
    scores: tuple[float, ...]
    seeds: tuple[int, ...]
    knobs: dict[str, Any]  # the candidate's ALL_CAPS constants
    ast_sha256: str | None  # None when it does not parse
    parent: str  # commit it was proposed against
    commit: (
        str | None
    )  # its own commit under refs/trials/<tag>/<number>; None between decided and applied
    seconds: float | None = None  # mean training seconds of its runs
    peak_memory_bytes: int | None = None
    isolation: str = ""
    audit_gap: float | None = None  # nats, the largest of its audited runs; None if none was
    unusual: str | None = None  # what a human should look at
    wall_seconds: float | None = (
        None  # from `started` to `decided`; None for a patch that was not run
    )
    outcome: Outcome | None = None  # as the proposal's, and so are the next five
    kind: str | None = None
    hypothesis: str | None = None
    expected: str | None = None
    stands_in: str | None = None
    note: str | None = None
    fixes: int = 0  # times that a crash went back to its proposer
    crashed: tuple[str, ...] = ()  # ast_sha256 of what it mended
    longest_run_seconds: float | None = None  # wall clock; None without a run
    usage: Usage = dataclasses.field(
        default_factory=Usage
    )  # of the requests to language models for this trial


@dataclasses.dataclass(frozen=True)
class NightSoFar:
    """Everything a proposer is given: it keeps no state of its own, so a resumed night proposes as the old one would."""

    tag: str
    seed: int
    next_trial: int
    champion: str  # source of the champion's train.py
    champion_bpb: float
    baseline_bpb: float
    baseline_knobs: dict[str, Any]
    trials: tuple[Trial, ...]
    seen: dict[str, int] = dataclasses.field(
        default_factory=dict
    )  # ast_sha256 of every candidate -> its trial, baseline: 0
    sd: float | None = None  # of one run, pooled, bits per byte
    folder: Path | None = None  # nights/<tag>: diffs and curves are in its trials/<k>
    in_flight: Proposal | None = None  # of the trial before `next_trial`, while that still trains


@dataclasses.dataclass(frozen=True)
class NightState:
    """A night as its ledger tells it: what reports and MLflow are made from, and where a resumed night goes on."""

    header: dict[str, Any]  # the event `night`
    baseline: dict[str, Any] | None  # the event `baseline`
    start_commit: str | None  # the branch's first commit: the profile's knobs written into train.py
    trials: tuple[Trial, ...]  # those in git, each with its commit
    pending: Trial | None  # decided, not yet in git
    in_flight: int | None  # started, not yet decided
    champion: str | None  # commit
    champion_scores: tuple[float, ...]  # the baseline's until a trial is kept, then that trial's
    groups: tuple[
        tuple[float, ...], ...
    ]  # scores of one file with several seeds each, for the pooled sd
    finished: str | None  # the reason it ended
    updated: str  # UTC time of the last event
    used_seconds: float = (
        0.0  # for which the night was alive, by a monotonic clock: what the hours budget counts
    )
    stopped: str | None = (
        None  # why its last process ended before the night was over; None while none has
    )
    failed: bool = False  # that end was our failure and not somebody's wish

    @property
    def champion_bpb(self) -> float | None:
        return statistics.fmean(self.champion_scores) if self.champion_scores else None
