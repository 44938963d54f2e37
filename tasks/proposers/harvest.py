"""What comes of a reply: the ideas that can be run, or why there is none."""

from __future__ import annotations

import dataclasses

from tasks.proposers import edit_blocks, reading, thinking
from tasks.proposers.answer import MOST_ERROR, Answer, EditError
from tasks.proposers.proposal import refusal
from tasks.proposers.reading import Asked
from tasks.proposers.reply import Reply
from tasks.records import Candidate, NightSoFar
from tasks.statuses import Outcome
from tasks.text import one_line, shortened
from tasks.usage import estimate_tokens

LONG_FENCE = 40  # lines of a fence without an end: the whole file was being written
# Tokens of an answer beside the whole file: its headers, and what a tokenizer needs more of them.
BESIDE_FILE = 1000
NOT_COUNTED = 160  # characters of a problem in the record of a call whose other ideas are used


@dataclasses.dataclass(frozen=True)
class Harvest:
    reply: Reply  # its outcome and error are those of the ideas: "ok" if there is one to run
    ideas: tuple[tuple[Answer, Candidate], ...] = ()
    failed: Answer | None = None  # the first idea that can be read and not run
    notes: str | None = None
    asked: tuple[Asked, ...] = ()  # then there is no idea
    remarks: tuple[str, ...] = ()  # about what is not used of an answer that is

    @classmethod
    def of(
        cls, reply: Reply, current: Candidate, night: NightSoFar, *, most: int, may_ask: bool
    ) -> Harvest:
        """Reads the answer in a reply, applies each idea to `current` and checks the candidates."""
        if reply.outcome == "truncated":
            return cls(_cut(reply, current, most))
        if reply.outcome != "ok" or reply.text is None:
            return cls(reply)
        read = reading.read(reply.text, most=most, may_ask=may_ask)
        ideas: dict[str | None, tuple[Answer, Candidate]] = {}
        problems: list[tuple[Outcome, str]] = []
        failed = None
        remarks = [*read.ignored]
        for place, idea in enumerate(read.ideas, start=1):
            made = _made(idea, current, night)
            name = f"idea {place}: " if len(read.ideas) > 1 else ""
            if not isinstance(made, Candidate):
                outcome, why = made
                problems.append((outcome, f"{name}{why}"))
                remarks.append(shortened(f"{name}{outcome}: {one_line(why)}", NOT_COUNTED))
                failed = failed or (idea if isinstance(idea, Answer) else None)
            elif made.digest in ideas:
                remarks.append(f"{name}the same code as an idea before it")
            elif isinstance(idea, Answer):
                ideas[made.digest] = (idea, made)
        if problems and not ideas:
            each = max(MOST_ERROR, 2 * MOST_ERROR // len(problems))
            error = "\n".join(shortened(why, each) for _, why in problems)
            reply, remarks = dataclasses.replace(reply, outcome=problems[0][0], error=error), []
        found = tuple(ideas.values())
        return cls(reply, found, failed, read.notes, read.asked, tuple(remarks))


def _made(
    idea: Answer | EditError, current: Candidate, night: NightSoFar
) -> Candidate | tuple[Outcome, str]:
    """The candidate of an idea, or why it gives none that can be run."""
    if isinstance(idea, EditError):
        return idea.outcome, str(idea)
    try:
        candidate = edit_blocks.apply(idea, current)
    except EditError as error:
        return error.outcome, str(error)
    return refusal(candidate, night.seen, night.trials) or candidate


def fits(source: str, tokens: int) -> bool:
    """Whether an answer of so many tokens can hold this whole file."""
    return estimate_tokens(len(source)) + BESIDE_FILE <= tokens


def _cut(reply: Reply, current: Candidate, most: int) -> Reply:
    """A reply that reached its limit, with what to do about it."""
    remedy = ""
    lines = thinking.lines_of(reply.text or "")
    places = [place for place, line in enumerate(lines) if thinking.FENCE.fullmatch(line)]
    if len(places) % 2 and len(lines) - places[-1] > LONG_FENCE:
        tokens = estimate_tokens(len(current.source))
        remedy = (
            f". It was the whole file, which has about {tokens:,} tokens: answer with "
            "SEARCH/REPLACE blocks for what changes"
        )
    elif most > 1:
        remedy = ". Give fewer ideas"
    return dataclasses.replace(reply, error=f"{reply.error}{remedy}")
