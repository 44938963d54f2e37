"""What a candidate's scoring may cost: what the baseline's did, times how much dearer its model is.

Training has a budget, and what loading a checkpoint or a forward pass does is not in it. So both
have limits of their own, each from the same phase of the baseline's runs. A model with a dearer
forward pass may spend more, and the judge counts that itself: by what a token cost in training,
where no model can be dear without losing steps, and by the length of its rows.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from tasks.judge.meter import Spent
from tasks.records import Caps, Cost, RunResult

TIMES = 1.5  # by so much may one measurement differ from another on a machine that others use
DEAREST = 8.0  # no model's scoring may cost more than this many times the baseline's a token
# Of a baseline's training: allowed on top of each phase, for what does not grow with the model.
SLACK_SHARE = 0.025
MIN_SLACK_CPU_SECONDS = 0.5  # a crash takes 0.4, and must be reported as a crash
MIN_SLACK_GPU_SECONDS = 10.0  # the start of the driver, a kernel that is compiled
# Of a training on a CPU. Beside other work, the same training has taken up to 1.29 times the
# CPU-seconds that it takes on an idle machine (13.8 and 17.8), where seeds differ by 0.4%.
TRAINING_MARGIN = 0.4
TRAINING_SDS = 4.0  # if the baseline's own runs differ by more
MOST_TIMES = 1.5  # however dear a step is
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


def most_of_training(runs: Sequence[RunResult]) -> float:
    """The CPU-seconds that no training may exceed, from those of the baseline's runs."""
    return MOST_TIMES * statistics.fmean(run.cpu_seconds or 0.0 for run in runs)


def usual_training(runs: Sequence[RunResult]) -> float:
    """The CPU-seconds that a training may take whose operations are like the baseline's."""
    used = [run.cpu_seconds or 0.0 for run in runs]
    mean, sd = statistics.fmean(used), statistics.stdev(used) if len(used) > 1 else 0.0
    margin = max(TRAINING_MARGIN * mean, TRAINING_SDS * sd, MIN_SLACK_CPU_SECONDS)
    return min(mean + margin, most_of_training(runs))


def traffic_per_flop(run: RunResult) -> float | None:
    """Bytes that the operations of its steps write, for each FLOP; None without a count."""
    if not (run.traffic_per_token and run.flops_per_token):
        return None
    return run.traffic_per_token / run.flops_per_token


def overspent(caps: Caps, run: RunResult) -> str | None:
    """What a training has used beyond the CPU-seconds of its FLOPs; None if it has not.

    Small batches and narrow models move more bytes a FLOP, and may use as much more time as they
    do; never more than `caps.cpu_seconds`.
    """
    if caps.usual_cpu_seconds is None or caps.cpu_seconds is None or run.cpu_seconds is None:
        return None
    traffic = traffic_per_flop(run)
    dearer = traffic / caps.traffic_per_flop if traffic and caps.traffic_per_flop else 1.0
    most = min(max(dearer, 1.0) * caps.usual_cpu_seconds, caps.cpu_seconds)
    if run.cpu_seconds <= most:
        return None
    return (
        f"used {run.cpu_seconds:.2f} CPU-seconds while training, the limit for its operations is "
        f"{most:.2f}, from what the baseline used"
    )


@dataclasses.dataclass(frozen=True)
class Passes:
    """The forward passes of a phase: `rows` that are asked for, each of `row` tokens.

    A batch has `batch_rows` rows whether so many are asked for or not.
    """

    rows: int
    row: int
    batches: int
    batch_rows: int

    @property
    def work(self) -> int:
        return self.rows * self.row

    @property
    def filled(self) -> float:
        """How many times more rows go through the model than are asked for."""
        return max(self.batches * self.batch_rows / max(self.rows, 1), 1.0)


def dearness(usual: Mapping[str, Cost], run: RunResult, passes: Passes, device: str) -> float:
    """How many times dearer than the baseline's a forward pass of this model may be, a token.

    Measured in its training: in CPU-seconds, or on a GPU in seconds. Attention over longer rows
    costs up to as much more as they are longer, and a batch that is mostly filling costs what a
    full one does. Tokens trained and rows of a batch are the candidate's own word, so this is never
    more than DEAREST.
    """
    training, field = usual["train"], "cpu_seconds" if device == "cpu" else "seconds"
    cost = getattr(run, field)
    ratio = 1.0
    if run.tokens and cost is not None and getattr(training, field):
        ratio = (cost / run.tokens) / (getattr(training, field) / training.work)
    longer = passes.row / max(usual["eval"].row, 1)
    return min(max(ratio, 1.0) * max(longer, 1.0) * passes.filled, DEAREST)


def limit(
    usual: Mapping[str, Cost], phase: str, work: int, device: str, dearer: float = 1.0
) -> Spent:
    """The most that a phase may cost: `work` as in Cost, `dearer` from `dearness`.

    On a CPU only CPU-seconds count: how long they take by the clock is up to whatever else runs on
    the machine, and what hangs is ended at the profile's own limits.
    """
    base, training, on_cpu = usual[phase], usual["train"], device == "cpu"
    more = work / max(base.work, 1)
    if phase.endswith("_startup"):  # a larger checkpoint
        more = min(max(more, 1.0), DEAREST)
    times, least = TIMES * more * dearer, MIN_SLACK_CPU_SECONDS if on_cpu else MIN_SLACK_GPU_SECONDS
    slack = max(SLACK_SHARE * (training.cpu_seconds if on_cpu else training.seconds), least)
    return Spent(
        math.inf if on_cpu else times * base.seconds + slack,
        times * base.cpu_seconds + slack,
        None if base.gpu_seconds is None else times * base.gpu_seconds + slack,
    )


def limit_of_claims(
    usual: Mapping[str, Cost], run: RunResult, passes: Passes, device: str
) -> Spent:
    """The limit of the phase `eval`, after the training and the loading of `run`.

    `dearness` can be inflated by a candidate that says it trained on fewer tokens than it did. So
    on a CPU, what a dearer model may spend more is what its run has left: training, loading and
    claims together use TIMES the baseline's CPU-seconds at most.
    """
    plain = limit(usual, "eval", passes.work, device)
    dear = limit(usual, "eval", passes.work, device, dearness(usual, run, passes, device))
    if device != "cpu":
        return dear
    whole = TIMES * sum(usual[part].cpu_seconds for part in ("train", "eval_startup", "eval"))
    left = whole - (run.cpu_seconds or 0.0) - run.costs["eval_startup"].cpu_seconds
    cpu_seconds = max(plain.cpu_seconds, min(dear.cpu_seconds, left))
    return dataclasses.replace(dear, cpu_seconds=cpu_seconds)
