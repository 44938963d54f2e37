"""The progress chart of a night: karpathy/autoresearch's picture with the noise in it, as a PNG.

Made from the ledger's state alone.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.files import FileRef
from tasks.noise import noise_of
from tasks.records import NightState, Trial
from tasks.text import counted, one_line, shortened
from tasks.views import margin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREEN, GREY, BLUE, RED = "#1a7f37", "#a0a6ad", "#3b6ea8", "#c0392b"
LEGEND = 5  # columns: the widest labels of more would be cut off
LONGEST_LABEL = 30  # characters
LABELLED = 14  # keeps: the labels of more would overlap
# By label in the legend: marker, colour, size, width of its edge, whether it is hollow.
MARKS = {
    "discarded": ("o", GREY, 6, 0, False),
    "discarded, within noise": ("o", GREY, 6, 1.5, True),
    "discarded, above the chart": ("^", GREY, 6, 0, False),
    "kept": ("o", GREEN, 9, 0, False),
    "kept, within noise": ("o", GREEN, 8, 2, True),
    "stopped, no score": ("|", RED, 11, 2, False),
    "rejected, not run": ("x", RED, 7, 1.5, False),
    "placebo": ("s", BLUE, 5, 1.2, True),
}
Point = tuple[int, float, Trial]  # number, score in bits per byte
Spot = tuple[float, float]  # trial number, bits per byte


def draw(state: NightState, path: Path) -> None:
    """Every trial's score, kept trials by name, the champion's steps, the baseline's noise."""
    import matplotlib.style  # slow: not for a command that only reads the ledger
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.style.context(["default", {"font.size": 10, "font.family": "DejaVu Sans"}]):
        figure = Figure(figsize=(10, 5), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)  # draws the figure without pyplot's global state
        axes = figure.subplots()
        _draw(axes, state)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if axes.get_legend_handles_labels()[0]:
            figure.legend(frameon=False, loc="outside lower center", ncols=LEGEND, fontsize=9)
        content = io.BytesIO()
        figure.savefig(content, format="png")
    FileRef.write(path, content.getvalue())


def _draw(axes: Axes, state: NightState) -> None:
    last = max((trial.number for trial in state.trials), default=0)
    low, top = _limits(state)
    kept = [point for point in _scored(state) if point[2].verdict == "keep"]
    _draw_baseline(axes, state, kept, last + 0.5)
    _draw_trials(axes, state, low, top)
    right = last + 0.5
    for point in _labelled(kept, last, top - low):
        _draw_label(axes, point)
        right = max(right, point[0] + 0.27 * last)  # room for the label
    for again in state.remeasurements:  # scores on both sides of it are not to be compared
        axes.axvline(again.trials + 0.5, color="#8b949e", lw=1, ls=":", label="measured again")
    axes.set_ylim(low, top)
    axes.set_xlim(-0.03 * (last + 1), right + 0.03 * (last + 1))
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
    axes.set_xlabel("trial (0 is the baseline)")
    axes.set_ylabel("validation bits per byte (lower is better)")
    figures = [counted(len(state.trials), "trial"), f"{len(kept)} kept"]
    if placebos := len(state.trials) - len(state.candidates):
        figures.append(counted(placebos, "placebo"))
    axes.set_title(f"Night {state.header.tag}: {', '.join(figures)}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e8eb", lw=0.8)
    axes.set_axisbelow(True)


def _draw_baseline(axes: Axes, state: NightState, kept: Sequence[Point], right: float) -> None:
    """The baseline with its noise, and the champion's steps down from it."""
    if state.baseline is None:
        return
    base, sd = state.baseline.val_bpb, noise_of(state).sd
    noise = "baseline, \u00b1 1 sd of a run"
    axes.axhspan(base - sd, base + sd, color=BLUE, alpha=0.12, lw=0, label=noise)
    axes.axhline(base, color=BLUE, lw=1, ls=(0, (4, 3)), alpha=0.7)
    steps: list[Spot] = [(0, base), *((number, score) for number, score, _ in kept)]
    x, y = zip(*steps, (right, steps[-1][1]), strict=True)
    axes.step(x, y, where="post", color=GREEN, lw=1.6, alpha=0.8, label="champion", zorder=2)
    axes.plot([0], [base], "D", color=BLUE, ms=7, zorder=4)


def _draw_trials(axes: Axes, state: NightState, low: float, top: float) -> None:
    """A mark for each trial; one whose score is above the chart, or that has none, at its edge.

    A hollow mark is a difference from the champion that is within noise.
    """
    spots: dict[str, list[Spot]] = {label: [] for label in MARKS}
    for trial in state.trials:
        label = _label(trial, top)
        spots[label].append((trial.number, _height(trial, low, top)))
    for label, (marker, colour, size, width, is_hollow) in MARKS.items():
        if spots[label]:
            x, y = zip(*spots[label], strict=True)
            fill = "white" if is_hollow else colour
            (marks,) = axes.plot(x, y, marker, color=colour, ms=size, mew=width, label=label)
            marks.set(markerfacecolor=fill, zorder=3)


def _label(trial: Trial, top: float) -> str:
    """Which of MARKS a trial gets."""
    if trial.placebo and trial.val_bpb is not None:
        return "placebo"
    if trial.val_bpb is None:
        return "rejected, not run" if trial.status == "rejected_patch" else "stopped, no score"
    noise = ", within noise" if margin.is_noise(trial) else ""
    if trial.verdict == "keep":
        return f"kept{noise}"
    return f"discarded{noise}" if trial.val_bpb <= top else "discarded, above the chart"


def _height(trial: Trial, low: float, top: float) -> float:
    """Where the mark goes on the score axis."""
    if trial.val_bpb is None:
        return low + 0.03 * (top - low)
    return trial.val_bpb if trial.val_bpb <= top else top - 0.02 * (top - low)


def _draw_label(axes: Axes, point: Point) -> None:
    number, score, trial = point
    line = shortened(one_line(trial.idea.summary), LONGEST_LABEL)
    text = line.replace("$", r"\$")  # a candidate's words are no mathtext
    note = axes.annotate(
        text, (number, score), (5, 6), textcoords="offset points", rotation=22, color=GREEN
    )
    note.set(fontsize=9, zorder=6, in_layout=False)


def _scored(state: NightState) -> list[Point]:
    return [
        (trial.number, trial.val_bpb, trial) for trial in state.trials if trial.val_bpb is not None
    ]


def _limits(state: NightState) -> tuple[float, float]:
    """Of the score axis: room for labels, and for all scores that do not flatten the rest."""
    scores = [score for _, score, _ in _scored(state)]
    base = state.baseline.val_bpb if state.baseline else max(scores, default=1.0)
    sd = noise_of(state).sd if state.baseline else 0.0
    low = min([base - 2 * sd, *scores])
    worst = base + max(2 * (base - low), 10 * sd)
    high = max([base + 2 * sd, *(score for score in scores if score <= worst)])
    span = max(high - low, 1e-3)
    labels = [score + 0.2 * span for _, score, trial in _scored(state) if trial.verdict == "keep"]
    return low - 0.1 * span, max([high, *labels]) + 0.08 * span


def _labelled(kept: Sequence[Point], last: int, height: float) -> list[Point]:
    """The kept trials that get a label: largest gains first, no two overlapping."""
    gains = {after[0]: before[1] - after[1] for before, after in itertools.pairwise(kept)}
    chosen: list[Point] = []
    for number, score, trial in sorted(kept, key=lambda point: -gains.get(point[0], float("inf"))):
        # Labels rise to the right, by about 0.9 of the chart's height over its width: two in a
        # row would meet.
        gaps = [
            (y - score) / height - 0.9 * (x - number) / last
            for x, y, _ in chosen
            if abs(x - number) < 0.25 * last
        ]
        if len(chosen) < LABELLED and all(abs(gap) >= 0.07 for gap in gaps):
            chosen.append((number, score, trial))
    return chosen
