"""Who competes in a tournament, from the lists that somebody gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import configs
from tasks.errors import UsageError
from tasks.records import Contender

MOST = 8  # each has two trials at least, and so few of more contenders tell nothing
WAYS = "--programs A.md,B.md, --models M1,M2 or --proposers llm,tpe"


def of(
    profile: configs.Profile, lists: Mapping[str, Sequence[str]], model: str | None
) -> tuple[Contender, ...]:
    """The contenders of the one list that is given: "programs", "models" or "proposers".

    `model` is that of all of them. Raises UsageError unless they are a few that differ.
    """
    given = {what: tuple(names) for what, names in lists.items() if names}
    if len(given) != 1:
        flags = " and ".join(f"--{what}" for what in given) or "no list"
        raise UsageError(f"{flags}: a tournament needs one list of contenders, {WAYS}")
    ((what, names),) = given.items()
    if not 2 <= len(names) <= MOST:
        raise UsageError(
            f"--{what} {','.join(names)}: {len(names)} given, and a tournament needs 2 to {MOST}, "
            "with commas between them"
        )
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UsageError(f"--{what}: {twice[0]} is given twice; contenders must differ")
    if what == "programs":
        return _programs(profile, names)
    if what == "models":
        if model:
            raise UsageError(f"--model {model} beside --models: give one of them")
        proposer = _proposer(profile, lambda traits: traits.asks_a_model)
        return tuple(Contender(name, proposer, model=name) for name in names)
    if unknown := [name for name in names if name not in configs.PROPOSERS]:
        raise UsageError(
            f"--proposers: unknown proposer {unknown[0]!r}: choose from "
            f"{', '.join(configs.PROPOSERS)}"
        )
    return tuple(Contender(name, name) for name in names)


def _programs(profile: configs.Profile, given: Sequence[str]) -> tuple[Contender, ...]:
    """Named for their files; by the whole path where two files share a name."""
    paths = [Path(text).expanduser().resolve() for text in given]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UsageError(f"--programs: {given[i]} is given twice; contenders must differ")
        if not path.is_file():
            raise UsageError(f"--programs: there is no file {path}")
    proposer = _proposer(profile, lambda traits: traits.writes_code)
    shared = len({path.name for path in paths}) < len(paths)
    return tuple(
        Contender(str(path) if shared else path.name, proposer, file=str(path)) for path in paths
    )


def _proposer(profile: configs.Profile, fits: Callable[[configs.ProposerTraits], bool]) -> str:
    """The profile's if it reads programs, or asks a model; otherwise llm."""
    return profile.night.proposer if fits(configs.traits(profile.night.proposer)) else "llm"
