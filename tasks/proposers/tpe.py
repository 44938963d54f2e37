"""The default proposer: needs no key. Single-knob steps first, then Optuna's tree-structured Parzen estimator (TPE).

TPE (Bergstra et al., NeurIPS 2011) models the knobs of good and of bad trials and samples where their ratio is best. In
a fixed space it ties an LLM that edits code (Ferreira et al., arXiv 2603.24647); it cannot invent a change of code. The
study is rebuilt from the night at every call, so a resumed night proposes what the old one would have.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from configs import FOLDER, Table, knobs
from tasks.records import NightSoFar, Proposal, Trial, UsageError

if TYPE_CHECKING:
    import optuna

SPACE = FOLDER / "search_space.toml"
RELATIVE = r"^(x\d+(\.\d+)?|[+-]\d+(\.\d+)?)$"
STARTUP_TRIALS = 5  # scored trials, the baseline among them, before TPE replaces random sampling
MOVED_AT_ONCE = 3  # knobs of a sample; all at once won less in simulated nights, and explains nothing in the morning
NOT_RUN = ("rejected_patch", "sandbox_error")  # these say nothing about their knobs

Knobs = Mapping[str, Any]
End = float | Annotated[str, pydantic.StringConstraints(pattern=RELATIVE)]


class Range(Table):
    """A table of type int or float; `low` and `high` may be relative to the baseline: "x0.25", "+2"."""

    type: Literal["int", "float"]
    low: End
    high: End
    min: float = -math.inf
    log: bool = False
    step: pydantic.PositiveFloat | None = None

    @pydantic.model_validator(mode="after")
    def _logarithm_exists(self) -> Range:
        if self.log and isinstance(self.low, float) and self.low <= 0:
            raise ValueError(f"low = {self.low} has no logarithm: raise it above 0 or drop log")
        return self

    def ends(self, base: float) -> tuple[float, float]:
        low, high = (max(moved(base, end), self.min) for end in (self.low, self.high))
        return (round(low), round(high)) if self.type == "int" else (low, high)

    def varies(self, base: Any) -> bool:
        """False for x0.5 ... x2 of 0, and where the baseline has no number at all."""
        return isinstance(base, int | float) and self.clip(-math.inf, base) < self.clip(math.inf, base)

    def clip(self, value: float, base: float) -> float:
        low, high = self.ends(base)
        return min(max(value, low), high)

    def fit(self, value: float, base: float) -> float | int:
        """The nearest value of this knob: inside the range, and round."""
        if self.type == "int":
            return int(self.clip(round(value), base))
        rounded = round(value / self.step) * self.step if self.step else value
        return float(f"{self.clip(rounded, base):.3g}")


class Choice(Table):
    """A table of type categorical; a choice may be relative to the baseline too."""

    type: Literal["categorical"]
    choices: tuple[Any, ...] = pydantic.Field(min_length=2)

    def values(self, base: Any) -> dict[str, Any]:
        """The choices by their JSON text, which is what Optuna is shown: it takes no tuples."""
        return {json.dumps(value): value for value in (moved(base, choice) for choice in self.choices)}

    def varies(self, base: Any) -> bool:
        return len(self.values(base)) > 1


Space = dict[str, Annotated[Range | Choice, pydantic.Field(discriminator="type")]]


class SearchSpace(pydantic.BaseModel):
    """configs/search_space.toml."""

    steps: list[tuple[str, Any]]
    space: Space

    @pydantic.model_validator(mode="after")
    def _steps_fit_their_tables(self) -> SearchSpace:
        for name, change in self.steps:
            if name not in self.space:
                raise ValueError(f"step {name} {change}: there is no table {name}")
            if isinstance(self.space[name], Range) and isinstance(moved(1, change), str | list):
                raise ValueError(f'step {name} {change}: it takes a number, or a change such as "x2" or "-1"')
        return self

    @classmethod
    def load(cls, path: Path) -> SearchSpace:
        """Raises UsageError for a file that is no search space; the text names the knob and the key."""
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            return cls(steps=table.pop("steps", []), space=table)
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"search space {path}: {error}") from error
        except pydantic.ValidationError as error:
            problems = "; ".join(
                ": ".join([*map(str, e["loc"]), e["msg"].removeprefix("Value error, ")]) for e in error.errors()
            )
            raise UsageError(f"search space {path}: {problems}") from error


def moved(base: Any, change: Any) -> Any:
    """`change` applied to a number if it is relative ("x2", "-1"), else `change` itself. An int stays an int."""
    if not (isinstance(change, str) and re.match(RELATIVE, change)):
        return change
    value = base * float(change[1:]) if change[0] == "x" else base + float(change)
    return round(value) if isinstance(base, int) else value


@dataclasses.dataclass(frozen=True)
class TpeProposer:
    path: Path = SPACE
    name: str = "tpe"

    def propose(self, night: NightSoFar) -> Proposal:
        """The first single-knob step that the night has not tried, else a sample. Raises UsageError for a bad space."""
        settings, champion = SearchSpace.load(self.path), knobs.read(night.champion)
        base = night.baseline_knobs
        alike = knobs.writable(night.champion, base)  # knobs that this champion still has as the baseline had them
        space = {name: knob for name, knob in settings.space.items() if name in alike and knob.varies(base[name])}
        changed = _first_step(settings.steps, space, champion, night) or _sample(space, champion, night)
        source = knobs.write(night.champion, changed | _fitting_passes(changed, champion))
        return Proposal(source=source, summary=_summary(changed, champion), proposer=self.name)


def _first_step(steps: list[tuple[str, Any]], space: Space, champion: Knobs, night: NightSoFar) -> dict[str, Any]:
    """The first step of the list that changes something and that no trial has taken; {} when there is none."""
    knobs_at = {trial.commit: trial.knobs for trial in night.trials if trial.commit}
    parents = [knobs_at.get(trial.parent, night.baseline_knobs) for trial in night.trials]
    steps_taken = (_step_of(trial, parent, space) for trial, parent in zip(night.trials, parents, strict=True))
    taken = {step for step in steps_taken if step}
    for name, change in steps:
        if name not in space:
            continue
        knob, old, base = space[name], champion[name], night.baseline_knobs[name]
        new = moved(old, change)
        if isinstance(knob, Range):
            new = knob.fit(new, base)
        elif _key(new) not in knob.values(base):
            continue
        if _key(new) != _key(old) and (name, _direction(old, new)) not in taken:
            return {name: new}
    return {}


def _step_of(trial: Trial, parent: Knobs, space: Space) -> tuple[str, str] | None:
    """(knob, direction) of a trial that moved a single knob of its parent, else None."""
    both = [(name, trial.knobs[name], parent[name]) for name in space if name in trial.knobs and name in parent]
    changed = [name for name, new, old in both if new != old and _key(new) != _key(old)]
    return (changed[0], _direction(parent[changed[0]], trial.knobs[changed[0]])) if len(changed) == 1 else None


def _direction(old: Any, new: Any) -> str:
    if isinstance(old, int | float) and isinstance(new, int | float):
        return "up" if new > old else "down"
    return _key(new)


def _sample(space: Space, champion: Knobs, night: NightSoFar) -> dict[str, Any]:
    """New values for a few knobs, from a study of all trials that ran; a stopped one counts as worse than any score."""
    import optuna  # 1.6 s

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    state = f"{night.seed}/{night.next_trial}/{len(night.trials)}".encode()  # a refused proposal adds a trial
    seed = int.from_bytes(hashlib.sha256(state).digest()[:4])
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS))
    base = night.baseline_knobs
    distributions = {name: _distribution(knob, base[name]) for name, knob in space.items()}
    worst = max([night.baseline_bpb, *(t.val_bpb for t in night.trials if t.val_bpb is not None)])
    scored = [(base, night.baseline_bpb)]
    scored += [(t.knobs, worst + 1 if t.val_bpb is None else t.val_bpb) for t in night.trials if t.status not in NOT_RUN]
    for tried, score in scored:
        if params := _params(space, tried, base):
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
    drawn = study.ask(fixed_distributions=distributions).params
    values = {
        name: knob.values(base[name])[drawn[name]] if isinstance(knob, Choice) else knob.fit(drawn[name], base[name])
        for name, knob in space.items()
    }
    moving = [name for name, value in values.items() if _key(value) != _key(champion[name])]
    chosen = random.Random(seed).sample(moving, min(MOVED_AT_ONCE, len(moving)))
    return {name: values[name] for name in moving if name in chosen}


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
            params[name] = knob.clip(value, base[name])
        else:
            return None
    return params


def _fitting_passes(changed: Knobs, champion: Knobs) -> dict[str, int]:
    """The DEVICE_BATCH_SIZE that a new TOTAL_BATCH_SIZE needs: the step must be a whole number of forward passes."""
    rows, length = champion.get("DEVICE_BATCH_SIZE"), champion.get("MAX_SEQ_LEN")
    if "TOTAL_BATCH_SIZE" not in changed or not isinstance(rows, int) or not isinstance(length, int):
        return {}
    return {"DEVICE_BATCH_SIZE": math.gcd(rows, changed["TOTAL_BATCH_SIZE"] // length)}


def _key(value: Any) -> str:
    """Equal for equal values, wherever they come from: a ledger has a list where train.py has a tuple."""
    return json.dumps(value)


def _summary(changed: Knobs, champion: Knobs) -> str:
    changes = [f"{name} {_key(champion[name])} -> {_key(value)}" for name, value in changed.items()]
    return ", ".join(changes) or "no change"
