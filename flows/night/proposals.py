"""A night's proposals: each is made while the trial before trains, so that a GPU never waits for a model that thinks.

One is made against the champion of its time. When the trial that trained meanwhile is kept, it is carried over to the new
champion by a three-way merge; where that fails it is asked for again. The proposal is in the next trial's folder as soon
as it is there, so a kill loses neither it nor what it cost.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar

from prefect import futures, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from flows.night import interruption
from flows.night.night import Night
from tasks.cache import unscanned
from tasks.history import champion, trial_folder
from tasks.proposers import proposal, three_way_merge
from tasks.proposers.proposal import Proposer, Researcher
from tasks.records import NightSoFar, Proposal, RunResult

POLL_SECONDS = 1.0
T = TypeVar("T")


class Proposals:
    """The night's proposer, and at most one proposal that it is making for the trial after the one that trains."""

    def __init__(self, night: Night, proposer: Proposer) -> None:
        self.proposer = proposer
        self._night = night
        self._thinking: PrefectFuture[Proposal | None] | None = None

    def think_ahead(self, so_far: NightSoFar, parent: str) -> None:
        """Has the next one made in a thread, if that takes long; `so_far` knows the trial that now trains."""
        folder = self._folder(so_far)
        if trial_folder.read_proposal(folder):  # from before a kill
            return
        if isinstance(self.proposer, Researcher) and self.proposer.thinks(so_far):
            self._thinking = propose_ahead.submit(
                unscanned(self.proposer), unscanned(so_far), parent, folder
            )

    def wait(self) -> None:
        """Until no proposal is being made ahead."""
        thinking, self._thinking = self._thinking, None
        if thinking is not None:
            self._result(thinking)

    def next(self, so_far: NightSoFar, parent: str) -> Proposal | None:
        """The proposal for `so_far.next_trial`: the one that waits, if it can be used, else a new one; None: nothing left."""
        note = None
        if waiting := trial_folder.read_proposal(self._folder(so_far)):
            proposed = self._carried_over(so_far, parent, waiting)
            if proposed is not None:
                return proposed
            why = (
                "was measured meanwhile"
                if waiting.parent == parent
                else "did not fit the new champion"
            )
            note = f"asked again: the proposal that waited {why}"
        proposed = self._asked(so_far, parent)
        if proposed is None or note is None:
            return proposed
        return dataclasses.replace(proposed, note="; ".join(filter(None, [note, proposed.note])))

    def mend(self, so_far: NightSoFar, crashed: Proposal, run: RunResult) -> Proposal | None:
        """The crashed idea once more, mended by its proposer; None when it cannot."""
        if not isinstance(self.proposer, Researcher):
            return None
        return self._result(
            proposal.mend_patch.submit(
                unscanned(self.proposer), unscanned(so_far), unscanned(crashed), unscanned(run)
            )
        )

    def abandon(self) -> None:
        """Nobody waits for it any more: the night ends."""
        if isinstance(self.proposer, Researcher):
            self.proposer.cancel()

    def _asked(self, so_far: NightSoFar, parent: str) -> Proposal | None:
        if isinstance(self.proposer, Researcher):
            return self._result(
                propose_ahead.submit(
                    unscanned(self.proposer), unscanned(so_far), parent, self._folder(so_far)
                )
            )
        return proposal.propose_patch(unscanned(self.proposer), unscanned(so_far))

    def _result(self, thinking: PrefectFuture[T]) -> T:
        """Waits for a thread that thinks; somebody who asks the night to end is not kept waiting by it."""
        while True:
            done, _ = futures.wait([thinking], timeout=POLL_SECONDS)
            if done:
                return thinking.result()
            if interruption.asked(self._night.folder):
                self.abandon()

    def _folder(self, so_far: NightSoFar) -> Path:
        return self._night.folder / "trials" / str(so_far.next_trial)

    def _carried_over(
        self, so_far: NightSoFar, parent: str, waiting: trial_folder.Waiting
    ) -> Proposal | None:
        """The waiting proposal against the champion of now; None when it does not fit, or is another trial's code by now."""
        proposed = waiting.proposal
        if proposed.problem:  # its proposer has tried, and there is nothing to run
            return dataclasses.replace(proposed, source=so_far.champion)
        if waiting.parent == parent:
            return None if proposal.check(proposed.source, so_far.seen) else proposed
        before = champion.source_at(self._night.root, waiting.parent)
        merged = three_way_merge.three_way(before, so_far.champion, proposed.source)
        if merged is None or proposal.check(merged, so_far.seen):
            return None
        note = f"made against champion {waiting.parent[:7]} and carried over to {parent[:7]}"
        return dataclasses.replace(
            proposed, source=merged, note="; ".join(filter(None, [proposed.note, note]))
        )


@task(
    name="propose-ahead",
    task_run_name="propose trial {night.next_trial} ahead",
    cache_policy=NO_CACHE,
)
def propose_ahead(
    proposer: Proposer, night: NightSoFar, parent: str, folder: Path
) -> Proposal | None:
    """Makes the proposal and leaves it in the trial's folder, too, as it may have cost money."""
    proposed = proposal.ask(proposer, night)
    if proposed is not None and proposed.outcome != "cancelled":
        trial_folder.write_proposal(folder, night.champion, proposed, parent)
    return proposed
