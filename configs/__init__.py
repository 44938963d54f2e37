"""Profiles: one TOML file each, checked when it is read.

Each setting is explained here and nowhere else. `load("laptop")` reads configs/laptop.toml and
`load("mine.toml")` reads any file. With `extends = "h100"` or `extends = "base.toml"` at its top, a
file takes every setting that it does not have itself from that profile. The ALL_CAPS constants of
train.py are in the `[train]` table; `configs.knobs` writes them into the file.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import StrictBool, StrictFloat, StrictInt
from pydantic_core import ErrorDetails, PydanticCustomError

FOLDER = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class ProposerTraits:
    """What the rest of the program needs to know of a proposer."""

    asks_a_model: bool = False  # sends requests to the endpoint of [llm], which the night pays for
    writes_code: bool = False  # reads the program and patches code, not only knobs
    has_own_account: bool = False  # what it costs is unknown
    turns_knobs: bool = False  # its changes are of the kind "knobs"


# A new proposer needs a module in tasks/proposers, a row here and one in flows/night/researcher.
PROPOSERS: Mapping[str, ProposerTraits] = {
    "tpe": ProposerTraits(turns_knobs=True),
    "llm": ProposerTraits(asks_a_model=True, writes_code=True),
    "mixed": ProposerTraits(asks_a_model=True, writes_code=True),
    "command": ProposerTraits(writes_code=True, has_own_account=True),
    "replay": ProposerTraits(),
}


TOURNAMENT = "tournament"  # in a proposer's place: several compete


def traits(proposer: str) -> ProposerTraits:
    """A proposer's traits; those of an unknown one are all False."""
    if proposer == TOURNAMENT:  # any of its contenders may
        return ProposerTraits(asks_a_model=True)
    return PROPOSERS.get(proposer, ProposerTraits())


def _known(proposer: str) -> str:
    if proposer not in PROPOSERS:
        *others, last = map(repr, PROPOSERS)
        raise PydanticCustomError("proposer", f"should be {', '.join(others)} or {last}")
    return proposer


Proposer = Annotated[str, pydantic.AfterValidator(_known)]
Count = Annotated[StrictInt, pydantic.Field(ge=0)]
Positive = Annotated[StrictInt, pydantic.Field(gt=0)]
PositiveFloat = Annotated[StrictFloat, pydantic.Field(gt=0)]
NonNegativeFloat = Annotated[StrictFloat, pydantic.Field(ge=0)]
Share = Annotated[StrictFloat, pydantic.Field(ge=0, le=0.5)]
ZLimits = Annotated[tuple[NonNegativeFloat, ...], pydantic.Field(min_length=1)]
VocabSize = Annotated[StrictInt, pydantic.Field(ge=256, le=65536)]
# A file, or some of its row groups: "all.parquet#20:".
ShardName = Annotated[str, pydantic.Field(pattern=r"^[^#]+(#\d*:\d*)?$")]
# owner/name@commit
Pin = Annotated[str, pydantic.Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*@[0-9a-f]{40}$")]
Knob = StrictBool | StrictInt | StrictFloat | str | list[StrictFloat]
KNOB = "should be true or false, a finite number, a string or a list of finite numbers"
EXPECTED = {  # by the type of pydantic's error, where its own message speaks of Python
    "tuple_type": "should be a list",
    "model_type": "should be a table",
    "dict_type": "should be a table",
}
LONGEST_VALUE = 80  # characters of a value in an error


class Table(pydantic.BaseModel):
    """A TOML table: immutable, with finite floats; an unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Table):
    # The folder of the shards: a path (relative to configs/), https://, s3:// or
    # hf://datasets/OWNER/NAME@COMMIT.
    source: str
    train: tuple[ShardName, ...] = pydantic.Field(min_length=1)  # parquet with a column `text`
    validation: ShardName  # never enters a box
    # Kept out of the training, too: it decides nothing, and is scored at a night's end only.
    # "": none, even if the extended profile has one.
    holdout: Annotated[ShardName | None, pydantic.BeforeValidator(lambda name: name or None)] = None
    # A SHA256SUMS file in the source. Without one, hf:// has its own and others trust the first
    # download.
    checksums: str | None = None
    license: str  # shown at every preparation
    validation_documents: Positive  # the first N documents of the validation file are scored
    holdout_documents: Positive | None = None  # of the holdout file; None: validation_documents
    vocab_sizes: tuple[VocabSize, ...] = pydantic.Field(min_length=1)
    # Training rows of this length are packed in advance; those for a candidate's own MAX_SEQ_LEN,
    # before its run.
    sequence_length: Positive
    tokenizer_characters: Positive = 1_000_000_000  # at most this much text trains the tokenizer


class Budget(Table):
    # flops on a CPU, so that a busy machine does not change the score; seconds on a GPU.
    kind: Literal["flops", "seconds"]
    amount: PositiveFloat  # FLOPs of one training, or seconds from go to the checkpoint's last byte
    # Grace after `seconds`, for the baseline's checkpoint to arrive. A candidate gets a grace that
    # follows from what the baseline needed: see _slack_seconds in tasks/trial/baseline.py.
    slack_seconds: NonNegativeFloat = 30.0


class Limits(Table):
    isolation: Literal["auto", "bwrap", "docker"] = "auto"  # auto: bwrap if it works, else docker
    # From process start to ready, for the baseline. A candidate gets twice what the baseline took,
    # and at least 60 s.
    startup_seconds: PositiveFloat = 180.0
    # From go to checkpoint, with a `flops` budget; for candidates, 3 times what the baseline
    # took, and at least 30 s.
    train_seconds: PositiveFloat = 900.0
    eval_seconds: PositiveFloat = 120.0  # first row to last claim; an audit: up to 16 times as much
    memory_gib: PositiveFloat = 8.0  # resident memory of the whole box
    tmp_mib: Positive = 512  # size of each tmpfs in the box: /tmp, /scratch, /dev/shm
    tasks: Positive = 256  # processes and threads in the box
    checkpoint_mib: Positive = 4096
    # While a trial trains, begin the next one: propose, try out, start up to the moment of go. Only
    # if twice the baseline's peak fits into the GPU, and twice memory_gib into the machine's
    # available memory; else the night's log says why not. On a CPU it slows the running trial.
    start_ahead: StrictBool = False


class Audit(Table):
    # Secret prefixes of one audit, more of them where a claim is far below the baseline's; up to 4
    # times as many for a model whose claims are quite unlike the baseline's. At equal odds,
    # cheating on a share f of the positions would pass with probability (1-f)^positions.
    positions: Positive = 4096
    # Of the runs that decide nothing: this share is audited all the same.
    share: Annotated[StrictFloat, pydantic.Field(ge=0, le=1)] = 0.05


class Night(Table):
    trials: Positive | None = None  # None: no limit
    # Of work; None: no limit. With neither limit a night runs until ./run stop.
    hours: PositiveFloat | None = None
    proposer: Proposer = "tpe"
    # replay: the folder of patches (relative to configs/), or the tag of a night.
    patches: str | None = None
    # llm, mixed, command: the researcher's instructions (relative to configs/).
    program: str = "program.md"
    # Share of the night's runs, or of its hours, for the certification of what was kept. 0: only
    # `./run certify` certifies.
    certify_share: Share = 0.15
    # Fresh runs of each of baseline, champion and certified champion after the certification, also
    # scored on the holdout.
    end_runs: Count = 3
    # Share of the trials that are placebos: the champion unchanged, to measure how often a change
    # that does nothing is kept.
    placebo_share: Share = 0.04


class Rule(Table):
    """When a candidate is kept, and when a kept change is certified (docs/verdicts.md).

    Figures of `./run bench verdict`, sd of one run 0.5 and 1 mean gains, df 8, a quarter to six
    tenths of the candidates change nothing. These defaults keep 4 % of the candidates that change
    nothing and make 91 to 104 % of the progress of a night that keeps every better score;
    certified, 76 to 84 % of it, and 1 to 4 % of the certified changes are luck. Where gains are no
    larger than the noise, keep = [3.4, 2.6, 2.1, 1.9, 1.4], drop = [0.65, 0.95, 1.0, 1.1, 1.4] and
    champion_runs = 7 are more patient: 5 %, 89 to 106 %, 77 to 86 %, 2 to 5 %.
    """

    # By the number of a candidate's runs, in standard errors: above `keep` it is kept, below `drop`
    # discarded, in between it is run again. The last run decides, so the last two are equal.
    keep: ZLimits = (3.0, 2.3, 2.1, 1.6, 1.35)
    drop: ZLimits = (0.9, 1.05, 1.1, 1.2, 1.35)
    champion_runs: Positive = 5  # most runs of the champion, which is run again meanwhile
    # Share of luck among the certified changes, at most; it is mostly less. With 0.3 more is
    # certified: in the simulation 79 to 91 % of that progress, with 2 to 9 % luck.
    false_discovery_rate: Annotated[StrictFloat, pydantic.Field(gt=0, le=0.5)] = 0.05
    certification_runs: Positive = 6  # most runs of the champion without one change

    @pydantic.model_validator(mode="after")
    def _better_scores_get_better_verdicts(self) -> Rule:
        keep, drop = (json.dumps(limits) for limits in (self.keep, self.drop))
        if len(self.keep) != len(self.drop):
            raise ValueError(
                f"keep = {keep} and drop = {drop} have {len(self.keep)} and {len(self.drop)} "
                "limits: each needs one for every run"
            )
        if list(self.keep) != sorted(self.keep, reverse=True):
            raise ValueError(f"keep = {keep} should not rise from run to run")
        if list(self.drop) != sorted(self.drop):
            raise ValueError(f"drop = {drop} should not fall from run to run")
        if self.keep[-1] != self.drop[-1]:
            raise ValueError(
                f"keep ends with {self.keep[-1]:g} and drop with {self.drop[-1]:g}: the last run "
                "decides, so make them equal"
            )
        return self


class Llm(Table):
    """A model behind an OpenAI-compatible endpoint.

    OPENAI_BASE_URL and OPENAI_API_KEY come from the environment.
    """

    model: str | None = None  # as the endpoint names it
    # mixed: this share of the trials; the others are tpe's.
    share: Annotated[StrictFloat, pydantic.Field(gt=0, le=1)] = 0.3
    # For one proposal. After this no further request is made for it, and tpe proposes.
    seconds: PositiveFloat = 600.0
    answer_seconds: PositiveFloat = 300.0  # for one answer to its last byte, retries included
    retries: Count = 2  # of a request that failed for a reason that may pass
    # Of one answer, reasoning included. The model's context must hold this and a prompt of 10 to 18
    # thousand tokens.
    max_tokens: Positive = 16_384
    temperature: NonNegativeFloat | None = None  # None: the endpoint's; some models allow no other
    repairs: Count = 3  # how often an unusable answer goes back
    fixes: Count = 2  # how often a crashed candidate goes back, within its own trial
    # Propose while the previous trial trains; false if the model runs on that trial's GPU.
    ahead: StrictBool = True
    # After a failed request, doubled with each further one up to 600; tpe proposes during it.
    pause_seconds: PositiveFloat = 30.0
    digest_tokens: Positive = 6000  # of the night's record in the prompt, however long the night
    bold_after: Positive = 5  # discards in a row, after which another kind of change is asked for
    prompt_price: NonNegativeFloat | None = None  # dollars a million tokens; None: cost is unknown
    cached_price: NonNegativeFloat | None = None  # of cached prompt tokens; None: prompt_price
    completion_price: NonNegativeFloat | None = None
    # A night's cap. Once it is reached, no further request is made and tpe proposes.
    dollars: PositiveFloat | None = None
    tokens: Positive | None = None  # the same, in tokens of prompts and answers

    @pydantic.model_validator(mode="after")
    def _a_cap_in_dollars_needs_prices(self) -> Llm:
        if self.dollars is not None and None in (self.prompt_price, self.completion_price):
            raise ValueError(
                f"dollars = {self.dollars:g} is a cap that needs prompt_price and "
                "completion_price: set both"
            )
        return self


class Search(Table):
    """How a night searches whose proposer writes code (llm, mixed, command): docs/search.md.

    A share is that of the trials; 0 turns it off. What a share leaves over is the proposer's own.
    In `./run bench search` four ideas a call certify 1.6 to 1.9 times the gain of one, at equal
    runs, unless the one is the model's favourite of four; no share wins beyond its error.
    """

    ideas: Positive = 4  # asked for in one call; those that are not run at once wait in a queue
    queue: Count = 12  # ideas that wait at most; those that promise least are dropped
    asks: Count = 3  # questions that a researcher may ask before a proposal
    stack_share: Share = 0.0  # near misses whose patches merge, tested as one trial
    archive_share: Share = 0.0  # built on another file than the champion
    archive: Count = 3  # such files at most
    ablation_share: Share = 0.0  # the champion without its cheapest hunks
    constants_share: Share = 0.0  # llm and command: tpe turns the knobs of the champion
    # Tournaments: dollars an hour of this machine. With it, what a model charges counts as the
    # hours that the same money would pay for; without it, only hours count.
    machine_price: PositiveFloat | None = None

    @pydantic.model_validator(mode="after")
    def _no_more_shares_than_trials(self) -> Search:
        shares = {name: share for name, share in self if name.endswith("_share")}
        if (total := math.fsum(shares.values())) > 1:
            listed = ", ".join(f"{name} = {share:g}" for name, share in shares.items() if share)
            raise ValueError(f"{listed} add up to {total:g}, the limit is 1: lower one of them")
        return self


class Command(Table):
    """A coding agent, run with your permissions in a scratch clone, the prompt on stdin."""

    # Such as ["codex", "exec", "-"]. What it leaves in trainer/train.py is the proposal.
    argv: tuple[str, ...] = ()
    seconds: PositiveFloat = 600.0  # then it is ended, and tpe proposes
    # Names of variables that it needs, such as its key; PATH, HOME and LANG it has anyway.
    environment: tuple[str, ...] = ()


class Profile(Table):
    name: str
    description: str
    device: Literal["cpu", "cuda", "mps"]
    threads: Positive = 1  # CPU threads of a box; more is slower on a shared machine
    data: Data
    budget: Budget
    limits: Limits = Limits()
    audit: Audit = Audit()
    night: Night = Night()
    verdict: Rule = Rule()
    llm: Llm = Llm()
    search: Search = Search()
    command: Command = Command()
    # On the Hugging Face hub. Naming one means trusting its publisher's native code.
    attention_kernels: tuple[Pin, ...] = ()
    train: dict[str, Knob] = {}  # knobs written into train.py by the night's first commit


class ProfileError(ValueError):
    """A profile that cannot be used; the text names the file, the key and what is allowed."""


def names() -> list[str]:
    """The profiles in configs/."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem != "search_space")


def load(name: str) -> Profile:
    """Reads a profile by name, or by path if it ends in .toml.

    Raises ProfileError for an unknown name, a file that cannot be read or is not TOML, an `extends`
    that names no profile or leads back to itself, and a key or a value that is not allowed.
    """
    path = _find(name, Path())
    if path is None:
        raise ProfileError(f"unknown profile {name!r}: {_choices()}")
    try:
        return Profile(**{**_table(path), "name": path.stem})
    except pydantic.ValidationError as error:
        raise ProfileError(f"profile {path}: {'; '.join(_problems(error.errors()))}") from error


def _find(name: str, folder: Path) -> Path | None:
    """The file of a profile: a path is relative to `folder`. None if there is no such file."""
    is_path = name.endswith(".toml")
    path = folder / os.path.expanduser(name) if is_path else FOLDER / f"{name}.toml"
    return path if path.is_file() and path.stem != "search_space" else None


def _choices() -> str:
    return f"choose one of {', '.join(names())}, or give the path of a .toml file"


def _table(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's settings over those of the profile that it extends.

    `extending` has the files on the way to this one, itself last.
    """
    table = _read(path)
    if "name" in table:
        raise ProfileError(
            f"profile {path}: name: a profile is named after its file; remove the key"
        )
    if (base := table.pop("extends", None)) is None:
        return table
    found = _find(base, path.parent) if isinstance(base, str) else None
    if found is None:
        raise ProfileError(f"profile {path}: extends = {base!r}: {_choices()}")
    found = found.resolve()
    if found in extending:
        circle = " -> ".join(map(_shown, [*extending, found]))
        raise ProfileError(
            f"profile {path}: extends = {base!r} leads back to itself: {circle}. "
            "Remove it from one of them"
        )
    return _over(_table(found, (*extending, found)), table)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {path}: not valid TOML: {error}") from error
    except OSError as error:
        raise ProfileError(f"profile {path} cannot be read: {error.strerror}") from error


def _shown(path: Path) -> str:
    """A profile as `extends` names it."""
    return path.stem if path.parent == FOLDER else str(path)


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict)
        merged[name] = _over(base[name], value) if both else value
    return merged


def _problems(errors: list[ErrorDetails]) -> list[str]:
    """What is wrong: one problem a knob, however many types it could have had.

    A list is not reported in addition to its items.
    """
    found: dict[tuple[int | str, ...], ErrorDetails] = {}
    for error in errors:
        found.setdefault(error["loc"][:2] if error["loc"][0] == "train" else error["loc"], error)
    return [
        _problem(key, found[key])
        for key in found
        if not any(key == other[: len(key)] != other for other in found)
    ]


def _problem(key: tuple[int | str, ...], error: ErrorDetails) -> str:
    """The key, its value and what is allowed."""
    name, kind = ".".join(map(str, key)), error["type"]
    if kind == "missing":
        return f"{name} is missing and has no default"
    if kind == "extra_forbidden":
        in_table = len(key) > 1
        model: Any = Profile.model_fields[str(key[0])].annotation if in_table else Profile
        allowed = ", ".join("extends" if field == "name" else field for field in model.model_fields)
        return (
            f"{name} is not a setting; {f'[{key[0]}]' if in_table else 'a profile'} has {allowed}"
        )
    if kind == "value_error":
        return f"{name}: {error['msg'].removeprefix('Value error, ')}"
    value = json.dumps(error["input"], ensure_ascii=False, default=str)
    value = value if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 3]}..."
    if key[0] == "train" and len(key) > 1:
        return f"{name} = {value}: {KNOB}"
    own = re.sub(r"^(Input|String|Tuple) | after validation", "", error["msg"])
    return f"{name} = {value}: {EXPECTED.get(kind, own)}"
