"""Profiles: one TOML file each, checked when it is read. A setting is explained here and nowhere else.

`load("laptop")` reads configs/laptop.toml; `load("mine.toml")` reads any file. `extends = "h100"` at the top of a file takes
every setting that it does not have from that profile. The ALL_CAPS constants of train.py are in the `[train]` table;
`configs.knobs` writes them into the file.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import StrictBool, StrictFloat, StrictInt
from pydantic_core import ErrorDetails

FOLDER = Path(__file__).resolve().parent
Proposer = Literal["tpe", "llm", "mixed", "command", "replay"]
PROPOSERS: tuple[Proposer, ...] = get_args(Proposer)
ASK_A_MODEL = ("llm", "mixed")
READ_CODE = (*ASK_A_MODEL, "command")
Count = Annotated[StrictInt, pydantic.Field(ge=0)]
Positive = Annotated[StrictInt, pydantic.Field(gt=0)]
PositiveFloat = Annotated[StrictFloat, pydantic.Field(gt=0)]
NonNegativeFloat = Annotated[StrictFloat, pydantic.Field(ge=0)]
VocabSize = Annotated[StrictInt, pydantic.Field(ge=256, le=65536)]
ShardName = Annotated[
    str, pydantic.Field(pattern=r"^[^#]+(#\d*:\d*)?$")
]  # a file, or row groups of it: "all.parquet#20:"
Pin = Annotated[
    str, pydantic.Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*@[0-9a-f]{40}$")
]  # owner/name@commit
Knob = StrictBool | StrictInt | StrictFloat | str | list[StrictFloat]
KNOB = "should be true or false, a finite number, a string or a list of finite numbers"
WORDS = {
    "tuple_type": "should be a list",
    "model_type": "should be a table",
    "dict_type": "should be a table",
}
LONGEST_VALUE = 80  # characters of a value that an error shows


class Table(pydantic.BaseModel):
    """A TOML table: immutable, its floats finite, and a key it does not know is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Table):
    source: str  # folder of the shards: a path (relative to configs/), https://, s3:// or hf://datasets/OWNER/NAME@COMMIT
    train: tuple[ShardName, ...] = pydantic.Field(
        min_length=1
    )  # parquet files with a column `text`
    validation: ShardName  # never reaches a box
    holdout: ShardName | None = (
        None  # no night reads it: kept out of the training, to confirm a result with one day
    )
    checksums: str | None = (
        None  # a SHA256SUMS file in the source; else hf:// checks its own, and a first download is trusted
    )
    license: str  # shown at every preparation
    validation_documents: (
        Positive  # the first N documents of the validation file are the scored list
    )
    vocab_sizes: tuple[VocabSize, ...] = pydantic.Field(min_length=1)
    sequence_length: Positive  # training rows are packed for it in advance; for a candidate's own MAX_SEQ_LEN before its run
    tokenizer_characters: Positive = (
        1_000_000_000  # the tokenizer is trained on at most this much text
    )


class Budget(Table):
    kind: Literal[
        "flops", "seconds"
    ]  # CPU: flops, so that a busy machine does not move the score; GPU: seconds
    amount: PositiveFloat  # FLOPs of one training, or seconds from go to the checkpoint's last byte
    slack_seconds: NonNegativeFloat = (
        5.0  # grace after a `seconds` budget, the same for every candidate
    )


class Limits(Table):
    isolation: Literal["auto", "bwrap", "docker"] = (
        "auto"  # auto: bwrap where it holds, else docker; never without
    )
    # Process start to ready, of the baseline and of `./run trial`. A candidate has twice the baseline's, and at least 60 s.
    startup_seconds: PositiveFloat = 180.0
    train_seconds: PositiveFloat = (
        900.0  # of a `flops` budget, go to checkpoint; the baseline then sets 3 times its own
    )
    eval_seconds: PositiveFloat = 120.0  # first row to last claim; an audit: up to 16 times as much
    memory_gib: PositiveFloat = 8.0  # resident memory of the whole box
    tmp_mib: Positive = 512  # size of each tmpfs in the box: /tmp, /scratch, /dev/shm
    tasks: Positive = 256  # processes and threads in the box
    checkpoint_mib: Positive = 4096


class Audit(Table):
    positions: Positive = 4096  # secret prefixes of one audit: a cheat on a share f of the positions passes (1-f)^positions
    share: Annotated[StrictFloat, pydantic.Field(ge=0, le=1)] = (
        0.05  # of the runs that decide nothing, audited all the same
    )


class Night(Table):
    trials: Positive | None = None  # None: no limit
    hours: PositiveFloat | None = (
        None  # of work; None: no limit. With neither a night goes on until ./run stop
    )
    proposer: Proposer = "tpe"
    patches: str | None = (
        None  # replay: the folder of patches (relative to configs/), or the tag of a night
    )
    program: str = (
        "program.md"  # llm, mixed, command: what the researcher is told (relative to configs/)
    )


class Llm(Table):
    """A model behind an OpenAI-compatible endpoint; OPENAI_BASE_URL and OPENAI_API_KEY come from the environment."""

    model: str | None = None  # as the endpoint names it
    share: Annotated[StrictFloat, pydantic.Field(gt=0, le=1)] = (
        0.3  # mixed: of the trials; the others are tpe's
    )
    seconds: PositiveFloat = (
        600.0  # after this no further request is made for a proposal, and tpe makes it
    )
    answer_seconds: PositiveFloat = 300.0  # for one answer to its last byte, retries included
    retries: Count = 2  # of a request that is refused in a way that may pass
    max_tokens: Positive = 16_384  # of one answer, reasoning included; with a prompt of 10 to 18 thousand it must fit the model
    temperature: NonNegativeFloat | None = (
        None  # None: the endpoint's own, as some models take no other
    )
    repairs: Count = 3  # times that an answer which cannot be used goes back
    fixes: Count = 2  # times that a candidate which crashed goes back, within its own trial
    ahead: StrictBool = True  # proposes while the trial before trains; false where the model would take that trial's GPU from it
    pause_seconds: PositiveFloat = (
        30.0  # after a request that failed, doubled with each to 600; tpe proposes meanwhile
    )
    digest_tokens: Positive = 6000  # of the night's record in the prompt, however long the night
    bold_after: Positive = 5  # discards in a row, after which another kind of change is asked for
    prompt_price: NonNegativeFloat | None = (
        None  # dollars a million tokens; None: unknown, and so is the cost
    )
    cached_price: NonNegativeFloat | None = (
        None  # of prompt tokens from the endpoint's cache; None: as prompt_price
    )
    completion_price: NonNegativeFloat | None = None
    dollars: PositiveFloat | None = (
        None  # a night's cap: once it is reached no request is made, and tpe proposes
    )
    tokens: Positive | None = None  # the same, in tokens of prompts and answers

    @pydantic.model_validator(mode="after")
    def _a_cap_in_dollars_needs_prices(self) -> Llm:
        if self.dollars is not None and None in (self.prompt_price, self.completion_price):
            raise ValueError(
                f"dollars = {self.dollars:g} is a cap that needs prompt_price and completion_price: set both"
            )
        return self


class Command(Table):
    """An external coding agent, run with your rights in a scratch clone. The prompt is its standard input."""

    argv: tuple[
        str, ...
    ] = ()  # such as ["codex", "exec", "-"]; what it leaves in trainer/train.py is the proposal
    seconds: PositiveFloat = 600.0  # then it is ended, and tpe makes the proposal
    environment: tuple[
        str, ...
    ] = ()  # names of variables that it needs, such as its key; it has PATH, HOME and LANG anyway


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
    llm: Llm = Llm()
    command: Command = Command()
    attention_kernels: tuple[
        Pin, ...
    ] = ()  # of the Hugging Face hub; naming one is trusting its publisher's native code
    train: dict[str, Knob] = {}  # knobs written into train.py by the night's first commit


class ProfileError(ValueError):
    """A profile that cannot be used; the text names the file, the key and what is allowed."""


def names() -> list[str]:
    """The profiles in configs/."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem != "search_space")


def load(name: str) -> Profile:
    """Reads a profile by name, or by path if it ends in .toml.

    Raises ProfileError for an unknown name, a file that cannot be read or is no TOML, an `extends` that leads nowhere, and
    a key or a value that the model does not allow.
    """
    path = Path(os.path.expanduser(name)) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file() or path.stem == "search_space":
        raise ProfileError(
            f"unknown profile {name!r}: choose one of {', '.join(names())}, or give the path of a .toml file"
        )
    try:
        return Profile(**{**_table(path), "name": path.stem})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {path}: not valid TOML: {error}") from error
    except OSError as error:
        raise ProfileError(f"profile {path} cannot be read: {error.strerror}") from error
    except pydantic.ValidationError as error:
        raise ProfileError(f"profile {path}: {'; '.join(_problems(error.errors()))}") from error


def _table(path: Path, extending: tuple[str, ...] = ()) -> dict[str, Any]:
    """The file's settings over those of the profile that it extends; `extending` are the names on the way to this file."""
    table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    if "name" in table:
        raise ProfileError(f"profile {path}: name: a profile is called by its file; remove the key")
    if (base := table.pop("extends", None)) is None:
        return table
    if base not in names():
        raise ProfileError(
            f"profile {path}: extends = {base!r}: choose one of {', '.join(names())}"
        )
    if base in extending:
        around = " -> ".join([*extending, base])
        raise ProfileError(
            f"profile {path}: extends = {base!r} goes round in a circle: {around}. Take it out of one of them"
        )
    return _over(_table(FOLDER / f"{base}.toml", (*extending, base)), table)


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = {
        name: _over(base[name], value)
        if isinstance(value, dict) and isinstance(base.get(name), dict)
        else value
        for name, value in changes.items()
    }
    return {**base, **merged}


def _problems(errors: list[ErrorDetails]) -> list[str]:
    """What is wrong: once for a knob, whatever types it might have had, and not of a list what is said of its items."""
    found: dict[tuple[int | str, ...], ErrorDetails] = {}
    for error in errors:
        found.setdefault(error["loc"][:2] if error["loc"][0] == "train" else error["loc"], error)
    return [
        _told(key, found[key])
        for key in found
        if not any(key == other[: len(key)] != other for other in found)
    ]


def _told(key: tuple[int | str, ...], error: ErrorDetails) -> str:
    """The key, its value and what is allowed."""
    name, kind = ".".join(map(str, key)), error["type"]
    if kind == "missing":
        return f"{name} is missing and has no default"
    if kind == "extra_forbidden":
        model: Any = Profile.model_fields[str(key[0])].annotation if len(key) > 1 else Profile
        allowed = ", ".join("extends" if field == "name" else field for field in model.model_fields)
        return (
            f"{name} is no setting; {f'[{key[0]}]' if len(key) > 1 else 'a profile'} has {allowed}"
        )
    if kind == "value_error":
        return f"{name}: {error['msg'].removeprefix('Value error, ')}"
    value = json.dumps(error["input"], ensure_ascii=False, default=str)
    value = value if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 3]}..."
    pydantics = re.sub(r"^(Input|String|Tuple) | after validation", "", error["msg"])
    return f"{name} = {value}: {KNOB if key[0] == 'train' and len(key) > 1 else WORDS.get(kind, pydantics)}"
