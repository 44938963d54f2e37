"""Which contender proposes, and what each of them is told."""

import dataclasses

import pytest

from tasks.proposers.proposal import Researcher
from tasks.records import Candidate, NightSoFar, Proposal, RunResult
from tasks.search.tournament import Tournament
from tests.synthetic_night import make_night, make_run
from tests.trials import keep, make_proposal, make_trial


@dataclasses.dataclass(frozen=True)
class Thinker:
    """A researcher that writes down the nights that it is told of."""

    name: str = "llm"
    told: list[NightSoFar] = dataclasses.field(default_factory=list)
    left: int = 1000  # turns of its own in which it has something to propose
    cancelled: list[bool] = dataclasses.field(default_factory=list)

    def propose(self, night: NightSoFar) -> Proposal | None:
        self.told.append(night)
        if night.turn > self.left:
            return None
        return make_proposal(f"x = {night.next_trial}\n", "An idea", self.name)

    def ideas(self, night: NightSoFar) -> tuple[Proposal, ...]:
        proposed = self.propose(night)
        return (proposed,) if proposed else ()

    def thinks(self, night: NightSoFar) -> bool:
        return True

    def fix(self, night: NightSoFar, proposal: Proposal, run: RunResult) -> Proposal:
        self.told.append(night)
        return proposal

    def cancel(self) -> None:
        self.cancelled.append(True)


@dataclasses.dataclass(frozen=True)
class Knobs:
    """A proposer that is no researcher."""

    name: str = "tpe"

    def propose(self, night: NightSoFar) -> Proposal:
        return make_proposal(f"y = {night.next_trial}\n", "A knob", self.name)


NIGHT = make_night(champion=Candidate.parse("DEPTH = 3\n"))


def played(count: int, tournament: Tournament) -> list[NightSoFar]:
    """A night of so many trials, before each and at its end; many ideas of `a` are kept."""
    nights = [NIGHT]
    for _ in range(count):
        proposed = tournament.propose(nights[-1])
        assert proposed is not None
        nights.append(after(nights[-1], proposed))
    return nights


def after(night: NightSoFar, proposed: Proposal) -> NightSoFar:
    number = night.next_trial
    is_kept = proposed.idea.contender == "a" and number % 2
    made = keep(number, 1.59) if is_kept else make_trial(number, val_bpb=1.61)
    words = f"notes of trial {number}"
    idea = dataclasses.replace(proposed.idea, notes=words)
    trial = dataclasses.replace(made, idea=idea, wall_seconds=60.0)
    return dataclasses.replace(
        night,
        trials=(*night.trials, trial),
        next_trial=number + 1,
        to_beat={**night.to_beat, number: 1.6},
    )


@pytest.fixture
def tournament():
    return Tournament({"a": Thinker(), "b": Thinker(), "c": Knobs()})


def test_it_is_a_researcher_and_says_whose_each_proposal_is(tournament):
    night = played(9, tournament)[-1]
    contenders = [trial.idea.contender for trial in night.trials]
    assert {name: contenders[:6].count(name) for name in "abc"} == {"a": 2, "b": 2, "c": 2}
    names = {trial.idea.contender: trial.idea.proposer for trial in night.trials}
    assert isinstance(tournament, Researcher)
    assert names == {"a": "llm", "b": "llm", "c": "tpe"}


def test_the_choice_is_the_same_while_the_last_trial_trains_and_after_it(tournament):
    """So a proposal that is lost to a kill is asked of the same contender once more."""
    for night in played(30, tournament)[1:]:
        *before, last = night.trials
        flying = Proposal(night.champion, last.idea)
        ahead = dataclasses.replace(night, trials=tuple(before), in_flight=flying)
        assert tournament.propose(ahead) == tournament.propose(night)


def test_a_proposal_that_was_refused_does_not_change_whose_turn_it_is(tournament):
    for night in played(30, tournament):
        refused = make_trial(night.next_trial, status="rejected_patch", contender="a")
        again = dataclasses.replace(night, trials=(*night.trials, refused))
        assert tournament.propose(again) == tournament.propose(night)


def test_each_has_turns_and_a_notebook_of_its_own_and_sees_every_result(tournament):
    night = played(20, tournament)[-1]
    for name in "ab":
        told = tournament.contenders[name].told
        assert [seen.turn for seen in told] == list(range(1, len(told) + 1))
        last = told[-1]
        assert [trial.number for trial in last.trials] == list(range(1, last.next_trial))
        owners = {trial.idea.contender for trial in last.trials if trial.idea.notes}
        assert owners <= {name}
        assert any(trial.idea.notes is None for trial in last.trials)
    assert len(night.trials) == 20


def test_who_has_nothing_left_leaves_its_turn_to_others():
    done = Tournament({"a": Thinker(left=1), "b": Thinker(left=2)})
    night = played(3, done)[-1]
    assert sorted(str(trial.idea.contender) for trial in night.trials) == ["a", "b", "b"]
    assert done.propose(night) is None


def test_a_crash_goes_to_the_contender_whose_it_is(tournament):
    crashed = make_proposal("x", "An idea", "llm", contender="b")
    fixed = tournament.fix(NIGHT, crashed, make_run(status="train_crashed"))
    assert fixed == crashed
    assert (len(tournament.contenders["a"].told), len(tournament.contenders["b"].told)) == (0, 1)
    of_knobs = make_proposal("x", "A knob", "tpe", contender="c")
    assert tournament.fix(NIGHT, of_knobs, make_run()) is None


def test_only_a_turn_of_one_that_thinks_is_thought_about_ahead(tournament):
    *nights, end = played(12, tournament)
    for night, trial in zip(nights, end.trials, strict=True):
        assert tournament.thinks(night) == (trial.idea.contender != "c")


def test_the_end_of_the_night_reaches_everybody(tournament):
    tournament.cancel()
    assert all(tournament.contenders[name].cancelled for name in "ab")
