"""The morning report of a night: Markdown for a person at 8 a.m., upstream's results.tsv, and the progress chart.

Made from the ledger's state alone, so it can be made again at any time; no number here is from anywhere else. What is not
known is a dash. Candidates' words (summaries, crash messages) are shown as text: they make no link, image or table cell.
"""

from __future__ import annotations

import io
import itertools
import re
import unicodedata
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.records import FileRef, NightState, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("commit", "val_bpb", "memory_gb", "status", "description")  # karpathy/autoresearch, program.md
GREEN, GREY, BLUE, RED = "#1a7f37", "#a0a6ad", "#3b6ea8", "#c0392b"
LONGEST_LABEL, LABELLED = 30, 14  # characters, keeps: more would lie upon one another
Point = tuple[int, float, Trial]


def write(state: NightState, folder: Path) -> None:
    """Writes report.md, results.tsv and progress.png into the night's folder, each whole or not at all."""
    FileRef.write(folder / "report.md", markdown(state).encode("utf-8", "replace"))
    FileRef.write(folder / "results.tsv", results_tsv(state).encode("utf-8", "replace"))
    chart(state, folder / "progress.png")


def results_tsv(state: NightState) -> str:
    """Upstream's five columns. A score that there is not is an empty cell, never 0; the baseline is the first row."""
    rows = [COLUMNS]
    if state.baseline:
        memory = state.baseline.get("peak_memory_bytes")
        rows.append((_commit(state.start_commit), f"{state.baseline['val_bpb']:.6f}", _gib(memory), "keep", "baseline"))
    for trial in state.trials:
        status = trial.verdict if trial.status == "ok" else "crash"
        score = "" if trial.val_bpb is None else f"{trial.val_bpb:.6f}"
        memory = _gib(trial.peak_memory_bytes)
        rows.append((_commit(trial.commit), score, memory, status, _line(trial.summary)))
    return "".join("\t".join(row) + "\n" for row in rows)


def markdown(state: NightState) -> str:
    """The report: what was won, how far to trust it, every trial, what to do next, where it came from."""
    header, tag = state.header, state.header["tag"]
    parts = [f"# Night {tag}", _headline(state), "![Progress](progress.png)", "## How far to trust it", _trust(state)]
    parts += ["## Trials", _table(state), "## What next", _next_steps(state), "## Where it came from"]
    facts = {
        "profile": header.get("profile"),
        "proposer": header.get("proposer"),
        "seed": header.get("seed"),
        "dataset": header.get("dataset"),
        "hardware": (state.baseline or {}).get("hardware"),
        "isolation": header.get("isolation"),
        "started from": f"{header.get('branch') or 'a detached HEAD'} at {_commit(header.get('head')) or '-'}"
        + (" with uncommitted changes" if header.get("dirty") else ""),
        "first commit": _commit(state.start_commit) or None,
        "began": header["time"][:19] + " UTC",
        "last event": state.updated[:19] + " UTC",
    }
    parts.append("\n".join(f"- {name}: {_text(_number(value))}" for name, value in facts.items()))
    return "\n\n".join(parts) + "\n"


def _headline(state: NightState) -> str:
    kept = sum(trial.verdict == "keep" for trial in state.trials)
    stopped = sum(trial.status != "ok" for trial in state.trials)
    counts = f"{_count(len(state.trials), 'trial')}: {kept} kept, {len(state.trials) - kept - stopped} discarded, "
    counts += f"{stopped} stopped. Wall time {_wall(state)}. "
    counts += f"The night is over: {_text(state.finished)}." if state.finished else _unfinished(state)
    if state.baseline is None or state.champion_bpb is None:
        return f"**No baseline yet.** {counts}"
    base, sd = float(state.baseline["val_bpb"]), state.baseline.get("sd")
    if not kept:
        return f"**Nothing was kept: the baseline stands at {base:.6f} bits per byte.** {counts}"
    gain = base - state.champion_bpb
    better = "better than" if gain >= 0 else "worse than"
    in_sd = f", {abs(gain) / sd:.1f} sd of one run" if sd else ""
    return (
        f"**{state.champion_bpb:.6f} bits per byte, {abs(gain):.6f} ({abs(gain) / base:.2%}{in_sd}) {better} "
        f"the baseline's {base:.6f}.** {counts}"
    )


def _unfinished(state: NightState) -> str:
    under_way = state.pending.number if state.pending else state.in_flight
    doing = f" (trial {under_way} is under way)" if under_way else ""
    return f"The night is not over{doing}; if nothing runs, `./run resume {state.header['tag']}` goes on with it."


def _trust(state: NightState) -> str:
    baseline, header = state.baseline or {}, state.header
    seeds = baseline.get("seeds") or ()
    runs = len(state.champion_scores)
    lines = [
        f"- Noise: one run scatters by sd {_number(baseline.get('sd'))} bits per byte, from the baseline's "
        f"{_count(len(baseline.get('scores') or ()), 'run')} (seeds {', '.join(map(str, seeds)) or '-'}). "
        f"z is a difference in standard errors of the means compared.",
        f"- The champion's score is the mean of {_count(runs, 'run')}"
        + (f": {', '.join(f'{score:.6f}' for score in state.champion_scores)}." if runs else "."),
    ]
    if any(trial.verdict == "keep" for trial in state.trials):
        lines.append(
            f"- Selection: the best of {_count(len(state.trials), 'trial')} was picked by the score shown, so part of it is "
            f"luck and the true gain is likely smaller. Seeds that took no part in the choice would tell."
        )
    lines.append(
        "- Audit: not done. Scores are what a fresh box claimed of the checkpoint on held-out text, summed by the judge."
    )
    if header.get("isolation") == "none":
        lines.append("- Isolation: NONE. Candidates ran with your rights and could read the validation data.")
    else:
        lines.append(f"- Isolation: {_text(_number(header.get('isolation')))}.")
    return "\n".join(lines)


def _table(state: NightState) -> str:
    if not state.trials:
        return "None yet."
    base = state.baseline["val_bpb"] if state.baseline else None
    rows = ["| # | what | verdict | val_bpb | vs baseline | z | runs | why |", "|--:|---|---|--:|--:|--:|--:|---|"]
    for trial in state.trials:
        verdict = f"stopped: {trial.status}" if trial.status != "ok" else trial.verdict
        verdict = "**keep**" if verdict == "keep" else verdict
        delta = None if trial.val_bpb is None or base is None else f"{trial.val_bpb - base:+.6f}"
        score = None if trial.val_bpb is None else f"{trial.val_bpb:.6f}"
        z = None if trial.z is None else f"{trial.z:.2f}"
        cells = [trial.number, _text(trial.summary), verdict, score, delta, z, len(trial.scores), _text(trial.reason)]
        rows.append(f"| {' | '.join(_number(cell) for cell in cells)} |")
    return "\n".join([*rows, "", "Lower is better; a negative difference to the baseline is a gain."])


def _next_steps(state: NightState) -> str:
    tag, start = state.header["tag"], _commit(state.start_commit) or "-"
    steps = ["- Compare the runs, their knobs and loss curves: `./run server`, then the MLflow page."]
    if any(trial.verdict == "keep" for trial in state.trials):
        steps = [
            f"- Read what won: `git diff {start} autoresearch/{tag} -- trainer/train.py`",
            f"- Take it over: `git merge autoresearch/{tag}`; look around first: `git switch --detach autoresearch/{tag}`",
            *steps,
        ]
    if state.trials:
        number = state.trials[-1].number
        steps.append(f"- Any candidate, kept or not, is a commit: `git show refs/trials/{tag}/{number}`")
    return "\n".join(steps)


def chart(state: NightState, path: Path) -> None:
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
    scored = [(trial.number, trial.val_bpb, trial) for trial in state.trials if trial.val_bpb is not None]
    kept = [point for point in scored if point[2].verdict == "keep"]
    lost = [(number, score) for number, score, trial in scored if trial.verdict != "keep"]
    failed = [trial.number for trial in state.trials if trial.val_bpb is None]
    last = max([trial.number for trial in state.trials], default=0)
    low, top = _limits(state)
    if state.baseline:
        base, sd = float(state.baseline["val_bpb"]), float(state.baseline.get("sd") or 0.0)
        axes.axhspan(base - sd, base + sd, color=BLUE, alpha=0.12, lw=0, label="baseline, \u00b1 1 sd of a run")
        axes.axhline(base, color=BLUE, lw=1, ls=(0, (4, 3)), alpha=0.7)
        steps = [(0.0, base), *((float(number), score) for number, score, _ in kept)]
        x, y = zip(*steps, (last + 0.5, steps[-1][1]), strict=True)
        axes.step(x, y, where="post", color=GREEN, lw=1.6, alpha=0.8, label="champion", zorder=2)
        axes.plot([0], [base], "D", color=BLUE, ms=7, zorder=4)
    marks = [
        ("o", GREY, 6, "discarded", [point for point in lost if point[1] <= top]),
        ("^", GREY, 6, "discarded, above the chart", [(n, top - 0.02 * (top - low)) for n, score in lost if score > top]),
        ("o", GREEN, 9, "kept", [(number, score) for number, score, _ in kept]),
        ("|", RED, 11, "stopped, no score", [(number, low + 0.03 * (top - low)) for number in failed]),
    ]
    for marker, colour, size, label, points in marks:
        if points:
            width = 2 if marker == "|" else 0
            axes.plot(*zip(*points, strict=True), marker, color=colour, ms=size, mew=width, label=label, zorder=3)
    right = last + 0.5
    for number, score, trial in _labelled(kept, last, top - low):
        note = axes.annotate(_label(trial), (number, score), (5, 6), textcoords="offset points", rotation=22, color=GREEN)
        note.set(fontsize=9, zorder=6, in_layout=False)
        right = max(right, number + 0.27 * last)  # room for the label
    axes.set_ylim(low, top)
    axes.set_xlim(-0.03 * (last + 1), right + 0.03 * (last + 1))
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
    axes.set_xlabel("trial (0 is the baseline)")
    axes.set_ylabel("validation bits per byte, lower is better")
    axes.set_title(f"Night {state.header['tag']}: {_count(len(state.trials), 'trial')}, {len(kept)} kept", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e8eb", lw=0.8)
    axes.set_axisbelow(True)


def _limits(state: NightState) -> tuple[float, float]:
    """Of the score axis: all scores but those so bad that the rest would become a line, and room for the labels."""
    scores = [trial.val_bpb for trial in state.trials if trial.val_bpb is not None]
    base = float(state.baseline["val_bpb"]) if state.baseline else max(scores, default=1.0)
    sd = float(state.baseline.get("sd") or 0.0) if state.baseline else 0.0
    low = min([base - 2 * sd, *scores])
    worst = base + max(2 * (base - low), 10 * sd)
    high = max([base + 2 * sd, *(score for score in scores if score <= worst)])
    span = max(high - low, 1e-3)
    labels = [trial.val_bpb + 0.2 * span for trial in state.trials if trial.val_bpb and trial.verdict == "keep"]
    return low - 0.1 * span, max([high, *labels]) + 0.08 * span


def _labelled(kept: list[Point], last: int, height: float) -> list[Point]:
    """The keeps that get a label: largest gains first, none upon another."""
    gains = {after[0]: before[1] - after[1] for before, after in itertools.pairwise(kept)}
    chosen: list[Point] = []
    for number, score, trial in sorted(kept, key=lambda point: -gains.get(point[0], float("inf"))):
        # Labels run up to the right, by about 0.9 of the chart's height over its width: two in a row would meet.
        gaps = [(y - score) / height - 0.9 * (x - number) / last for x, y, _ in chosen if abs(x - number) < 0.25 * last]
        if len(chosen) < LABELLED and all(abs(gap) >= 0.07 for gap in gaps):
            chosen.append((number, score, trial))
    return chosen


def _label(trial: Trial) -> str:
    line = _line(trial.summary)
    short = line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 3]}..."
    return short.replace("$", r"\$")  # no mathtext out of a candidate's words


def _wall(state: NightState) -> str:
    seconds = (datetime.fromisoformat(state.updated) - datetime.fromisoformat(state.header["time"])).total_seconds()
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{seconds / 60:.1f} min"


def _number(value: object) -> str:
    """A float with 4 significant digits, anything else as it is, None as a dash."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _commit(sha: str | None) -> str:
    return (sha or "")[:7]


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.1f}"


def _line(text: str) -> str:
    """One line without control characters, direction marks or halves of surrogate pairs."""
    visible = "".join(" " if unicodedata.category(character)[0] == "C" else character for character in text)
    return " ".join(visible.split())


def _text(text: str) -> str:
    """One line that Markdown shows as it is: in a table cell, no link, image, HTML or code comes of it."""
    return re.sub(r"([\\|\[*`]|<(?=[A-Za-z/!?]))", r"\\\1", _line(text))
