"""A trial's story as text for a terminal.

Its words are a candidate's or a model's: `one_line` and `plain` remove their control characters,
escape sequences and direction marks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tasks.history import growth, night_folder
from tasks.text import counted, difference, money, one_line, score, short_commit, shortened
from tasks.views import search_yield
from tasks.views.trial_story import BaselineStory, Request, Run, SeedScore, TrialStory

LEVELS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
LOG_LINES = 15
NOTES_LINES = 60
LONGEST_ERROR = 160  # characters of what was wrong with an answer


def text(story: BaselineStory | TrialStory) -> str:
    """What `trial_story.describe` found, the patch near the end."""
    facts = _of_trial(story) if isinstance(story, TrialStory) else _of_baseline(story)
    parts = [_head(story, facts)]
    if story.runs:
        parts.append("\n".join(map(_run, story.runs)))
    if isinstance(story, TrialStory):
        if again := story.champion_runs:
            times = counted(len(again), "fresh run")
            title = f"{times} of the champion, to compare with:"
            parts.append("\n".join([title, *map(_run, again)]))
        if story.notes:
            lines = plain(story.notes).strip().split("\n")[:NOTES_LINES]
            parts.append("\n".join(["the researcher's notes:", *(f"  | {line}" for line in lines)]))
        parts += _crashes(story)
        parts += _requests(story)
        if story.diff is not None:
            parts.append(f"patch:\n{plain(story.diff).rstrip() or _no_patch(story)}")
        missing = [f"missing: {one_line(what)}" for what in story.missing]
        parts.append("\n".join([*missing, f"files: {story.folder}"]))
    return "\n\n".join(parts)


def plain(words: str) -> str:
    """Text of several lines, made harmless.

    Control characters become U+FFFD, except new lines and tabs.
    """
    lines = words.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(
        "\ufffd" if unicodedata.category(c)[0] == "C" and c not in "\n\t" else c for c in lines
    )


def _head(story: BaselineStory | TrialStory, facts: Mapping[str, str | None]) -> str:
    """The idea, its origin and the verdict."""
    title = f"trial {story.k} of night {story.tag}: {one_line(story.summary or '-')}"
    lines = [f"  {name:<10}  {one_line(fact)}" for name, fact in facts.items() if fact]
    return "\n".join([title, *lines])


def _of_trial(story: TrialStory) -> dict[str, str | None]:
    commit = f", commit {short_commit(story.commit)}" if story.commit else ""
    return {
        "state": _state(story),
        "proposer": f"{story.proposer}, against {short_commit(story.parent)}{commit}",
        "search": search_yield.origin(story),
        "chosen": search_yield.choice(story),
        "kind": story.kind,
        "hypothesis": story.hypothesis,
        "expected": story.expected,
        "estimate": _estimate(story),
        "stand-in": story.stands_in and f"because of {story.stands_in}",
        "note": story.note,
        "verdict": _verdict(story),
        "score": _score(story),
        "unusual": story.unusual,
        "larger": story.grown,
    }


def _estimate(story: TrialStory) -> str | None:
    if (own := story.estimate) is None:
        return None
    return f"{own.gain:.4f} bits per byte better, give or take {own.sd:.4f}, by its proposer"


def _state(story: TrialStory) -> str | None:
    if story.state == "pending":
        return "decided, not in git yet"
    if story.state == "in flight":
        return f"in flight: no verdict yet (see `./run status {story.tag}`)"
    return None


def _verdict(story: TrialStory) -> str | None:
    if story.verdict is None:
        return None
    z = "" if story.z is None else f" (z {story.z:.2f})"
    verdict = "placebo" if story.placebo else story.verdict
    return f"{verdict} ({story.status}): {story.reason}{z}"


def _score(story: TrialStory) -> str | None:
    if story.val_bpb is None:
        return None
    others = [("the baseline's {}", story.baseline)]
    if story.to_beat != story.baseline:
        others.append(("{}, the champion's at the time", story.to_beat))
    found = [
        f"{difference(story.val_bpb, other)} against {whose.format(score(other))}"
        for whose, other in others
        if other is not None
    ]
    return ", ".join([f"{score(story.val_bpb)} bits per byte", *found])


def _of_baseline(story: BaselineStory) -> dict[str, str | None]:
    if story.val_bpb is None:
        return {"state": "not measured yet"}
    sd = f", sd of one run {story.sd:.6f}" if story.sd else ""
    return {
        "commit": story.commit,
        "score": f"{score(story.val_bpb)} bits per byte{sd}",
        "training": f"{story.seconds:.1f} s" if story.seconds else None,
        "size": str(growth.Size.of(story)) or None,
        "hardware": story.hardware,
        "data": story.dataset,
    }


def _run(run: Run | SeedScore) -> str:
    """One seed's run; its tokens and losses are what the candidate reported."""
    if isinstance(run, SeedScore):
        return f"seed {run.seed}: {score(run.val_bpb)} bits per byte"
    line = f"seed {run.seed}: {', '.join(_facts(run)) or 'no score'}"
    losses = [loss for _, _, loss in run.curve]
    if not losses:
        return line
    shown = " ".join(f"{loss:.3f}" for loss in losses)
    return f"{line}\n  training loss, nats: {_sparkline(losses)}  {shown}"


def _facts(run: Run) -> Iterator[str]:
    if run.status not in (None, "ok"):
        yield f"{run.status}: {one_line(run.reason or '-')}"
    if run.val_bpb is not None:
        yield f"{score(run.val_bpb)} bits per byte"
    if run.seconds is not None:
        yield f"trained {run.seconds:.1f} s after {run.startup_seconds or 0.0:.1f} s of start-up"
    if size := str(growth.Size.of(run)):
        yield size
    if run.tokens_per_second:
        yield f"{run.tokens:,} tokens ({run.tokens_per_second:,.0f} a second)"


def _sparkline(values: Sequence[float]) -> str:
    low = min(values)
    span = (max(values) - low) or 1.0
    return "".join(LEVELS[round((value - low) / span * (len(LEVELS) - 1))] for value in values)


def _crashes(story: TrialStory) -> Iterator[str]:
    """How the logs of crashes end: of the attempts that were fixed, and of the last one."""
    logs = {
        f"attempt {attempt.n} crashed and went back to its proposer ({attempt.folder})": attempt.log
        for attempt in story.attempts
    }
    for title, log in {**logs, "the end of its log": story.log}.items():
        if log is not None:
            lines = plain(log).rstrip().split("\n")[-LOG_LINES:]
            yield "\n".join([f"{title}:", *(f"  | {line}" for line in lines)])


def _requests(story: TrialStory) -> Iterator[str]:
    """Each request to a language model, and their sum."""
    usage = story.usage
    if not usage.calls:
        return
    models = dict.fromkeys(one_line(call.model) for call in story.calls)
    title = (
        f"requests to {', '.join(models) or 'a language model'}: {usage.calls}, "
        f"{usage.prompt_tokens:,} + {usage.completion_tokens:,} tokens, cost {money(usage.dollars)}"
    )
    rows = [_row(call) for call in story.calls]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  " + "  ".join(map(str.ljust, row, widths)) for row in rows]
    said = [call.error or call.remark or "" for call in story.calls]
    errors = [shortened(one_line(words), LONGEST_ERROR) for words in said]
    table = [f"{line}  {error}".rstrip() for line, error in zip(lines, errors, strict=True)]
    yield "\n".join([title, *table])


def _row(call: Request) -> tuple[str, ...]:
    answered = call.prompt_tokens is not None
    tokens = f"{call.prompt_tokens or 0:,} + {call.completion_tokens or 0:,} tokens"
    return (
        call.id,
        call.purpose,
        call.outcome,
        tokens if answered else "no answer",
        money(call.dollars) if answered else "-",
        f"{call.seconds:.1f} s",
    )


def _no_patch(story: TrialStory) -> str:
    """For an empty patch: a researcher without one that applies may have written several."""
    if story.status != "rejected_patch":
        return "(it changes nothing)"
    answered = [call.id for call in story.calls if call.prompt_tokens is not None]
    if not answered:
        return "(none could be applied)"
    calls = Path(story.folder).parents[1] / night_folder.CALLS
    return f"(none could be applied; {calls} has the answers to requests {', '.join(answered)})"
