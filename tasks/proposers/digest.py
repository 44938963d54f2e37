"""A night's record for a language model, of bounded length however long the night.

Whole, whatever the room: the counts of each kind of change, and what every change touches that was
kept, trains now or waits for a run. Each other section has a share of what room is left: keeps,
patches, near misses, dead ends, failures, how the latest trials trained, earlier nights; what they
do not need goes to patches that were cut. The words are those of candidates or earlier answers, so
they are cleaned here and fenced in the prompt. No output of a scoring box is in it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tasks.errors import NightlyError
from tasks.history.trial_folder import read_runs
from tasks.proposers.changes import kept as kept_changes
from tasks.proposers.past_nights import KNOBS, EarlierTrial, kind_of
from tasks.proposers.touched import Lines, grouped, ranges_of, touched
from tasks.records import Candidate, NightSoFar, RunResult, Trial
from tasks.text import numbered, one_line, shortened
from tasks.usage import CHARACTERS_A_TOKEN, KINDS

# Statuses whose reason comes from a training box or from our own checks. A scoring box has seen
# validation text, so its reasons are withheld.
SHOWN_REASONS = (
    "rejected_patch",
    "startup_timeout",
    "startup_crashed",
    "train_timeout",
    "train_crashed",
    "bad_checkpoint",
    "dishonest_flops",
)
# A terminal's escape sequences; takes linear time.
ESCAPE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")
# "<|im_start|>" and similar, which some servers act on even within a text.
TURN = re.compile("<(?=[|\uff5c])")
SUMMARY, WORDS = 100, 240  # characters at most
# What is read from files: patches of the newest and the best keeps and of near misses, and curves.
NEWEST, BEST, NEAR, LATEST = 3, 3, 8, 5
NEAR_Z = -1.0  # a discard above this is a near miss
OF_A_KIND, OF_A_STATUS, OF_AN_EARLIER_KIND = 6, 2, 2  # trials at most
FIGURES = {  # self-reported metrics of a run
    "num_steps": "{:.0f} steps",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu_percent": "MFU {:.1f}%",
    "peak_vram_mb": "{:,.0f} MiB on the GPU",
    "num_params_M": "{:.3g} M parameters",
}
SPEED = ("tokens_per_second", "mfu_percent")
LONGEST_PATCH = 20_000  # characters read of one
CUT = "\n    ... (cut)"
NAME = 60  # characters of a name in a file

Gains = Mapping[int, float]  # trial -> val_bpb minus its champion's


def plain(text: str) -> str:
    """Untrusted lines without invisible characters, escape sequences and marks of a chat."""
    lines = "\n".join(ESCAPE.sub("", text).splitlines())
    visible = "".join(c for c in lines if c in "\n\t" or unicodedata.category(c)[0] != "C")
    return TURN.sub("< ", visible)


def short(text: str, most: int) -> str:
    """Untrusted words, cleaned like that, as one line of at most so many characters."""
    return shortened(TURN.sub("< ", one_line(ESCAPE.sub("", text[: 8 * most]))), most)


def by_kind(trials: Iterable[Trial]) -> dict[str, list[Trial]]:
    """The trials of each kind of change, in order. All of KINDS and knobs are there."""
    kinds: dict[str, list[Trial]] = {kind: [] for kind in (*KINDS, KNOBS)}
    for trial in trials:
        kinds.setdefault(kind_of(trial), []).append(trial)
    return kinds


def patch_of(folder: Path | None, number: int, most: int) -> str:
    """A trial's patch without the names of its files, cut at a line; empty if it is missing."""
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
    """The record in at most so many estimated tokens.

    Always whole, so that it may need more: the overview of about 300 tokens, and what each kept or
    waiting change touches.
    """
    text = _always(night)
    room = left = max(tokens * CHARACTERS_A_TOKEN - len(text), 0.0)
    given = 0.0
    sections = []
    for share, title, entries in _sections(night, earlier, room):
        given += share * room  # added to what earlier sections left over
        chosen = _fitting(title, entries, given)
        length = len(_section(title, chosen))
        given, left = given - length, left - length
        sections.append((title, chosen))
    return text + "".join(_section(title, each) for title, each in _widened(sections, left))


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A line or a few, and perhaps a patch below them."""

    text: str
    patch: str = ""  # whole, indented
    most: int = 0  # characters of it that are shown

    def __str__(self) -> str:
        return self.text + self.shown

    @property
    def shown(self) -> str:
        """The patch; cut at a line, if it is longer than may be shown."""
        if len(self.patch) <= self.most:
            return self.patch
        cut = self.patch[: max(self.most - len(CUT), 0)].rpartition("\n")[0]
        return cut + CUT if cut else ""


Section = tuple[str, list[_Entry]]  # its title and entries


def _fitting(title: str, entries: Iterable[str | _Entry], room: float) -> list[_Entry]:
    """As many entries as there is room for; the files of the others are not read."""
    chosen: list[_Entry] = []
    length = len(_section(title, [_Entry("")]))
    for entry in entries:
        made = _Entry(entry) if isinstance(entry, str) else entry
        length += 1 + len(str(made))
        if length > room:
            break
        chosen.append(made)
    return chosen


def _section(title: str, entries: Sequence[_Entry]) -> str:
    return f"\n\n## {title}\n" + "\n".join(map(str, entries)) if entries else ""


def _widened(sections: Iterable[Section], room: float) -> Iterator[Section]:
    """The same sections; patches that were cut get the room that is left, the first ones first."""
    for title, entries in sections:
        wider = []
        for entry in entries:
            before = len(entry.shown)
            grown = dataclasses.replace(entry, most=max(before + int(room), entry.most))
            room -= len(grown.shown) - before
            wider.append(grown)
        yield title, wider


def _always(night: NightSoFar) -> str:
    """What is whole however little room there is."""
    lines = [*_overview(night), *_parent(night), *_in_flight(night), *_waiting(night)]
    return "\n".join([*lines, *_kept(night)])


def _overview(night: NightSoFar) -> list[str]:
    trials = night.trials
    kept = sum(trial.verdict == "keep" for trial in trials)
    unscored = sum(trial.val_bpb is None for trial in trials)
    dropped = len(trials) - kept - unscored
    lines = [
        f"{len(trials)} trials so far: {kept} kept, {dropped} discarded with a score, "
        f"{unscored} without one.",
        "",
        "## Kinds of change",
    ]
    for kind, those in by_kind(trials).items():
        best = max((trial.z for trial in those if trial.z is not None), default=None)
        counts = f"tried {len(those)}, kept {sum(trial.verdict == 'keep' for trial in those)}"
        at_best = "" if best is None else f"{_z(best)} at best"
        figures = f"{counts}{at_best}, last in trial {those[-1].number}" if those else "never tried"
        lines.append(f"- {kind}: {figures}")
    return lines


def _parent(night: NightSoFar) -> Iterator[str]:
    """How the file that is shown differs from the champion, if it is another."""
    if night.parent is not None:
        change = touched(night.shown.source, night.champion.source)
        yield ""
        yield (
            f"The train.py that you are shown is trial {night.parent.trial}'s, not the champion's. "
            f"What the champion has and it lacks: {_touches(change.names, change.lines)} of the "
            "file that you are shown"
        )


def _in_flight(night: NightSoFar) -> Iterator[str]:
    """The trial that trains now, so that it is not proposed again and its lines are left alone."""
    if night.in_flight is None:
        return
    idea = night.in_flight.idea
    what = f"{short(idea.kind or idea.proposer, SUMMARY)}: {short(idea.summary, SUMMARY)}"
    yield ""
    yield f"Trial {night.next_trial - 1} trains right now; do not propose it again: {what}"
    if idea.hypothesis:
        yield f"    why: {short(idea.hypothesis, WORDS)}"
    yield f"    touches {_of_champion(night, night.in_flight.candidate)}"
    yield (
        "    If it is kept, your change is merged onto it; keep off the lines of its patch and "
        "those next to them."
    )


def _waiting(night: NightSoFar) -> Iterator[str]:
    """The queue, a line for each idea."""
    if night.waiting:
        yield "\n## Ideas that wait for a run: do not propose them again"
    for proposed in night.waiting:
        idea, guess = proposed.idea, proposed.idea.estimate
        name = short(idea.queued or "an idea", 20)
        gain = f", expected gain {guess.gain:+.4f} (sd {guess.sd:.4f})" if guess else ""
        what = f"{short(idea.kind or idea.proposer, SUMMARY)}{gain}: {short(idea.summary, SUMMARY)}"
        yield f"- {name}, {what}; touches {_of_champion(night, proposed.candidate)}"


def _kept(night: NightSoFar) -> Iterator[str]:
    """What each kept change touched, and which lines of the champion are its, the newest first."""
    changes = kept_changes(night)
    if changes:
        yield "\n## What each kept change touched, and its lines in today's champion"
    for change in changes:
        if change.names is None:
            yield f"- trial {change.trial}: unknown, its files are gone"
        else:
            yield f"- trial {change.trial}: {_touches(change.names, change.lines)}"


def _of_champion(night: NightSoFar, candidate: Candidate) -> str:
    change = touched(night.champion.source, candidate.source)
    return f"{_touches(change.names, change.lines)} of the champion"


def _touches(names: Sequence[str], lines: Sequence[Lines]) -> str:
    """All of them, however many: beyond some they are grouped."""
    named = ", ".join(short(name, NAME) for name in grouped(names)) or "nothing that has a name"
    where = ranges_of(lines) or "none"
    return f"{named}; {'line' if where.isdecimal() else 'lines'} {where}"


def _sections(
    night: NightSoFar, earlier: Sequence[EarlierTrial], room: float
) -> Iterator[tuple[float, str, Iterable[str | _Entry]]]:
    """Share of the room, title and entries of each section; the most useful entries come first."""
    newest, gains = night.trials[::-1], _gains(night)
    kept = [trial for trial in newest if trial.verdict == "keep"]
    dropped = [trial for trial in newest if trial.verdict != "keep"]
    in_code = [trial for trial in kept if kind_of(trial) != KNOBS]
    best = sorted(in_code, key=lambda trial: gains.get(trial.number, 0.0))
    patched = {trial.number: trial for trial in (*in_code[:NEWEST], *best[:BEST])}
    scored = [(trial.z, trial) for trial in dropped if trial.z is not None and trial.z > NEAR_Z]
    near = {trial.number: trial for _, trial in sorted(scored, key=lambda pair: -pair[0])[:NEAR]}
    ends = by_kind(trial for trial in dropped if trial.number not in near)
    latest = {trial.number: trial for trial in (*kept[:1], *newest[:LATEST])}

    def with_patch(line: str, trial: Trial, share: float) -> _Entry:
        if kind_of(trial) == KNOBS:  # its summary says it all
            return _Entry(line)
        return _Entry(line, _patch(night.folder, trial.number), int(share * room))

    flying = _patch(night.folder, night.next_trial - 1) if night.in_flight else ""
    in_flight = _Entry(f"- trial {night.next_trial - 1}:", flying, int(0.08 * room))
    patches = (with_patch(_line(trial, gains), trial, 0.08) for trial in patched.values())
    misses = (with_patch(_miss(night, trial, gains), trial, 0.035) for trial in near.values())
    dead = _in_turn([_line(trial, gains) for trial in those[:OF_A_KIND]] for those in ends.values())
    stories = (_story(night, trial, gains) for trial in latest.values())
    yield 0.12, "Kept, newest first", (_line(trial, gains) for trial in kept)
    yield 0.10, "The patch that trains right now", [in_flight] if flying else []
    yield 0.20, "Patches of the newest and the best of them", patches
    yield 0.17, "Near misses: not kept, at most a standard error worse than the champion", misses
    yield 0.11, "Dead ends, the latest of each kind", dead
    yield 0.08, "Without a score", _failures(dropped)
    yield 0.03, "Fixed, carried over, repaired, or made of other trials", _mended(newest)
    yield 0.11, "How the champion and the latest trained", stories
    yield 0.08, "Earlier nights on the same data, best and worst of each kind", _earlier(earlier)


def _in_turn(groups: Iterable[Sequence[str]]) -> Iterator[str]:
    """The first of each group, then the second of each, so that no group crowds out another."""
    return (line for rank in itertools.zip_longest(*groups) for line in rank if line is not None)


def _gains(night: NightSoFar) -> Gains:
    scores = {trial.commit: trial.val_bpb for trial in night.trials if trial.val_bpb is not None}
    scored = ((trial, trial.val_bpb) for trial in night.trials if trial.val_bpb is not None)
    return {
        trial.number: score
        - night.to_beat.get(trial.number, scores.get(trial.parent, night.baseline_bpb))
        for trial, score in scored
    }


def _line(trial: Trial, gains: Gains) -> str:
    # Four decimals, and one of z: in the low digits of its score, a candidate could pass on to the
    # researcher what it has seen of the validation text.
    decided: str = trial.status
    if trial.val_bpb is not None:
        score = f" val_bpb {trial.val_bpb:.4f}," if trial.verdict == "keep" else ""
        decided = f"{trial.verdict}{score} {gains[trial.number]:+.4f}{_z(trial.z)}"
    summary = short(trial.idea.summary, SUMMARY)
    grown = f" [{trial.grown}]" if trial.grown else ""
    return f"- trial {trial.number}, {kind_of(trial)}, {decided}: {summary}{grown}"


def _z(z: float | None) -> str:
    return "" if z is None else f", z {z:+.1f}"


def _indented(text: str) -> str:
    return "".join(f"\n    {line}" for line in text.split("\n")) if text else ""


def _patch(folder: Path | None, number: int) -> str:
    """A trial's patch below its entry."""
    return _indented(patch_of(folder, number, LONGEST_PATCH))


def _miss(night: NightSoFar, trial: Trial, gains: Gains) -> str:
    """A near miss against the champion of its time, and against today's if that differs."""
    line = _line(trial, gains)
    if trial.val_bpb is None or trial.number < night.first_comparable:
        return line
    today = f"{trial.val_bpb - night.champion_bpb:+.4f}"
    if today == f"{gains[trial.number]:+.4f}":
        return line
    head, separator, summary = line.partition(": ")
    return f"{head}, against today's champion {today}{separator}{summary}"


def _mended(newest: Iterable[Trial]) -> Iterator[str]:
    """How candidates came about that are not what was proposed at first."""
    for trial in newest:
        told = [f"crashed and was fixed {trial.fixes} times"] if trial.fixes > 1 else []
        if trial.idea.built_on:
            told.append(f"{trial.idea.search} of {numbered(trial.idea.built_on)}")
        told += [trial.idea.note] if trial.idea.note else []
        if told:
            decided = trial.verdict if trial.val_bpb is not None else trial.status
            yield f"- trial {trial.number}, {decided}: {short('; '.join(told), WORDS)}"


def reason_of(status: str, reason: str) -> str:
    """Why a run was stopped; empty where a proposer must not know."""
    return short(reason, WORDS) if status in SHOWN_REASONS else ""


def _failures(dropped: Sequence[Trial]) -> Iterator[str]:
    """Each status with its count and its latest trials, the most frequent first."""
    by_status: dict[str, list[Trial]] = {}
    for trial in dropped:
        if trial.val_bpb is None:
            by_status.setdefault(trial.status, []).append(trial)
    for status, those in sorted(by_status.items(), key=lambda item: -len(item[1])):
        lines = [
            f"{_line(trial, {})[2:]}. {reason_of(status, trial.reason)}".removesuffix(". ")
            for trial in those[:OF_A_STATUS]
        ]
        yield f"- {status}: {len(those)}" + _indented("\n".join(lines))


def _story(night: NightSoFar, trial: Trial, gains: Gains) -> str:
    """What a trial was expected to do, and how it trained."""
    texts = {
        "why": trial.idea.hypothesis,
        "expected": trial.idea.expected,
        "reason": reason_of(trial.status, trial.reason),
    }
    lines = [f"{what}: {short(words, WORDS)}" for what, words in texts.items() if words]
    if night.folder is not None and (run := _last_run(night.folder / "trials" / str(trial.number))):
        lines.append(training(run))
    return _line(trial, gains) + _indented("\n".join(lines))


def _last_run(folder: Path) -> RunResult | None:
    try:
        runs = read_runs(folder)
    except NightlyError:  # damaged
        return None
    return runs[-1] if runs else None


def training(run: RunResult) -> str:
    """The training loss in each tenth of the run, and the run's figures.

    Not how fast it was, if its budget is in operations: that depends on what else the machine does,
    and buys nothing.
    """
    figures = []
    if run.curve:
        figures.append("loss " + " ".join(f"{loss:.4g}" for *_, loss in run.curve_in_tenths))
    in_seconds = run.counted_flops_per_token is None  # counted for budgets of operations alone
    figures += [
        form.format(run.metrics[name])
        for name, form in FIGURES.items()
        if name in run.metrics and (in_seconds or name not in SPEED)
    ]
    if in_seconds and run.seconds is not None:
        figures.append(f"{run.seconds:.0f} s")
    if not in_seconds and run.cpu_seconds is not None:
        figures.append(f"{run.cpu_seconds:.0f} CPU-seconds")
    if run.peak_memory_bytes:
        figures.append(f"{run.peak_memory_bytes / 2**30:.1f} GiB of host memory")
    return ", ".join(figures)


def _earlier(trials: Sequence[EarlierTrial]) -> Iterator[str]:
    kinds: dict[str, list[EarlierTrial]] = {}
    for trial in sorted(trials, key=lambda trial: -(trial.z or 0.0)):
        kinds.setdefault(trial.kind, []).append(trial)
    most = OF_AN_EARLIER_KIND
    ends = [[*those[:most], *those[most:][-most:]] for those in kinds.values()]
    return _in_turn([_earlier_line(trial) for trial in those] for those in ends)


def _earlier_line(trial: EarlierTrial) -> str:
    delta = "" if trial.delta is None else f", {trial.delta:+.4f}"
    decided = f"{trial.kind}, {trial.verdict}{_z(trial.z)}{delta}"
    where = f"night {short(trial.night, SUMMARY)}, trial {trial.trial}"
    return f"- {decided}: {short(trial.summary, SUMMARY)} ({where})"
