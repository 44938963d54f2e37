"""The morning report of a night: Markdown for a person at 8 a.m., and upstream's results.tsv.

Made from the ledger's state alone, so it can be made again at any time; no number here is from anywhere else. What is not
known is a dash. Candidates' words (summaries, crash messages) are shown as text: they make no link, image or table cell.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tasks import text
from tasks.files import FileRef
from tasks.records import NightHeader, NightState
from tasks.text import counted, one_line
from tasks.views import costs

LONGEST_REASON = 200  # characters
MOST_NUMBERS = 8  # of trials that a reason has
COLUMNS = (
    "commit",
    "val_bpb",
    "memory_gb",
    "status",
    "description",
)  # karpathy/autoresearch, program.md


def write(state: NightState, folder: Path) -> None:
    """Writes report.md and results.tsv into the night's folder, each whole or not at all."""
    FileRef.write(folder / "report.md", markdown(state).encode("utf-8", "replace"))
    FileRef.write(folder / "results.tsv", results_tsv(state).encode("utf-8", "replace"))


def results_tsv(state: NightState) -> str:
    """Upstream's five columns. A score that there is not is an empty cell, never 0; the baseline is the first row."""
    rows = [COLUMNS]
    if state.baseline:
        peak = state.baseline.peak_memory_bytes
        rows.append(
            (
                _commit(state.start_commit),
                f"{state.baseline.val_bpb:.6f}",
                _gib(peak),
                "keep",
                "baseline",
            )
        )
    for trial in state.trials:
        status = trial.verdict if trial.status == "ok" else "crash"
        score = "" if trial.val_bpb is None else f"{trial.val_bpb:.6f}"
        memory = _gib(trial.peak_memory_bytes)
        rows.append((_commit(trial.commit), score, memory, status, one_line(trial.idea.summary)))
    return "".join("\t".join(row) + "\n" for row in rows)


def markdown(state: NightState) -> str:
    """The report: what was won, how far to trust it, every trial, what to do next, where it came from."""
    header, tag = state.header, state.header.tag
    parts = [
        f"# Night {tag}",
        headline(state),
        "![Progress](progress.png)",
        "## How far to trust it",
        _trust(state),
    ]
    parts += ["## Trials", _table(state)]
    if state.trials and header.is_researched:
        parts += ["## What it cost", _costs(state)]
    parts += ["## What next", _next_steps(state), "## Where it came from"]
    facts = {
        "profile": header.profile,
        "proposer": header.proposer,
        **_researcher(header),
        "seed": header.seed,
        "dataset": state.baseline.dataset if state.baseline else None,
        "hardware": state.baseline.hardware if state.baseline else None,
        "isolation": header.isolation,
        "started from": f"{header.branch or 'a detached HEAD'} at {_commit(header.head) or '-'}"
        + (" with uncommitted changes" if header.dirty else ""),
        "first commit": _commit(state.start_commit) or None,
        "began": header.began[:19] + " UTC",
        "last event": state.updated[:19] + " UTC",
    }
    parts.append("\n".join(f"- {name}: {_text(_number(value))}" for name, value in facts.items()))
    return "\n\n".join(parts) + "\n"


def headline(state: NightState) -> str:
    """What was won, and how the night went, in one paragraph of Markdown."""
    kept = sum(trial.verdict == "keep" for trial in state.trials)
    stopped = sum(trial.status != "ok" for trial in state.trials)
    counts = f"{counted(len(state.trials), 'trial')}: {kept} kept, {len(state.trials) - kept - stopped} discarded, "
    counts += f"{stopped} stopped. Wall time {_wall(state)}. "
    counts += (
        f"The night is over: {_text(state.finished)}." if state.finished else _unfinished(state)
    )
    if state.baseline is None or state.champion_bpb is None:
        return f"**No baseline yet.** {counts}"
    base, sd = state.baseline.val_bpb, state.baseline.sd
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
    if state.stopped:
        doing = f": {'it failed: ' if state.failed else ''}{_text(state.stopped)}"
    return f"The night is not over{doing}. If nothing runs, `./run resume {state.header.tag}` goes on with it."


def _trust(state: NightState) -> str:
    baseline, header = state.baseline, state.header
    if baseline is None:
        return "- The baseline is not measured yet: there is no score to trust or not."
    lines = [
        f"- Noise: one run scatters by sd {_number(baseline.sd)} bits per byte, from the baseline's "
        f"{counted(len(baseline.scores), 'run')} (seeds {', '.join(map(str, baseline.seeds))}). "
        f"z is a difference in standard errors of the means compared.",
        f"- The champion's score is the mean of {counted(len(state.champion_scores), 'run')}: "
        f"{', '.join(f'{score:.6f}' for score in state.champion_scores)}.",
    ]
    if any(trial.verdict == "keep" for trial in state.trials):
        lines.append(
            f"- Selection: the best of {counted(len(state.trials), 'trial')} was picked by the score shown, so part of it is "
            f"luck and the true gain is likely smaller. Seeds that took no part in the choice would tell."
        )
    lines.append(_audit(state))
    lines += [
        f"- Unusual: trial {trial.number}: {_text(trial.unusual)}."
        for trial in state.trials
        if trial.unusual
    ]
    if header.isolation == "none":
        lines.append(
            "- Isolation: NONE. Candidates ran with your rights and could read the validation data."
        )
    else:
        lines.append(f"- Isolation: {_text(_number(header.isolation))}.")
    return "\n".join(lines)


def _audit(state: NightState) -> str:
    audited = [trial for trial in state.trials if trial.audit_gap is not None]
    unaudited = [
        str(trial.number)
        for trial in state.trials
        if trial.verdict == "keep" and trial.audit_gap is None
    ]
    if unaudited:
        return f"- Audit: NOT DONE for what was kept (trial {', '.join(unaudited)}): these scores are claims."
    if not audited:
        return "- Audit: no score came near a keep, so none but the baseline's was audited: scores are a fresh box's claims."
    caught = sum(trial.status == "audit_failed" for trial in audited)
    gaps = [trial.audit_gap or 0.0 for trial in audited if trial.status != "audit_failed"]
    honest = (
        f"; the claims of the rest were at most {max(gaps):.6f} nats a token too low, which is charged"
        if gaps
        else ""
    )
    return (
        f"- Audit: every score that entered a keep was earned again from secret prefixes, in {len(audited)} of "
        f"{counted(len(state.trials), 'trial')}. {caught} failed it{honest}."
    )


def _table(state: NightState) -> str:
    if not state.trials:
        return "None yet."
    base = state.baseline.val_bpb if state.baseline else None
    several = len({trial.idea.proposer for trial in state.trials}) > 1
    by, rule = (" by |", "---|") if several else ("", "")
    rows = [
        f"| # | what |{by} verdict | val_bpb | vs baseline | z | runs | why |",
        f"|--:|---|{rule}---|--:|--:|--:|--:|---|",
    ]
    for trial in state.trials:
        verdict = f"stopped: {trial.status}" if trial.status != "ok" else trial.verdict
        verdict = "**keep**" if verdict == "keep" else verdict
        delta = None if trial.val_bpb is None or base is None else f"{trial.val_bpb - base:+.6f}"
        score = None if trial.val_bpb is None else f"{trial.val_bpb:.6f}"
        z = None if trial.z is None else f"{trial.z:.2f}"
        what = [_text(trial.idea.summary), *([_text(trial.idea.proposer)] if several else [])]
        cells = [
            trial.number,
            *what,
            verdict,
            score,
            delta,
            z,
            len(trial.scores),
            _text(trial.reason),
        ]
        rows.append(f"| {' | '.join(_number(cell) for cell in cells)} |")
    return "\n".join(
        [*rows, "", "Lower is better; a negative difference to the baseline is a gain."]
    )


def _costs(state: NightState) -> str:
    """What the researcher cost, what was got for it, and where and why another stood in."""
    usage, trials, agent = costs.of_night(state), state.trials, state.header.asks_an_agent
    tokens = f"{usage.prompt_tokens:,} of prompts and {usage.completion_tokens:,} of answers"
    dollars = "unknown: no prices in the profile"
    if usage.dollars is not None:
        keeps = sum(trial.verdict == "keep" and costs.is_own(trial) for trial in trials)
        each = (
            f", {text.money(usage.dollars / keeps)} for each keep of the model's own"
            if keeps
            else ""
        )
        dollars = text.money(usage.dollars) + each
    spent = [
        f"- Requests to a language model, for these trials: {usage.calls}. Tokens: {costs.tokens(usage):,}, {tokens}.",
        f"- Dollars: {dollars}.",
    ]
    outcomes = dict(
        Counter(str(trial.idea.outcome) for trial in trials if trial.idea.outcome).most_common()
    )
    lines = [
        *(
            ["- Dollars and tokens: unknown: the command has an account of its own."]
            if agent
            else spent
        ),
        f"- Proposals by outcome{'' if agent else ' of their last request'}: {_counts(outcomes)}.",
        f"- Keeps by kind: {_counts(costs.keeps_by_kind(trials))}.",
        *_stand_ins(state),
    ]
    return "\n".join(lines)


def _stand_ins(state: NightState) -> Iterator[str]:
    """How many of the researcher's trials were another's, and why; nothing where all are its own."""
    found = costs.stand_ins(state.trials)
    if not found:
        return
    count, (_, (first, *_)) = sum(len(stood) for _, stood in found), found[0]
    turns = count + sum(map(costs.is_own, state.trials))
    researcher = "command" if state.header.asks_an_agent else "model"
    yield f"- {first.idea.proposer} stood in for the {researcher} in {count} of its {counted(turns, 'trial')} ({count / turns:.0%}):"
    for why, stood in found:
        numbers = ", ".join(str(trial.number) for trial in stood[:MOST_NUMBERS]) + (
            ", ..." if stood[MOST_NUMBERS:] else ""
        )
        yield f"  - {counted(len(stood), 'trial')} ({numbers}): {_text(one_line(why)[:LONGEST_REASON])}"


def _researcher(header: NightHeader) -> dict[str, str]:
    """The model and the instructions, of a night that had them."""
    model, program = header.model, header.program
    facts = {"model": model} if model else {}
    return {
        **facts,
        **({"program": f"{program.name}, sha256 {program.sha256[:12]}"} if program else {}),
    }


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{_text(name)} {count}" for name, count in counts.items()) or "none"


def _next_steps(state: NightState) -> str:
    tag, start = state.header.tag, _commit(state.start_commit) or "-"
    steps = [
        "- Compare the runs, their knobs and loss curves: `./run server`, then the MLflow page.",
        f"- Beside another night: `./run compare {tag} TAG`",
    ]
    if any(trial.verdict == "keep" for trial in state.trials):
        steps = [
            f"- Read what won: `git diff {start} autoresearch/{tag} -- trainer/train.py`",
            f"- Take it over: `git merge autoresearch/{tag}`; look around first: `git switch --detach autoresearch/{tag}`",
            *steps,
        ]
    if state.trials:
        number = state.trials[-1].number
        steps.append(
            f"- A trial's story, with its idea, patch and training: `./run show {tag} {number}`"
        )
        steps.append(
            f"- Any candidate, kept or not, is a commit: `git show refs/trials/{tag}/{number}`"
        )
    return "\n".join(steps)


def _wall(state: NightState) -> str:
    seconds = state.used_seconds
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{seconds / 60:.1f} min"


def _number(value: object) -> str:
    """A float with 4 significant digits, anything else as it is, None as a dash."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _commit(sha: str | None) -> str:
    return (sha or "")[:7]


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.1f}"


def _text(text: str) -> str:
    """One line that Markdown shows as it is: in a table cell, no link, image, HTML or code comes of it."""
    return re.sub(r"([\\|\[*`]|<(?=[A-Za-z/!?]))", r"\\\1", one_line(text))
