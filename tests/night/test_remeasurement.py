"""A night that goes on where the machine is said to be another: it measures anew, and compares with
nothing from before.

Real command line, boxes, judge and git; the model is a script on loopback, train.py the stub.
"""

import re
import signal

import pytest

from tasks.history import night_folder
from tests.faults.llm_server import FAKE_KEY, LlmServer, ok
from tests.faults.scripted_model import CONTINUATIONS, harmless
from tests.faults.stub_checkout import PROFILE, StubCheckout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
OTHER = {"NIGHTLY_TEST_HARDWARE": "another CPU"}
KILLED = {"NIGHTLY_TEST_KILL_AT": "measured afresh:2"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm, prefect_api, empty_store):
    """A night with a kept trial, which was killed on other hardware while its champion was
    measured again there, and has gone on to its end."""
    folder = tmp_path_factory.mktemp("moved") / "checkout"
    folder.mkdir()
    made = StubCheckout(folder, warm=warm, api=prefect_api, store=empty_store)
    flags = ("--profile", PROFILE, "--tag", "moved", "--trials", "1", "--proposer", "llm")
    resume = ("resume", "moved", "--trials", "2")
    with LlmServer([ok("ready"), ok(CONTINUATIONS), ok("ready"), ok(harmless(1))]) as model:
        key = {"OPENAI_BASE_URL": model.url, "OPENAI_API_KEY": FAKE_KEY}
        first = made.run("night", *flags, **key)
        assert first.returncode == 0, first.stderr
        killed = made.run(*resume, **key, **OTHER, **KILLED)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        done = made.run("resume", "moved", **key, **OTHER)
        assert done.returncode == 0, done.stderr
    return made


def named(events, name):
    return [event for event in events if event["event"] == name]


def test_a_fingerprint_that_is_said_to_change_is_measured_and_not_compared(checkout):
    events = checkout.ledger("moved")
    (began,), (again,) = named(events, "baseline"), named(events, "remeasured")
    assert (again["hardware_before"], again["baseline"]["hardware"]) == (
        began["hardware"],
        "another CPU",
    )
    assert len(again["baseline"]["scores"]) == 3
    first, second = (event["trial"] for event in named(events, "decided"))
    assert (first["verdict"], second["number"]) == ("keep", 2)
    assert again["champion_before"] == first["scores"]
    assert events.index(again) < events.index(named(events, "started")[-1])
    state = night_folder.read_state(checkout.home / "nights" / "moved")
    assert state.baseline is not None
    assert state.baseline.hardware == "another CPU"
    assert state.groups[0] == tuple(again["baseline"]["scores"])
    assert not {*first["scores"]} & {score for group in state.repeats for score in group}


def test_what_was_measured_before_a_kill_counts(checkout):
    events = checkout.ledger("moved")
    fresh, (again,) = named(events, "fresh"), named(events, "remeasured")
    assert [event["run"]["val_bpb"] for event in fresh] == again["scores"]
    assert len(set(again["seeds"])) == 3
    assert {event["run"]["purpose"] for event in fresh} == {"remeasurement"}


def test_both_baselines_stay_on_record(checkout):
    folder = checkout.home / "nights" / "moved"
    files = sorted(path.name for path in folder.glob("baseline*.json"))
    assert [re.sub("[0-9a-f]{8}", "X", name) for name in files] == [
        "baseline-X.json",
        night_folder.BASELINE,
    ]


def test_the_report_says_so(checkout):
    report = (checkout.home / "nights" / "moved" / "report.md").read_text()
    assert "- Measured again after 1 trial: the hardware is another CPU, and was " in report
