"""Which idea is run next and who proposes, over nights that are killed between any two steps."""

import collections
import dataclasses
import random
from pathlib import Path

import pytest

import configs
from tasks.proposers.proposal import Researcher, no_patch
from tasks.records import Candidate, Estimate, NightSoFar, Parent, Proposal, RunResult
from tasks.search.idea_queue import IdeaQueue
from tasks.search.planner import Planner, is_call_due, turn_of
from tasks.statuses import Search
from tests.trials import make_proposal, make_trial

KNOBS = "".join(f"KNOB_{i} = 0\n\n\n" for i in range(40))
SOURCE = f"{KNOBS}def load_model(path, device): ...\ndef main(): ...\n"
CRASH = RunResult(
    "train_crashed", "NameError", None, None, None, 1.0, 1.0, 0, 1.0, "bwrap", 1, "laptop", 1
)


def night_of(folder: Path | None, **changes) -> NightSoFar:
    champion = Candidate.parse(SOURCE)
    night = NightSoFar("t", 1, 1, champion, 1.6, 1.6, {}, (), sd=0.01, folder=folder)
    return dataclasses.replace(night, **changes)


def patched(source: str, knob: int, value: int = 1) -> str:
    return source.replace(f"KNOB_{knob} = 0\n", f"KNOB_{knob} = {value}\n")


@dataclasses.dataclass
class Model:
    """A researcher whose idea number n sets KNOB_n, and who expects 0.01 * (n % 7) of it."""

    count: int = 4
    made: int = 0
    nights: list[NightSoFar] = dataclasses.field(default_factory=list)
    is_down: bool = False
    name: str = "llm"

    def ideas(self, night: NightSoFar) -> tuple[Proposal, ...]:
        self.nights.append(night)
        if self.is_down:
            return (make_proposal(patched(night.shown.source, 39, 7), "by tpe", "tpe"),)
        numbers = range(self.made, self.made + self.count)
        self.made += self.count
        return tuple(self._idea(night, number) for number in numbers)

    def _idea(self, night: NightSoFar, number: int) -> Proposal:
        source = patched(night.shown.source, number)
        estimate = Estimate(0.01 * (number % 7), 0.01)
        return make_proposal(source, f"idea {number}", self.name, kind="ab"[number % 2],
                             estimate=estimate)  # fmt: skip

    def propose(self, night: NightSoFar) -> Proposal:
        return self.ideas(night)[0]

    def thinks(self, night: NightSoFar) -> bool:
        return not self.is_down

    def fix(self, night: NightSoFar, proposal: Proposal, run: RunResult) -> Proposal:
        return make_proposal(patched(proposal.candidate.source, 38), "fixed", self.name)

    def cancel(self) -> None: ...


@dataclasses.dataclass
class Always:
    """A strategy that has something each time, or never."""

    name: Search = "stack"
    source: str | None = patched(SOURCE, 37)

    def propose(self, night: NightSoFar) -> Proposal | None:
        if self.source is None:
            return None
        return make_proposal(self.source, "two near misses", "llm", search=self.name)


class OneParent:
    def parent(self, night: NightSoFar) -> Parent:
        return Parent(3, Candidate.parse(patched(SOURCE, 36)), 1.61)


def planner(model: Model | None = None, ideas: int = 4, queue: int = 12, **changes) -> Planner:
    settings = configs.Search(
        ideas=ideas, queue=queue, stack_share=changes.pop("stack", 0.0),
        archive_share=changes.pop("archive", 0.0),
    )  # fmt: skip
    return Planner(model or Model(), settings, **changes)


def after(night: NightSoFar, proposed: Proposal, gain: float, *, kept: bool = False) -> NightSoFar:
    number, beaten = night.next_trial, night.champion_bpb
    score = beaten - gain
    trial = dataclasses.replace(
        make_trial(number, val_bpb=score, scores=(score,), verdict="keep" if kept else "discard"),
        idea=proposed.idea,
        digest=proposed.candidate.digest,
    )
    if kept:
        night = dataclasses.replace(night, champion=proposed.candidate, champion_bpb=score)
    return dataclasses.replace(
        night,
        next_trial=number + 1,
        trials=(*night.trials, trial),
        seen={**night.seen, str(proposed.candidate.digest): number},
        to_beat={**night.to_beat, number: beaten},
    )


def test_it_is_a_researcher():
    assert isinstance(planner(), Researcher)


def test_with_one_idea_a_call_it_proposes_what_the_researcher_does_and_writes_nothing(tmp_path):
    model, alone, night = Model(), Model(), night_of(tmp_path)
    for number in range(1, 5):
        proposed = planner(model, ideas=1).propose(night)
        assert proposed == alone.propose(night)
        assert planner(model, ideas=1).thinks(night)
        night = after(night, proposed, 0.01, kept=number == 2)
    assert not list(tmp_path.iterdir())


def test_the_most_promising_of_a_call_is_run_and_the_choice_is_on_record(tmp_path):
    proposed = planner().propose(night_of(tmp_path))
    assert proposed is not None
    assert (proposed.idea.queued, proposed.idea.summary) == ("1.4", "idea 3")
    assert [each.idea for each in proposed.idea.choice] == ["1.4", "1.3", "1.2", "1.1"]
    scores = [each.score for each in proposed.idea.choice]
    assert scores == sorted(scores, reverse=True)
    assert proposed.idea.choice[0].summary == "idea 3"


def test_no_call_is_made_while_what_waits_promises_as_much_as_a_call(tmp_path):
    model, night = Model(), night_of(tmp_path)
    for _ in range(6):
        proposed = planner(model).propose(night)
        assert proposed is not None
        night = after(night, proposed, -0.02)
        thinks, asked = planner(model).thinks(night), len(model.nights)
        planner(model).propose(night)
        assert thinks == (len(model.nights) > asked)


def test_a_call_is_due_if_the_best_that_waits_promises_less_than_the_best_of_a_usual_call():
    assert is_call_due([], [[1.0, 2.0]])
    assert is_call_due([1.0], [])
    assert is_call_due([0.1, 1.4], [[1.0, 2.0], [1.0, 0.0]])
    assert not is_call_due([0.1, 1.6], [[1.0, 2.0], [1.0, 0.0]])


def test_the_researcher_is_told_what_waits(tmp_path):
    model, night = Model(), night_of(tmp_path)
    for _ in range(2):
        proposed = planner(model).propose(night)
        assert proposed is not None
        night = after(night, proposed, 0.0)
    first, second = model.nights
    assert first.waiting == ()
    assert {each.idea.queued for each in second.waiting} == {"1.1", "1.2", "1.3"}


def test_an_idea_made_against_an_older_champion_is_merged_and_says_so(tmp_path):
    night = night_of(tmp_path)
    first = planner().propose(night)
    assert first is not None
    night = after(night, first, 0.1, kept=True)
    second = planner(Model(is_down=True)).propose(night)
    assert second is not None
    assert second.idea.queued == "1.3"
    assert second.candidate.source == patched(patched(SOURCE, 3), 2)
    assert second.idea.note == "made for trial 1, merged onto the present champion"


def test_ideas_that_conflict_or_were_tried_are_dropped_with_their_reason(tmp_path):
    night = night_of(tmp_path)
    queue = IdeaQueue.of(tmp_path)
    once, twice = patched(SOURCE, 5), patched(SOURCE, 2)
    made = [patched(SOURCE, 2, 8), once, f"{once}# the same\n", twice]
    queue.add(1, night.champion, [make_proposal(each, "an idea", "llm") for each in made])
    night = after(night, make_proposal(patched(SOURCE, 2)), 0.1, kept=True)
    proposed = planner(Model(is_down=True)).propose(night)
    assert proposed is not None
    assert proposed.idea.queued == "1.2"
    assert queue.read().dropped == {
        "1.1": "made for trial 1, it conflicts with the present champion",
        "1.3": "the same as idea 1.2",
        "1.4": "the same as trial 1",
    }


def test_of_more_than_may_wait_those_that_promise_least_are_dropped(tmp_path):
    proposed = planner(Model(count=8), queue=3).propose(night_of(tmp_path))
    assert proposed is not None
    ideas = IdeaQueue.of(tmp_path).read()
    assert set(ideas.dropped) == {"1.1", "1.2", "1.3", "1.8"}  # 0, 0.01, 0.02 and 0
    assert all("more than 3 ideas waited" in why for why in ideas.dropped.values())


def test_while_the_model_is_down_what_waits_is_run_and_then_the_fallback(tmp_path):
    night = night_of(tmp_path)
    first = planner().propose(night)
    names = []
    for _ in range(4):
        assert first is not None
        night = after(night, first, 0.0)
        assert not planner(Model(is_down=True)).thinks(night)
        first = planner(Model(is_down=True)).propose(night)
        assert first is not None
        names.append(first.idea.queued or first.idea.proposer)
    assert names == ["1.3", "1.2", "1.1", "tpe"]


def test_an_answer_without_a_patch_is_the_proposal_if_nothing_waits(tmp_path):
    model, night = Model(), night_of(tmp_path)
    nothing = no_patch(night, "llm", "no_edit", "no_edit: it has no patch")
    model.ideas = lambda night: (nothing,)  # type: ignore[method-assign]
    assert planner(model).propose(night) == nothing
    assert not IdeaQueue.of(tmp_path).path.exists()


@pytest.mark.parametrize("seed", range(3))
def test_a_night_killed_between_any_steps_loses_no_idea_and_runs_none_twice(tmp_path, seed):
    """A killed step is made again, with the night's record and files alone."""
    luck = random.Random(seed)
    model, night = Model(count=3), night_of(tmp_path)
    for number in range(12):
        ahead = planner(model, queue=5)
        proposed = ahead.propose(night)
        assert proposed is not None
        if luck.random() < 0.5:  # killed before the proposal was on disk, maybe in a later write
            with IdeaQueue.of(tmp_path).path.open("ab") as file:
                file.write(b'{"event": "dropped", "id": "1.1"'[: luck.randrange(30)])
            made = model.made
            assert planner(model, queue=5).propose(night) == proposed
            assert model.made == made
        night = after(night, proposed, 0.01 * luck.uniform(-1, 1), kept=number % 4 == 3)
        if luck.random() < 0.3:  # the next one is proposed while this one still trains
            tried = night.trials[-1]
            before = dataclasses.replace(
                night, trials=night.trials[:-1], in_flight=proposed, to_beat={}
            )
            chosen = planner(model, queue=5).propose(before)
            assert chosen is not None
            assert chosen.idea.queued != tried.idea.queued
    ideas = IdeaQueue.of(tmp_path).read()
    run = [trial.idea.queued for trial in night.trials]
    counted = collections.Counter([*run, *ideas.dropped, *(i.id for i in ideas.waiting(night))])
    assert counted == collections.Counter(each.id for each in ideas.every)
    assert len(ideas.every) == model.made


def test_contenders_of_a_tournament_run_their_own_ideas_only(tmp_path):
    night = night_of(tmp_path)
    one, other = Model(), Model(made=20)
    ids = []
    for contender, model in [("one", one), ("other", other)] * 2:
        proposed = planner(model, contender=contender).propose(night)
        assert proposed is not None
        ids.append((proposed.idea.contender, int(proposed.idea.summary.split()[1]) >= 20))
        night = after(night, proposed, 0.0)
    assert ids == [("one", False), ("other", True)] * 2
    every = [each.id for each in IdeaQueue.of(tmp_path).read().every]
    assert len(set(every)) == len(every)


def test_a_fixed_crash_stays_the_same_idea_of_the_queue(tmp_path):
    proposed = planner().propose(night_of(tmp_path))
    assert proposed is not None
    fixed = planner().fix(night_of(tmp_path), proposed, CRASH)
    assert fixed is not None
    assert fixed.idea.summary == "fixed"
    assert (fixed.idea.queued, fixed.idea.choice) == (proposed.idea.queued, proposed.idea.choice)


def test_a_strategy_has_its_turns_and_one_without_an_idea_yields(tmp_path):
    busy, idle = Always(), Always(source=None)
    found = {
        turn: [
            p.idea.search
            for strategy in (busy, idle)
            if (p := planner(stack=0.25, strategies=(strategy,)).propose(
                night_of(tmp_path, next_trial=turn + 1, placebos=1)))
        ]
        for turn in (3, 4, 8)
    }  # fmt: skip
    assert found == {3: ["proposal"] * 2, 4: ["stack", "proposal"], 8: ["stack", "proposal"]}
    now = night_of(tmp_path, next_trial=4)
    assert not planner(stack=0.25, strategies=(busy,)).thinks(now)


def test_a_strategy_whose_candidate_was_tried_yields(tmp_path):
    seen = {str(Candidate.parse(patched(SOURCE, 37)).digest): 2}
    night = night_of(tmp_path, next_trial=4, seen=seen)
    proposed = planner(stack=0.25, strategies=(Always(),)).propose(night)
    assert proposed is not None
    assert proposed.idea.search == "proposal"


@pytest.mark.parametrize("ideas", [1, 4])
def test_ideas_for_another_parent_are_marked_and_wait_for_its_next_turn(tmp_path, ideas):
    model = Model()
    built = planner(model, ideas, archive=0.5, parents=OneParent())
    searches = []
    night = night_of(tmp_path)
    for _ in range(4):
        proposed = built.propose(night)
        assert proposed is not None
        searches.append((proposed.idea.search, proposed.idea.built_on))
        assert ("KNOB_36 = 1" in proposed.candidate.source) == (proposed.idea.search == "archive")
        night = after(night, proposed, 0.0)
    assert searches == [("proposal", ()), ("archive", (3,))] * 2


def test_with_the_model_down_an_archives_turn_goes_to_an_idea_that_waits(tmp_path):
    first = planner().propose(night_of(tmp_path))
    assert first is not None
    night = after(night_of(tmp_path), first, 0.0)
    down = planner(Model(is_down=True), archive=0.5, parents=OneParent())
    assert down._due(night) == "archive"
    proposed = down.propose(night)
    assert proposed is not None
    assert (proposed.idea.queued, proposed.idea.search) == ("1.3", "proposal")
    assert "KNOB_36 = 0" in proposed.candidate.source


@pytest.mark.parametrize(
    ("shares", "turns"),
    [
        ({}, {}),
        ({"stack": 0.3}, {4: "stack", 7: "stack", 10: "stack"}),
        ({"stack": 0.1, "archive": 0.1}, {10: "stack", 11: "archive"}),
        ({"stack": 0.5, "archive": 0.5},
         {n: "stack" if n % 2 == 0 else "archive" for n in range(2, 13)}),
    ],
)  # fmt: skip
def test_turns_are_spread_evenly_and_each_has_one(shares, turns):
    found = {turn: turn_of(turn, shares) for turn in range(1, 13)}
    assert {turn: due for turn, due in found.items() if due} == turns


def test_in_a_mixed_night_a_share_is_that_of_all_trials():
    own = planner(share=0.3, stack=0.1, strategies=(Always(),))
    had = [
        turn
        for turn in range(1, 101)
        if int(turn * 0.3) > int((turn - 1) * 0.3)
        and own._due(night_of(None, next_trial=turn)) == "stack"
    ]
    assert len(had) == 10
