"""The researcher that reads code: asks a language model for a change of train.py until its patch can be run.

An answer that cannot be used goes back with what is wrong with it, a few times; a crash of the candidate, too. When the
model cannot be asked, or has cost what the night may spend, the fallback proposes instead and the proposal says why.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from datetime import UTC, datetime

import configs
from tasks.history.llm_calls import CallLog
from tasks.proposers import edit_blocks, prompt
from tasks.proposers.chat import Endpoint, Reply
from tasks.proposers.edit_blocks import Answer, EditError
from tasks.proposers.prompt import Briefing
from tasks.proposers.proposal import Proposer, ask, refusal
from tasks.records import Candidate, Idea, NightSoFar, Proposal, RunResult
from tasks.statuses import Outcome
from tasks.text import one_line
from tasks.usage import Call, Purpose, dollars

GOES_BACK = (
    "no_edit",
    "malformed",
    "not_found",
    "ambiguous",
    "no_change",
    "already_tried",
    "unfit",
    "truncated",
)
NO_PATCH = (
    *GOES_BACK,
    "refusal",
    "content_filter",
    "empty",
)  # the model was asked and had nothing that can be run
WHOLE_FILE_AFTER = 2  # repairs that failed; then the whole file is asked for
LONGEST_ECHO = 8000  # characters of an unusable answer that go back with it

PING = [{"role": "user", "content": "Answer with the word ready."}]

Messages = list[prompt.Message]


class GivenUp(Exception):
    """Time or money are over before the model has written a patch that can be run."""

    def __init__(self, why: str, outcome: Outcome) -> None:
        super().__init__(why)
        self.outcome = outcome


@dataclasses.dataclass(frozen=True)
class LlmProposer:
    """Keeps no state of its own: what the night has spent, and whether the endpoint was down, is in its `calls`."""

    endpoint: Endpoint
    briefing: Briefing
    calls: CallLog
    fallback: Proposer
    name: str = "llm"

    @property
    def settings(self) -> configs.Llm:
        return self.briefing.settings

    def thinks(self, night: NightSoFar) -> bool:
        return self.settings.ahead and self._obstacle(night) is None

    def propose(self, night: NightSoFar) -> Proposal | None:
        """The model's patch against the champion; one with a `problem` when it had no usable one after all repairs."""
        if why := self._obstacle(night):
            return self._instead(night, why)

        told = functools.partial(self.briefing.proposal, night)
        try:
            proposed = self._converse(night, "propose", told, night.champion)
        except GivenUp as given_up:
            return self._instead(night, str(given_up), given_up.outcome)
        if proposed.idea.outcome not in ("ok", *NO_PATCH):
            return self._instead(night, proposed.problem or "", proposed.idea.outcome)
        return proposed

    def fix(self, night: NightSoFar, proposal: Proposal, run: RunResult) -> Proposal | None:
        if proposal.idea.proposer != self.name or self._obstacle(night):
            return None

        told = functools.partial(self.briefing.fix, night, proposal=proposal, run=run)
        try:
            fixed = self._converse(night, "fix", told, proposal.candidate)
        except GivenUp:
            return None
        if fixed.idea.outcome != "ok":
            return None
        idea = dataclasses.replace(proposal.idea, outcome=fixed.idea.outcome)
        return dataclasses.replace(fixed, idea=idea.with_note(f"fixed after {run.status}"))

    def cancel(self) -> None:
        self.endpoint.cancel()

    def _obstacle(self, night: NightSoFar) -> str | None:
        """Why the model is not to be asked now."""
        spent, caps = self.calls.usage(), self.settings
        if caps.dollars is not None and (spent.dollars or 0.0) >= caps.dollars:
            return f"the night has spent {spent.dollars:.4g} of {caps.dollars:g} dollars"
        if (
            caps.tokens is not None
            and (used := spent.prompt_tokens + spent.completion_tokens) >= caps.tokens
        ):
            return f"the night has used {used} of {caps.tokens} tokens"
        if (
            closed := self.calls.closed_for(datetime.now(UTC), caps.pause_seconds, night.next_trial)
        ) > 0:
            return f"the model is left alone for {closed:.0f} s more after {self.calls.last_failure(night.next_trial)}"
        return None

    def _instead(
        self, night: NightSoFar, why: str, outcome: Outcome | None = None
    ) -> Proposal | None:
        proposed = ask(self.fallback, night)
        if proposed is None:
            return None
        idea = dataclasses.replace(proposed.idea, stands_in=one_line(why), outcome=outcome)
        return dataclasses.replace(proposed, idea=idea)

    def _converse(
        self,
        night: NightSoFar,
        purpose: Purpose,
        told: Callable[[int], Messages],
        current: Candidate,
    ) -> Proposal:
        """Asks for a patch of `current` until one can be run, or has failed in a way that asking again does not help.

        Raises GivenUp when it would be asked again and must not.
        """
        until = time.monotonic() + self.settings.seconds
        digest_tokens, repairs = self.settings.digest_tokens, 0
        messages = told(digest_tokens)
        while True:
            began, reply = (
                datetime.now(UTC),
                self.endpoint.ask(messages, self.settings.answer_seconds),
            )
            outcome, error, answer, candidate = self._judged(reply, current, night)
            judged = dataclasses.replace(reply, outcome=outcome, error=error and one_line(error))
            asked_for: Purpose = "repair" if repairs else purpose
            _record(
                self.endpoint,
                self.settings,
                self.calls,
                night.next_trial,
                asked_for,
                began,
                messages,
                judged,
            )
            if (
                outcome == "context_overflow"
                and digest_tokens == self.settings.digest_tokens
                and not repairs
            ):
                digest_tokens //= 4
                messages = told(digest_tokens)
                continue
            if outcome not in GOES_BACK or repairs == self.settings.repairs:
                return self._proposal(candidate, current, outcome, error, answer)
            late = (
                f"no patch after {self.settings.seconds:g} s" if time.monotonic() >= until else None
            )
            if given_up := late or self._obstacle(night):
                raise GivenUp(f"{given_up}; the last answer: {outcome}", outcome)
            repairs += 1
            echo = {
                "role": "assistant",
                "content": (reply.text or "")[:LONGEST_ECHO] or "(nothing)",
            }
            messages = [
                *messages,
                echo,
                prompt.repair(error or outcome, whole_file=repairs > WHOLE_FILE_AFTER),
            ]

    def _judged(
        self, reply: Reply, current: Candidate, night: NightSoFar
    ) -> tuple[Outcome, str | None, Answer | None, Candidate | None]:
        """What a reply is worth: its outcome, what is wrong with it, and what it proposes."""
        if reply.outcome != "ok" or reply.text is None:
            return reply.outcome, reply.error, None, None
        answer = None
        try:
            answer = edit_blocks.parse(reply.text)
            candidate = edit_blocks.apply(answer, current)
        except EditError as error:
            return error.outcome, str(error), answer, None
        if refused := refusal(candidate, night.seen):
            return *refused, answer, None
        return "ok", None, answer, candidate

    def _proposal(
        self,
        candidate: Candidate | None,
        current: Candidate,
        outcome: Outcome,
        error: str | None,
        answer: Answer | None,
    ) -> Proposal:
        problem = (
            None if candidate is not None else f"{outcome}: {one_line(error or 'no reason given')}"
        )
        idea = Idea(
            summary=one_line(answer.summary) if answer else "no usable patch",
            proposer=self.name,
            outcome=outcome,
            kind=answer.kind if answer else None,
            hypothesis=one_line(answer.hypothesis) if answer else None,
            expected=one_line(answer.expected) if answer and answer.expected else None,
        )
        return Proposal(candidate or current, idea, problem)


def ping(endpoint: Endpoint, settings: configs.Llm, calls: CallLog) -> Call:
    """Asks for one word: whether the endpoint takes the key and has the model."""
    began, reply = datetime.now(UTC), endpoint.ask(PING, settings.answer_seconds)
    if reply.outcome in NO_PATCH:  # it answers, and nothing was asked of the answer
        reply = dataclasses.replace(reply, outcome="ok", error=None)
    return _record(endpoint, settings, calls, 0, "ping", began, PING, reply)


def _record(
    endpoint: Endpoint,
    settings: configs.Llm,
    calls: CallLog,
    trial: int,
    purpose: Purpose,
    began: datetime,
    messages: Messages,
    reply: Reply,
) -> Call:
    call = Call(
        id=calls.next_id(trial),
        trial=trial,
        purpose=purpose,
        time=began.isoformat(),
        endpoint=endpoint.url,
        model=endpoint.model,
        messages=tuple(messages),
        answer=reply.text,
        dollars=dollars(
            settings, reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens
        ),
        **{
            field.name: getattr(reply, field.name)
            for field in dataclasses.fields(reply)
            if field.name != "text"
        },
    )
    calls.append(call)
    return call
