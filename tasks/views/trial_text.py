"""A trial's story as text for a terminal.

Its words are a candidate's or a model's, so none of their control characters, escape sequences and direction marks gets
through: one line is cleaned by `one_line`, several by `plain`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks.history import night_folder
from tasks.text import money, one_line

LEVELS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
LOG_LINES = 15
LONGEST_ERROR = 160  # characters of what was wrong with an answer


def text(story: dict[str, Any]) -> str:
    """What `story.describe` found, the patch near the end."""
    parts = [_head(story), *(["\n".join(map(_run, story["runs"]))] if story["runs"] else [])]
    if story["k"]:
        parts += [*_crashes(story), *_requests(story)]
        if story["diff"] is not None:
            parts.append(f"patch:\n{plain(story['diff']).rstrip() or _no_patch(story)}")
        parts.append(
            "\n".join(
                [
                    *(f"missing: {one_line(what)}" for what in story["missing"]),
                    f"files: {story['folder']}",
                ]
            )
        )
    return "\n\n".join(parts)


def plain(words: str) -> str:
    """Text of several lines that does nothing to a terminal: but for new lines and tabs, control characters become U+FFFD."""
    lines = words.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(
        "\ufffd" if unicodedata.category(c)[0] == "C" and c not in "\n\t" else c for c in lines
    )


def _no_patch(story: dict[str, Any]) -> str:
    """Where there is none: a researcher that had none that can be run may have written several."""
    if story["status"] != "rejected_patch":
        return "(it changes nothing)"
    answered = ", ".join(call["id"] for call in story["calls"] if call["prompt_tokens"] is not None)
    calls = Path(story["folder"]).parents[1] / night_folder.CALLS
    return "(none could be applied" + (
        f"; the answers to requests {answered} are in {calls})" if answered else ")"
    )


def _head(story: dict[str, Any]) -> str:
    """The idea, where it came from, and what became of it."""
    facts = _of_trial(story) if story["k"] else _of_baseline(story)
    lines = [f"trial {story['k']} of night {story['tag']}: {one_line(story['summary'] or '-')}"]
    return "\n".join(
        [*lines, *(f"  {name:<10}  {one_line(str(told))}" for name, told in facts.items() if told)]
    )


def _of_trial(story: dict[str, Any]) -> dict[str, str | None]:
    base, score, z = story["baseline"], story["val_bpb"], story["z"]
    words = {
        "pending": "decided, not in git yet",
        "in flight": f"in flight: no verdict yet, and `./run status {story['tag']}` says what the night is doing",
    }
    judged = f"{story['verdict']} ({story['status']}): {story['reason']}" + (
        "" if z is None else f" (z {z:.2f})"
    )
    gain = (
        ""
        if base is None or score is None
        else f", {score - base:+.6f} against the baseline's {base:.6f}"
    )
    commit = f", commit {story['commit'][:7]}" if story["commit"] else ""
    return {
        "state": words.get(story["state"]),
        "proposer": f"{story['proposer']}, against {(story['parent'] or '-')[:7]}{commit}",
        **{name: story[name] for name in ("kind", "hypothesis", "expected")},
        "stand-in": story["stands_in"] and f"because of {story['stands_in']}",
        "note": story["note"],
        "verdict": judged if story["verdict"] else None,
        "score": None if score is None else f"{score:.6f} bits per byte{gain}",
        "unusual": story["unusual"],
    }


def _of_baseline(story: dict[str, Any]) -> dict[str, str | None]:
    if story["val_bpb"] is None:
        return {"state": "not measured yet"}
    peak, seconds = story["peak_memory_bytes"], story["seconds"]
    return {
        "commit": story["commit"],
        "score": f"{story['val_bpb']:.6f} bits per byte"
        + (f", sd of one run {story['sd']:.6f}" if story["sd"] else ""),
        "training": seconds and f"{seconds:.1f} s",
        "peak": peak and _gib(peak),
        "hardware": story["hardware"],
        "data": story["dataset"],
    }


def _run(run: dict[str, Any]) -> str:
    """One seed's run; its tokens and its losses are the candidate's own word."""
    score = None if run["val_bpb"] is None else f"{run['val_bpb']:.6f} bits per byte"
    failed = (
        None if run.get("status") in (None, "ok") else f"{run['status']}: {one_line(run['reason'])}"
    )
    facts = [failed, score]
    if run.get("seconds") is not None:
        facts.append(
            f"trained {run['seconds']:.1f} s after {run['startup_seconds'] or 0.0:.1f} s of start-up"
        )
    if run.get("peak_memory_bytes"):
        facts.append(f"peak {_gib(run['peak_memory_bytes'])}")
    if run.get("tokens_per_second"):
        facts.append(f"{run['tokens']:,} tokens ({run['tokens_per_second']:,.0f} a second)")
    line = f"seed {run['seed']}: {', '.join(filter(None, facts)) or 'no score'}"
    losses = [loss for _, _, loss in run.get("curve") or ()]
    if not losses:
        return line
    return f"{line}\n  training loss, nats: {_sparkline(losses)}  {' '.join(f'{loss:.3f}' for loss in losses)}"


def _sparkline(values: Sequence[float]) -> str:
    low, span = min(values), (max(values) - min(values)) or 1.0
    return "".join(LEVELS[round((value - low) / span * (len(LEVELS) - 1))] for value in values)


def _crashes(story: dict[str, Any]) -> Iterator[str]:
    """How the logs end of what crashed: the tries that were mended, and the last one."""
    logs = {
        f"attempt {attempt['n']} crashed and went back ({attempt['folder']})": attempt["log"]
        for attempt in story["attempts"]
    }
    for what, log in {**logs, "the end of its log": story["log"]}.items():
        if log is not None:
            lines = plain(log).rstrip().split("\n")[-LOG_LINES:]
            yield "\n".join([f"{what}:", *(f"  | {line}" for line in lines)])


def _requests(story: dict[str, Any]) -> Iterator[str]:
    """Each request to a language model, and their sum."""
    rows = [
        [
            call["id"],
            call["purpose"],
            call["outcome"],
            *_tokens_and_price(call),
            f"{call['seconds']:.1f} s",
        ]
        for call in story["calls"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    errors = [f"  {_clipped(call['error'])}" if call["error"] else "" for call in story["calls"]]
    lines = [
        "  " + "  ".join(map(str.ljust, row, widths)) + error
        for row, error in zip(rows, errors, strict=True)
    ]
    usage = story["usage"]
    if usage["calls"]:
        models = (
            ", ".join(dict.fromkeys(one_line(call["model"]) for call in story["calls"]))
            or "a language model"
        )
        cost = f"{usage['prompt_tokens']:,} + {usage['completion_tokens']:,} tokens, cost {money(usage['dollars'])}"
        yield "\n".join(
            [f"requests to {models}: {usage['calls']}, {cost}", *(line.rstrip() for line in lines)]
        )


def _tokens_and_price(call: dict[str, Any]) -> tuple[str, str]:
    if call["prompt_tokens"] is None:
        return "no answer", "-"
    return f"{call['prompt_tokens']:,} + {call['completion_tokens'] or 0:,} tokens", money(
        call["dollars"]
    )


def _clipped(error: str) -> str:
    line = one_line(error)
    return line if len(line) <= LONGEST_ERROR else f"{line[: LONGEST_ERROR - 3]}..."


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
