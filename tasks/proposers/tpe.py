"""The default proposer, which needs no key: single-knob steps, then samples of TPE.

Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011) models the knobs of good
and of bad trials and samples where their ratio is best. In a fixed space it ties an LLM that edits
code (Ferreira et al., arXiv 2603.24647); it cannot invent a change of code. Where kept patches of
others have added, renamed or removed knobs, the space is that of the champion. The study is rebuilt
from the night at every call, so a resumed night proposes the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import knobs
from tasks.proposers.search_space import (
    SPACE,
    Choice,
    Range,
    SearchSpace,
    Space,
    Step,
    default,
    moved,
)
from tasks.records import Candidate, Idea, NightSoFar, Proposal, Trial

if TYPE_CHECKING:
    import optuna

STARTUP_TRIALS = 5  # scored trials, the baseline included, before TPE replaces random sampling
# Knobs changed by a sample. Changing all won less in simulated nights, and explains nothing.
MOVED_AT_ONCE = 3
STUDIED = 150  # trials that a sample is drawn from: the BEST of the night, then the latest
BEST = 30
DRAWS = 10  # samples before an untried place is searched for
NEW_STEPS = ("x2", "x0.5")  # of a number that came in with a kept patch
NOT_RUN = ("rejected_patch", "sandbox_error")  # these say nothing about their knobs

Knobs = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Search:
    """What can be turned, and from where."""

    night: NightSoFar
    champion: Knobs
    new: Knobs  # the champion's knobs that the baseline lacks, with their first values
    base: Knobs  # what relative ranges are relative to: the baseline's knobs and the new ones
    space: Space
    steps: list[Step]

    @classmethod
    def of(cls, night: NightSoFar, settings: SearchSpace, proposer: TpeProposer) -> _Search:
        new = _new(night)
        base = {**night.baseline_knobs, **new}
        guessed: Space = {name: knob for name, value in new.items() if (knob := default(value))}
        space = {
            name: knob
            for name, knob in (guessed | settings.space).items()
            if name in base and knob.varies(base[name])
        }
        examples = {name: knob.example(base[name]) for name, knob in space.items()}
        writable = knobs.writable(night.champion.source, examples)
        space = {name: knob for name, knob in space.items() if name in writable}
        listed = list(settings.steps.of(proposer.device))
        of_new = list(itertools.product(guessed, NEW_STEPS))
        steps = [*of_new, *listed] if proposer.new_first else [*listed, *of_new]
        return cls(night, night.champion.knobs, new, base, space, steps)


@dataclasses.dataclass(frozen=True)
class TpeProposer:
    path: Path = SPACE
    device: str = "cpu"  # the profile's: the first steps are those that won on such a device
    new_first: bool = False  # start with the knobs that came in with kept patches
    name: str = "tpe"

    def propose(self, night: NightSoFar) -> Proposal | None:
        """The first single-knob step that the night has not tried, else a sample.

        None if there is no knob left to turn, or every place in the space was tried. Raises
        UsageError for a bad search space.
        """
        search = _Search.of(night, SearchSpace.load(self.path), self)
        changed = _first_step(search) or _sample(search)
        if not changed:
            return None
        passes = _fitting_passes(changed, search.champion)
        # A patch may have replaced the constant by an expression of its own.
        writable = knobs.writable(night.champion.source, passes)
        passes = {name: value for name, value in passes.items() if name in writable}
        source = knobs.write(night.champion.source, changed | passes)
        return Proposal(
            Candidate.parse(source), Idea(_summary(changed, search.champion), self.name)
        )


def _new(night: NightSoFar) -> dict[str, Any]:
    """The champion's knobs that the baseline lacks, with the values that they came in with."""
    new: dict[str, Any] = {}
    kept = [trial.knobs for trial in night.trials if trial.verdict == "keep"]
    for found in (*kept, night.champion.knobs):
        added = {name: value for name, value in found.items() if name not in night.baseline_knobs}
        new = {
            name: new[name] if type(new.get(name)) is type(value) else value
            for name, value in added.items()
        }
    return new


def _first_step(search: _Search) -> dict[str, Any]:
    """The first listed step that changes something and that no trial has taken; {} if none is."""
    night, space = search.night, search.space
    knobs_at = {trial.commit: trial.knobs for trial in night.trials if trial.commit}
    taken: set[tuple[str, str]] = set()  # knob and direction
    left: set[tuple[str, str]] = set()  # knob and the value that a kept step moved it away from
    for trial in night.trials:
        if step := _step_of(trial, knobs_at.get(trial.parent, night.baseline_knobs), space):
            name, old, new = step
            taken.add((name, _direction(old, new)))
            if trial.verdict == "keep":
                left.add((name, _key(old)))
    for name, change in search.steps:
        if name not in space:
            continue
        knob, old, base = space[name], search.champion[name], search.base[name]
        new = moved(old, change)
        if isinstance(knob, Range):
            new = knob.fit(new, base)
        elif _key(new) not in knob.values(base):
            continue
        done = (name, _direction(old, new)) in taken or (name, _key(new)) in left
        if not done and _key(new) != _key(old):
            return {name: new}
    return {}


def _step_of(trial: Trial, parent: Knobs, space: Space) -> tuple[str, Any, Any] | None:
    """Knob, old and new value of a trial that changed a single knob of its parent, else None."""
    both = [
        (name, parent[name], trial.knobs[name])
        for name in space
        if name in trial.knobs and name in parent
    ]
    changed = [(name, old, new) for name, old, new in both if new != old and _key(new) != _key(old)]
    return changed[0] if len(changed) == 1 else None


def _direction(old: Any, new: Any) -> str:
    if isinstance(old, int | float) and isinstance(new, int | float):
        return "up" if new > old else "down"
    return _key(new)


def _sample(search: _Search) -> dict[str, Any]:
    """New values for a few knobs, at a place that no trial was at; {} if none is left."""
    space, champion = search.space, search.champion
    if not space:
        return {}
    state = f"{search.night.seed}/{search.night.next_trial}/{len(search.night.trials)}"
    # A refused proposal adds a trial, so that asking again gives another sample.
    seed = int.from_bytes(hashlib.sha256(state.encode()).digest()[:4])
    chance = random.Random(seed)
    tried = [search.base, champion, *(trial.knobs for trial in search.night.trials)]
    places = {_place(found, space) for found in tried}
    distributions = {name: _distribution(knob, search.base[name]) for name, knob in space.items()}
    study = _study(search, distributions, seed)
    for _ in range(DRAWS):
        drawn = study.ask(fixed_distributions=distributions).params
        values = {
            name: knob.values(search.base[name])[drawn[name]]
            if isinstance(knob, Choice)
            else knob.fit(drawn[name], search.base[name])
            for name, knob in space.items()
        }
        moving = [name for name, value in values.items() if _key(value) != _key(champion[name])]
        chosen = chance.sample(moving, min(MOVED_AT_ONCE, len(moving)))
        changed = {name: values[name] for name in moving if name in chosen}
        if _place({**champion, **changed}, space) not in places:
            return changed
    untried = (
        changed
        for changed in _changes(search, chance)
        if _place({**champion, **changed}, space) not in places
    )
    return next(untried, {})


def _study(
    search: _Search, distributions: dict[str, optuna.distributions.BaseDistribution], seed: int
) -> optuna.Study:
    """All trials that ran and can be compared; a stopped one counts as worse than any score.

    A trial from before a knob came in counts as one at the value that it came in with.
    """
    import optuna  # 1.6 s

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    )
    night = search.night
    trials = [trial for trial in night.trials if trial.number >= night.first_comparable]
    worst = max([night.baseline_bpb, *(t.val_bpb for t in trials if t.val_bpb is not None)])
    scored: list[tuple[Knobs, float]] = [(search.base, night.baseline_bpb)]
    scored += [
        ({**search.new, **trial.knobs}, worst + 1 if trial.val_bpb is None else trial.val_bpb)
        for trial in trials
        if trial.status not in NOT_RUN
    ]
    for tried, score in _worth_studying(scored):
        if params := _params(search, tried):
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=distributions, value=score)
            )
    return study


def _worth_studying(scored: list[tuple[Knobs, float]]) -> list[tuple[Knobs, float]]:
    """The best and the latest, in their order: studying all would take longer with every trial."""
    best = sorted(range(len(scored)), key=lambda i: scored[i][1])[:BEST]
    late = range(max(len(scored) - STUDIED + BEST, 0), len(scored))
    return [scored[i] for i in sorted({*best, *late})]


def _changes(search: _Search, chance: random.Random) -> Iterator[dict[str, Any]]:
    """Every change that a sample may make, in random order, those of a single knob first."""
    names = chance.sample(list(search.space), len(search.space))
    values = {}
    for name in names:
        others = search.space[name].grid(search.base[name])
        others = [value for value in others if _key(value) != _key(search.champion[name])]
        values[name] = chance.sample(others, len(others))
    for count in range(1, MOVED_AT_ONCE + 1):
        for moving in itertools.combinations(names, count):
            for chosen in itertools.product(*(values[name] for name in moving)):
                yield dict(zip(moving, chosen, strict=True))


def _place(tried: Knobs, space: Space) -> tuple[Any, ...]:
    """Where a candidate is in the space, to be compared with others."""
    values = (tried.get(name) for name in space)
    return tuple(value if isinstance(value, int | float | str) else _key(value) for value in values)


def _distribution(knob: Range | Choice, base: Any) -> optuna.distributions.BaseDistribution:
    from optuna import distributions

    if isinstance(knob, Choice):
        return distributions.CategoricalDistribution(list(knob.values(base)))
    low, high = knob.ends(base)
    if knob.type == "int":
        return distributions.IntDistribution(int(low), int(high), log=knob.log)
    return distributions.FloatDistribution(low, high, log=knob.log)


def _params(search: _Search, tried: Knobs) -> dict[str, Any] | None:
    """A candidate's knobs as Optuna's parameters; None if the space cannot express one of them."""
    params: dict[str, Any] = {}
    for name, knob in search.space.items():
        value, base = tried.get(name), search.base[name]
        if isinstance(knob, Choice):
            if _key(value) not in knob.values(base):
                return None
            params[name] = _key(value)
        elif isinstance(value, int | float):
            clipped = knob.clip(value, base)
            # A patch may have tried DEPTH = 2.5.
            params[name] = round(clipped) if knob.type == "int" else clipped
        else:
            return None
    return params


def _fitting_passes(changed: Knobs, champion: Knobs) -> dict[str, int]:
    """The DEVICE_BATCH_SIZE that makes a step of a new TOTAL_BATCH_SIZE whole forward passes."""
    rows, length = champion.get("DEVICE_BATCH_SIZE"), champion.get("MAX_SEQ_LEN")
    total = changed.get("TOTAL_BATCH_SIZE")
    if total is None or not isinstance(rows, int) or not isinstance(length, int):
        return {}
    return {"DEVICE_BATCH_SIZE": math.gcd(rows, total // length)}


def _key(value: Any) -> str:
    """The same for equal values: where train.py has a tuple, a ledger has a list."""
    return json.dumps(value)


def _summary(changed: Knobs, champion: Knobs) -> str:
    return ", ".join(
        f"{name} {_key(champion[name])} -> {_key(value)}" for name, value in changed.items()
    )
