"""A night's proposals, each made while the trial before it trains: no GPU waits for a model.

Those that take long always are. Where runs are started ahead all are, and the trial that trains is
to them one whose result is not known. A proposal is made against the champion of its time. If the
trial that trained meanwhile is kept, the proposal is merged onto the new champion; if that fails,
it is asked for again. It is saved in its trial's folder as soon as it exists, so a kill loses
neither the proposal nor what it cost.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar

from prefect import futures, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from configs import traits
from flows.night import interruption
from flows.night.next_run import NextRun
from flows.night.night import Night
from tasks.cache import unscanned
from tasks.history import champion, trial_folder
from tasks.proposers import proposal, three_way_merge
from tasks.proposers.proposal import Proposer, Researcher
from tasks.records import Candidate, NightSoFar, Proposal, RunResult

POLL_SECONDS = 1.0
T = TypeVar("T")


class Proposals:
    """The night's proposer, and at most one proposal that it is making for the next trial."""

    def __init__(self, night: Night, proposer: Proposer, next_run: NextRun) -> None:
        self.proposer = proposer
        self._night = night
        self.next_run = next_run
        self._thinking: PrefectFuture[Proposal | None] | None = None

    def think_ahead(self, so_far: NightSoFar, parent: str) -> None:
        """Starts the next proposal in a thread, if it takes long or its run can start ahead.

        `so_far` knows the trial that now trains.
        """
        if waiting := trial_folder.read_proposal(self._folder(so_far)):  # from before a kill
            if waiting.parent == parent:
                self.next_run.offer(waiting.proposal)
            return
        if self._is_due_ahead(so_far):
            self._thinking = self._submit(so_far, parent, self.next_run)

    def _is_due_ahead(self, so_far: NightSoFar) -> bool:
        if isinstance(self.proposer, Researcher) and self.proposer.thinks(so_far):
            return True
        may_ask = self._night.bench.profile.llm.ahead or not traits(self.proposer.name).asks_a_model
        return self.next_run.allowed and may_ask

    def wait(self) -> None:
        """Waits until no proposal is being made ahead."""
        thinking, self._thinking = self._thinking, None
        if thinking is not None:
            self._result(thinking)

    def next(self, so_far: NightSoFar, parent: str) -> Proposal | None:
        """The proposal for `so_far.next_trial`; None if nothing is left.

        It is the one that waits, if that is still usable, otherwise a new one.
        """
        waiting = trial_folder.read_proposal(self._folder(so_far))
        if waiting is None:
            return self._ask(so_far, parent)
        merged = self._merged(so_far, parent, waiting)
        if merged is not None:
            return merged
        why = (
            "was measured meanwhile" if waiting.parent == parent else "conflicts with the champion"
        )
        proposed = self._ask(so_far, parent)
        if proposed is None:
            return None
        idea = proposed.idea
        notes = filter(None, [f"asked again: the waiting proposal {why}", idea.note])
        idea = dataclasses.replace(idea, note="; ".join(notes))
        return dataclasses.replace(proposed, idea=idea)

    def fix(self, so_far: NightSoFar, crashed: Proposal, run: RunResult) -> Proposal | None:
        """The crashed idea once more, fixed by its proposer; None if it cannot fix it."""
        if not isinstance(self.proposer, Researcher):
            return None
        fixing = proposal.fix_patch.submit(
            unscanned(self.proposer), unscanned(so_far), unscanned(crashed), unscanned(run)
        )
        return self._result(fixing)

    def abandon(self) -> None:
        """Ends the proposal that is being made, if there is one: the night ends."""
        if isinstance(self.proposer, Researcher):
            self.proposer.cancel()

    def _ask(self, so_far: NightSoFar, parent: str) -> Proposal | None:
        if isinstance(self.proposer, Researcher):
            return self._result(self._submit(so_far, parent))
        return proposal.propose_patch(unscanned(self.proposer), unscanned(so_far))

    def _submit(
        self, so_far: NightSoFar, parent: str, next_run: NextRun | None = None
    ) -> PrefectFuture[Proposal | None]:
        return propose_ahead.submit(
            unscanned(self.proposer),
            unscanned(so_far),
            parent,
            self._folder(so_far),
            unscanned(next_run),
        )

    def _result(self, thinking: PrefectFuture[T]) -> T:
        """Waits for a thread. A request to end the night is not kept waiting by it."""
        while True:
            done, _ = futures.wait([thinking], timeout=POLL_SECONDS)
            if done:
                return thinking.result()
            if interruption.requested_by(self._night.folder):
                self.abandon()

    def _folder(self, so_far: NightSoFar) -> Path:
        return self._night.trial_folder(so_far.next_trial)

    def _merged(
        self, so_far: NightSoFar, parent: str, waiting: trial_folder.Waiting
    ) -> Proposal | None:
        """The waiting proposal against the present champion.

        None if it conflicts, or has become another trial's code.
        """
        proposed = waiting.proposal
        if proposed.problem:  # its proposer has tried, and there is nothing to run
            return dataclasses.replace(proposed, candidate=so_far.champion)
        if waiting.parent == parent:
            return None if proposal.check(proposed.candidate, so_far.seen) else proposed
        before = champion.source_at(self._night.root, waiting.parent)
        merged = three_way_merge.three_way(
            before, so_far.champion.source, proposed.candidate.source
        )
        if merged is None:
            return None
        candidate = Candidate.parse(merged)
        if proposal.check(candidate, so_far.seen):
            return None
        note = f"made against champion {waiting.parent[:7]}, merged onto {parent[:7]}"
        return dataclasses.replace(
            proposed, candidate=candidate, idea=proposed.idea.with_note(note)
        )


@task(
    name="propose-ahead",
    task_run_name="propose trial {night.next_trial} ahead",
    cache_policy=NO_CACHE,
)
def propose_ahead(
    proposer: Proposer,
    night: NightSoFar,
    parent: str,
    folder: Path,
    next_run: NextRun | None,
) -> Proposal | None:
    """Makes the proposal and saves it in the trial's folder, as it may have cost money."""
    proposed = proposal.ask(proposer, night)
    if proposed is not None and proposed.idea.outcome != "cancelled":
        trial_folder.write_proposal(folder, night.champion.source, proposed, parent)
        if next_run is not None:
            next_run.offer(proposed)
    return proposed
