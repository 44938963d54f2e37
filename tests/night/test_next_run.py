"""When the next trial's run begins, whose it is then, and that no box of it outlives its purpose.

Runs are real, in boxes with the stub of torch; of the night only the bench is there.
"""

from types import SimpleNamespace
from typing import Any

import pytest

from flows.night.next_run import NextRun
from tasks.records import Candidate, Idea, Proposal
from tasks.trial import experiment
from tasks.trial.early_run import TrialStart
from tests.boxes import HONEST, live_boxes, make_bench, make_dataset
from tests.faults.stub_torch import assemble_with_stub
from tests.waiting import wait_for

CANDIDATE, OTHER = Candidate.parse(HONEST), Candidate.parse(f"{HONEST}\nA = 1\n")


def proposal(candidate=CANDIDATE, problem=None):
    return Proposal(candidate, Idea("an idea", "tpe"), problem)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def make(dataset, tmp_path, monkeypatch):
    """A NextRun and the list of the milestones that it reaches."""
    monkeypatch.setattr(experiment, "assemble", assemble_with_stub)
    reached: list[str] = []
    monkeypatch.setattr("flows.night.interruption.reached", reached.append)
    made = []

    def make(allowed=True):
        bench = make_bench(dataset, tmp_path)
        night: Any = SimpleNamespace(bench=bench, seed=7, folder=tmp_path)
        made.append(NextRun(night, allowed=allowed))
        return made[-1], reached

    yield make
    for one in made:
        one.close()
    assert live_boxes(tmp_path) == set()
    assert list(tmp_path.glob("boxes/*")) == []


def ignore(phase):
    pass


@pytest.mark.parametrize("order", ["proposal first", "training first"])
def test_it_begins_once_there_is_a_proposal_and_the_present_run_trains(make, order):
    ahead, reached = make()
    enter = ahead.watching(ignore)
    steps = [lambda: ahead.offer(proposal()), lambda: enter("training")]
    enter("starting up")
    first, second = steps if order == "proposal first" else reversed(steps)
    first()
    assert not ahead.is_begun
    second()
    assert ahead.is_begun
    wait_for(lambda: reached == ["waiting"], "ready")
    run = ahead.take(CANDIDATE)
    assert run is not None
    assert not ahead.is_begun
    assert run.finish(TrialStart(lambda claimed: False, ignore)).status == "ok"


def test_none_begins_where_it_is_off_after_the_training_or_with_nothing_to_run(make):
    off, _ = make(allowed=False)
    off.offer(proposal())
    off.watching(ignore)("training")
    late, _ = make()
    enter = late.watching(ignore)
    enter("training")
    enter("scoring")
    late.offer(proposal())
    empty, _ = make()
    empty.watching(ignore)("training")
    empty.offer(proposal(problem="no patch"))
    over, _ = make()
    over.close()
    over.watching(ignore)("training")
    over.offer(proposal())
    assert not any(one.is_begun for one in (off, late, empty, over))


def test_a_run_of_another_candidate_is_ended(make, tmp_path):
    ahead, reached = make()
    ahead.watching(ignore)("training")
    ahead.offer(proposal())
    wait_for(lambda: reached == ["waiting"], "ready")
    assert ahead.take(OTHER) is None
    assert live_boxes(tmp_path) == set()


@pytest.mark.parametrize("ends", ["close", "take"])
def test_a_run_that_was_taken_is_ended_if_its_trial_fails_before_it(make, tmp_path, ends):
    ahead, reached = make()
    ahead.watching(ignore)("training")
    ahead.offer(proposal())
    wait_for(lambda: reached == ["waiting"], "ready")
    assert ahead.take(CANDIDATE) is not None
    assert live_boxes(tmp_path) != set()
    ahead.close() if ends == "close" else ahead.take(CANDIDATE)
    assert live_boxes(tmp_path) == set()


def test_none_begins_in_the_start_up_after_a_run_that_was_stopped_in_its_training(make):
    ahead, _ = make()
    ahead.watching(ignore)("training")
    assert ahead.take(CANDIDATE) is None
    ahead.offer(proposal())
    assert not ahead.is_begun


def test_work_is_put_aside_only_for_a_run_that_waits(make):
    ahead, _ = make()
    done: list[str] = []
    ahead.aside(lambda: done.append("at once"))
    assert done == ["at once"]
    ahead.watching(ignore)("training")
    ahead.offer(proposal())
    ahead.aside(lambda: done.append("beside the training"))
    assert len(done) == 1
    run = ahead.take(CANDIDATE)
    assert len(done) == 1
    assert run is not None
    assert run.finish(TrialStart(lambda claimed: False, ignore)) is not None
    assert done[1:] == ["beside the training"]
    ahead.watching(ignore)("training")
    ahead.offer(proposal())
    ahead.aside(lambda: done.append("for another run"))
    assert ahead.take(OTHER) is None
    assert done[2:] == ["for another run"]
