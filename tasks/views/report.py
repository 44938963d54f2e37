"""The morning report of a night: Markdown for a person at 8 a.m., and upstream's results.tsv.

Made from the ledger's state alone, so it can be made again at any time. What is unknown is a dash.
Candidates' words (summaries, crash messages) are shown as text: they make no link, image,
mention or table cell.
"""

from __future__ import annotations

import base64
import statistics
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tasks.files import FileRef
from tasks.history import false_keeps, notebook
from tasks.history.false_keeps import FalseKeeps
from tasks.history.growth import Size
from tasks.history.notebook import Notes
from tasks.noise import estimate, noise_of
from tasks.records import BaselineEvent, NightHeader, NightState, Trial
from tasks.text import (
    counted,
    difference,
    money,
    numbered,
    one_line,
    score,
    short_commit,
    shortened,
    unlinked,
)
from tasks.text import in_markdown as _text
from tasks.views import (
    certificates,
    certified_text,
    costs,
    margin,
    refusals,
    search_yield,
    standings,
)
from tasks.views.leaps import leaps

FILE = "report.md"
PICTURE = "progress.png"  # the chart, beside the report
LONGEST_REASON = 200  # characters
LONGEST_NOTE, MOST_NOTES = 500, 40  # characters of a line of the notes, and lines
MOST_NUMBERS = 8  # of trials that are listed for one reason
# karpathy/autoresearch, program.md
COLUMNS = ("commit", "val_bpb", "memory_gb", "status", "description")


def write(state: NightState, folder: Path) -> None:
    """Writes report.md and results.tsv into the night's folder, each whole or not at all."""
    everywhere = false_keeps.of_all(state, false_keeps.nights(folder.parent))
    text = markdown(state, refusals.read(folder), everywhere)
    FileRef.write(folder / FILE, text.encode("utf-8", "replace"))
    FileRef.write(folder / "results.tsv", results_tsv(state).encode("utf-8", "replace"))


def alone(text: str, picture: bytes | None) -> str:
    """The report for a page that shows no file beside it: the PNG is in it, or only its name."""
    if picture is None:
        shown = f"The chart of all trials: `{PICTURE}`"
    else:
        shown = f"![Progress](data:image/png;base64,{base64.b64encode(picture).decode()})"
    return text.replace(f"![Progress]({PICTURE})", shown, 1)


def results_tsv(state: NightState) -> str:
    """Upstream's five columns, the baseline first. An unknown value is an empty cell, never 0."""
    rows = [COLUMNS]
    if baseline := state.baseline:
        facts = (f"{baseline.val_bpb:.6f}", _gib(baseline.peak_memory_bytes), "keep", "baseline")
        rows.append((short_commit(baseline.start_commit), *facts))
    for trial in state.trials:
        rows.append(
            (
                short_commit(trial.commit),
                "" if trial.val_bpb is None else f"{trial.val_bpb:.6f}",
                _gib(trial.peak_memory_bytes),
                _word(trial),
                one_line(trial.idea.summary),
            )
        )
    return "".join("\t".join(row) + "\n" for row in rows)


def _word(trial: Trial) -> str:
    """Upstream's word for what became of a trial, and `placebo`, which it does not know."""
    if trial.placebo:
        return "placebo"
    return trial.verdict if trial.status == "ok" else "crash"


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.1f}"


def markdown(
    state: NightState,
    refused: Mapping[str, str] = types.MappingProxyType({}),
    everywhere: FalseKeeps | None = None,
) -> str:
    """The report: what was won, how far to trust it, every trial, what to do next, provenance.

    `refused` are the runs that MLflow does not take, see refusals.py; `everywhere` are the false
    keeps of all comparable nights.
    """
    parts = [
        f"# Night {state.header.tag}",
        headline(state),
        f"![Progress]({PICTURE})",
        *_certified(state),
        *_contenders(state),
        "## How far to trust it",
        "\n".join([*_trust(state), *_false_keeps(state, everywhere)]),
        "## Trials",
        _table(state),
    ]
    if searched := search_yield.section(state):
        parts += ["## What each way of searching brought", *searched]
    if state.trials and state.header.is_researched:
        parts += ["## What it cost", "\n".join(_costs(state))]
    if notes := notebook.of_trials(state.candidates):
        parts += ["## The researcher's notes", "\n".join(_notes(state, notes))]
    parts += ["## Next steps", "\n".join([*_next_steps(state), *_refused(state, refused)])]
    parts += ["## Provenance", "\n".join(_provenance(state))]
    return "\n\n".join(parts) + "\n"


def headline(state: NightState) -> str:
    """What was won, and how the night went, in one paragraph of Markdown."""
    flattered = "The search chose by this score, so it is optimistic." if state.keeps else ""
    certified = certificates.sentence(state)
    parts = (f"**{_won(state)}**", flattered, certified, _progress(state), _end(state))
    return " ".join(filter(None, parts))


def _certified(state: NightState) -> list[str]:
    parts = list(certified_text.section(state))
    return ["## What is certified", *parts] if parts else []


def _contenders(state: NightState) -> list[str]:
    parts = list(standings.section(state))
    return ["## Which contender is better", *parts] if parts else []


def _won(state: NightState) -> str:
    baseline, best = state.baseline, state.champion_bpb
    if baseline is None or best is None:
        return "There is no baseline yet."
    base = baseline.val_bpb
    if not state.keeps:
        nothing = "Nothing was kept" if state.finished else "Nothing is kept so far"
        return f"{nothing}: the baseline has {base:.6f} bits per byte."
    gain = base - best
    in_sd = f", {abs(gain) / noise_of(state).sd:.1f} sd of one run"
    return (
        f"{best:.6f} bits per byte, {abs(gain):.6f} ({abs(gain) / base:.2%}{in_sd}) "
        f"{'better' if gain >= 0 else 'worse'} than the baseline's {base:.6f}."
    )


def _progress(state: NightState) -> str:
    if not state.trials:
        trials = "No trial is finished"
    else:
        tried = state.candidates
        rejected = sum(trial.status == "rejected_patch" for trial in tried)
        stopped = sum(trial.status != "ok" for trial in tried) - rejected
        kept, placebos = len(state.keeps), len(state.placebos)
        trials = (
            f"{counted(len(state.trials), 'trial')}: {kept} kept, "
            f"{len(tried) - kept - stopped - rejected} discarded, "
            f"{f'{rejected} rejected, ' if rejected else ''}{stopped} stopped"
        )
        trials += f", {counted(placebos, 'placebo')}" if placebos else ""
    hours, minutes = divmod(round(state.used_seconds / 60), 60)
    wall = f"{hours} h {minutes:02d} min" if hours else f"{state.used_seconds / 60:.1f} min"
    return f"{trials}. Wall time {wall}."


def _end(state: NightState) -> str:
    if state.finished:
        return f"The night is over: {_text(state.finished)}."
    resume = f"`./run resume {state.header.tag}` resumes it."
    if state.stopped:
        failed = "it failed: " if state.failed else ""
        return f"The night is not over: {failed}{_text(state.stopped)}. {resume}"
    number = state.pending.number if state.pending else state.in_flight
    doing = f": trial {number} has started" if number else ""
    return f"The night is not over{doing}. If its process is gone, {resume}"


def _trust(state: NightState) -> Iterator[str]:
    baseline, isolation = state.baseline, state.header.isolation
    if baseline is None:
        yield "- The baseline is not measured yet, so there are no scores."
        return
    yield (
        f"- Noise, bits per byte: {estimate(state)}. sd is the standard deviation; z is the "
        "difference of two means in standard errors."
    )
    yield (
        f"- The champion's score is the mean of {counted(len(state.champion_scores), 'run')}: "
        f"{_listed(map(score, state.champion_scores))}."
    )
    if state.keeps:
        yield (
            f"- Selection: the best of {counted(len(state.candidates), 'trial')} was picked by "
            "this score, so part of the gain is luck, and the true gain is likely smaller. Only "
            "runs with fresh seeds show how much."
        )
    yield from _size(state, baseline)
    yield f"- Audit: {_audit(state)}"
    for number, most in leaps(state.candidates).items():
        z = next(trial.z for trial in state.trials if trial.number == number)
        yield (
            f"- Read first: trial {number} is {z:.1f} standard errors better than its champion; "
            f"the night's other trials make at most {most:.1f} plausible. It may be an honest "
            f"leap, or a way around the judge: read its patch, `./run show {state.header.tag} "
            f"{number}`."
        )
    for trial in state.trials:
        if trial.unusual:
            yield f"- Unusual: trial {trial.number}: {_text(trial.unusual)}."
    yield from _conditions(state)
    if isolation == "none":
        yield (
            "- Isolation: NONE. Candidates ran with your permissions and could read the "
            "validation data."
        )
    else:
        yield f"- Isolation: {_text(isolation)}."


def _false_keeps(state: NightState, everywhere: FalseKeeps | None) -> Iterator[str]:
    found = false_keeps.of_night(state)
    if said := false_keeps.sentence(found, everywhere or found):
        yield f"- False keeps. {said} This estimates how often the rule keeps a change of nothing."


def _conditions(state: NightState) -> Iterator[str]:
    """Runs that were made again, and champions that were measured again."""
    repeated = [trial for trial in state.trials if trial.quarantined]
    if repeated:
        count = sum(len(trial.quarantined) for trial in repeated)
        were = "was" if count == 1 else "were"
        yield (
            f"- Conditions: {counted(count, 'run')} {were} repeated, because the machine was not "
            f"as usual ({numbered([trial.number for trial in repeated])}). The first: "
            f"{_text(repeated[0].quarantined[0].disturbance)}."
        )
    for again in state.remeasurements:
        other = f" on {_text(again.hardware_before)}" if again.baseline else ""
        baseline = ""
        if again.baseline:
            before, now = statistics.fmean(again.baseline_before), again.baseline.val_bpb
            baseline = f"the baseline had {before:.6f}{other} and has {now:.6f}, "
        before, now = map(statistics.fmean, (again.champion_before, again.scores))
        yield (
            f"- Measured again after {counted(again.trials, 'trial')}: {_text(again.reason)}. In "
            f"bits per byte, {baseline}the champion had {before:.6f}{other} and has {now:.6f}. "
            "Later trials are compared with the new scores alone."
        )


def _audit(state: NightState) -> str:
    audited = [trial for trial in state.trials if trial.audit_gap is not None]
    if unaudited := [trial.number for trial in state.keeps if trial.audit_gap is None]:
        return (
            f"NOT DONE for kept {numbered(unaudited)}. Nothing has checked what the candidate's "
            "own code claimed."
        )
    if not audited:
        return (
            "no trial came near a keep, so only the baseline was audited. The trials' scores are "
            "what their code claimed in a fresh box."
        )
    gaps = [trial.audit_gap or 0.0 for trial in audited if trial.status != "audit_failed"]
    failed = len(audited) - len(gaps)
    return (
        "every score that led to a keep was measured again from secret prefixes, in "
        f"{len(audited)} of {counted(len(state.trials), 'trial')}. {failed or 'None'} failed"
        f"{_charged(gaps, 'other claim' if failed else 'claim')}."
    )


def _charged(gaps: Sequence[float], claim: str) -> str:
    """By how much claims were too low, nats per token, where six digits show it."""
    if not gaps:
        return ""
    worst = f"{max(gaps):.6f}"
    if float(worst) <= 0:
        return f"; no {claim} was measurably too low"
    too_low = f"at most {worst} nats per token too low"
    return f"; the {claim}s were {too_low}, which is added to the scores"


def _size(state: NightState, baseline: BaselineEvent) -> Iterator[str]:
    """What the champion costs beside its score; nothing for a ledger that does not say."""
    kept = state.keeps
    before = Size.of(baseline)
    size = Size.of(kept[-1]) if kept else before
    if str(size):
        grown = size.growth(before) if kept else None
        more = f". Much larger than the baseline: {grown}" if grown else ""
        yield f"- Size of the {'champion' if kept else 'baseline'}: {size}{more}."


def _table(state: NightState) -> str:
    if not state.trials:
        return "None yet."
    several = len({search_yield.by(trial.idea) for trial in state.candidates}) > 1
    by, rule = (" by |", "---|") if several else ("", "")
    champions = margin.to_beat(state)
    rows = [
        f"| # | what |{by} verdict | val_bpb | vs baseline | vs champion | z | runs | why |",
        f"|--:|---|{rule}---|--:|--:|--:|--:|--:|---|",
        *(f"| {' | '.join(_cells(state, trial, champions, several))} |" for trial in state.trials),
        "",
        "Lower is better: a negative difference is a gain. *vs champion*: against the best file at "
        "the time, which is what a trial must beat. Within noise: that difference is smaller than "
        "its own standard error (z between -1 and 1).",
    ]
    return "\n".join(rows)


def _cells(
    state: NightState, trial: Trial, champions: Mapping[int, float], several: bool
) -> Iterator[str]:
    """A trial's row; `several` adds who proposed it."""
    yield str(trial.number)
    yield _text(trial.idea.summary)
    if several:
        yield _text(search_yield.by(trial.idea))
    outcome = margin.outcome(trial)
    yield f"**{outcome}**" if trial.verdict == "keep" else outcome
    yield score(trial.val_bpb)
    yield difference(trial.val_bpb, margin.baseline_of(state, trial.number))
    yield difference(trial.val_bpb, champions.get(trial.number))
    yield "-" if trial.z is None else f"{trial.z:.2f}"
    yield str(len(trial.scores))
    is_larger = trial.verdict == "keep" and trial.grown
    larger = f". Much larger than its champion: {trial.grown}" if is_larger else ""
    yield _text(f"{trial.reason}{larger}")


def _costs(state: NightState) -> Iterator[str]:
    """What the researcher cost, what it achieved, and where and why another stood in."""
    usage, agent = costs.of_night(state), state.header.asks_an_agent
    if agent:
        yield "- Cost and tokens: unknown, because the command uses an account of its own."
    else:
        yield (
            f"- Language model: {counted(usage.calls, 'request')} for these trials, "
            f"{costs.tokens(usage):,} tokens ({usage.prompt_tokens:,} in prompts, "
            f"{usage.completion_tokens:,} in answers)."
        )
        yield f"- Cost: {_price(state, usage.dollars)}."
    outcomes = Counter(str(trial.idea.outcome) for trial in state.trials if trial.idea.outcome)
    last = "" if agent else " of their last request"
    yield f"- Proposals by outcome{last}: {_counts(dict(outcomes.most_common()))}."
    yield f"- Keeps by kind: {_counts(costs.keeps_by_kind(state.trials))}."
    yield from _stand_ins(state)


def _price(state: NightState, dollars: float | None) -> str:
    if dollars is None:
        return "unknown, because the profile has no prices"
    own = sum(costs.is_own(trial) for trial in state.keeps)
    return money(dollars) + (f", {money(dollars / own)} for each keep by the model" if own else "")


def _stand_ins(state: NightState) -> Iterator[str]:
    """How many of the researcher's trials were another's, and why; nothing if there were none."""
    found = costs.stand_ins(state.trials)
    if not found:
        return
    _, (first, *_) = found[0]
    count = sum(len(trials) for _, trials in found)
    turns = count + sum(map(costs.is_own, state.trials))
    researcher = "command" if state.header.asks_an_agent else "model"
    yield (
        f"- {first.idea.proposer} stood in for the {researcher} in {count} of its "
        f"{counted(turns, 'trial')} ({count / turns:.0%}):"
    )
    for why, trials in found:
        numbers = _listed(trial.number for trial in trials[:MOST_NUMBERS])
        more = ", ..." if len(trials) > MOST_NUMBERS else ""
        reason = _text(shortened(one_line(why), LONGEST_REASON))
        yield f"  - {counted(len(trials), 'trial')} ({numbers}{more}): {reason}"


def _notes(state: NightState, notes: Notes) -> Iterator[str]:
    """The last ones as a block of code, in which nothing is Markdown."""
    yield (f"Written when it was asked for trial {notes.trial}; they come back in its next prompt.")
    yield ""
    lines = [line for line in notes.text.splitlines() if line.strip()]
    for line in lines[:MOST_NOTES]:
        yield f"    {shortened(unlinked(line), LONGEST_NOTE)}"
    yield from ["    ..."] if len(lines) > MOST_NOTES else []
    with_notes = [trial.number for trial in state.candidates if trial.idea.notes]
    if len(with_notes) > 1:
        latest = numbered(with_notes[-MOST_NUMBERS:])
        yield f"\nThose of each trial: `./run show {state.header.tag} K`, the latest for {latest}."


def _next_steps(state: NightState) -> Iterator[str]:
    tag = state.header.tag
    if state.keeps:
        yield from (f"- {step}" for step in certificates.merge_steps(state))
    yield "- Compare runs, knobs and loss curves in MLflow: `./run server`"
    yield f"- Compare with another night: `./run compare {tag} TAG`"
    if state.trials:
        number = state.trials[-1].number
        yield f"- See a trial's idea, patch and training: `./run show {tag} {number}`"
        yield f"- Every candidate, kept or not, is a commit: `git show refs/trials/{tag}/{number}`"


def _refused(state: NightState, refused: Mapping[str, str]) -> Iterator[str]:
    tag = state.header.tag
    if refused:
        yield f"- {_text(refusals.summary(tag, refused))}: `./run rebuild {tag}` tries again"


def _provenance(state: NightState) -> Iterator[str]:
    header, baseline = state.header, state.baseline
    branch = header.branch or "a detached HEAD"
    dirty = " with uncommitted changes" if header.dirty else ""
    facts: dict[str, object] = {
        "profile": header.profile,
        "proposer": header.proposer,
        **_researcher(header),
        "seed": header.seed,
        "dataset": baseline.dataset if baseline else "-",
        "training rows": (baseline and baseline.rows) or "-",
        "hardware": baseline.hardware if baseline else "-",
        "isolation": header.isolation,
        "started from": f"{branch} at {short_commit(header.head)}{dirty}",
        "first commit": short_commit(state.start_commit),
        "began": header.began[:19] + " UTC",
        "last event": state.updated[:19] + " UTC",
    }
    for name, value in facts.items():
        yield f"- {name}: {_text(str(value))}"


def _researcher(header: NightHeader) -> dict[str, str]:
    """The model and the instructions of a night that had them."""
    facts = {"model": header.model} if header.model else {}
    for number, part in enumerate(header.parts, start=1):
        if part.program:
            name = f"program of contender {number}" if header.contenders else "program"
            facts[name] = f"{part.program.name}, sha256 {part.program.sha256[:12]}"
    return facts


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _counts(counts: Mapping[str, int]) -> str:
    return _listed(f"{_text(name)} {count}" for name, count in counts.items()) or "none"
