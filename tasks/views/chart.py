"""The progress chart of a night, a PNG made from the ledger's state: karpathy/autoresearch's picture, with the noise in it."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.files import FileRef
from tasks.records import NightState, Trial
from tasks.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREEN, GREY, BLUE, RED = "#1a7f37", "#a0a6ad", "#3b6ea8", "#c0392b"
LONGEST_LABEL, LABELLED = 30, 14  # characters, keeps: more would lie upon one another
Point = tuple[int, float, Trial]


def draw(state: NightState, path: Path) -> None:
    """The night as a PNG: every score by trial, keeps named, the champion's staircase, the baseline's noise, failures."""
    import matplotlib.style  # not for a command that only reads the ledger
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.style.context(["default", {"font.size": 10, "font.family": "DejaVu Sans"}]):
        figure = Figure(figsize=(10, 5), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)  # the figure draws on it; no state of pyplot's is touched
        axes = figure.subplots()
        _draw(axes, state)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if axes.get_legend_handles_labels()[0]:
            figure.legend(frameon=False, loc="outside lower center", ncols=6, fontsize=9)
        content = io.BytesIO()
        figure.savefig(content, format="png")
    FileRef.write(path, content.getvalue())


def _draw(axes: Axes, state: NightState) -> None:
    scored = [
        (trial.number, trial.val_bpb, trial) for trial in state.trials if trial.val_bpb is not None
    ]
    kept = [point for point in scored if point[2].verdict == "keep"]
    lost = [(number, score) for number, score, trial in scored if trial.verdict != "keep"]
    failed = [trial.number for trial in state.trials if trial.val_bpb is None]
    last = max([trial.number for trial in state.trials], default=0)
    low, top = _limits(state)
    if state.baseline:
        base, sd = state.baseline.val_bpb, state.baseline.sd
        axes.axhspan(
            base - sd,
            base + sd,
            color=BLUE,
            alpha=0.12,
            lw=0,
            label="baseline, \u00b1 1 sd of a run",
        )
        axes.axhline(base, color=BLUE, lw=1, ls=(0, (4, 3)), alpha=0.7)
        steps = [(0.0, base), *((float(number), score) for number, score, _ in kept)]
        x, y = zip(*steps, (last + 0.5, steps[-1][1]), strict=True)
        axes.step(x, y, where="post", color=GREEN, lw=1.6, alpha=0.8, label="champion", zorder=2)
        axes.plot([0], [base], "D", color=BLUE, ms=7, zorder=4)
    marks = [
        ("o", GREY, 6, "discarded", [point for point in lost if point[1] <= top]),
        (
            "^",
            GREY,
            6,
            "discarded, above the chart",
            [(n, top - 0.02 * (top - low)) for n, score in lost if score > top],
        ),
        ("o", GREEN, 9, "kept", [(number, score) for number, score, _ in kept]),
        (
            "|",
            RED,
            11,
            "stopped, no score",
            [(number, low + 0.03 * (top - low)) for number in failed],
        ),
    ]
    for marker, colour, size, label, points in marks:
        if points:
            width = 2 if marker == "|" else 0
            axes.plot(
                *zip(*points, strict=True),
                marker,
                color=colour,
                ms=size,
                mew=width,
                label=label,
                zorder=3,
            )
    right = last + 0.5
    for number, score, trial in _labelled(kept, last, top - low):
        note = axes.annotate(
            _label(trial),
            (number, score),
            (5, 6),
            textcoords="offset points",
            rotation=22,
            color=GREEN,
        )
        note.set(fontsize=9, zorder=6, in_layout=False)
        right = max(right, number + 0.27 * last)  # room for the label
    axes.set_ylim(low, top)
    axes.set_xlim(-0.03 * (last + 1), right + 0.03 * (last + 1))
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
    axes.set_xlabel("trial (0 is the baseline)")
    axes.set_ylabel("validation bits per byte, lower is better")
    axes.set_title(
        f"Night {state.header.tag}: {len(state.trials)} trials, {len(kept)} kept", loc="left"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e8eb", lw=0.8)
    axes.set_axisbelow(True)


def _limits(state: NightState) -> tuple[float, float]:
    """Of the score axis: all scores but those so bad that the rest would become a line, and room for the labels."""
    scores = [trial.val_bpb for trial in state.trials if trial.val_bpb is not None]
    base = state.baseline.val_bpb if state.baseline else max(scores, default=1.0)
    sd = state.baseline.sd if state.baseline else 0.0
    low = min([base - 2 * sd, *scores])
    worst = base + max(2 * (base - low), 10 * sd)
    high = max([base + 2 * sd, *(score for score in scores if score <= worst)])
    span = max(high - low, 1e-3)
    labels = [
        trial.val_bpb + 0.2 * span
        for trial in state.trials
        if trial.val_bpb and trial.verdict == "keep"
    ]
    return low - 0.1 * span, max([high, *labels]) + 0.08 * span


def _labelled(kept: list[Point], last: int, height: float) -> list[Point]:
    """The keeps that get a label: largest gains first, none upon another."""
    gains = {after[0]: before[1] - after[1] for before, after in itertools.pairwise(kept)}
    chosen: list[Point] = []
    for number, score, trial in sorted(kept, key=lambda point: -gains.get(point[0], float("inf"))):
        # Labels run up to the right, by about 0.9 of the chart's height over its width: two in a row would meet.
        gaps = [
            (y - score) / height - 0.9 * (x - number) / last
            for x, y, _ in chosen
            if abs(x - number) < 0.25 * last
        ]
        if len(chosen) < LABELLED and all(abs(gap) >= 0.07 for gap in gaps):
            chosen.append((number, score, trial))
    return chosen


def _label(trial: Trial) -> str:
    line = one_line(trial.idea.summary)
    short = line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 3]}..."
    return short.replace("$", r"\$")  # no mathtext out of a candidate's words
