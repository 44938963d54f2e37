"""Whether the FLOPs that a candidate states agree with those that the harness counted in its box.

The count is made in the candidate's own process (trainer/flops.py). A candidate that tampers with
it can make it say anything; then only its limit of CPU-seconds holds.
"""

from __future__ import annotations

import dataclasses
from typing import Any

TOLERANCE = 0.03  # the stated figure may be so much below the count
MOST = 1e18  # no figure in a message may be larger


@dataclasses.dataclass(frozen=True)
class FlopCount:
    """What a candidate stated, its word, and what was counted in its box: see trainer/flops.py."""

    word: float  # stated FLOPs per token, from its `ready`
    flops: float  # of the dearest of the counted steps
    step: int  # tokens that it reported for that step
    late: float  # FLOPs after its last report of tokens
    tokens: int  # reported in all
    traffic: float  # bytes, of the same step as `flops`

    @classmethod
    def read(cls, word: float | None, message: dict[str, Any]) -> FlopCount | None:
        """From `done` or `smoked`; None if there is no count in it, as from a GPU."""
        names = ("counted_flops", "counted_tokens", "late_flops", "tokens", "counted_traffic")
        found = [value for name in names if (value := number(message.get(name))) is not None]
        if not word or len(found) < len(names):
            return None
        flops, step, late, tokens, traffic = found
        if step < 1:  # no step has ended
            flops = traffic = step = 0.0
        return cls(word, flops, int(step), late, int(tokens), traffic)

    @property
    def flops_per_token(self) -> float | None:
        return self.flops / self.step if self.step else None

    @property
    def traffic_per_token(self) -> float | None:
        return self.traffic / self.step if self.step else None

    def problem(self, amount: float) -> str | None:
        """How its word, or the tokens it reported, understate what it computed; None if not.

        `amount` is the budget in FLOPs. It may be exceeded by the step that was begun within it.
        """
        if self.word * self.step < (1 - TOLERANCE) * self.flops:
            return (
                f"said {self.word:.4g} FLOPs a token, the counted step takes "
                f"{self.flops / self.step:.4g}"
            )
        if self.late * (1 - TOLERANCE) > self.flops:
            return (
                f"computed {self.late:.4g} FLOPs with gradients and reported no tokens for them, "
                f"a step has {self.flops:.4g}"
            )
        most = amount * (1 + TOLERANCE) / self.word + self.step
        if self.tokens > most:
            return f"trained on {self.tokens:,} tokens, its budget is for {int(most):,}"
        return None


def other_word(before: float | None, now: float | None) -> str | None:
    """How a word differs from that of the smoke step; None if it does not, or there was none."""
    if before is None or now is None or abs(now - before) <= TOLERANCE * before:
        return None
    return f"said {now:.4g} FLOPs a token, and {before:.4g} in its smoke step"


def number(value: Any) -> float | None:
    """A number from 0 to MOST; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Compared before it is converted, as a Python int may be too large for a float.
    return float(value) if 0 <= value < MOST else None
