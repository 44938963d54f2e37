"""The search space of proposers that turn knobs: configs/search_space.toml, checked when read."""

from __future__ import annotations

import json
import math
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from configs import FOLDER, Table
from tasks.errors import UsageError

SPACE = FOLDER / "search_space.toml"
RELATIVE = r"^(x\d+(\.\d+)?|[+-]\d+(\.\d+)?)$"
EXTREME = 1e15  # a number this far from 1 is a guard or a bit pattern, not a quantity
GRID = 1000  # values at most that a range is divided into

End = float | Annotated[str, pydantic.StringConstraints(pattern=RELATIVE)]


class Range(Table):
    """A table of type int or float; its ends may be relative to the baseline: "x0.25", "+2"."""

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
        """False for x0.5 to x2 of 0, and if the baseline has no number."""
        if not isinstance(base, int | float):
            return False
        low, high = self.ends(base)
        return low < high <= EXTREME and (low > 0 or not self.log)

    def example(self, base: float) -> float | int:
        """A value of the type that this table writes."""
        return self.fit(base, base)

    def clip(self, value: float, base: float) -> float:
        low, high = self.ends(base)
        return min(max(value, low), high)

    def fit(self, value: float, base: float) -> float | int:
        """The nearest value of this knob: inside the range, and rounded."""
        if self.type == "int":
            return int(self.clip(round(value), base))
        rounded = round(value / self.step) * self.step if self.step else value
        return self.clip(float(f"{self.clip(rounded, base):.3g}"), base)

    def grid(self, base: float) -> list[float | int]:
        """The values of this knob: all of them, or about GRID evenly spaced ones."""
        low, high = self.ends(base)
        parts = [part / GRID for part in range(GRID + 1)]
        if self.log:
            points = [low * (high / low) ** part for part in parts]
        else:
            points = [low + (high - low) * part for part in parts]
        return list(dict.fromkeys(self.fit(point, base) for point in points))


class Choice(Table):
    """A table of type categorical; its choices may be relative to the baseline too."""

    type: Literal["categorical"]
    choices: tuple[Any, ...] = pydantic.Field(min_length=2)

    def values(self, base: Any) -> dict[str, Any]:
        """The choices by their JSON text, which is what Optuna gets, as it takes no tuples."""
        return {
            json.dumps(value): value for value in (moved(base, choice) for choice in self.choices)
        }

    def varies(self, base: Any) -> bool:
        numeric = isinstance(base, int | float) or not any(
            is_relative(choice) for choice in self.choices
        )
        return numeric and len(self.values(base)) > 1

    def example(self, base: Any) -> Any:
        return self.grid(base)[0]

    def grid(self, base: Any) -> list[Any]:
        return list(self.values(base).values())


Space = dict[str, Annotated[Range | Choice, pydantic.Field(discriminator="type")]]
Step = tuple[str, Any]  # a knob, and a change of it or its new value


class Steps(Table):
    """The single-knob steps to try first: what wins on one device may be known to lose on another.

    `cuda` is for mps too: the profiles of all GPUs start from one recipe.
    """

    cpu: tuple[Step, ...] = ()
    cuda: tuple[Step, ...] = ()

    @pydantic.model_validator(mode="before")
    @classmethod
    def _are_listed_by_device(cls, table: Any) -> Any:
        devices = " and ".join(cls.model_fields)
        if not isinstance(table, dict):
            raise ValueError(f"lists by device: write [steps], and below it {devices}")
        if unknown := table.keys() - cls.model_fields.keys():
            raise ValueError(
                f"{', '.join(sorted(unknown))} is no device that has steps: [steps] takes "
                f"{devices}, which is for mps too"
            )
        return table

    def of(self, device: str) -> tuple[Step, ...]:
        """Those for a profile's `device`."""
        return self.cpu if device == "cpu" else self.cuda


class SearchSpace(pydantic.BaseModel):
    """configs/search_space.toml."""

    steps: Steps
    space: Space

    @pydantic.model_validator(mode="after")
    def _steps_fit_their_tables(self) -> SearchSpace:
        for name, change in (*self.steps.cpu, *self.steps.cuda):
            if name not in self.space:
                raise ValueError(f"step {name} {change}: there is no table {name}")
            if isinstance(self.space[name], Range) and isinstance(moved(1, change), str | list):
                raise ValueError(
                    f'step {name} {change}: it takes a number, or a change such as "x2" or "-1"'
                )
        return self

    @classmethod
    def load(cls, path: Path) -> SearchSpace:
        """Raises UsageError for a bad file; its text names the knob and the key."""
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            return cls(steps=table.pop("steps", {}), space=table)
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"search space {path}: {error}") from error
        except pydantic.ValidationError as error:
            problems = "; ".join(
                ": ".join([*map(str, e["loc"]), e["msg"].removeprefix("Value error, ")])
                for e in error.errors()
            )
            raise UsageError(f"search space {path}: {problems}") from error


def default(value: Any) -> Range | Choice | None:
    """The table of a knob that has none in the file, from its first value; None if it is a guess.

    A fraction from 0.5 on is taken for a momentum, a decay or a share, so it stays below 1. A power
    of two from 8 on is taken for a size that divides others, so it stays one.
    """
    if isinstance(value, bool):
        return Choice(type="categorical", choices=(False, True))
    if isinstance(value, int) and 2 <= value <= EXTREME:
        if value >= 8 and value.bit_count() == 1:
            return Choice(type="categorical", choices=("x0.5", "x1", "x2"))
        return Range(type="int", low="x0.5", high="x2", min=1)
    if isinstance(value, float) and 1 / EXTREME <= value <= EXTREME:
        high = (1 + value) / 2 if 0.5 <= value < 1 else "x4"
        return Range(type="float", low="x0.25", high=high, log=True)
    return None


def is_relative(change: Any) -> bool:
    return isinstance(change, str) and re.match(RELATIVE, change) is not None


def moved(base: Any, change: Any) -> Any:
    """`change` applied to a number if it is relative ("x2", "-1"), else `change` itself.

    An int stays an int.
    """
    if not is_relative(change):
        return change
    value = base * float(change[1:]) if change[0] == "x" else base + float(change)
    return round(value) if isinstance(base, int) else value
