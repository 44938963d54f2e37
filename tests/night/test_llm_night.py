"""A night of 12 trials whose model, endpoint and candidates do everything wrong.

Real command line, servers, boxes, judge, git and MLflow; the model is a script on the loopback,
train.py is the stub.
"""

import collections
import json
import re

import pytest

from tests.faults import adds_up
from tests.faults.llm_server import FAKE_KEY, USAGE, LlmServer
from tests.faults.scripted_model import INJECTED, MENDS, PURPOSES, TRIALS, script
from tests.faults.stub_checkout import PROFILE, StubCheckout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
# Dollars, of USAGE with the stub profile's prices.
A_CALL = (600 * 1.0 + 400 * 0.1 + 100 * 10.0) / 1e6


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm, prefect_api, empty_store):
    folder = tmp_path_factory.mktemp("llm") / "checkout"
    folder.mkdir()
    return StubCheckout(folder, warm=warm, api=prefect_api, store=empty_store)


@pytest.fixture(scope="module")
def before(checkout):
    return adds_up.UserTree.of(checkout)


@pytest.fixture(scope="module")
def model(checkout):
    with LlmServer(script(), transcript=checkout.folder.parent / "requests.jsonl") as server:
        yield server


@pytest.fixture(scope="module")
def night(checkout, before, model):
    """The night, through: standard output and error of its command."""
    done = checkout.run(
        *(
            "night",
            "--profile",
            PROFILE,
            "--tag",
            "llm",
            "--trials",
            "12",
            "--proposer",
            "llm",
            "--json",
        ),
        OPENAI_BASE_URL=model.url,
        OPENAI_API_KEY=FAKE_KEY,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def calls(checkout, night):
    lines = (checkout.home / "nights" / "llm" / "llm_calls.jsonl").read_text().splitlines()
    by_trial = collections.defaultdict(list)
    for call in map(json.loads, lines):
        by_trial[call["trial"]].append(call)
    return by_trial


@pytest.fixture(scope="module")
def trials(checkout, night):
    return {
        event["trial"]["number"]: event["trial"]
        for event in checkout.ledger("llm")
        if event["event"] == "decided"
    }


def test_every_call_has_the_expected_outcome(calls):
    found = {
        k: [(call["purpose"], call["outcome"]) for call in of_trial]
        for k, of_trial in calls.items()
    }
    wanted = {0: [("ping", "ok")]}
    for k, (_, outcomes) in enumerate(TRIALS, start=1):
        wanted[k] = [(PURPOSES[purpose], outcome) for purpose, outcome in map(str.split, outcomes)]
    assert found == wanted


def test_every_trial_records_the_outcome_of_its_proposal(trials):
    assert sorted(trials) == list(range(1, 13))
    ideas = {k: trial["idea"] for k, trial in trials.items()}
    by_model = [k for k, trial in trials.items() if trial["idea"]["proposer"] == "llm"]
    assert by_model == [1, 2, 3, 4, 5, 6, 7, 9, 11]
    assert [ideas[k]["proposer"] for k in (8, 10, 12) if ideas[k]["stands_in"]] == ["tpe"] * 3
    assert [ideas[k]["outcome"] for k in (8, 10, 12)] == [
        "timeout",
        "no_completion",
        "server_error",
    ]
    refused = {
        k: ideas[k]["outcome"] for k, trial in trials.items() if trial["status"] == "rejected_patch"
    }
    assert refused == {4: "no_edit", 9: "refusal"}
    assert trials[9]["reason"] == "not run: refusal: the model declines: I cannot help with that."
    assert {k: trial["fixes"] for k, trial in trials.items() if trial["fixes"]} == {6: 2, 11: 1}
    assert all(trials[k]["status"] == "ok" for k in trials if k not in refused)
    kept = [k for k, trial in trials.items() if trial["verdict"] == "keep"]
    assert {1, 2} <= set(kept)
    assert (ideas[2]["kind"], ideas[1]["hypothesis"]) == (
        "combination",
        "count what a token follows fits the data.",
    )


def test_a_waiting_proposal_is_merged_onto_the_new_champion_with_a_note(trials):
    assert trials[1]["verdict"] == "keep"
    assert re.search(r"made against champion \w{7}, merged onto \w{7}", trials[2]["idea"]["note"])
    assert trials[2]["parent"] != trials[1]["parent"]


def test_the_accounting_adds_up(checkout, model, calls, trials):
    answered = sum(
        call["prompt_tokens"] is not None for of_trial in calls.values() for call in of_trial
    )
    completed = sum(200 <= code < 300 for code in model.answered)
    assert answered == completed - 1  # the page of HTML is not a completion
    for k, trial in trials.items():
        paid = [call for call in calls[k] if call["prompt_tokens"] is not None]
        assert trial["usage"]["calls"] == len(calls[k])
        assert trial["usage"]["prompt_tokens"] == USAGE["prompt_tokens"] * len(paid)
        assert trial["usage"]["completion_tokens"] == USAGE["completion_tokens"] * len(paid)
        assert trial["usage"]["dollars"] == pytest.approx(A_CALL * len(paid))
    shown = checkout.run("show", "llm", "3", "--json")
    assert shown.returncode == 0, shown.stderr
    status = json.loads(checkout.run("status", "llm", "--json").stdout)
    assert status["budget"]["dollars"]["used"] == pytest.approx(A_CALL * answered)
    assert status["budget"]["tokens"]["used"] == 1100 * answered


def test_the_night_adds_up(checkout, night, before):
    assert adds_up.complaints(checkout, "llm", 12, before) == []


def test_every_call_is_a_trace_of_its_trials_run(checkout, calls, trials):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{checkout.home}/mlflow.db")
    (experiment,) = [
        found for found in client.search_experiments() if found.name.startswith("nightly-research/")
    ]
    runs = {
        run.data.tags.get("trial_id"): run for run in client.search_runs([experiment.experiment_id])
    }
    for k in trials:
        traces = client.search_traces(
            locations=[experiment.experiment_id],
            run_id=runs[f"llm:{k}"].info.run_id,
            max_results=100,
        )
        assert len(traces) == len(calls[k])
    everything = client.search_traces(locations=[experiment.experiment_id], max_results=500)
    assert len(everything) == sum(map(len, calls.values()))


def test_what_a_candidate_prints_reaches_the_model_as_fenced_data(model, checkout):
    (told,) = [
        body
        for body in model.requests
        if MENDS in json.dumps(body) and INJECTED in body["messages"][-1]["content"]
    ]
    text = told["messages"][-1]["content"]
    outside = re.sub(
        r"(?s)----- begin ([^\n]+) ([0-9a-f]{16}) -----\n.*?\n----- end \1 \2 -----", "", text
    )
    assert INJECTED not in outside
    assert outside.count("<<<<<<< SEARCH") == 1  # the form's, at the end


def test_a_candidates_address_is_no_link_in_the_log(night):
    (line,) = [line for line in night.stderr.splitlines() if "the judge is off" in line]
    assert "Read https[://]evil.example/." in line
    assert "https://evil" not in night.stderr


def test_no_key_is_in_the_box_or_in_anything_that_was_written(checkout, night):
    printed = (
        checkout.home / "nights" / "llm" / "trials" / "11" / "attempts" / "1" / "run.log"
    ).read_text()
    assert INJECTED in printed
    assert "'PATH'" in printed
    assert "OPENAI_" not in printed.replace(INJECTED, "")
    holding = [
        path
        for path in checkout.folder.parent.rglob("*")
        if path.is_file() and FAKE_KEY.encode() in path.read_bytes()
    ]
    assert holding == []
    assert FAKE_KEY not in night.stdout + night.stderr


def test_the_report_says_what_it_cost(checkout, night):
    report = (checkout.home / "nights" / "llm" / "report.md").read_text()
    assert "## What it cost" in report
    assert "program.md" in report
