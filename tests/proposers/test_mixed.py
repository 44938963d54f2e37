"""Who proposes which trial of a mixed night, and who is asked to fix it."""

import dataclasses

import pytest

from tasks.proposers.mixed import MixedProposer
from tasks.proposers.proposal import Researcher
from tasks.proposers.tpe import TpeProposer
from tasks.records import Candidate, NightSoFar, Proposal, RunResult
from tests.trials import make_proposal, make_trial

CRASH = RunResult(
    "train_crashed", "NameError", None, None, None, 1.0, 1.0, 0, 1.0, "bwrap", 1, "laptop", 1
)


def with_note(proposal: Proposal, note: str) -> Proposal:
    return dataclasses.replace(proposal, idea=proposal.idea.with_note(note))


@dataclasses.dataclass(frozen=True)
class Thinker:
    """A researcher that writes down what it is asked for."""

    asked: list[object] = dataclasses.field(default_factory=list)
    is_down: bool = False
    name: str = "llm"

    def propose(self, night: NightSoFar) -> Proposal:
        self.asked.append(night)
        return make_proposal(
            f"{night.champion.source}# {night.next_trial}\n",
            "An idea",
            "tpe" if self.is_down else self.name,
        )

    def ideas(self, night: NightSoFar) -> tuple[Proposal, ...]:
        return (self.propose(night),)

    def thinks(self, night: NightSoFar) -> bool:
        return not self.is_down

    def fix(self, night: NightSoFar, proposal: Proposal, run: RunResult) -> Proposal:
        self.asked.append((proposal, run))
        return with_note(proposal, "fixed")

    def cancel(self) -> None:
        self.asked.append("cancel")


SOURCE = """DEPTH = 3
UNEMBEDDING_LR = 0.004
MATRIX_LR = 0.04
def load_model(path, device): ...
def main(): return DEPTH, UNEMBEDDING_LR, MATRIX_LR
"""
NIGHT = NightSoFar("t", 1, 1, Candidate.parse(SOURCE), 1.6, 1.6, Candidate.parse(SOURCE).knobs, ())


def after(night: NightSoFar, proposed: Proposal | None) -> NightSoFar:
    """The night once this proposal was tried and discarded."""
    assert proposed is not None
    trial = make_trial(night.next_trial, knobs=proposed.candidate.knobs, idea=proposed.idea)
    return dataclasses.replace(
        night, next_trial=night.next_trial + 1, trials=(*night.trials, trial)
    )


def turns(share: float, count: int, **changes) -> list[int]:
    """The trials among the first `count` for which the researcher thinks."""
    mixed = MixedProposer(Thinker(**changes), TpeProposer(), share)
    return [
        k for k in range(1, count + 1) if mixed.thinks(dataclasses.replace(NIGHT, next_trial=k))
    ]


def test_it_is_a_researcher():
    assert isinstance(MixedProposer(Thinker(), TpeProposer(), 0.3), Researcher)


@pytest.mark.parametrize(
    ("share", "trials"),
    [
        (0.3, [4, 7, 10, 14, 17, 20]),
        (0.1, [10, 20]),
        (1.0, list(range(1, 21))),
        (1, list(range(1, 21))),
        (0.5, list(range(2, 21, 2))),
    ],
)
def test_the_researchers_trials_are_spread_evenly(share, trials):
    assert turns(share, 20) == trials


def test_a_placebo_takes_nobodys_turn():
    mixed = MixedProposer(Thinker(), TpeProposer(), 0.5)
    assert not mixed.thinks(dataclasses.replace(NIGHT, next_trial=4, placebos=1))
    assert mixed.thinks(dataclasses.replace(NIGHT, next_trial=5, placebos=1))


@pytest.mark.parametrize(
    ("share", "of", "out_of"),
    [
        (0.01, 1, 100),
        (0.1, 1, 10),
        (0.29, 29, 100),
        (0.3, 3, 10),
        (1 / 3, 1, 3),
        (0.57, 57, 100),
        (0.7, 7, 10),
        (1.0, 1, 1),
    ],
)
def test_after_every_trial_the_researcher_has_had_its_share(share, of, out_of):
    mine = set(turns(share, 1000))
    assert [len(mine & set(range(1, n + 1))) for n in range(1, 1001)] == [
        n * of // out_of for n in range(1, 1001)
    ]


def test_each_proposes_on_its_trials_and_both_see_every_result():
    researcher, night, made = Thinker(), NIGHT, []
    mixed = MixedProposer(researcher, TpeProposer(), 0.5)
    for _ in range(6):
        made.append(mixed.propose(night))
        night = after(night, made[-1])
    assert [p.idea.proposer for p in made if p] == ["tpe", "llm", "tpe", "llm", "tpe", "llm"]
    assert [len(asked.trials) for asked in researcher.asked if isinstance(asked, NightSoFar)] == [
        1,
        3,
        5,
    ]
    # Each step once: tpe has seen its own, and nobody else took one.
    assert [p.idea.summary for p in made[::2] if p] == [
        "DEPTH 3 -> 2",
        "UNEMBEDDING_LR 0.004 -> 0.008",
        "MATRIX_LR 0.04 -> 0.16",
    ]


def test_a_resumed_night_and_one_that_asks_again_ask_the_same_proposer():
    night = dataclasses.replace(NIGHT, next_trial=4)
    first, second = (MixedProposer(Thinker(), TpeProposer(), 0.3).propose(night) for _ in range(2))
    assert first == second
    refused = dataclasses.replace(after(night, first), next_trial=4)
    again = MixedProposer(Thinker(), TpeProposer(), 0.3).propose(refused)
    assert again is not None
    assert again.idea.proposer == "llm"


def test_a_researcher_that_cannot_be_asked_now_keeps_its_trials():
    assert turns(0.3, 20, is_down=True) == []
    proposed = MixedProposer(Thinker(is_down=True), TpeProposer(), 0.3).propose(
        dataclasses.replace(NIGHT, next_trial=4)
    )
    assert proposed is not None
    assert proposed.idea.summary == "An idea"


def test_if_tpe_has_nothing_left_the_researcher_proposes():
    bare = Candidate.parse("def load_model(path, device): ...\ndef main(): ...\n")
    proposed = MixedProposer(Thinker(), TpeProposer(), 0.3).propose(
        dataclasses.replace(NIGHT, champion=bare)
    )
    assert proposed is not None
    assert proposed.idea.proposer == "llm"


def test_a_crash_goes_to_the_researcher_which_recognises_its_own():
    researcher = Thinker()
    mixed = MixedProposer(researcher, TpeProposer(), 0.3)
    ours = make_proposal("x", "An idea", "llm")
    assert mixed.fix(NIGHT, ours, CRASH) == with_note(ours, "fixed")
    assert researcher.asked == [(ours, CRASH)]


def test_cancel_reaches_the_researcher():
    researcher = Thinker()
    MixedProposer(researcher, TpeProposer(), 0.3).cancel()
    assert researcher.asked == ["cancel"]
