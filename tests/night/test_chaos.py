"""Nights that are killed: once at every step of the protocol, and at random moments. Each must add up in the end.

Real command line, boxes, judge, git, MLflow, Prefect server and worker; train.py is the stub of tests/faults.
"""

import re
from pathlib import Path

import pytest

from tests.faults import adds_up
from tests.faults.chaos import Chaos
from tests.faults.standing import standing
from tests.faults.stub_checkout import PROFILE
from tests.faults.warm_commands import WarmCommands

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TRIALS = 2  # the first is a keep
KILLS, SEED = 12, 7

PLACES = {  # by tag, every milestone once: where a night is killed, then where it is when it goes on, and again
    "begins": ("opened:1", "branched:1", "measured:1", "proposed:1", "written:1"),
    "judges": ("started:2", "ran:1", "recorded:1", "decided:1"),  # the second trial
    "records": (
        "committed:1",
        "advanced:1",
        "applied:1",
        "shown:1",
        "finished:1",
        "reported:1",
    ),  # a keep, then the end
}


@pytest.fixture(scope="module")
def stands(tmp_path_factory):
    """A checkout with everything prepared, a server, a worker, and the baseline measured."""
    with standing(tmp_path_factory.mktemp("chaos")) as stands:
        yield stands


@pytest.fixture(scope="module")
def before(stands):
    return adds_up.UserTree.of(stands.checkout)


@pytest.fixture(scope="module")
def commands(stands, before):
    warm = WarmCommands(stands.checkout)
    yield warm
    warm.end()


@pytest.mark.parametrize(("tag", "places"), PLACES.items(), ids=PLACES)
def test_a_night_killed_between_two_steps_adds_up_in_the_end(stands, before, commands, tag, places):
    night = ("night", "--profile", PROFILE, "--tag", tag, "--trials", str(TRIALS))
    for i, place in enumerate((*places, "")):  # then it may end
        finished = i > 0 and stands.checkout.ledger(tag)[-1]["event"] == "finished"
        way = ("resume", tag) if i % 2 or finished else night
        code, said = commands.run(*way, NIGHTLY_TEST_KILL_AT=place)
        assert code == (-9 if place else 0), f"{place}: {said}"
    alive = stands.pids | {commands.process.pid}
    assert adds_up.complaints(stands.checkout, tag, TRIALS, before, alive) == []


def test_every_milestone_of_the_night_is_one_where_it_is_killed():
    called = [path.read_text() for path in (ROOT / "flows").rglob("*.py")]
    names = set(re.findall(r'reached\("(\w+)"\)', "".join(called)))
    names -= {"fixed"}  # only with a language model: tests/test_proposals.py
    assert {place.partition(":")[0] for places in PLACES.values() for place in places} == names


def test_nights_killed_at_random_add_up_in_the_end(stands, commands):
    commands.end()
    tally = Chaos(stands, SEED, trials=4).run(KILLS)
    print(f"figures: {tally}")
    assert tally.complaints == [], (stands.checkout.home / "chaos.log").read_text()[-10_000:]
