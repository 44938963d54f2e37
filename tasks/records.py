"""The records that cross a border between two rooms.

Every record is frozen and complete when it is built: a field that can be unknown is None and says
why. A candidate that crashes, hangs or cheats is a value (`RunResult.status`); an exception means
that we failed.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from configs import Profile, canonical_form, knobs, traits
from tasks.files import FileRef
from tasks.statuses import Certificate, Decision, Outcome, Purpose, Search, Status
from tasks.usage import Usage

TRAIN = "trainer/train.py"  # the file that is edited, relative to the checkout
CONTRACT = ("load_model", "main")  # the functions that it defines at module level


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A train.py, parsed once."""

    source: str
    digest: str | None  # of canonical_form: equal for duplicates; None if it has no syntax
    knobs: Mapping[str, Any]  # its ALL_CAPS constants; empty if it does not parse
    statements: int  # size of the code, docstrings not counted; 0 if it does not parse

    @classmethod
    def parse(cls, source: str) -> Candidate:
        """Reads any text and never raises."""
        try:
            tree = knobs.parse(source)
        except SyntaxError:
            return cls(source, None, {}, 0)
        found, size = knobs.read_tree(tree), knobs.statements(tree)
        return cls(source, canonical_form.digest(source, tree), found, size)  # it changes the tree


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """The training rows of one vocabulary and length."""

    file: FileRef
    vocab_size: int
    sequence_length: int
    count: int
    tokens: int  # of the training text
    share: float  # of these tokens that the rows hold

    def describe(self) -> str:
        # Rounded down: 100 % is all of it.
        percent = int(self.share * 10_000) / 100
        return (
            f"{self.count:,} rows of {self.sequence_length} + 1 tokens hold {percent:.2f} % of the "
            f"training text, which has {self.tokens:,} tokens of vocabulary {self.vocab_size}"
        )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset: what a box may read at any time, only after go, and never.

    Of what it may never read, a scoring box is shown the tokens, row by row; of the holdout only
    for runs that ask for it.
    """

    fingerprint: str  # sha256 over the shards, the tokenizer and the preparation's version
    public: str  # folder, any time: meta.json, tokenizer_<V>.json, token_bytes_<V>.npy
    train: (
        str  # folder, after go: tokens_<V>_<shard>.bin, lengths_<V>_<shard>.npy, rows_<V>_<T>.npy
    )
    validation: str  # folder, never: stream_<V>.npy, manifest.json
    validation_bytes: int  # UTF-8 bytes of the scored documents, the denominator of bits per byte
    holdout: str | None = None  # folder, never: as `validation`; None: the profile names none
    holdout_bytes: int | None = None
    cached: tuple[str, ...] = ()  # the preparation steps that came from the cache this time
    attention_kernels: tuple[FileRef, ...] = ()  # manifests of native code that a box may load
    rows: tuple[PackedRows, ...] = ()  # those that the profile asks for


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a phase of a run cost, measured from outside its box."""

    seconds: float
    cpu_seconds: float
    gpu_seconds: float | None  # in which the GPU was busy; None without NVIDIA's driver
    work: int  # tokens through training or forward passes; of loading, the checkpoint's bytes
    row: int = 0  # tokens in each row of the forward passes


@dataclasses.dataclass(frozen=True)
class Caps:
    """What a run may use and how far its claims may be off, from the baseline's own figures."""

    cpu_seconds: float | None  # go to checkpoint; None is no limit
    wall_seconds: float  # go to checkpoint, of a `flops` budget
    startup_seconds: float
    audit_gap: float  # nats a target, mean
    audit_position: float  # nats at one position
    kernels: str | None = None  # file: what the baseline compiled on this GPU, a copy for each run
    # The same for a run whose steps move no more bytes per FLOP than the baseline's; and how many
    # those move (trainer/flops.py). None without a count.
    usual_cpu_seconds: float | None = None
    traffic_per_flop: float | None = None
    # After a `seconds` budget, until the checkpoint is there; None: the profile's.
    slack_seconds: float | None = None
    startup_cpu_seconds: float | None = None  # of a start-up beside another run; None is no limit
    # What the baseline's runs cost, phase by phase: the limits of scoring follow. Empty: no limits.
    usual: Mapping[str, Cost] = dataclasses.field(default_factory=dict)
    # What the baseline claimed for each token; None: an audit asks about all tokens alike.
    reference: FileRef | None = None


@dataclasses.dataclass(frozen=True)
class Bench:
    """What candidates are measured on. Only runs on the same bench are compared."""

    profile: Profile
    dataset: Dataset
    home: Path  # the state folder
    isolation: str  # bwrap, docker or none
    caps: Caps
    # A folder for the checkpoints of runs that are ok, one of each candidate; None keeps none.
    checkpoints: Path | None = None


@dataclasses.dataclass(frozen=True)
class Conditions:
    """A machine while a run trained on it, from go to the checkpoint, seen from outside the box.

    None: the system or the driver does not say.
    """

    seconds: float  # by the judge's clock
    tokens: int | None = None  # these two: self-reported
    steps: int | None = None
    # CPU-seconds, see tasks/judge/contention.py.
    cpu_used: float | None = None  # by the box
    cpu_waited: float | None = None  # its threads were ready, and had no CPU
    cpu_others: float | None = None  # used by processes that are neither the box's nor the night's
    cpu_stolen: float | None = None  # given to other machines by the hypervisor
    # By NVIDIA's driver, see Pace in tasks/judge/nvml.py.
    sm_clock: float | None = None  # MHz, mean
    lowest_sm_clock: float | None = None
    held_back: Mapping[str, float] = dataclasses.field(default_factory=dict)  # reason: share
    gpu_others: int | None = None  # processes of others on the GPU

    @classmethod
    def from_json(cls, saved: Iterable[Mapping[str, Any]]) -> tuple[Conditions, ...]:
        """Those of several runs. Raises TypeError."""
        return tuple(cls(**one) for one in saved)


@dataclasses.dataclass(frozen=True)
class Quarantined:
    """A run that was made again with its seed, as the machine was not as usual while it trained.

    Its score counts nowhere: the run in its place does, whatever its score is.
    """

    of: Literal["candidate", "champion"]
    seed: int
    disturbance: str  # what was not as usual
    status: Status
    val_bpb: float | None

    @classmethod
    def from_json(cls, saved: Iterable[Mapping[str, Any]]) -> tuple[Quarantined, ...]:
        """Several of them. Raises TypeError."""
        return tuple(cls(**one) for one in saved)


@dataclasses.dataclass(frozen=True)
class RunResult:
    """One training of one candidate with one seed, as the judge saw it.

    Scores are in bits per byte, and None unless the run is ok.
    """

    status: Status
    reason: str
    val_bpb: float | None
    claimed_bpb: float | None
    audit_gap: float | None  # nats per target by which the claims are too low; None: not audited
    seconds: float | None  # go to the checkpoint's last byte, by the judge's clock
    cpu_seconds: float | None  # the same span, whole process tree
    tokens: int | None  # self-reported
    startup_seconds: float | None
    isolation: str
    metric_version: int
    profile: str
    seed: int
    peak_memory_bytes: int | None = None
    # Self-reported figures: shown, never trusted.
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    # Points (step, tokens, training loss in nats), self-reported.
    curve: tuple[tuple[int, int, float], ...] = ()
    log: str = ""  # the training box's stdout and stderr, first and last 32 KiB
    judge_log: str = ""  # the scoring boxes': has seen validation text, so no proposer gets it
    audit_worst: float | None = None  # nats at one position, the largest
    startup_gpu_seconds: float | None = None  # GPU time before ready; None without a GPU
    wall_seconds: float | None = None  # from the first box's start to the last one's end
    # Of loading and scoring, by phase: eval_startup, eval, audit_startup, audit.
    costs: Mapping[str, Cost] = dataclasses.field(default_factory=dict)
    checkpoint_bytes: int | None = None
    # By the smoke step, so self-reported: what parameters and buffers need, and which tensors of
    # the checkpoint no forward pass reads.
    state_bytes: int | None = None
    unread: tuple[str, ...] = ()
    parameters: int | None = None  # elements of the checkpoint's tensors, self-reported
    # Of the training box, by NVIDIA's driver; None where that does not say.
    peak_gpu_bytes: int | None = None
    # Of a `flops` budget, per token: what the candidate stated, and what the harness counted.
    flops_per_token: float | None = None
    counted_flops_per_token: float | None = None
    holdout_bpb: float | None = None  # of the same checkpoint, audited; None: not asked for
    traffic_per_token: float | None = None  # bytes, as the harness counted them
    handover_seconds: float | None = None  # the last of `seconds`, in which the checkpoint arrived
    startup_cpu_seconds: float | None = None
    started_early: bool = False  # beside another run, at a low priority
    # Of a `seconds` budget, by tenths of it on the judge's clock: tokens up to the tenth's end, and
    # the mean training loss in it. Self-reported, like the curve.
    tenths: tuple[tuple[int, float], ...] = ()
    conditions: Conditions | None = None  # None: it never began to train

    @property
    def curve_in_tenths(self) -> tuple[tuple[int, int, float], ...]:
        """The curve in ten points, one for each tenth of the tokens that it was trained on.

        Each has the step and tokens of the last point in its tenth, and the mean loss there: single
        points are noise. A tenth without a point is left out.
        """
        most = max((tokens for _, tokens, _ in self.curve), default=0)
        tenths: list[list[tuple[int, int, float]]] = [[] for _ in range(10)]
        for point in self.curve:
            tenths[min(max(10 * point[1] - 1, 0) // max(most, 1), 9)].append(point)
        return tuple(
            (points[-1][0], points[-1][1], statistics.fmean(loss for *_, loss in points))
            for points in tenths
            if points
        )

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> RunResult:
        """A run from its JSON, where tuples have become lists and costs tables."""
        curve, unread = tuple(map(tuple, saved["curve"])), tuple(saved.get("unread", ()))
        tenths = tuple(map(tuple, saved.get("tenths", ())))
        costs = {phase: Cost(**cost) for phase, cost in saved.get("costs", {}).items()}
        conditions = saved.get("conditions")
        records = {"costs": costs, "conditions": conditions and Conditions(**conditions)}
        tuples = {"curve": curve, "unread": unread, "tenths": tenths}
        return cls(**{**saved, **tuples, **records})


@dataclasses.dataclass(frozen=True)
class StepPart:
    """What a part of a model, or of the training step, has in one step; self-reported."""

    name: str
    milliseconds: float | None  # of CPU time; None on a GPU, and FLOPs are those of a forward pass
    flops: float
    kept_bytes: int  # of results, for the backward pass


@dataclasses.dataclass(frozen=True)
class LossBin:
    """The mean loss of some targets: those from one rank or position up to the next."""

    first: int
    stop: int
    targets: int
    nats: float | None  # None: there are none


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study box says of a candidate: shown to researchers, and never part of a score.

    All but what the box cost is the candidate's own word. A part that was not asked for, or has
    failed, is empty.
    """

    seconds: float  # of the box, from its start to its end
    cpu_seconds: float
    peak_memory_bytes: int | None
    problems: tuple[str, ...] = ()
    # Where a training step goes; milliseconds are of CPU time on a CPU.
    milliseconds: float | None = None
    parts: tuple[StepPart, ...] = ()
    operations: tuple[tuple[str, float], ...] = ()  # and milliseconds, the dearest first
    peak_gpu_bytes: int | None = None
    state: tuple[tuple[str, int], ...] = ()  # elements of the checkpoint's largest tensors
    # The loss on training rows: of all there are, those that no gradient has seen.
    rows: int | None = None  # that were looked at
    unread_rows: int | None = None  # 0: all were read, and so were those that were looked at
    bits_per_byte: float | None = None
    by_frequency: tuple[LossBin, ...] = ()  # by the target's rank among the tokens
    by_position: tuple[LossBin, ...] = ()
    samples: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Study:
        """Raises KeyError, TypeError."""
        records = {
            "problems": tuple(saved["problems"]),
            "parts": tuple(StepPart(**part) for part in saved["parts"]),
            "operations": tuple((name, spent) for name, spent in saved["operations"]),
            "state": tuple((name, size) for name, size in saved["state"]),
            "by_frequency": tuple(LossBin(**one) for one in saved["by_frequency"]),
            "by_position": tuple(LossBin(**one) for one in saved["by_position"]),
            "samples": tuple(saved["samples"]),
        }
        return cls(**{**saved, **records})


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The unpatched train.py on this dataset, budget and hardware: runs with seeds 1, 2, 3."""

    runs: tuple[RunResult, ...]
    hardware: str  # hardware.describe(): scores of different hardware are never compared
    kernels: str | None = None  # file: what it compiled; None on a CPU
    reference: FileRef | None = None  # the mean of its runs' claims; older versions kept none
    study: Study | None = None  # of its last run's checkpoint; older versions made none

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Baseline:
        """A baseline from its JSON. Raises KeyError, TypeError."""
        reference, study = saved.get("reference"), saved.get("study")
        records = {
            "study": study and Study.from_json(study),
            "runs": tuple(map(RunResult.from_json, saved["runs"])),
            "reference": FileRef(**reference) if reference else None,
        }
        return cls(**{**saved, **records})

    @property
    def scores(self) -> tuple[float, ...]:
        return tuple(run.val_bpb for run in self.runs if run.val_bpb is not None)

    @property
    def val_bpb(self) -> float:
        return statistics.fmean(self.scores)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a proposer expects of its own idea, in bits per byte."""

    gain: float  # positive is better
    sd: float  # how unsure it is, above 0


@dataclasses.dataclass(frozen=True)
class Alternative:
    """A candidate that could have been run: what the choice between several knew of it."""

    idea: str  # id of a queued idea, or what a search of its own would have tried
    summary: str
    expected: float  # gain by the surrogate, bits per byte
    sd: float  # of that expectation
    score: float  # by which it was chosen: the largest is run


@dataclasses.dataclass(frozen=True)
class Idea:
    """What a proposer says about a candidate, and how the candidate came about."""

    summary: str  # one line, a git subject: "DEPTH 3 -> 2"
    proposer: str  # tpe, llm, command, replay
    outcome: Outcome | None = None  # of the last request to a language model; None without one
    kind: str | None = None  # one of usage.KINDS; None if the proposer named none
    hypothesis: str | None = None  # why it should help, in the proposer's words
    expected: str | None = None  # what effect the proposer expects
    stands_in: str | None = None  # why the model or agent whose turn it was did not propose
    note: str | None = None  # anything unusual: "made against champion ..., merged onto ..."
    search: Search = "proposal"  # which way of searching led to it
    estimate: Estimate | None = None  # the proposer's own; None if it gave none
    notes: str | None = None  # the researcher's notebook, as it was left with this idea
    # Trials whose changes it combines or takes apart; of search "archive", the trial it builds on.
    built_on: tuple[int, ...] = ()
    queued: str | None = None  # the idea's id in the night's queue: "7.2" was made for trial 7
    choice: tuple[Alternative, ...] = ()  # what it was chosen from, itself first; () without one
    contender: str | None = None  # of a tournament, by name

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Idea:
        """Raises KeyError, TypeError."""
        estimate = saved.get("estimate")
        records = {
            "estimate": estimate and Estimate(**estimate),
            "built_on": tuple(saved.get("built_on", ())),
            "choice": tuple(Alternative(**one) for one in saved.get("choice", ())),
        }
        return cls(**{**saved, **records})

    def with_note(self, note: str) -> Idea:
        """The same idea with one more note."""
        return dataclasses.replace(self, note="; ".join(filter(None, [self.note, note])))


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A candidate and the idea behind it."""

    candidate: Candidate
    idea: Idea
    problem: str | None = None  # why the proposer's patch could not be used


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the keep rule says of a trial."""

    decision: Decision
    reason: str
    z: float | None = None  # standard errors, positive if the candidate is better; None: no score


@dataclasses.dataclass(frozen=True)
class Trial:
    """One finished trial: what the ledger holds of it, and all that a proposer may learn from."""

    number: int  # 1, 2, ...; the baseline is 0
    idea: Idea
    status: Status
    verdict: Decision
    reason: str
    z: float | None
    val_bpb: float | None  # mean over its runs
    scores: tuple[float, ...]
    seeds: tuple[int, ...]
    knobs: Mapping[str, Any]  # the candidate's
    digest: str | None  # the candidate's
    parent: str  # commit it was proposed against
    commit: str | None  # refs/trials/<tag>/<number>; None between decided and applied
    seconds: float | None = None  # mean training seconds of its runs
    peak_memory_bytes: int | None = None
    isolation: str = ""
    audit_gap: float | None = None  # nats, the largest of its audited runs; None: none was audited
    unusual: str | None = None  # what a human should look at
    wall_seconds: float | None = None  # from `started` to `decided`; None: the patch was not run
    fixes: int = 0  # how often a crash went back to its proposer
    crashed: tuple[str, ...] = ()  # digests of the versions that crashed and were fixed
    longest_run_seconds: float | None = None  # wall clock; None without a run
    usage: Usage = dataclasses.field(default_factory=Usage)  # of requests to language models
    parameters: int | None = None  # self-reported; these three: the largest of its runs
    checkpoint_bytes: int | None = None
    peak_gpu_bytes: int | None = None  # by NVIDIA's driver, or else self-reported
    grown: str | None = None  # what is much larger than its champion's: growth.Size.growth
    # Of the champion that it was compared with: runs made afresh for this trial.
    champion_scores: tuple[float, ...] = ()
    champion_seeds: tuple[int, ...] = ()
    # Of the champion itself, unchanged, in a candidate's place: what the rule said of it. It never
    # becomes champion. None: a real candidate.
    placebo: Decision | None = None
    # Of one run, bits per byte, as its verdict took it; and the degrees of freedom of that.
    noise_sd: float | None = None
    noise_df: int | None = None
    hardware: str | None = None  # hardware.label() of its runs
    conditions: tuple[Conditions, ...] = ()  # of its runs that began to train
    champion_conditions: tuple[Conditions, ...] = ()  # of the champion's fresh runs
    quarantined: tuple[Quarantined, ...] = ()
    # Why the machine may be another than it was when the champion was measured.
    machine_change: str | None = None

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Trial:
        """A trial from its JSON, where tuples have become lists. Raises KeyError, TypeError."""
        knobs = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in saved["knobs"].items()
        }
        tuples = {name: tuple(saved[name]) for name in ("scores", "seeds", "crashed")}
        fresh = ("champion_scores", "champion_seeds")  # older nights have none
        tuples |= {name: tuple(saved.get(name, ())) for name in fresh}
        idea, usage = Idea.from_json(saved["idea"]), Usage(**saved["usage"])
        records = {"idea": idea, "usage": usage, "knobs": knobs}
        later = {
            "conditions": Conditions.from_json(saved.get("conditions", ())),
            "champion_conditions": Conditions.from_json(saved.get("champion_conditions", ())),
            "quarantined": Quarantined.from_json(saved.get("quarantined", ())),
        }
        return cls(**{**saved, **tuples, **records, **later})


@dataclasses.dataclass(frozen=True)
class FreshRun:
    """A run apart from the trials, with a seed that no trial has used: nothing was chosen by it.

    Its file is the champion without some of the changes that were kept: without none it is the
    champion itself, without all of them the baseline.
    """

    purpose: Purpose
    champion: str  # commit
    left_out: tuple[int, ...]  # numbers of kept trials, ascending
    seed: int
    status: Status
    reason: str
    val_bpb: float | None
    holdout_bpb: float | None = None  # of the same checkpoint; None unless it was asked for
    wall_seconds: float | None = None
    hardware: str | None = None  # hardware.describe(); None: the night's
    conditions: Conditions | None = None
    # Of the same seed, made before it on a machine that was not as usual; and what a human should
    # look at, if it was not as usual during this one either.
    quarantined: tuple[Quarantined, ...] = ()
    unusual: str | None = None

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> FreshRun:
        """Raises KeyError, TypeError."""
        conditions = saved.get("conditions")
        records = {
            "conditions": conditions and Conditions(**conditions),
            "quarantined": Quarantined.from_json(saved.get("quarantined", ())),
        }
        return cls(**{**saved, "left_out": tuple(saved["left_out"]), **records})


@dataclasses.dataclass(frozen=True)
class Claim:
    """What fresh runs say of a kept change, or of several that cannot be taken out alone."""

    trials: tuple[int, ...]  # ascending
    certificate: Certificate
    gain: float | None  # bits per byte that the champion is better with it; None: no run without it
    z: float | None  # the same in standard errors
    runs: int  # with a score, of the champion without it
    reason: str

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Claim:
        """Raises KeyError, TypeError."""
        return cls(**{**saved, "trials": tuple(saved["trials"])})


@dataclasses.dataclass(frozen=True)
class Certification:
    """Which of a champion's changes are shown to help."""

    champion: str  # commit
    claims: tuple[Claim, ...]  # by the first of their trials
    whole_runs: int  # fresh runs of the champion
    tip: str | None  # of branch autoresearch/TAG-certified; None: nothing was certified

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Certification:
        """Raises KeyError, TypeError."""
        return cls(**{**saved, "claims": tuple(map(Claim.from_json, saved["claims"]))})

    @property
    def certified(self) -> tuple[int, ...]:
        """The trials whose changes are certified, ascending."""
        claims = (claim for claim in self.claims if claim.certificate == "certified")
        return tuple(sorted(number for claim in claims for number in claim.trials))


@dataclasses.dataclass(frozen=True)
class Parent:
    """A file other than the champion that a researcher may build on: one of the night's archive."""

    trial: int
    candidate: Candidate
    val_bpb: float


@dataclasses.dataclass(frozen=True)
class NightSoFar:
    """Everything a proposer is given. It keeps no state, so a resumed night proposes the same."""

    tag: str
    seed: int
    next_trial: int
    champion: Candidate
    champion_bpb: float
    baseline_bpb: float
    baseline_knobs: Mapping[str, Any]
    trials: tuple[Trial, ...]
    # Digest of every candidate so far -> its trial; the baseline is trial 0.
    seen: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sd: float | None = None  # of one run, pooled, bits per byte
    folder: Path | None = None  # nights/<tag>: diffs and curves are in its trials/<k>
    in_flight: Proposal | None = None  # of the trial before `next_trial`, while that still trains
    beside_placebo: bool = False  # that trial still trains, and no proposer hears of it
    # Scores of earlier trials are from other hardware, or from before the machine changed.
    first_comparable: int = 1
    # The champion's score, bits per byte, that each trial was compared with; of a trial that is not
    # in it, its parent's.
    to_beat: Mapping[int, float] = dataclasses.field(default_factory=dict)
    placebos: int = 0  # trials before `next_trial` that no proposer hears of
    # What the researcher is shown and edits; None: the champion. The candidate is compared with the
    # champion all the same.
    parent: Parent | None = None
    # Ideas that wait for a run, the next one first, each merged onto the champion of now.
    waiting: tuple[Proposal, ...] = ()

    @property
    def shown(self) -> Candidate:
        """The file that the next patch is made of."""
        return self.parent.candidate if self.parent else self.champion

    @property
    def turn(self) -> int:
        """1, 2, ...: the next trial's number if the candidates alone are counted."""
        return self.next_trial - self.placebos


@dataclasses.dataclass(frozen=True)
class Program:
    """Which instructions a researcher was given, so that two programs can be compared."""

    name: str
    sha256: str
    prompts_sha256: str  # of configs/prompts


@dataclasses.dataclass(frozen=True)
class Contender:
    """One of those that compete in a night: another program, another model or another proposer."""

    name: str  # unique in the night
    proposer: str
    model: str | None = None  # None: the night's
    file: str | None = None  # of its program, as it was asked for; None: the profile's
    program: Program | None = None  # None: not read yet, or its proposer reads none

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Contender:
        """Raises KeyError, TypeError."""
        program = saved["program"] and Program(**saved["program"])
        return cls(**{**saved, "program": program})


@dataclasses.dataclass(frozen=True)
class NightHeader:
    """A night's first event: every choice that it was started with."""

    tag: str
    began: str  # UTC
    profile: str  # as it was asked for: a name, or the path of a .toml file
    settings: Profile  # as they were then: editing the profile later changes the next night
    proposer: str
    patches: str | None
    seed: int
    trials: int | None
    hours: float | None
    head: str  # commit
    branch: str | None  # None: HEAD was detached
    dirty: bool
    train_dirty: bool
    isolation: str
    flow_run: str
    deployment: str | None
    program: Program | None  # None: its proposer reads none
    notes_of: str | None = None  # the night whose last notes its researcher was given
    contenders: tuple[Contender, ...] = ()  # of a tournament, whose proposer is TOURNAMENT

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> NightHeader:
        """The event `night`. Raises KeyError, TypeError and ValueError for a damaged one."""
        every = dataclasses.fields(cls)
        later = {field.name for field in every if field.default is not dataclasses.MISSING}
        fields = {
            field.name: event[field.name]
            for field in every
            if field.name in event or field.name not in later
        }
        records = {
            # A night of a version without this table has had an idea a call, and no questions.
            "settings": Profile(**{"search": {"ideas": 1, "asks": 0}, **fields["settings"]}),
            "program": fields["program"] and Program(**fields["program"]),
            "contenders": tuple(map(Contender.from_json, fields.get("contenders", ()))),
        }
        return cls(**{**fields, **records})

    def to_json(self) -> dict[str, Any]:
        program = self.program and dataclasses.asdict(self.program)
        settings = self.settings.model_dump(mode="json")
        contenders = [dataclasses.asdict(contender) for contender in self.contenders]
        records = {"settings": settings, "program": program, "contenders": contenders}
        return {**vars(self), **records}

    def of(self, contender: Contender) -> NightHeader:
        """The header of the same night if it were this contender's alone."""
        llm, night = self.settings.llm, self.settings.night
        llm = llm.model_copy(update={"model": contender.model or llm.model})
        night = night.model_copy(update={"program": contender.file or night.program})
        return dataclasses.replace(
            self,
            settings=self.settings.model_copy(update={"llm": llm, "night": night}),
            proposer=contender.proposer,
            program=contender.program,
            contenders=(),
        )

    @property
    def parts(self) -> tuple[NightHeader, ...]:
        """One for each contender of a tournament; of any other night, itself alone."""
        return tuple(map(self.of, self.contenders)) or (self,)

    @property
    def model(self) -> str | None:
        """The language model that the night asks, or several; None if it asks none."""
        asking = (part for part in self.parts if traits(part.proposer).asks_a_model)
        models = dict.fromkeys(part.settings.llm.model for part in asking)
        return ", ".join(filter(None, models)) or None

    @property
    def asks_an_agent(self) -> bool:
        return any(traits(part.proposer).has_own_account for part in self.parts)

    @property
    def is_researched(self) -> bool:
        """Whether a proposer of it writes patches of code."""
        return any(traits(part.proposer).writes_code for part in self.parts)


@dataclasses.dataclass(frozen=True)
class BaselineEvent:
    """The ledger's event `baseline`: what every score of the night is compared with."""

    val_bpb: float
    scores: tuple[float, ...]
    seeds: tuple[int, ...]
    sd: float  # of one run, by these alone: noise.noise_of(state) is the night's
    audit_gaps: tuple[float | None, ...]
    audit_allowed: Mapping[str, float]  # gap and position, nats
    hardware: str  # hardware.describe()
    dataset: str  # fingerprint
    facts: Mapping[str, str]  # what the scores depend on, apart from the hardware
    wall_seconds: float  # of the longest run
    seconds: float  # mean training seconds
    peak_memory_bytes: int | None
    knobs: Mapping[str, Any]
    start_commit: str  # the branch's first: the profile's knobs written into train.py
    # Older nights do not say these.
    rows: str | None = None  # what the training rows hold of the text
    parameters: int | None = None  # self-reported; these three: the largest of its runs
    checkpoint_bytes: int | None = None
    peak_gpu_bytes: int | None = None  # by NVIDIA's driver, or else self-reported
    # Of earlier nights that measured the same, by tag: scores of one file with several seeds each.
    earlier_repeats: Mapping[str, tuple[tuple[float, ...], ...]] = dataclasses.field(
        default_factory=dict
    )
    conditions: tuple[Conditions, ...] = ()  # of its runs

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> BaselineEvent:
        """Raises KeyError and TypeError for a damaged event."""
        every = {field.name: field for field in dataclasses.fields(cls)}
        missing = dataclasses.MISSING
        needed = {n for n, f in every.items() if f.default is f.default_factory is missing}
        fields = {name: event[name] for name in every if name in event or name in needed}
        tuples = {name: tuple(fields[name]) for name in ("scores", "seeds", "audit_gaps")}
        earlier = {
            tag: tuple(map(tuple, groups))
            for tag, groups in fields.get("earlier_repeats", {}).items()
        }
        conditions = Conditions.from_json(fields.get("conditions", ()))
        records = {"earlier_repeats": earlier, "conditions": conditions}
        return cls(**{**fields, **tuples, **records})


@dataclasses.dataclass(frozen=True)
class Remeasurement:
    """The ledger's event `remeasured`: from here on the night compares with these scores alone.

    Those from before stay on record under the hardware that they were measured on.
    """

    reason: str  # what has changed
    trials: int  # that were finished before
    hardware_before: str
    baseline_before: tuple[float, ...]  # scores, as those of the champion
    champion_before: tuple[float, ...]
    baseline: BaselineEvent | None  # on this hardware; None: that is the same, and so is its score
    scores: tuple[float, ...]  # of the champion; these three of the same runs
    seeds: tuple[int, ...]
    conditions: tuple[Conditions, ...]

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> Remeasurement:
        """Raises KeyError and TypeError for a damaged event."""
        fields = {field.name: event[field.name] for field in dataclasses.fields(cls)}
        names = ("baseline_before", "champion_before", "scores", "seeds")
        tuples = {name: tuple(fields[name]) for name in names}
        baseline = fields["baseline"] and BaselineEvent.from_json(fields["baseline"])
        conditions = Conditions.from_json(fields["conditions"])
        return cls(**{**fields, **tuples, "baseline": baseline, "conditions": conditions})


@dataclasses.dataclass(frozen=True)
class NightState:
    """A night as its ledger tells it: reports are made from it, and a resumed night starts here."""

    header: NightHeader
    baseline: BaselineEvent | None
    trials: tuple[Trial, ...]  # those in git, each with its commit
    pending: Trial | None  # decided, not yet in git
    in_flight: int | None  # started, not yet decided
    champion: str | None  # commit
    # The baseline's until a trial is kept, then that trial's; and those of fresh runs since.
    champion_scores: tuple[float, ...]
    # For the sd: scores of one file with several seeds each, without the run for whose score the
    # file was run again. Those of the champion are apart.
    groups: tuple[tuple[float, ...], ...]
    finished: str | None  # why it ended
    updated: str  # UTC time of the last event
    used_seconds: float = 0.0  # time alive, by a monotonic clock: what the hours budget counts
    stopped: str | None = None  # why its last process ended before the night was over
    failed: bool = False  # that end was a failure of ours, not somebody's wish
    champion_seeds: tuple[int, ...] = ()
    champion_repeats: tuple[float, ...] = ()  # the champion's group
    # Of `champion_scores` those by which nobody chose it: made since it became champion.
    champion_fresh: tuple[float, ...] = ()
    # Since the last re-measurement, and before that: those are on record and compared with nothing.
    fresh_runs: tuple[FreshRun, ...] = ()
    earlier_fresh_runs: tuple[FreshRun, ...] = ()
    certification: Certification | None = None  # the last; perhaps of an earlier champion
    champion_conditions: tuple[Conditions, ...] = ()  # of the runs of `champion_scores`
    # Of the baseline's and the champions' runs since the last re-measurement: what is usual.
    usual: tuple[Conditions, ...] = ()
    remeasurements: tuple[Remeasurement, ...] = ()

    @property
    def first_comparable(self) -> int:
        """The first trial that was compared with what the night compares with now."""
        return self.remeasurements[-1].trials + 1 if self.remeasurements else 1

    @property
    def all_fresh_runs(self) -> tuple[FreshRun, ...]:
        """In the order in which they were made."""
        return (*self.earlier_fresh_runs, *self.fresh_runs)

    @property
    def repeats(self) -> tuple[tuple[float, ...], ...]:
        """All groups of scores that tell how much one file's scores scatter."""
        fresh: dict[tuple[object, ...], list[float]] = {}
        for run in self.fresh_runs:
            if run.val_bpb is not None:
                fresh.setdefault((run.champion, run.left_out), []).append(run.val_bpb)
        return (*self.groups, self.champion_repeats, *map(tuple, fresh.values()))

    @property
    def candidates(self) -> tuple[Trial, ...]:
        """The trials but for placebos."""
        return tuple(trial for trial in self.trials if trial.placebo is None)

    @property
    def keeps(self) -> tuple[Trial, ...]:
        """The trials whose changes the champion has."""
        return tuple(trial for trial in self.trials if trial.verdict == "keep")

    @property
    def placebos(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if trial.placebo is not None)

    @property
    def start_commit(self) -> str | None:
        return self.baseline.start_commit if self.baseline else None

    @property
    def champion_bpb(self) -> float | None:
        return statistics.fmean(self.champion_scores) if self.champion_scores else None
