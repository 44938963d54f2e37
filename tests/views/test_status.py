"""`./run status` tells the truth about a night: while it runs and however it has ended."""

import contextlib
import dataclasses
import json
import os
import platform
import shutil
import signal
import time

import pytest

from tasks.history import heartbeat, ledger, night_folder
from tasks.judge.processes import ProcessId
from tasks.records import Certification, Claim
from tasks.usage import Usage
from tasks.views import refusals, status
from tests.certified_night import FOUND, certified_night
from tests.faults.stub_checkout import PROFILE, StubCheckout
from tests.trials import (
    baseline_event,
    make_call,
    make_fresh_run,
    make_trial,
    night_event,
    write_calls,
)
from tests.waiting import wait_for

HEADER = night_event(trials=4, hours=2.0)
BASELINE = baseline_event(start_commit="c0", wall_seconds=30.0)
KEEP = make_trial(1, verdict="keep", val_bpb=1.5, scores=(1.5,), wall_seconds=20.0)
MEASURED = [("night", HEADER), ("baseline", BASELINE)]
ONE_KEPT = [*MEASURED, ("started", {"trial": 1}), ("decided", {"trial": dataclasses.asdict(KEEP)})]
APPLIED = [*ONE_KEPT, ("applied", {"trial": 1, "commit": "c1"})]
FINISHED = [*APPLIED, ("finished", {"reason": "all trials are done"})]


@pytest.fixture
def night(tmp_path):
    """Makes a night's folder from its events, with a heartbeat of this process but `changes`."""
    folder = tmp_path / "nights" / "nov21"

    def make(events, **changes):
        with contextlib.suppress(FileNotFoundError):
            (folder / night_folder.LEDGER).unlink()
        with ledger.Ledger.create(folder / night_folder.LEDGER) as book:
            for name, fields in events:
                book.append(name, **fields)
        mine = heartbeat.Heartbeat(
            host=platform.node(),
            process=ProcessId.current(),
            time=time.time(),
            used_seconds=360.0,
            phase="trial 2, seed 1: training",
            phase_seconds=7.0,
            error=None,
        )
        beat = dataclasses.replace(mine, **changes)
        (folder / night_folder.PULSE).write_text(beat.to_json())
        return folder

    return make


def describe(folder) -> dict:
    """The night as `--json` prints it."""
    return json.loads(json.dumps(dataclasses.asdict(status.describe(folder))))


def text(folder) -> str:
    return status.text(status.describe(folder))


# Another process had this pid.
DEAD = {"process": dataclasses.replace(ProcessId.current(), started=1)}


@pytest.mark.parametrize(
    ("events", "changes", "word"),
    [
        (APPLIED, {}, "running"),
        (APPLIED, DEAD, "interrupted"),
        (APPLIED, {"process": dataclasses.replace(ProcessId.current(), boot="x")}, "interrupted"),
        (APPLIED, {"host": "elsewhere"}, "running"),
        (APPLIED, {"host": "elsewhere", "time": 0.0}, "interrupted"),
        (
            [*APPLIED, ("stopped", {"reason": "stopped by Ctrl-C", "failed": False})],
            {"phase": "over"},
            "stopped",
        ),
        (
            [*APPLIED, ("stopped", {"reason": "no GPU", "failed": True})],
            {"phase": "over"},
            "failed",
        ),
        (
            [*APPLIED, ("stopped", {"reason": "no GPU", "failed": True}), ("resumed", {})],
            {},
            "running",
        ),
        (
            [*APPLIED, ("stopped", {"reason": "no GPU", "failed": True}), ("resumed", {})],
            DEAD,
            "interrupted",
        ),
        (FINISHED, {"phase": "writing the report"}, "running"),
        (FINISHED, {"phase": "over"}, "finished"),
        (FINISHED, DEAD, "finished"),
    ],
)
def test_the_state_follows_from_ledger_and_heartbeat(night, events, changes, word):
    assert describe(night(events, **changes))["state"] == word


def test_a_night_that_is_over_is_not_running_while_its_process_exits(night):
    told = describe(night(FINISHED, phase="over"))
    assert (told["state"], told["phase"], told["phase_seconds"]) == ("finished", None, None)


def test_the_phase_is_the_live_processs_own(night):
    told = describe(night(APPLIED))
    assert told["phase"] == "trial 2, seed 1: training"
    assert told["phase_seconds"] >= 7.0


def test_a_dead_process_has_no_phase(night):
    assert describe(night(APPLIED, **DEAD))["phase"] is None


@pytest.mark.parametrize(
    ("events", "trial"),
    [(MEASURED, None), (ONE_KEPT[:3], 1), (ONE_KEPT, 1), (APPLIED, None), (FINISHED, None)],
)
def test_the_trial_is_the_one_between_its_start_and_git(night, events, trial):
    assert describe(night(events))["trial"] == trial


@pytest.mark.parametrize(
    ("events", "bpb", "commit", "kept"),
    [(MEASURED, 1.65, "c0", 0), (ONE_KEPT, 1.65, "c0", 0), (APPLIED, 1.5, "c1", 1)],
)
def test_the_champion_is_what_git_has(night, events, bpb, commit, kept):
    told = describe(night(events))
    assert (told["champion"], told["champion_commit"], told["kept"]) == (
        pytest.approx(bpb),
        commit,
        kept,
    )


def test_before_the_baseline_there_is_no_champion(night):
    told = describe(night(MEASURED[:1]))
    assert (told["baseline"], told["champion"], told["champion_commit"], told["trials"]) == (
        None,
        None,
        None,
        [],
    )


def test_the_budget_used_is_the_later_of_ledger_and_heartbeat(night):
    told = describe(night(APPLIED, **DEAD))
    assert told["budget"]["trials"] == {"used": 1, "of": 4}
    assert told["budget"]["hours"] == {"used": 0.1, "of": 2.0}


def test_what_mlflow_does_not_take_is_named(night):
    folder = night(APPLIED)
    assert describe(folder)["not_in_mlflow"] is None
    refusals.write(folder, {"nov21:1": "its name"})
    said = "MLflow lacks trial 1 (its name): `./run rebuild nov21` tries again"
    assert describe(folder)["not_in_mlflow"] == said
    assert said in text(folder).splitlines()


def test_a_night_that_asks_no_model_spends_nothing_and_says_nothing_of_it(night):
    folder = night(APPLIED)
    told = describe(folder)
    assert told["budget"]["tokens"] == {"used": 0, "of": None}
    assert told["budget"]["dollars"] == {"used": 0.0, "of": None}
    assert "tokens" not in text(folder)


CAPS = {"tokens": 500_000, "dollars": 5.0, "prompt_price": 1.0, "completion_price": 2.0}
CAPPED = night_event(trials=4, hours=2.0, proposer="llm", settings={"llm": CAPS})


def asking(usage, *rest):
    """The events of a night with caps: its first trial is decided and cost `usage`, then `rest`."""
    trial = dataclasses.replace(KEEP, usage=usage)
    return [
        ("night", CAPPED),
        *APPLIED[1:3],
        ("decided", {"trial": dataclasses.asdict(trial)}),
        *rest,
    ]


@pytest.mark.parametrize("rest", [[], [APPLIED[-1]]])
def test_spending_includes_trials_that_are_not_decided_yet(night, rest):
    folder = night(asking(Usage(2, 20_000, 1000, 0.05), *rest))
    calls = [make_call(1, 1), make_call(1, 2), make_call(2, 1)]
    calls.append(make_call(3, 1, dollars=0.1))  # thought ahead
    write_calls(folder / night_folder.CALLS, *calls)
    told = describe(folder)
    assert told["budget"]["tokens"] == {"used": 21_000 + 2 * 10_500, "of": 500_000}
    assert told["budget"]["dollars"] == {"used": pytest.approx(0.05 + 0.025 + 0.1), "of": 5.0}
    assert "language model: 42,000 of 500,000 tokens used; cost: $0.17 of $5.00" in text(folder)


def test_a_cost_without_prices_is_unknown_and_a_lost_log_loses_no_tokens(night):
    folder = night(asking(Usage(2, 20_000, 1000, None)))
    told = describe(folder)
    assert told["budget"]["tokens"] == {"used": 21_000, "of": 500_000}
    assert told["budget"]["dollars"]["used"] is None
    assert "cost: unknown of $5.00" in text(folder)


def test_a_live_night_has_used_the_time_since_its_heartbeat_too(night):
    told = describe(night(APPLIED, time=time.time() - 3600.0))
    assert told["budget"]["hours"]["used"] == pytest.approx(1.1, abs=0.01)


def test_the_seconds_left_are_those_of_the_trials_left(night):
    assert describe(night(APPLIED))["seconds_left"] == 3 * 20.0


def test_the_seconds_left_are_no_more_than_the_hours_left(night):
    told = describe(night(APPLIED, used_seconds=2 * 3600.0 - 10.0, **DEAD))
    assert told["seconds_left"] == 10.0


def test_a_finished_night_has_no_seconds_left(night):
    assert describe(night(FINISHED))["seconds_left"] == 0


@pytest.mark.parametrize(
    ("events", "changes", "error"),
    [
        (APPLIED, {}, None),
        (APPLIED, {"error": "MLflow is down"}, "MLflow is down"),
        (
            [*APPLIED, ("stopped", {"reason": "no GPU", "failed": True})],
            {"phase": "over", "error": "MLflow is down"},
            "no GPU",
        ),
        (
            [*APPLIED, ("stopped", {"reason": "stopped by Ctrl-C", "failed": False})],
            {"phase": "over"},
            None,
        ),
        (FINISHED, {"phase": "over"}, None),
        (FINISHED, {"phase": "over", "error": "MLflow is down"}, "MLflow is down"),
    ],
)
def test_the_last_error_is_the_one_that_matters(night, events, changes, error):
    assert describe(night(events, **changes))["last_error"] == error


@pytest.mark.parametrize("events", [MEASURED, APPLIED, FINISHED])
def test_a_process_that_died_is_named_with_what_it_was_doing(night, events):
    who = f"its process {os.getpid()} on {platform.node()}"
    error = describe(night(events, **DEAD))["last_error"]
    assert error == f"{who} died during: trial 2, seed 1: training"


def test_a_night_without_a_heartbeat_is_not_alive(night):
    folder = night(APPLIED)
    (folder / night_folder.PULSE).unlink()
    told = describe(folder)
    assert (told["state"], told["process"], told["phase"]) == ("interrupted", None, None)


@pytest.mark.parametrize(("changes", "told"), [(DEAD, True), ({}, False)])
def test_the_text_names_resume_if_the_night_can_be_resumed(night, changes, told):
    said = text(night(APPLIED, **changes))
    assert ("`./run resume nov21` resumes it" in said) is told


def test_the_keys_of_json_are_what_programs_rely_on(night):
    told = describe(night(APPLIED))
    assert list(told) == [
        *("tag", "baseline", "champion", "trials", "certification", "fresh", "tournament"),
        *("state", "phase", "phase_seconds", "trial"),
        *("in_flight", "seconds_left", "champion_commit", "kept", "uncertified"),
        *("searches", "placebos", "false_keeps", "false_keeps_of_all", "budget", "last_error"),
        *("not_in_mlflow", "stopped", "finished", "process", "updated"),
    ]
    assert list(told["trials"][0]) == [
        *("k", "status", "verdict", "reason", "val_bpb", "commit", "placebo"),
        *("search", "built_on"),
    ]
    assert list(told["false_keeps"]) == ["placebos", "kept", "rate", "low", "high"]
    assert list(told["budget"]) == ["trials", "hours", "tokens", "dollars"]
    assert all(list(quota) == ["used", "of"] for quota in told["budget"].values())
    assert list(told["process"]) == ["host", "pid", "heartbeat_age"]


def test_a_person_reads_it_in_a_few_lines(night):
    said = text(night(APPLIED, **DEAD)).splitlines()
    assert said == [
        "night nov21: interrupted: 1 of 4 trials done, 1 kept; 0.10 of 2 hours used",
        f"last error: its process {os.getpid()} on {platform.node()} died during: "
        "trial 2, seed 1: training",
        "`./run resume nov21` resumes it",
        "baseline 1.650000, champion 1.500000 (c1)",
    ]


def test_placebos_are_told_apart_and_their_rate_is_of_all_nights(night):
    one = make_trial(2, placebo="keep", reason="better: kept; a placebo")
    decided = ("decided", {"trial": dataclasses.asdict(one)})
    events = [
        *APPLIED,
        ("started", {"trial": 2}),
        decided,
        ("applied", {"trial": 2, "commit": "c"}),
    ]
    shutil.copytree(night(events), night(events).parent / "earlier")
    earlier = night(events).parent / "earlier" / night_folder.LEDGER
    earlier.write_text(earlier.read_text().replace('"nov21"', '"earlier"'))
    folder = night([*events, ("finished", {"reason": "enough"})], **DEAD)
    told = describe(folder)
    assert (told["kept"], told["placebos"]) == (1, 1)
    assert [trial["placebo"] for trial in told["trials"]] == [None, "keep"]
    assert (told["false_keeps"]["placebos"], told["false_keeps"]["rate"]) == (1, 1.0)
    assert told["false_keeps_of_all"]["placebos"] == 2
    assert status.describe_all([folder])[0][0].false_keeps_of_all.kept == 2
    first, *_, last = text(folder).splitlines()
    assert "2 of 4 trials done, 1 kept, 1 placebo" in first
    assert last.startswith("Of 1 placebo trial (the champion unchanged) 1 would have been kept")


def test_the_list_of_nights_has_a_line_for_each_and_names_a_damaged_one(night):
    here = night(APPLIED, **DEAD)
    broken = here.parent / "nov22"
    broken.mkdir()
    (broken / night_folder.LEDGER).write_text('{"event": "nothing"}\n')
    folders = night_folder.all_of(here.parent.parent)
    assert folders == [here, broken]
    nights, damaged = status.describe_all(folders)
    lines = status.listing(nights, damaged).splitlines()
    assert lines[0].split() == [
        *("night", "state", "trials", "kept", "baseline", "champion", "last", "event", "(UTC)")
    ]
    assert lines[1].split()[:8] == [
        *("nov21", "interrupted", "1", "of", "4", "1", "1.650000", "1.500000")
    ]
    assert (len(lines), lines[2].startswith("nov22: ")) == (3, True)


def test_a_running_night_says_what_it_is_doing(night):
    said = text(night(APPLIED)).splitlines()
    assert said[1] == (
        f"now: trial 2, seed 1: training, for 7 s; about 1 minute left (pid {os.getpid()})"
    )


def test_damaged_requests_leave_the_cost_unknown_and_the_rest_as_it_is(night):
    folder = night(APPLIED)
    (folder / night_folder.CALLS).write_text("{}\n")
    told = describe(folder)
    assert (told["state"], told["budget"]["tokens"]["used"], told["budget"]["dollars"]["used"]) == (
        "running",
        None,
        None,
    )
    assert "model" not in text(folder)


# One real night through its ups and downs


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm, prefect_api, empty_store):
    folder = tmp_path_factory.mktemp("status") / "checkout"
    folder.mkdir(mode=0o755)
    return StubCheckout(folder, warm=warm, api=prefect_api, store=empty_store)


def start(checkout, *arguments):
    with (checkout.folder.parent / "said").open("w") as said:
        return checkout.start(*arguments, log=said)


def said(checkout):
    return (checkout.folder.parent / "said").read_text()


def ask(checkout, tag):
    """`./run status TAG --json`, as a program gets it."""
    done = checkout.run("status", tag, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def lines(folder):
    with contextlib.suppress(FileNotFoundError):
        return ledger.read(folder / night_folder.LEDGER)
    return []


def follow(night, folder, until):
    """Every status until the night ends, with the ledger's events just before and just after."""
    seen: list[tuple[list[dict], dict, list[dict]]] = []
    while night.poll() is None and not (seen and until(seen[-1][1])):
        before = lines(folder)
        if before:
            seen.append((before, describe(folder), lines(folder)))
        time.sleep(0.02)
    return seen


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_status_tells_the_truth_all_through_a_night_that_is_killed_stopped_broken_and_finished(
    checkout,
):
    folder = checkout.home / "nights" / "a"
    night = start(checkout, "night", "--profile", PROFILE, "--tag", "a", "--trials", "3")
    seen = follow(night, folder, lambda told: told["trial"] == 2)
    night.kill()
    night.wait()
    assert seen, said(checkout)
    phases = [told["phase"].partition(",")[0] for _, told, _ in seen]
    assert {"preparing the data", "baseline", "trial 1"} <= set(phases), phases
    # each is over in milliseconds
    assert {"trial 1: proposing", "trial 2: proposing"} & set(phases), phases
    for before, told, after in seen:
        assert told["state"] == "running"
        assert told["process"]["pid"] == night.pid
        # MLflow is slow on a busy machine
        assert told["last_error"] is None or told["last_error"] in said(checkout)
        assert true_of(told, before) or true_of(told, after), (told, before, after)

    told = ask(checkout, "a")
    assert (told["state"], told["trial"], told["phase"]) == ("interrupted", 2, None)
    assert f"process {night.pid}" in told["last_error"]
    assert true_of(told, lines(folder))

    night = start(checkout, "resume", "a")
    follow(
        night,
        folder,
        lambda told: (
            told["trial"] == 2 and told["state"] == "running" and told["phase"] is not None
        ),
    )

    def runs_again() -> bool:
        names = [event["event"] for event in lines(folder)]
        return "resumed" in names and names[-1] == "started"

    wait_for(runs_again, "the trial once more")
    night.send_signal(signal.SIGINT)
    assert night.wait() == 0, said(checkout)
    told = ask(checkout, "a")
    assert (told["state"], told["stopped"], told["trial"]) == ("stopped", "stopped by Ctrl-C", None)
    assert told["last_error"] is None or told["last_error"] in said(checkout)
    assert told["budget"]["trials"] == {"used": 2, "of": 3}
    assert true_of(told, lines(folder))

    tip = checkout.git("rev-parse", "autoresearch/a").strip()
    checkout.git("update-ref", "refs/heads/autoresearch/a", "HEAD")
    night = start(checkout, "resume", "a")
    assert night.wait() == 1, said(checkout)
    told = ask(checkout, "a")
    assert told["state"] == "failed"
    assert told["last_error"] == told["stopped"] == lines(folder)[-1]["reason"]
    assert "autoresearch/a" in told["last_error"]

    checkout.git("update-ref", "refs/heads/autoresearch/a", tip)
    night = start(checkout, "resume", "a")
    assert night.wait() == 0, said(checkout)
    told = ask(checkout, "a")
    assert (told["state"], told["seconds_left"]) == ("finished", 0)
    assert told["last_error"] is None or told["last_error"] in said(checkout)
    assert told["finished"] == "all 3 trials are done"
    assert true_of(told, lines(folder))


def true_of(told, events):
    """Whether it agrees with these events, read without the code under test."""
    began = [event["trial"] for event in events if event["event"] == "started"]
    applied = {event["trial"]: event["commit"] for event in events if event["event"] == "applied"}
    decided = {
        event["trial"]["number"]: event["trial"] for event in events if event["event"] == "decided"
    }
    baseline = next((event for event in events if event["event"] == "baseline"), None)
    kept = [number for number in applied if decided[number]["verdict"] == "keep"]
    start_commit = baseline["start_commit"] if baseline else None
    bpb = decided[kept[-1]]["val_bpb"] if kept else baseline["val_bpb"] if baseline else None
    return (
        told["trial"] == (began[-1] if began and began[-1] not in applied else None)
        and told["champion_commit"] == (applied[kept[-1]] if kept else start_commit)
        and told["champion"] == (bpb if bpb is None else pytest.approx(bpb))
        and told["kept"] == len(kept)
        and [trial["k"] for trial in told["trials"]] == list(applied)
        and told["budget"]["trials"]["used"] == len(applied)
        and told["budget"]["hours"]["used"] * 3600 >= events[-1]["used"] - 1
    )


def test_a_certified_night_says_how_much_of_it_holds_up():
    found = status.results(certified_night())
    assert found.certification == FOUND
    told = json.loads(json.dumps(dataclasses.asdict(found)))
    assert list(told["fresh"]) == ["baseline", "champion", "certified"]
    assert told["fresh"]["champion"]["optimism"] == pytest.approx(0.01)
    assert list(told["fresh"]["champion"]["fresh"]) == ["mean", "low", "high", "runs"]
    assert told["certification"]["claims"][0]["trials"] == [1]


def test_a_night_that_is_over_says_what_is_left_to_certify(night):
    assert describe(night(APPLIED))["uncertified"] is None
    assert "1 change was kept and is not certified: `./run certify " in text(night(FINISHED))


def test_a_person_reads_what_is_certified_in_a_line(night):
    claim = Claim((1,), "certified", 0.02, 3.1, 4, "shown to help")
    found = Certification("c1", (claim,), 3, "c9")
    runs = [
        make_fresh_run(purpose="end", left_out=left_out, seed=seed, val_bpb=score)
        for seed, (left_out, score) in enumerate([((1,), 1.65), ((), 1.55)], 10_001)
    ]
    end = [("fresh", {"run": dataclasses.asdict(run)}) for run in runs]
    certified = ("certified", {"certification": dataclasses.asdict(found)})
    said = text(night([*APPLIED, certified, *end]))
    worth = "0.100000 bits per byte better than the baseline with fresh seeds"
    assert f"Certified: 1 of 1 kept change, {worth}" in said
