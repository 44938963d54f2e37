"""When a night measures its champion again, and that it compares with nothing from before.

First the steps, whose runs are made up. Then a night that goes on where the machine is said to be
another: real command line, boxes, judge and git; the model is a script on loopback, train.py the
stub.
"""

import dataclasses
import logging
import re
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from flows.night import remeasurement
from flows.night.session import Session
from tasks.errors import NightlyError
from tasks.history import champion, night_folder
from tasks.history.ledger import Ledger
from tasks.records import Baseline, Dataset
from tests.boxes import make_bench
from tests.faults.llm_server import FAKE_KEY, LlmServer, ok
from tests.faults.scripted_model import CONTINUATIONS, harmless
from tests.faults.stub_checkout import PROFILE, StubCheckout
from tests.synthetic_night import make_run
from tests.trials import baseline_event, make_baseline, make_trial, night_event

OTHER = {"NIGHTLY_TEST_HARDWARE": "another CPU"}
KILLED = {"NIGHTLY_TEST_KILL_AT": "measured_afresh:2"}


@pytest.fixture
def night(tmp_path, monkeypatch):
    """A night as far as a measurement looks, at a trial that has found the machine changed."""
    monkeypatch.setattr(remeasurement, "get_run_logger", logging.getLogger)
    monkeypatch.setattr(champion, "source_at", lambda root, commit: "A = 1\n")
    dataset = Dataset("f00d", "public", "train", "validation", 1)
    base: Any = SimpleNamespace(hardware="a CPU")
    bench = make_bench(dataset, tmp_path)
    trial = make_trial(1, machine_change="the hypervisor took 30% of the CPU time")
    with Ledger.create(tmp_path / "nights" / "nov21" / "ledger.jsonl") as book:
        book.append("night", **night_event())
        book.append("baseline", **baseline_event(start_commit="c0"))
        book.append("decided", trial=dataclasses.asdict(trial))
        book.append("applied", trial=1, commit="c1")
        pulse = SimpleNamespace(enter=lambda phase: None)
        yield SimpleNamespace(tag="nov21", root=tmp_path, bench=bench, baseline=base), book, pulse


def measure(monkeypatch, night, *scores: float | None) -> list[int]:
    """Takes steps until none is due, with made-up runs; their seeds."""
    made, seeds = iter(scores), []
    found, book, pulse = night

    def train(what, candidate, bench, seed, *, worth_audit, smoke, report):
        seeds.append(seed)
        score = next(made)
        return make_run(seed=seed, val_bpb=score, status="ok" if score else "train_timeout")

    monkeypatch.setattr(remeasurement, "train_candidate", train)
    while remeasurement.step(found, Session(found.root, book, pulse)):
        pass
    return seeds


def test_a_champion_gets_three_fresh_runs_that_are_made_up(night, monkeypatch):
    seeds = measure(monkeypatch, night, 1.7, None, 1.71, 1.72)
    assert seeds == [4, 5, 6, 7]
    state = night[1].state
    assert (state.champion_scores, state.champion_seeds) == ((1.7, 1.71, 1.72), (4, 6, 7))
    assert state.remeasurements[0].reason == "the hypervisor took 30% of the CPU time"
    assert remeasurement.due(night[0], state) is None


def test_a_champion_that_trains_no_more_ends_the_night_with_the_reason(night, monkeypatch):
    with pytest.raises(NightlyError, match="3 runs of it were stopped, the last one with train_"):
        measure(monkeypatch, night, None, 1.7, None, None)
    assert measure(monkeypatch, night, 1.71, 1.72) == [8, 9]  # it was resumed


def test_a_champion_that_is_the_baseline_is_measured_with_it_on_hardware_that_is_made_up(
    night, monkeypatch
):
    runs = tuple(make_run(seed=seed, val_bpb=1.7 + seed / 100) for seed in (1, 2, 3))
    found, book, _ = night
    found.baseline = Baseline(runs, "another CPU")
    measured = make_baseline(hardware="another CPU", scores=(1.71, 1.72, 1.73), start_commit="c0")
    monkeypatch.setattr(remeasurement, "baseline_event", lambda night, start: measured)
    assert measure(monkeypatch, night) == []
    assert book.state.champion_scores == (1.71, 1.72, 1.73)
    assert book.state.remeasurements[0].hardware_before == "a CPU"


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


@pytest.mark.slow
@pytest.mark.timeout(1200)
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


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_was_measured_before_a_kill_counts(checkout):
    events = checkout.ledger("moved")
    fresh, (again,) = named(events, "fresh"), named(events, "remeasured")
    assert [event["run"]["val_bpb"] for event in fresh] == again["scores"]
    assert len(set(again["seeds"])) == 3
    assert {event["run"]["purpose"] for event in fresh} == {"remeasurement"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_both_baselines_stay_on_record(checkout):
    folder = checkout.home / "nights" / "moved"
    files = sorted(path.name for path in folder.glob("baseline*.json"))
    assert [re.sub("[0-9a-f]{8}", "X", name) for name in files] == [
        "baseline-X.json",
        night_folder.BASELINE,
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_report_says_so(checkout):
    report = (checkout.home / "nights" / "moved" / "report.md").read_text()
    assert "- Measured again after 1 trial: the hardware changed from " in report
    assert " to another CPU. In bits per byte" in report
