"""Profiles: one TOML file each, checked when it is read. A setting is explained here and nowhere else.

`load("laptop")` reads configs/laptop.toml; `load("mine.toml")` reads any file. `extends = "h100"` at the top of a file takes
every setting that it does not have from that profile. The ALL_CAPS constants of train.py are in the `[train]` table;
`configs.knobs` writes them into the file.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic

FOLDER = Path(__file__).resolve().parent
Proposer = Literal["tpe", "llm", "mixed", "command", "replay"]
PROPOSERS: tuple[Proposer, ...] = get_args(Proposer)
ASK_A_MODEL = ("llm", "mixed")
READ_CODE = (*ASK_A_MODEL, "command")
Positive = Annotated[int, pydantic.Field(gt=0)]
ShardName = Annotated[str, pydantic.Field(pattern=r"^[^#]+(#\d*:\d*)?$")]  # a file, or row groups of it: "all.parquet#20:"
Pin = Annotated[str, pydantic.Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*@[0-9a-f]{40}$")]  # owner/name@commit


class Table(pydantic.BaseModel):
    """A TOML table: immutable, and a key it does not know is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Data(Table):
    source: str  # folder of the shards: a path (relative to configs/), https://, s3:// or hf://datasets/OWNER/NAME@COMMIT
    train: tuple[ShardName, ...] = pydantic.Field(min_length=1)  # parquet files with a column `text`
    validation: ShardName  # never reaches a box
    holdout: ShardName | None = None  # no night reads it: kept out of the training, to confirm a result with one day
    checksums: str | None = None  # a SHA256SUMS file in the source; else hf:// checks its own, and a first download is trusted
    license: str  # shown at every preparation
    validation_documents: Positive  # the first N documents of the validation file are the scored list
    vocab_sizes: tuple[Annotated[int, pydantic.Field(ge=256, le=65536)], ...] = pydantic.Field(min_length=1)
    sequence_length: Positive  # training rows are packed for this length; other lengths are packed in the box
    tokenizer_characters: Positive = 1_000_000_000  # the tokenizer is trained on at most this much text


class Budget(Table):
    kind: Literal["flops", "seconds"]  # CPU: flops, so that a busy machine does not move the score; GPU: seconds
    amount: pydantic.PositiveFloat  # FLOPs of one training, or seconds from go to the checkpoint's last byte
    slack_seconds: pydantic.NonNegativeFloat = 5.0  # grace after a `seconds` budget, the same for every candidate


class Limits(Table):
    isolation: Literal["auto", "bwrap", "docker"] = "auto"  # auto: bwrap where it holds, else docker; never without
    startup_seconds: pydantic.PositiveFloat = 180.0  # process start to ready: imports, model, compile
    train_seconds: pydantic.PositiveFloat = 900.0  # go to checkpoint while no baseline has set a tighter cap
    eval_seconds: pydantic.PositiveFloat = 120.0  # first row to last claim; an audit: up to 16 times as much
    memory_gib: pydantic.PositiveFloat = 8.0  # resident memory of the whole box
    tmp_mib: Positive = 512  # size of each tmpfs in the box: /tmp, /scratch, /dev/shm
    tasks: Positive = 256  # processes and threads in the box
    checkpoint_mib: Positive = 4096


class Audit(Table):
    positions: Positive = 4096  # secret prefixes of one audit: a cheat on a share f of the positions passes (1-f)^positions
    share: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.05  # of the runs that decide nothing, audited all the same


class Night(Table):
    trials: Positive | None = None  # None: until the hours are over
    hours: pydantic.PositiveFloat | None = None
    proposer: Proposer = "tpe"
    patches: str | None = None  # replay: the folder of patches (relative to configs/), or the tag of a night
    program: str = "program.md"  # llm, mixed, command: what the researcher is told (relative to configs/)


class Llm(Table):
    """A model behind an OpenAI-compatible endpoint; OPENAI_BASE_URL and OPENAI_API_KEY come from the environment."""

    model: str | None = None  # as the endpoint names it
    share: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.3  # mixed: of the trials; the others are tpe's
    seconds: pydantic.PositiveFloat = 600.0  # after this no further request is made for a proposal, and tpe makes it
    answer_seconds: pydantic.PositiveFloat = 300.0  # for one answer to its last byte, retries included
    retries: Annotated[int, pydantic.Field(ge=0)] = 2  # of a request that is refused in a way that may pass
    max_tokens: Positive = 16_384  # of one answer, reasoning included; with a prompt of 10 to 20 thousand it must fit the model
    temperature: Annotated[float, pydantic.Field(ge=0)] | None = None  # None: the endpoint's own, as some models take no other
    repairs: Annotated[int, pydantic.Field(ge=0)] = 3  # times that a patch which does not apply goes back
    fixes: Annotated[int, pydantic.Field(ge=0)] = 2  # times that a crash goes back; with the first run all one trial
    ahead: bool = True  # proposes while the trial before trains; false where the model would take that trial's GPU from it
    pause_seconds: pydantic.PositiveFloat = (
        30.0  # after a request that failed, doubled with each to 600; tpe proposes meanwhile
    )
    digest_tokens: Positive = 6000  # of the night's record in the prompt, however long the night
    bold_after: Positive = 5  # discards in a row, after which another kind of change is asked for
    prompt_price: pydantic.NonNegativeFloat | None = None  # dollars a million tokens; None: unknown, and so is the cost
    cached_price: pydantic.NonNegativeFloat | None = None  # of prompt tokens from the endpoint's cache; None: as prompt_price
    completion_price: pydantic.NonNegativeFloat | None = None
    dollars: pydantic.PositiveFloat | None = None  # a night's cap: once it is reached no request is made, and tpe proposes
    tokens: Positive | None = None  # the same, in tokens of prompts and answers

    @pydantic.model_validator(mode="after")
    def _a_cap_in_dollars_needs_prices(self) -> Llm:
        if self.dollars is not None and None in (self.prompt_price, self.completion_price):
            raise ValueError("dollars is a cap that needs prompt_price and completion_price")
        return self


class Command(Table):
    """An external coding agent, run with your rights in a scratch clone. The prompt is its standard input."""

    argv: tuple[str, ...] = ()  # such as ["codex", "exec", "-"]; what it leaves in trainer/train.py is the proposal
    seconds: pydantic.PositiveFloat = 600.0  # then it is ended, and tpe makes the proposal
    environment: tuple[str, ...] = ()  # names of variables that it needs, such as its key; it has PATH, HOME and LANG anyway


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
    attention_kernels: tuple[Pin, ...] = ()  # of the Hugging Face hub; naming one is trusting its publisher's native code
    train: dict[str, bool | int | float | str | list[float]] = {}  # knobs written into train.py by the night's first commit


class ProfileError(ValueError):
    """A profile that cannot be used; the text names the file, the key and what is allowed."""


def names() -> list[str]:
    """The profiles that ship with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem != "search_space")


def load(name: str) -> Profile:
    """Reads a profile by name, or by path if it ends in .toml.

    Raises ProfileError for an unknown name, a file that is no TOML, or a key or value the model does not allow.
    """
    path = Path(os.path.expanduser(name)) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file() or path.stem == "search_space":
        raise ProfileError(f"unknown profile {name!r}: choose one of {', '.join(names())}, or give the path of a .toml file")
    try:
        return Profile(name=path.stem, **_table(path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {path}: not valid TOML: {error}") from error
    except OSError as error:
        raise ProfileError(f"profile {path} cannot be read: {error.strerror}") from error
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())
        raise ProfileError(f"profile {path}: {problems}") from error


def _table(path: Path) -> dict[str, Any]:
    """The file's settings over those of the profile that it extends."""
    table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    if (base := table.pop("extends", None)) is None:
        return table
    if base not in names() or FOLDER / f"{base}.toml" == path:
        raise ProfileError(f"profile {path}: extends = {base!r}: choose one of {', '.join(names())}")
    return _over(_table(FOLDER / f"{base}.toml"), table)


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = {
        name: _over(base[name], value) if isinstance(value, dict) and isinstance(base.get(name), dict) else value
        for name, value in changes.items()
    }
    return {**base, **merged}
