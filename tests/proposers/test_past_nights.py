"""Trials of earlier nights: which nights are read, which of their trials are kept, and how."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from tasks.history.ledger import Ledger
from tasks.proposers import past_nights
from tasks.proposers.past_nights import EarlierTrial
from tasks.records import Trial
from tests.trials import baseline_event, crash, keep, make_trial, night_event


def write_night(nights: Path, tag: str, *trials: Trial, age: int = 0, **baseline) -> Path:
    """A real ledger with these trials, changed so many seconds before now."""
    path = nights / tag / "ledger.jsonl"
    with Ledger.create(path) as book:
        book.append("night", **night_event(tag=tag))
        book.append("baseline", **baseline_event(**{"start_commit": "c0", **baseline}))
        for trial in trials:
            book.append("started", trial=trial.number)
            book.append("decided", trial=dataclasses.asdict(trial))
            book.append("applied", trial=trial.number, commit=f"c{trial.number}")
    moment = path.stat().st_mtime - age
    os.utime(path, (moment, moment))
    return path


def remembered(nights: Path, but: str = "now", hardware: str = "a CPU") -> tuple[EarlierTrial, ...]:
    return past_nights.trials(nights, but=but, dataset="d5", hardware=hardware)


def test_a_trial_comes_with_its_result(tmp_path):
    trials = [
        keep(1, 1.6, z=4.0, kind="systems"),
        make_trial(2, parent="c1", val_bpb=1.62, z=-1.5, summary="DEPTH 3 -> 4"),
    ]
    write_night(tmp_path, "nov20", *trials)
    first, second = remembered(tmp_path)
    assert (first.night, first.trial, first.summary, first.kind) == (
        "nov20",
        1,
        "DEPTH 3 -> 2",
        "systems",
    )
    assert (first.verdict, first.z) == ("keep", 4.0)
    assert first.delta == pytest.approx(-0.05)
    assert (second.kind, second.verdict, second.z) == ("knobs", "discard", -1.5)
    assert second.delta == pytest.approx(0.02)


def test_without_a_folder_or_a_night_there_are_no_trials(tmp_path):
    assert remembered(tmp_path / "nowhere") == ()
    assert remembered(tmp_path) == ()


def test_this_night_and_nights_on_other_data_are_left_out(tmp_path):
    write_night(tmp_path, "now", keep(1))
    write_night(tmp_path, "other", keep(1), dataset="d6")
    assert remembered(tmp_path) == ()
    assert len(remembered(tmp_path, but="another")) == 1


def test_the_size_of_an_effect_on_other_hardware_is_left_out(tmp_path):
    write_night(tmp_path, "nov20", keep(1))
    (idea,) = remembered(tmp_path, hardware="a GPU")
    assert (idea.delta, idea.z, idea.verdict) == (None, 4.0, "keep")


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]\n",
        b"\xff\xfe\n",
        b'{"event": "night", "time": "t", "v": 99}\n',
        b'{"event": "baseline", "time": "t"}\n',
    ],
    ids=["empty", "torn", "a list", "not UTF-8", "a later format", "no beginning"],
)
def test_a_damaged_or_foreign_night_is_left_out(damage, tmp_path):
    write_night(tmp_path, "nov20", keep(1), age=60)
    write_night(tmp_path, "broken", keep(1)).write_bytes(damage)
    assert [idea.night for idea in remembered(tmp_path)] == ["nov20"]


@pytest.mark.parametrize(
    "change", [{"knobs": []}, {"usage": {"calls": 0, "beans": 1}}, {"scores": 3}, {"new": 1}]
)
def test_a_night_with_a_trial_of_another_shape_is_left_out(change, tmp_path):
    path = write_night(tmp_path, "nov20", keep(1))
    events = [json.loads(line) for line in path.read_text().splitlines()]
    events[3]["trial"].update(change)
    path.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    assert remembered(tmp_path) == ()


def test_a_ledger_that_is_a_folder_is_left_out(tmp_path):
    (tmp_path / "nov20" / "ledger.jsonl").mkdir(parents=True)
    assert remembered(tmp_path) == ()


def test_a_night_whose_baseline_is_not_measured_is_left_out(tmp_path):
    path = tmp_path / "nov20" / "ledger.jsonl"
    with Ledger.create(path) as book:
        book.append("night", **night_event(tag="nov20"))
    assert remembered(tmp_path) == ()


def test_a_patch_that_never_ran_says_nothing_about_its_idea(tmp_path):
    trials = [
        crash(1, status="rejected_patch"),
        crash(2, status="sandbox_error"),
        crash(3, summary="It crashed"),
    ]
    write_night(tmp_path, "nov20", *trials)
    assert [(idea.summary, idea.delta, idea.z) for idea in remembered(tmp_path)] == [
        ("It crashed", None, None)
    ]


def test_the_latest_20_nights_are_remembered(tmp_path):
    for number in range(25):
        write_night(tmp_path, f"n{number}", make_trial(1, summary=f"idea {number}"), age=number)
    assert [idea.night for idea in remembered(tmp_path)] == [f"n{number}" for number in range(20)]


def test_the_same_words_are_listed_once_with_the_latest_nights_result(tmp_path):
    write_night(tmp_path, "old", make_trial(1, z=-2.0), age=60)
    write_night(tmp_path, "new", make_trial(1, z=1.0))
    assert [(idea.night, idea.z) for idea in remembered(tmp_path)] == [("new", 1.0)]


def test_of_long_nights_the_clearest_trials_are_taken_and_no_more_than_300(tmp_path):
    trials = [make_trial(k, summary=f"knob {k}", z=-k / 10) for k in range(1, 400)]
    trials[349] = make_trial(350, summary="in code", proposer="llm", kind="systems", z=0.1)
    trials[359] = keep(360, summary="kept", proposer="llm", kind="systems")
    write_night(tmp_path, "a", *trials)
    write_night(tmp_path, "b", make_trial(1, summary="the other night's"), age=60)
    found = [idea.summary for idea in remembered(tmp_path)]
    assert len(found) == 151
    assert found[:3] == ["kept", "in code", "knob 399"]
    assert found[-1] == "the other night's"


def test_placebos_are_no_ideas(tmp_path):
    write_night(tmp_path, "nov20", make_trial(1, placebo="keep"), make_trial(2))
    assert [trial.trial for trial in remembered(tmp_path)] == [2]
