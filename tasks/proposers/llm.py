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
from tasks.proposers import asking, harvest, prompt
from tasks.proposers.answer import Answer
from tasks.proposers.chat import Endpoint
from tasks.proposers.folding import folded
from tasks.proposers.harvest import Harvest
from tasks.proposers.prompt import Briefing, Message
from tasks.proposers.proposal import Proposer, no_patch, stand_in
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
LONGEST_ECHO = 8000  # characters of an answer that go back with what follows it
NO_QUESTIONS = "There are no questions left. Propose a change now, in the form that you were given."
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
    remark: str = ""  # about the messages
    began: datetime = dataclasses.field(default_factory=lambda: datetime.now(UTC))


@dataclasses.dataclass
class _Talk:
    """Where the requests for one proposal stand."""

    night: NightSoFar
    purpose: Purpose
    current: Candidate  # the file that it changes
    until: float  # by the monotonic clock, for another request
    ideas: int = 1  # at most
    questions: int = 0  # left
    messages: list[Message] = dataclasses.field(default_factory=list)
    repairs: int = 0
    notes: str | None = None  # the last
    remark: str = ""  # about the messages


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

    @property
    def search(self) -> configs.Search:
        return self.briefing.search

    def thinks(self, night: NightSoFar) -> bool:
        return self.settings.ahead and self._obstacle(night) is None

    def propose(self, night: NightSoFar) -> Proposal | None:
        return next(iter(self.ideas(night)), None)

    def ideas(self, night: NightSoFar) -> tuple[Proposal, ...]:
        """The model's ideas for the file shown; one with a `problem` if no repair made any usable.

        The fallback's proposal if the model cannot be asked; () if that has none left either.
        """
        if why := self._obstacle(night):
            return self._instead(night, why)

        messages = functools.partial(self.briefing.proposal, night)
        until = time.monotonic() + self.settings.seconds
        search = self.search
        talk = _Talk(night, "propose", night.shown, until, search.ideas, search.asks)
        try:
            proposed = self._converse(talk, messages)
        except GivenUp as given_up:
            return self._instead(night, str(given_up), given_up.outcome)
        first = proposed[0]
        if first.idea.outcome not in ("ok", *NO_PATCH):
            return self._instead(night, first.problem or "", first.idea.outcome)
        return proposed

    def recovered(self, night: NightSoFar) -> tuple[Proposal, ...]:
        """The ideas of an answer that is on record for this trial; () if there is none to use.

        A kill may come after the answer is on record, and before its ideas are: it need not be paid
        for again. One that was made of another file is not used: a whole file would undo a keep.
        """
        call = self.calls.last(night.next_trial)
        if call is None or call.outcome != "ok" or call.purpose not in ("propose", "repair"):
            return ()
        if call.model != self.endpoint.model or not prompt.shows(call.messages, night.shown.source):
            return ()
        talk = _Talk(night, "propose", night.shown, 0.0, self.search.ideas)
        reply = Reply("ok", call.answer)
        got = Harvest.of(reply, talk.current, night, most=talk.ideas, may_ask=False)
        talk.notes = got.notes
        return self._proposals(talk, got) if got.ideas else ()

    def fix(self, night: NightSoFar, proposal: Proposal, run: RunResult) -> Proposal | None:
        if proposal.idea.proposer != self.name or self._obstacle(night):
            return None

        messages = functools.partial(self.briefing.fix, night, proposal=proposal, run=run)
        until = time.monotonic() + self.settings.seconds
        try:
            fixed = self._converse(_Talk(night, "fix", proposal.candidate, until), messages)[0]
        except GivenUp:
            return None
        if fixed.idea.outcome != "ok":
            return None
        notes = fixed.idea.notes or proposal.idea.notes
        idea = dataclasses.replace(proposal.idea, outcome=fixed.idea.outcome, notes=notes)
        return dataclasses.replace(fixed, idea=idea.with_note(f"fixed after {run.status}"))

    def cancel(self) -> None:
        self.endpoint.cancel()
        self.desk.cancel()

    def _obstacle(self, night: NightSoFar) -> str | None:
        """Why the model must not be asked now."""
        if spent := self._spent():
            return spent
        pause, trial, model = self.settings.pause_seconds, night.next_trial, self.endpoint.model
        if (closed := self.calls.closed_for(datetime.now(UTC), pause, trial, model)) > 0:
            after = self.calls.last_failure(trial, model)
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
    ) -> tuple[Proposal, ...]:
        """The fallback's proposal. () if it has none left and the model is not asked again."""
        proposed = stand_in(self.fallback, night, why, outcome)
        if proposed or self._spent():
            return (proposed,) if proposed else ()
        why = f"{one_line(why)}; {self.fallback.name} has nothing left to propose"
        return (no_patch(night, self.name, outcome, why),)

    def _converse(
        self, talk: _Talk, messages_with: Callable[[int], list[Message]]
    ) -> tuple[Proposal, ...]:
        """Asks for ideas until one can be run, or asking again would not help.

        `messages_with` makes the prompt with a record of at most so many tokens. Raises GivenUp if
        the model would be asked again and must not.
        """
        digest_tokens = self.settings.digest_tokens
        talk.messages = messages_with(digest_tokens)
        got = self._ask(talk)
        if got.reply.outcome == "context_overflow":
            talk.messages = messages_with(digest_tokens // 4)
            got = self._ask(talk)
        while True:
            outcome = got.reply.outcome
            if got.asked:
                outcome = "no_edit"
                self._answer(talk, got)
            elif outcome not in GOES_BACK or talk.repairs == self.settings.repairs:
                return self._proposals(talk, got)
            is_late = time.monotonic() >= talk.until
            late = f"no patch after {self.settings.seconds:g} s" if is_late else None
            if given_up := late or self._obstacle(talk.night):
                raise GivenUp(f"{given_up}; the last answer: {outcome}", outcome)
            if not got.asked:
                talk.repairs += 1
                talk.messages = [*talk.messages, *self._repair(talk, got.reply)]
            got = self._ask(talk)

    def _ask(self, talk: _Talk) -> Harvest:
        """Sends the messages and reads the answer. The call is on record when it returns."""
        self.endpoint.learn_context()
        purpose: Purpose = "repair" if talk.repairs else talk.purpose
        request = _Asking(talk.night.next_trial, purpose, talk.messages, talk.remark)
        reply = self.endpoint.ask(talk.messages, self.settings.answer_seconds)
        may_ask = self.search.asks > 0
        got = Harvest.of(reply, talk.current, talk.night, most=talk.ideas, may_ask=may_ask)
        if got.asked and talk.questions:
            request = dataclasses.replace(request, purpose="ask")
        elif got.asked:
            refused = dataclasses.replace(got.reply, outcome="no_edit", error=NO_QUESTIONS)
            got = dataclasses.replace(got, reply=refused, asked=())
        talk.notes, talk.remark = got.notes or talk.notes, ""
        name = self.calls.next_id(talk.night.next_trial)
        self.calls.append(_call(self.endpoint, name, request, got.reply, got.remarks))
        return got

    def _answer(self, talk: _Talk, got: Harvest) -> None:
        """Has the questions answered, as many as are left, for the next request."""
        asked = got.asked[: talk.questions]
        exchanges = asking.answers(self.desk, asked, talk.night)
        talk.questions -= len(asked)
        talk.remark = asking.said(exchanges)
        told = [(each.question, each.answered.text) for each in exchanges]
        answered = prompt.answered(told, talk.questions, talk.ideas)
        talk.messages = [*talk.messages, _echo(got.reply), answered]

    def _repair(self, talk: _Talk, reply: Reply) -> list[Message]:
        """An unusable answer and its problem, for the next request."""
        room = self.endpoint.answer_tokens(sum(len(each["content"]) for each in talk.messages))
        shown = folded(talk.current.source, self.briefing.device)
        whole_file = talk.repairs > WHOLE_FILE_AFTER and harvest.fits(shown, room)
        problem = reply.error or reply.outcome
        return [_echo(reply), prompt.repair(problem, whole_file=whole_file, ideas=talk.ideas)]

    def _proposals(self, talk: _Talk, got: Harvest) -> tuple[Proposal, ...]:
        """A proposal for each idea; the champion with the problem if there is none."""
        outcome = got.reply.outcome
        found = tuple(
            Proposal(candidate, self._idea(read, outcome, talk.notes))
            for read, candidate in got.ideas
        )
        problem = f"{outcome}: {one_line(got.reply.error or 'no reason given')}"
        idea = self._idea(got.failed, outcome, talk.notes)
        return found or (Proposal(talk.night.champion, idea, problem),)

    def _idea(self, read: Answer | None, outcome: Outcome, notes: str | None) -> Idea:
        return Idea(
            summary=read.summary if read else "no usable patch",
            proposer=self.name,
            outcome=outcome,
            kind=read.kind if read else None,
            hypothesis=read.hypothesis if read else None,
            expected=read.expected if read else None,
            estimate=read.estimate if read else None,
            notes=notes,
        )


def _echo(reply: Reply) -> Message:
    """An answer, in the conversation that goes on after it."""
    return {"role": "assistant", "content": (reply.text or "")[:LONGEST_ECHO] or "(nothing)"}


def ping(endpoint: Endpoint) -> Call:
    """Asks for one word: whether the endpoint accepts the key, has the model and sends its text.

    The call is for the caller to log, as the first one of the night.
    """
    endpoint.learn_context()
    request = _Asking(0, "ping", PING)
    reply = endpoint.ask(PING, endpoint.settings.answer_seconds)
    if reply.outcome in NO_PATCH and reply.text:  # it answers, and the answer does not matter
        reply = dataclasses.replace(reply, outcome="ok", error=None)
    return _call(endpoint, "0.1", request, reply)


def _call(
    endpoint: Endpoint, name: str, request: _Asking, reply: Reply, remarks: tuple[str, ...] = ()
) -> Call:
    """The record of a request and its reply."""
    fields = {field.name: getattr(reply, field.name) for field in dataclasses.fields(reply)}
    counts = (reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens)
    return Call(
        id=name,
        trial=request.trial,
        purpose=request.purpose,
        time=request.began.isoformat(),
        endpoint=endpoint.url,
        model=endpoint.model,
        messages=tuple(request.messages),
        answer=fields.pop("text"),
        dollars=dollars(endpoint.settings, *counts),
        remark="; ".join(filter(None, (request.remark, *remarks))) or None,
        **{**fields, "error": reply.error and one_line(reply.error)},
    )
