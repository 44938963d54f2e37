"""What a candidate's scoring may cost: what the baseline's did, times how much dearer its model is.

Training has a budget, and what loading a checkpoint or a forward pass does is not in it. So both
have limits of their own, each from the same phase of the baseline's runs. A model with a dearer
forward pass may spend more, and the judge counts that itself: by what a token cost in training,
where no model can be dear without losing steps, and by the length of its rows.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from tasks.judge.meter import Spent
from tasks.records import Cost, RunResult

TIMES = 1.5  # the baseline's own cost: the spread of one cost on a machine that others use
DEAREST = 8.0  # no model's scoring may cost more than this many times the baseline's a token
# Of a baseline's training: allowed on top of each phase, for what does not grow with the model.
SLACK_SHARE = 0.025
MIN_SLACK_CPU_SECONDS = 0.5
# Under a budget of FLOPs a wall clock only ends what hangs, as a shared machine may be slow.
MIN_SECONDS = 60.0
SCORING = ("eval_startup", "eval", "audit_startup", "audit")


def usual_costs(runs: Sequence[RunResult]) -> dict[str, Cost]:
    """What the baseline's runs cost: the dearest of each phase of scoring, and the median training.

    Empty if a run lacks a figure.
    """
    if not all(run.tokens and set(SCORING) <= set(run.costs) for run in runs):
        return {}
    training = Cost(
        statistics.median(run.seconds or 0.0 for run in runs),
        statistics.median(run.cpu_seconds or 0.0 for run in runs),
        None,
        int(statistics.median(run.tokens or 0 for run in runs)),
    )
    dearest = {phase: _dearest([run.costs[phase] for run in runs]) for phase in SCORING}
    return {"train": training, **dearest}


def _dearest(costs: Sequence[Cost]) -> Cost:
    gpu = [cost.gpu_seconds for cost in costs if cost.gpu_seconds is not None]
    return Cost(
        max(cost.seconds for cost in costs),
        max(cost.cpu_seconds for cost in costs),
        max(gpu) if gpu else None,
        min(cost.work for cost in costs),
        min(cost.row for cost in costs),
    )


def dearness(usual: Mapping[str, Cost], run: RunResult, row: int, budget: str) -> float:
    """How many times dearer than the baseline's a forward pass of this model may be, a token.

    Measured in its training, in CPU-seconds or in the seconds of a `seconds` budget. The number of
    tokens is its own word, so this is never more than DEAREST. Attention over longer rows of `row`
    tokens costs up to as much more as they are longer.
    """
    training, field = usual["train"], "seconds" if budget == "seconds" else "cpu_seconds"
    cost = getattr(run, field)
    ratio = 1.0
    if run.tokens and cost is not None and getattr(training, field):
        ratio = (cost / run.tokens) / (getattr(training, field) / training.work)
    longer = row / usual["eval"].row if usual["eval"].row else 1.0
    return min(max(ratio, 1.0) * max(longer, 1.0), DEAREST)


def limit(
    usual: Mapping[str, Cost], phase: str, work: int, budget: str, dearer: float = 1.0
) -> Spent:
    """The most that a phase may cost: `work` as in Cost, `dearer` from `dearness`."""
    base, training = usual[phase], usual["train"]
    more = work / max(base.work, 1)
    if phase.endswith("_startup"):  # of a larger checkpoint
        more = min(max(more, 1.0), DEAREST)
    times = TIMES * more * dearer
    is_timed = budget == "seconds"
    slack = SLACK_SHARE * (training.seconds if is_timed else training.cpu_seconds)
    seconds = times * base.seconds + slack
    return Spent(
        seconds if is_timed else max(seconds, MIN_SECONDS),
        times * base.cpu_seconds + max(slack, MIN_SLACK_CPU_SECONDS),
        None if base.gpu_seconds is None else times * base.gpu_seconds + slack,
    )


def limit_of_claims(
    usual: Mapping[str, Cost], run: RunResult, work: int, row: int, budget: str
) -> Spent:
    """The limit of the phase `eval`, after the training and the loading of `run`.

    The ratio that `dearness` measures can be inflated by a candidate that says it trained on fewer
    tokens than it did. So what a dearer model may spend more comes out of the whole run's share:
    CPU-seconds of training, loading and claims together are TIMES the baseline's at most.
    """
    plain = limit(usual, "eval", work, budget)
    dear = limit(usual, "eval", work, budget, dearness(usual, run, row, budget))
    if budget == "seconds":
        return dear
    whole = TIMES * sum(usual[part].cpu_seconds for part in ("train", "eval_startup", "eval"))
    left = whole - (run.cpu_seconds or 0.0) - run.costs["eval_startup"].cpu_seconds
    cpu_seconds = max(plain.cpu_seconds, min(dear.cpu_seconds, left))
    return dataclasses.replace(dear, cpu_seconds=cpu_seconds)
