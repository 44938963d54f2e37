"""The researcher's notes: which are the last, and how another night gets them."""

import dataclasses
import json

import pytest

from flows.night import researcher
from tasks.errors import UsageError
from tasks.history import night_folder, notebook
from tasks.history.night_state import FORMAT
from tasks.records import Idea, NightHeader
from tests.trials import crash, make_baseline, make_header, make_trial, night_event


def earlier_night(home, *trials) -> None:
    """A night nov20 with these trials, in this state folder."""
    folder = home / "nights" / "nov20"
    folder.mkdir(parents=True)
    events = [
        {"event": "night", "v": FORMAT, **night_event(tag="nov20")},
        {"event": "baseline", **dataclasses.asdict(make_baseline())},
    ]
    for trial in trials:
        began = {"proposer": trial.idea.proposer, "summary": trial.idea.summary}
        events += [
            {"event": "started", "trial": trial.number, **began, "parent": trial.parent},
            {"event": "decided", "trial": dataclasses.asdict(trial)},
            {"event": "applied", "trial": trial.number, "commit": f"c{trial.number}"},
        ]
    when = {"time": "2026-11-20T22:00:00+00:00", "used": 1.0}
    book = "".join(json.dumps({**when, **event}) + "\n" for event in events)
    (folder / night_folder.LEDGER).write_text(book)


@pytest.mark.parametrize(
    ("ideas", "last"),
    [
        ([], None),
        ([(1, None, None), (2, None, None)], None),
        ([(1, "a", None), (2, "b", None), (3, None, None)], ("b", 2)),
        ([(1, "a", "1.1"), (2, "b", "2.1"), (3, "a", "1.2")], ("b", 2)),
        ([(4, "a", None), (0, "b", "5.3")], ("b", 5)),  # it waits
        ([(7, "a", "7.1"), (8, "b", "7.5"), (0, "a", "7.2")], ("b", 7)),  # asked again for 7
        ([(4, "a", "x.1"), (3, "b", "\u0663.1")], ("a", 4)),
    ],
)
def test_the_last_notes_are_those_of_the_latest_answer(ideas, last):
    made = [(number, Idea("x", "llm", notes=n, queued=q)) for number, n, q in ideas]
    found = notebook.latest(made)
    assert (found and (found.text, found.trial)) == last


def test_another_night_gets_a_copy_of_the_last_notes(tmp_path, monkeypatch):
    monkeypatch.setenv("NIGHTLY_HOME", str(tmp_path))
    earlier_night(
        tmp_path,
        make_trial(1, notes="an old plan", proposer="llm"),
        crash(2, notes="the plan", proposer="llm"),
        make_trial(3),
    )
    header = make_header(notes_of="nov20", proposer="llm")
    assert NightHeader.from_json(json.loads(json.dumps(header.to_json()))) == header
    researcher.keep_notes(tmp_path, researcher.read_notes(header))
    assert (tmp_path / night_folder.NOTES).read_text() == "the plan"
    assert researcher.read_notes(make_header()) is None


def test_a_night_without_notes_has_none_to_give(tmp_path):
    earlier_night(tmp_path, make_trial(1))
    with pytest.raises(UsageError, match=r"--notes nov20: .* left no notes; name another night"):
        notebook.of_night(tmp_path, "nov20")
    with pytest.raises(UsageError, match=r"no night 'nov19' .* there are: nov20"):
        notebook.of_night(tmp_path, "nov19")


def test_a_header_of_before_there_were_notes_can_be_read():
    event = night_event()
    del event["notes_of"]
    assert NightHeader.from_json(event).notes_of is None
