"""The researcher that reads code: asks a language model for a change of train.py that can be run.

An unusable answer goes back with its problem, a few times, and so does a candidate that crashed.
While the model cannot be asked, or has cost what the night may spend, the fallback proposes and the
proposal says why.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from datetime import UTC, datetime

import configs
from tasks.history.llm_calls import CallLog
from tasks.proposers import answer, edit_blocks, prompt
from tasks.proposers.answer import Answer, EditError
from tasks.proposers.chat import Endpoint
from tasks.proposers.prompt import Briefing, Message
from tasks.proposers.proposal import Proposer, no_patch, refusal, stand_in
from tasks.proposers.questions import Desk, NoDesk
from tasks.proposers.reply import Reply
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
# The model was asked and had nothing that can be run.
NO_PATCH = (*GOES_BACK, "refusal", "content_filter", "empty")
WHOLE_FILE_AFTER = 2  # failed repairs; then the whole file is asked for
LONGEST_ECHO = 8000  # characters of an unusable answer that go back with its problem
PING = [{"role": "user", "content": "Answer with the word ready."}]


class GivenUp(Exception):
    """Time or money ran out before the model wrote a patch that can be run."""

    def __init__(self, why: str, outcome: Outcome) -> None:
        super().__init__(why)
        self.outcome = outcome


@dataclasses.dataclass(frozen=True)
class _Asking:
    """A request: what it is for, and when it was sent."""

    trial: int
    purpose: Purpose
    messages: list[Message]
    began: datetime = dataclasses.field(default_factory=lambda: datetime.now(UTC))


@dataclasses.dataclass(frozen=True)
class _Judged:
    """A reply with what can be made of it."""

    reply: Reply  # its outcome and error are those of the patch
    answer: Answer | None
    candidate: Candidate | None  # one that can be run


@dataclasses.dataclass(frozen=True)
class LlmProposer:
    """Has no state: what the night has spent and whether the endpoint was down is in `calls`."""

    endpoint: Endpoint
    briefing: Briefing
    calls: CallLog
    fallback: Proposer
    desk: Desk = dataclasses.field(default_factory=NoDesk)
    name: str = "llm"

    @property
    def settings(self) -> configs.Llm:
        return self.briefing.settings

    def thinks(self, night: NightSoFar) -> bool:
        return self.settings.ahead and self._obstacle(night) is None

    def propose(self, night: NightSoFar) -> Proposal | None:
        """The model's patch against the champion; with a `problem` if no repair made it usable."""
        if why := self._obstacle(night):
            return self._instead(night, why)

        messages = functools.partial(self.briefing.proposal, night)
        try:
            proposed = self._converse(night, "propose", messages, night.champion)
        except GivenUp as given_up:
            return self._instead(night, str(given_up), given_up.outcome)
        if proposed.idea.outcome not in ("ok", *NO_PATCH):
            return self._instead(night, proposed.problem or "", proposed.idea.outcome)
        return proposed

    def fix(self, night: NightSoFar, proposal: Proposal, run: RunResult) -> Proposal | None:
        if proposal.idea.proposer != self.name or self._obstacle(night):
            return None

        messages = functools.partial(self.briefing.fix, night, proposal=proposal, run=run)
        try:
            fixed = self._converse(night, "fix", messages, proposal.candidate)
        except GivenUp:
            return None
        if fixed.idea.outcome != "ok":
            return None
        idea = dataclasses.replace(proposal.idea, outcome=fixed.idea.outcome)
        return dataclasses.replace(fixed, idea=idea.with_note(f"fixed after {run.status}"))

    def cancel(self) -> None:
        self.endpoint.cancel()

    def _obstacle(self, night: NightSoFar) -> str | None:
        """Why the model must not be asked now."""
        if spent := self._spent():
            return spent
        pause, trial = self.settings.pause_seconds, night.next_trial
        if (closed := self.calls.closed_for(datetime.now(UTC), pause, trial)) > 0:
            after = self.calls.last_failure(trial)
            return f"the model is not asked for {closed:.0f} s more after {after}"
        return None

    def _spent(self) -> str | None:
        """Which cap of the night is reached."""
        spent, caps = self.calls.usage(), self.settings
        if caps.dollars is not None and (spent.dollars or 0.0) >= caps.dollars:
            return f"the night has spent {spent.dollars:.4g} of {caps.dollars:g} dollars"
        used = spent.prompt_tokens + spent.completion_tokens
        if caps.tokens is not None and used >= caps.tokens:
            return f"the night has used {used} of {caps.tokens} tokens"
        return None

    def _instead(
        self, night: NightSoFar, why: str, outcome: Outcome | None = None
    ) -> Proposal | None:
        """The fallback's proposal. None if it has none left and the model is not asked again."""
        proposed = stand_in(self.fallback, night, why, outcome)
        if proposed or self._spent():
            return proposed
        why = f"{one_line(why)}; {self.fallback.name} has nothing left to propose"
        return no_patch(night, self.name, outcome, why)

    def _converse(
        self,
        night: NightSoFar,
        purpose: Purpose,
        messages_with: Callable[[int], list[Message]],
        current: Candidate,
    ) -> Proposal:
        """Asks for a patch of `current` until one can be run, or asking again would not help.

        `messages_with` makes the prompt with a record of at most so many tokens. Raises GivenUp if
        the model would be asked again and must not.
        """
        until = time.monotonic() + self.settings.seconds
        digest_tokens, repairs = self.settings.digest_tokens, 0
        messages = messages_with(digest_tokens)
        while True:
            asking = _Asking(night.next_trial, "repair" if repairs else purpose, messages)
            reply = self.endpoint.ask(messages, self.settings.answer_seconds)
            judged = self._judged(reply, current, night)
            name = self.calls.next_id(night.next_trial)
            self.calls.append(_call(self.endpoint, name, asking, judged.reply))
            outcome = judged.reply.outcome
            is_first = digest_tokens == self.settings.digest_tokens and not repairs
            if outcome == "context_overflow" and is_first:
                digest_tokens //= 4
                messages = messages_with(digest_tokens)
                continue
            if outcome not in GOES_BACK or repairs == self.settings.repairs:
                return self._proposal(judged, current)
            is_late = time.monotonic() >= until
            late = f"no patch after {self.settings.seconds:g} s" if is_late else None
            if given_up := late or self._obstacle(night):
                raise GivenUp(f"{given_up}; the last answer: {outcome}", outcome)
            repairs += 1
            messages = [*messages, *self._repair(judged.reply, repairs)]

    def _repair(self, reply: Reply, repairs: int) -> list[Message]:
        """An unusable answer and its problem, for the next request."""
        echo = (reply.text or "")[:LONGEST_ECHO] or "(nothing)"
        whole_file = repairs > WHOLE_FILE_AFTER
        return [
            {"role": "assistant", "content": echo},
            prompt.repair(reply.error or reply.outcome, whole_file=whole_file),
        ]

    def _judged(self, reply: Reply, current: Candidate, night: NightSoFar) -> _Judged:
        """Reads the answer in a reply, applies it and checks the candidate."""
        if reply.outcome != "ok" or reply.text is None:
            return _Judged(reply, None, None)
        read = None
        try:
            read = answer.parse(reply.text)
            candidate = edit_blocks.apply(read, current)
        except EditError as error:
            failed = dataclasses.replace(reply, outcome=error.outcome, error=str(error))
            return _Judged(failed, read, None)
        if refused := refusal(candidate, night.seen, night.trials):
            outcome, why = refused
            return _Judged(dataclasses.replace(reply, outcome=outcome, error=why), read, None)
        return _Judged(reply, read, candidate)

    def _proposal(self, judged: _Judged, current: Candidate) -> Proposal:
        read, outcome = judged.answer, judged.reply.outcome
        problem = f"{outcome}: {one_line(judged.reply.error or 'no reason given')}"
        idea = Idea(
            summary=read.summary if read else "no usable patch",
            proposer=self.name,
            outcome=outcome,
            kind=read.kind if read else None,
            hypothesis=read.hypothesis if read else None,
            expected=read.expected if read else None,
        )
        return Proposal(judged.candidate or current, idea, None if judged.candidate else problem)


def ping(endpoint: Endpoint) -> Call:
    """Asks for one word: whether the endpoint accepts the key, has the model and sends its text.

    The call is for the caller to log, as the first one of the night.
    """
    asking = _Asking(0, "ping", PING)
    reply = endpoint.ask(PING, endpoint.settings.answer_seconds)
    if reply.outcome in NO_PATCH and reply.text:  # it answers, and the answer does not matter
        reply = dataclasses.replace(reply, outcome="ok", error=None)
    return _call(endpoint, "0.1", asking, reply)


def _call(endpoint: Endpoint, name: str, asking: _Asking, reply: Reply) -> Call:
    """The record of a request and its reply."""
    fields = {field.name: getattr(reply, field.name) for field in dataclasses.fields(reply)}
    counts = (reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens)
    return Call(
        id=name,
        trial=asking.trial,
        purpose=asking.purpose,
        time=asking.began.isoformat(),
        endpoint=endpoint.url,
        model=endpoint.model,
        messages=tuple(asking.messages),
        answer=fields.pop("text"),
        dollars=dollars(endpoint.settings, *counts),
        **{**fields, "error": reply.error and one_line(reply.error)},
    )
