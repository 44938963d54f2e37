"""A night's record as a language model is given it: bounded in tokens however long the night.

Kinds of change with their counts, what was kept, what trains right now, what came near, dead ends, failures, how the latest
trained, what earlier nights found: each has its share of the room. The words in it are a candidate's or an earlier answer's,
so they are cleaned here and fenced by whoever puts them into a prompt. Nothing that a scoring box said is in it.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tasks.errors import NightlyError
from tasks.history.trial_folder import read_runs
from tasks.proposers.past_nights import KNOBS, EarlierTrial, kind_of
from tasks.records import NightSoFar, RunResult, Trial
from tasks.text import one_line
from tasks.usage import KINDS

CHARACTERS_A_TOKEN = 3.5  # of English and of code, roughly, for every tokenizer in use
# Statuses whose reason is a training box's or our own check's. A scoring box has seen validation text: no word of it.
TOLD = (
    "rejected_patch",
    "startup_timeout",
    "startup_crashed",
    "train_timeout",
    "train_crashed",
    "bad_checkpoint",
)
ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"
)  # a terminal's; linear in time
TURN = re.compile(
    "<(?=[|\uff5c])"
)  # "<|im_start|>" and its like: some servers take them for their own, also in a text
SUMMARY, WORDS = 100, 240  # characters at most
NEWEST, BEST, NEAR, LATEST = (
    3,
    3,
    8,
    5,
)  # patches of keeps, of near misses, and training curves: what is read from files
NEAR_Z = -1.0  # a discard that is not worse than this is a near miss
OF_A_KIND, OF_A_STATUS, OF_AN_EARLIER_KIND = 6, 2, 2
FIGURES = {  # of a run's own metrics
    "num_steps": "{:.0f} steps",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu_percent": "MFU {:.1f}%",
    "peak_vram_mb": "{:,.0f} MiB on the GPU",
    "num_params_M": "{:.3g} M parameters",
}

Gains = Mapping[int, float]  # trial -> val_bpb less its parent's


def estimate_tokens(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_A_TOKEN)


def plain(text: str) -> str:
    """Somebody's lines without what does not show (a terminal's escapes, control characters, direction marks), defused."""
    lines = "\n".join(ESCAPE.sub("", text).splitlines())
    return TURN.sub(
        "< ", "".join(c for c in lines if c in "\n\t" or unicodedata.category(c)[0] != "C")
    )


def short(text: str, most: int) -> str:
    """Somebody's words as one line of at most so many characters, defused likewise."""
    line = TURN.sub("< ", one_line(ESCAPE.sub("", text[: 8 * most])))
    return line if len(line) <= most else f"{line[: most - 3]}..."


def by_kind(trials: Iterable[Trial]) -> dict[str, list[Trial]]:
    """The trials of each kind of change, in order. Every one of KINDS is there, and knobs."""
    kinds: dict[str, list[Trial]] = {kind: [] for kind in (*KINDS, KNOBS)}
    for trial in trials:
        kinds.setdefault(kind_of(trial), []).append(trial)
    return kinds


def patch_of(folder: Path | None, number: int, most: int) -> str:
    """A trial's patch without the names of its files, cut at a line; empty where it is missing."""
    if folder is None:
        return ""
    try:
        with (folder / "trials" / str(number) / "patch.diff").open("rb") as file:
            read = file.read(8 * most + 200).decode("utf-8", "replace")
    except OSError:
        return ""
    text = plain(read)
    text = text[max(text.find("@@"), 0) :]
    cut = text[:most].rpartition("\n")[0]
    return text if len(text) <= most else f"{cut}\n... (cut)"


def digest(night: NightSoFar, earlier: Sequence[EarlierTrial], tokens: int) -> str:
    """The record in at most so many estimated tokens; the overview, some 300 tokens, is there in any case."""
    text = _overview(night)
    room = max(tokens * CHARACTERS_A_TOKEN - len(text), 0.0)
    left = 0.0
    for share, title, entries in _sections(night, earlier, room):
        left += share * room  # and what the sections before have left over
        section = _section(title, entries, left)
        left -= len(section)
        text += section
    return text


def _section(title: str, entries: Iterable[str], room: float) -> str:
    """As many entries as there is room for; files behind the others are not read."""
    text = f"\n\n## {title}"
    for entry in entries:
        if len(text) + 1 + len(entry) > room:
            break
        text += f"\n{entry}"
    return text if "\n- " in text else ""


def _overview(night: NightSoFar) -> str:
    trials = night.trials
    kept = sum(trial.verdict == "keep" for trial in trials)
    unscored = sum(trial.val_bpb is None for trial in trials)
    dropped = len(trials) - kept - unscored
    lines = [
        f"{len(trials)} trials so far: {kept} kept, {dropped} discarded with a score, {unscored} without one."
    ]
    lines += ["", "## Kinds of change"]
    for kind, those in by_kind(trials).items():
        best = max((trial.z for trial in those if trial.z is not None), default=None)
        counts = f"tried {len(those)}, kept {sum(trial.verdict == 'keep' for trial in those)}"
        at_best = "" if best is None else f"{_z(best)} at best"
        figures = f"{counts}{at_best}, last in trial {those[-1].number}" if those else "never tried"
        lines.append(f"- {kind}: {figures}")
    if night.in_flight:
        flying = night.in_flight.idea
        named = (
            f"{short(flying.kind or flying.proposer, SUMMARY)}: {short(flying.summary, SUMMARY)}"
        )
        lines += [
            "",
            f"Trial {night.next_trial - 1} trains right now; do not propose it again: {named}",
        ]
        lines += [f"    why: {short(flying.hypothesis, WORDS)}"] if flying.hypothesis else []
        lines += [
            "    If it is kept, your change is merged onto it; keep off the lines of its patch and those next to them."
        ]
    return "\n".join(lines)


def _sections(
    night: NightSoFar, earlier: Sequence[EarlierTrial], room: float
) -> Iterator[tuple[float, str, Iterable[str]]]:
    """Share of the room, title and entries of each section; the most telling entries come first."""
    newest, gains = night.trials[::-1], _gains(night)
    kept = [trial for trial in newest if trial.verdict == "keep"]
    dropped = [trial for trial in newest if trial.verdict != "keep"]
    in_code = [
        trial for trial in kept if kind_of(trial) != KNOBS
    ]  # the summary of a knob says all of its patch
    best = sorted(in_code, key=lambda trial: gains.get(trial.number, 0.0))
    patched = {trial.number: trial for trial in (*in_code[:NEWEST], *best[:BEST])}
    scored = [(trial.z, trial) for trial in dropped if trial.z is not None and trial.z > NEAR_Z]
    near = {trial.number: trial for _, trial in sorted(scored, key=lambda pair: -pair[0])[:NEAR]}
    ends = by_kind(trial for trial in dropped if trial.number not in near)
    latest = {trial.number: trial for trial in (*kept[:1], *newest[:LATEST])}

    def with_patch(trial: Trial, most: float) -> str:
        return _line(trial, gains) + (
            "" if kind_of(trial) == KNOBS else _patch(night.folder, trial.number, int(most))
        )

    in_flight = (
        _patch(night.folder, night.next_trial - 1, int(0.08 * room)) if night.in_flight else ""
    )
    yield 0.12, "Kept, newest first", (_line(trial, gains) for trial in kept)
    yield (
        0.10,
        "The patch that trains right now",
        [f"- trial {night.next_trial - 1}:{in_flight}"] if in_flight else [],
    )
    yield (
        0.20,
        "Patches of the newest and the best of them",
        (with_patch(trial, 0.08 * room) for trial in patched.values()),
    )
    yield (
        0.17,
        "Near misses: within a standard error of the champion or better, not kept",
        (with_patch(trial, 0.035 * room) for trial in near.values()),
    )
    yield (
        0.13,
        "Dead ends, the latest of each kind",
        _in_turn([_line(t, gains) for t in e[:OF_A_KIND]] for e in ends.values()),
    )
    yield 0.08, "Without a score", _failures(dropped)
    yield (
        0.12,
        "How the champion and the latest trained",
        (_story(night, trial, gains) for trial in latest.values()),
    )
    yield 0.08, "Earlier nights on the same data, best and worst of each kind", _earlier(earlier)


def _in_turn(groups: Iterable[Sequence[str]]) -> Iterator[str]:
    """The first of each group, then the second of each: where room ends, no group is left out for another."""
    return (line for rank in itertools.zip_longest(*groups) for line in rank if line is not None)


def _gains(night: NightSoFar) -> Gains:
    scores = {trial.commit: trial.val_bpb for trial in night.trials if trial.val_bpb is not None}
    scored = ((trial, trial.val_bpb) for trial in night.trials if trial.val_bpb is not None)
    return {
        trial.number: score - scores.get(trial.parent, night.baseline_bpb)
        for trial, score in scored
    }


def _line(trial: Trial, gains: Gains) -> str:
    # Four decimals and one of z: a candidate could write into the low digits of its score what it has seen of the
    # validation text, for the researcher to read.
    decided: str = trial.status
    if trial.val_bpb is not None:
        score = f" val_bpb {trial.val_bpb:.4f}," if trial.verdict == "keep" else ""
        decided = f"{trial.verdict}{score} {gains[trial.number]:+.4f}{_z(trial.z)}"
    return (
        f"- trial {trial.number}, {kind_of(trial)}, {decided}: {short(trial.idea.summary, SUMMARY)}"
    )


def _z(z: float | None) -> str:
    return "" if z is None else f", z {z:+.1f}"


def _indented(text: str) -> str:
    return "".join(f"\n    {line}" for line in text.split("\n")) if text else ""


def _patch(folder: Path | None, number: int, most: int) -> str:
    """A trial's patch to go below its entry: cut with the indentation, as one that is too long would end its section."""
    text = _indented(patch_of(folder, number, most))
    return text if len(text) <= most else f"{text[:most].rpartition(chr(10))[0]}\n    ... (cut)"


def reason_of(status: str, reason: str) -> str:
    """Why a run was stopped, where a proposer may know."""
    return short(reason, WORDS) if status in TOLD else ""


def _failures(dropped: Sequence[Trial]) -> Iterator[str]:
    """Each status with its count and its latest trials, the most frequent first."""
    by_status: dict[str, list[Trial]] = {}
    for trial in dropped:
        if trial.val_bpb is None:
            by_status.setdefault(trial.status, []).append(trial)
    for status, those in sorted(by_status.items(), key=lambda item: -len(item[1])):
        told = [
            f"{_line(trial, {})[2:]}. {reason_of(status, trial.reason)}".removesuffix(". ")
            for trial in those[:OF_A_STATUS]
        ]
        yield f"- {status}: {len(those)}" + _indented("\n".join(told))


def _story(night: NightSoFar, trial: Trial, gains: Gains) -> str:
    """What a trial was to bring and how it trained."""
    told = {
        "why": trial.idea.hypothesis,
        "expected": trial.idea.expected,
        "reason": reason_of(trial.status, trial.reason),
    }
    lines = [f"{what}: {short(words, WORDS)}" for what, words in told.items() if words]
    if night.folder is not None and (run := _last_run(night.folder / "trials" / str(trial.number))):
        lines.append(training(run))
    return _line(trial, gains) + _indented("\n".join(lines))


def _last_run(folder: Path) -> RunResult | None:
    try:
        runs = read_runs(folder)
    except NightlyError:  # damaged: the record does without it
        return None
    return runs[-1] if runs else None


def training(run: RunResult) -> str:
    """The training loss at ten even points of the curve, and the run's figures."""
    points = (
        sorted({max(len(run.curve) * tenth // 10 - 1, 0) for tenth in range(1, 11)})
        if run.curve
        else []
    )
    figures = (
        [f"loss {' '.join(f'{run.curve[point][2]:.4g}' for point in points)}"] if points else []
    )
    figures += [
        form.format(run.metrics[name]) for name, form in FIGURES.items() if name in run.metrics
    ]
    figures += [f"{run.seconds:.0f} s"] if run.seconds is not None else []
    figures += (
        [f"{run.peak_memory_bytes / 2**30:.1f} GiB of host memory"] if run.peak_memory_bytes else []
    )
    return ", ".join(figures)


def _earlier(ideas: Sequence[EarlierTrial]) -> Iterator[str]:
    kinds: dict[str, list[EarlierTrial]] = {}
    for idea in sorted(ideas, key=lambda idea: -(idea.z or 0.0)):
        kinds.setdefault(idea.kind, []).append(idea)
    ends = [
        [*those[:OF_AN_EARLIER_KIND], *those[OF_AN_EARLIER_KIND:][-OF_AN_EARLIER_KIND:]]
        for those in kinds.values()
    ]
    return _in_turn([_idea(idea) for idea in those] for those in ends)


def _idea(idea: EarlierTrial) -> str:
    delta = "" if idea.delta is None else f", {idea.delta:+.4f}"
    decided = f"{idea.kind}, {idea.verdict}{_z(idea.z)}{delta}"
    return f"- {decided}: {short(idea.summary, SUMMARY)} (night {short(idea.night, SUMMARY)}, trial {idea.trial})"
