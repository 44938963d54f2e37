"""The default proposer: needs no key. Single-knob steps first, then Optuna's tree-structured Parzen estimator (TPE).

TPE (Bergstra et al., NeurIPS 2011) models the knobs of good and of bad trials and samples where their ratio is best. In
a fixed space it ties an LLM that edits code (Ferreira et al., arXiv 2603.24647); it cannot invent a change of code. Where
kept patches of others have added, renamed or removed knobs, the space is that of the champion. The study is rebuilt from
the night at every call, so a resumed night proposes what the old one would have.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import knobs
from tasks.proposers.search_space import SPACE, Choice, Range, SearchSpace, Space, default, moved
from tasks.records import Candidate, Idea, NightSoFar, Proposal, Trial

if TYPE_CHECKING:
    import optuna

STARTUP_TRIALS = 5  # scored trials, the baseline among them, before TPE replaces random sampling
MOVED_AT_ONCE = 3  # knobs of a sample; all at once won less in simulated nights, and explains nothing in the morning
STUDIED, BEST = (
    150,
    30,
)  # trials that a sample is drawn from, and the best of the night among them; the rest are the latest
DRAWS = 10  # samples, until one was not tried before
NEW_STEPS = (
    "x2",
    "x0.5",
)  # of a number that has come in with a kept patch, after the steps of the file
NOT_RUN = ("rejected_patch", "sandbox_error")  # these say nothing about their knobs

Knobs = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TpeProposer:
    path: Path = SPACE
    name: str = "tpe"

    def propose(self, night: NightSoFar) -> Proposal:
        """The first single-knob step that the night has not tried, else a sample. Raises UsageError for a bad space."""
        settings, champion = SearchSpace.load(self.path), night.champion.knobs
        new = _new(champion, night)
        guessed: Space = {name: knob for name, value in new.items() if (knob := default(value))}
        base = {**night.baseline_knobs, **new}
        space = {
            n: knob
            for n, knob in (guessed | settings.space).items()
            if n in base and knob.varies(base[n])
        }
        writable = knobs.writable(
            night.champion.source, {name: knob.example(base[name]) for name, knob in space.items()}
        )
        space = {name: knob for name, knob in space.items() if name in writable}
        steps = [*settings.steps, *((name, change) for name in guessed for change in NEW_STEPS)]
        changed = _first_step(steps, space, champion, base, night) or _sample(
            space, champion, base, night
        )
        passes = _fitting_passes(changed, champion)
        passes = {
            name: passes[name] for name in knobs.writable(night.champion.source, passes)
        }  # a patch may have seen to it itself
        source = knobs.write(night.champion.source, changed | passes)
        return Proposal(Candidate.parse(source), Idea(_summary(changed, champion), self.name))


def _new(champion: Knobs, night: NightSoFar) -> dict[str, Any]:
    """The champion's knobs that the baseline does not have, with the values that they came in with."""
    new: dict[str, Any] = {}
    for kept in [*(trial.knobs for trial in night.trials if trial.verdict == "keep"), champion]:
        added = {name: value for name, value in kept.items() if name not in night.baseline_knobs}
        new = {
            name: new[name] if type(new.get(name)) is type(value) else value
            for name, value in added.items()
        }
    return new


def _first_step(
    steps: list[tuple[str, Any]], space: Space, champion: Knobs, base: Knobs, night: NightSoFar
) -> dict[str, Any]:
    """The first step of the list that changes something and that no trial has taken; {} when there is none."""
    knobs_at = {trial.commit: trial.knobs for trial in night.trials if trial.commit}
    taken: set[tuple[str, str]] = set()  # knob and direction
    left: set[tuple[str, str]] = set()  # knob and the value that a kept step has moved it away from
    for trial in night.trials:
        if step := _step_of(trial, knobs_at.get(trial.parent, night.baseline_knobs), space):
            name, old, new = step
            taken.add((name, _direction(old, new)))
            if trial.verdict == "keep":
                left.add((name, _key(old)))
    for name, change in steps:
        if name not in space:
            continue
        knob, old = space[name], champion[name]
        new = moved(old, change)
        if isinstance(knob, Range):
            new = knob.fit(new, base[name])
        elif _key(new) not in knob.values(base[name]):
            continue
        done = (name, _direction(old, new)) in taken or (name, _key(new)) in left
        if not done and _key(new) != _key(old):
            return {name: new}
    return {}


def _step_of(trial: Trial, parent: Knobs, space: Space) -> tuple[str, Any, Any] | None:
    """Knob, old and new value of a trial that moved a single knob of its parent, else None."""
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


def _sample(space: Space, champion: Knobs, base: Knobs, night: NightSoFar) -> dict[str, Any]:
    """New values for a few knobs, from a study of all trials that ran; a stopped one counts as worse than any score.

    A trial from before a knob came in counts as one at the value that it came in with.
    """
    import optuna  # 1.6 s

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    state = (
        f"{night.seed}/{night.next_trial}/{len(night.trials)}".encode()
    )  # a refused proposal adds a trial
    seed = int.from_bytes(hashlib.sha256(state).digest()[:4])
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    )
    new = {name: value for name, value in base.items() if name not in night.baseline_knobs}
    distributions = {name: _distribution(knob, base[name]) for name, knob in space.items()}
    worst = max([night.baseline_bpb, *(t.val_bpb for t in night.trials if t.val_bpb is not None)])
    scored: list[tuple[Knobs, float]] = [(base, night.baseline_bpb)]
    ran = [trial for trial in night.trials if trial.status not in NOT_RUN]
    scored += [
        ({**new, **trial.knobs}, worst + 1 if trial.val_bpb is None else trial.val_bpb)
        for trial in ran
    ]
    for tried, score in _worth_studying(scored):
        if params := _params(space, tried, base):
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=distributions, value=score)
            )
    places, chance = {_place(trial.knobs, space) for trial in night.trials}, random.Random(seed)
    for _ in range(DRAWS):
        drawn = study.ask(fixed_distributions=distributions).params
        values = {
            name: knob.values(base[name])[drawn[name]]
            if isinstance(knob, Choice)
            else knob.fit(drawn[name], base[name])
            for name, knob in space.items()
        }
        moving = [name for name, value in values.items() if _key(value) != _key(champion[name])]
        chosen = chance.sample(moving, min(MOVED_AT_ONCE, len(moving)))
        changed = {name: values[name] for name in moving if name in chosen}
        if _place({**champion, **changed}, space) not in places:
            break
    return changed


def _worth_studying(scored: list[tuple[Knobs, float]]) -> list[tuple[Knobs, float]]:
    """The best and the latest, in their order: a study of all would cost more with every trial."""
    best = sorted(range(len(scored)), key=lambda i: scored[i][1])[:BEST]
    late = range(max(len(scored) - STUDIED + BEST, 0), len(scored))
    return [scored[i] for i in sorted({*best, *late})]


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


def _params(space: Space, tried: Knobs, base: Knobs) -> dict[str, Any] | None:
    """A candidate's knobs as Optuna's parameters, None when it has one that the space cannot express."""
    params: dict[str, Any] = {}
    for name, knob in space.items():
        value = tried.get(name)
        if isinstance(knob, Choice):
            if _key(value) not in knob.values(base[name]):
                return None
            params[name] = _key(value)
        elif isinstance(value, int | float):
            clipped = knob.clip(value, base[name])
            params[name] = (
                round(clipped) if knob.type == "int" else clipped
            )  # a patch may have tried DEPTH = 2.5
        else:
            return None
    return params


def _fitting_passes(changed: Knobs, champion: Knobs) -> dict[str, int]:
    """The DEVICE_BATCH_SIZE that a new TOTAL_BATCH_SIZE needs: the step must be a whole number of forward passes."""
    rows, length = champion.get("DEVICE_BATCH_SIZE"), champion.get("MAX_SEQ_LEN")
    if (
        "TOTAL_BATCH_SIZE" not in changed
        or not isinstance(rows, int)
        or not isinstance(length, int)
    ):
        return {}
    return {"DEVICE_BATCH_SIZE": math.gcd(rows, changed["TOTAL_BATCH_SIZE"] // length)}


def _key(value: Any) -> str:
    """Equal for equal values, wherever they come from: a ledger has a list where train.py has a tuple."""
    return json.dumps(value)


def _summary(changed: Knobs, champion: Knobs) -> str:
    changes = [f"{name} {_key(champion[name])} -> {_key(value)}" for name, value in changed.items()]
    return ", ".join(changes) or "no change"
