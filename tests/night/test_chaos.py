"""Nights that are killed: once at each step of the protocol, and at random moments.

Each must add up in the end. Real command line, boxes, judge, git, MLflow, Prefect server and
worker; train.py is the stub of tests/faults.
"""

import re
from pathlib import Path

import pytest

from tests.faults import adds_up
from tests.faults.chaos import Chaos
from tests.faults.standing import standing
from tests.faults.stub_checkout import PROFILE

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TRIALS = 2  # the first is a keep
KILLS, SEED = 8, 7

PLACES = {  # by tag, each milestone once: where a night is killed, then where its resumption is
    "begins": ("opened:1", "branched:1", "measured:1", "proposed:1", "written:1"),
    "judges": ("started:2", "ran:1", "recorded:1", "decided:1"),  # the second trial
    "records": (  # a keep, then the end
        *("committed:1", "advanced:1", "applied:1", "shown:1", "finished:1", "reported:1"),
    ),
}


@pytest.fixture(scope="module")
def stands(tmp_path_factory, warm, deployed_prefect, empty_store):
    """A checkout with the deployments, a server and a worker."""
    with standing(tmp_path_factory.mktemp("chaos"), warm, deployed_prefect, empty_store) as stands:
        yield stands


@pytest.fixture(scope="module")
def before(stands):
    return adds_up.UserTree.of(stands.checkout)


@pytest.mark.parametrize(("tag", "places"), PLACES.items(), ids=PLACES)
def test_a_night_killed_between_two_steps_adds_up_in_the_end(stands, before, tag, places):
    stands.up()
    night = ("night", "--profile", PROFILE, "--tag", tag, "--trials", str(TRIALS))
    for i, place in enumerate((*places, "")):  # then it may end
        finished = i > 0 and stands.checkout.ledger(tag)[-1]["event"] == "finished"
        way = ("resume", tag) if i % 2 or finished else night
        done = stands.checkout.run(*way, NIGHTLY_TEST_KILL_AT=place)
        assert done.returncode == (-9 if place else 0), f"{place}: {done.stderr}"
    assert adds_up.complaints(stands.checkout, tag, TRIALS, before, stands.pids) == []


def test_every_milestone_of_the_night_is_one_where_it_is_killed():
    called = [path.read_text() for path in (ROOT / "flows").rglob("*.py")]
    names = set(re.findall(r'reached\("(\w+)"\)', "".join(called)))
    # The one only with a language model, tests/night/test_proposals.py has it; the other with
    # start_ahead: test_start_ahead.py.
    names -= {"fixed", "waiting"}
    names -= {"trained", "fresh", "certified", "pointed"}  # test_certified_night.py
    names -= {"measured_afresh", "remeasured"}  # test_remeasurement.py
    assert {place.partition(":")[0] for places in PLACES.values() for place in places} == names


@pytest.mark.parametrize("seed", range(4))
def test_a_night_that_ended_before_its_first_milestone_is_not_waited_for(stands, seed):
    chaos = Chaos(stands, seed, trials=1)
    chaos.milestones.write_text("starting\n")
    for _ in range(8):  # both kinds of moments
        chaos.wait("flow")
    chaos.log.close()


def test_nights_killed_at_random_add_up_in_the_end(stands):
    tally = Chaos(stands, SEED, trials=3).run(KILLS)
    print(f"figures: {tally}")
    assert tally.complaints == [], (stands.checkout.home / "chaos.log").read_text()[-10_000:]
