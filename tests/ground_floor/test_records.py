"""Records that cross a border: a candidate is read once, whatever its source is."""

import dataclasses
import json

import pytest

import configs
from tasks.proposers import proposal
from tasks.records import (
    BaselineEvent,
    Candidate,
    Contender,
    NightHeader,
    Program,
    RunResult,
)
from tests import trials
from tests.synthetic_night import make_run


def test_only_code_counts_as_lines_and_layout_does_not():
    one = 'def f(a,\n      b):\n    """Words."""\n\n    # why\n    return a + b\n'
    other = "def f(a, b): return (a\n  + b)\n"
    assert Candidate.parse(one).statements == Candidate.parse(other).statements == 2


@pytest.mark.parametrize(
    "line",
    [
        "A = " + "-" * 90 + "1",
        "A = x" + "(1)" * 45,
        "A = f\"{d['a\u00a0b']}\"",
        "A = f'{b!r:>{w}}'",
    ],
)
def test_lines_are_counted_of_whatever_the_checks_let_through(line):
    source = f"{line}\n\n\ndef load_model(path, device): ...\n\n\ndef main(): ...\n"
    assert proposal.check(Candidate.parse(source), {}) is None
    assert Candidate.parse(source).statements == 3


def test_a_baseline_that_an_older_version_recorded_says_nothing_of_its_rows():
    event = trials.baseline_event(rows="12 rows")
    assert BaselineEvent.from_json(event).rows == "12 rows"
    del event["rows"]
    assert BaselineEvent.from_json(event).rows is None


def test_a_baseline_of_the_night_before_an_update_needs_no_field_that_has_a_default():
    event = trials.baseline_event()
    for field in dataclasses.fields(BaselineEvent):
        if field.default is not dataclasses.MISSING or callable(field.default_factory):
            del event[field.name]
    assert BaselineEvent.from_json(event) == trials.make_baseline()
    del event["seeds"]
    with pytest.raises(KeyError, match="seeds"):
        BaselineEvent.from_json(event)


def test_a_run_comes_back_from_json_and_an_older_one_has_no_tenths():
    run = make_run(tenths=((5, 3.0), (9, 2.5)), unread=("a",))
    saved = json.loads(json.dumps(dataclasses.asdict(run)))
    assert RunResult.from_json(saved) == run
    del saved["tenths"]
    assert RunResult.from_json(saved).tenths == ()


def test_a_curve_becomes_the_mean_loss_of_each_tenth_of_the_tokens():
    curve = tuple((step, 100 * (step + 1), float(step % 5)) for step in range(50))
    tenths = make_run(curve=curve).curve_in_tenths
    assert tenths == tuple((5 * k + 4, 500 * (k + 1), 2.0) for k in range(10))
    # By tokens, whatever the steps: in this one the second half of them has one point.
    uneven = make_run(curve=((0, 1, 4.0), (1, 2, 2.0), (2, 20, 1.0))).curve_in_tenths
    assert uneven == ((1, 2, 3.0), (2, 20, 1.0))
    assert make_run(curve=()).curve_in_tenths == ()
    assert make_run(curve=((0, 0, 5.0), (1, 0, 3.0))).curve_in_tenths == ((1, 0, 4.0),)


def test_a_tournaments_header_comes_back_from_json_and_has_a_part_for_each_contender():
    program = Program("b.md", "b2" * 32, "")
    contenders = (
        Contender("m2", "llm", model="m2"),
        Contender("b.md", "command", file="/b.md", program=program),
        Contender("tpe", "tpe"),
    )
    settings = {"llm": {"model": "m1"}}
    header = trials.make_header(
        proposer=configs.TOURNAMENT, contenders=contenders, settings=settings
    )
    assert NightHeader.from_json(json.loads(json.dumps(header.to_json()))) == header
    assert [part.model for part in header.parts] == ["m2", None, None]
    assert [part.proposer for part in header.parts] == ["llm", "command", "tpe"]
    assert [part.program for part in header.parts] == [None, program, None]
    assert header.parts[1].settings.night.program == "/b.md"
    assert (header.model, header.asks_an_agent, header.is_researched) == ("m2", True, True)
    before = trials.night_event()
    del before["contenders"]  # an older version recorded none
    older = NightHeader.from_json(before)
    assert older.contenders == ()
    assert older.parts == (older,)


def test_a_night_from_before_several_ideas_resumes_with_one_idea_a_call():
    event = trials.night_event()
    del event["settings"]["search"]
    search = NightHeader.from_json(event).settings.search
    assert (search.ideas, search.asks) == (1, 0)
