"""The file of a night's ideas: what is on disk after a kill, and what is refused."""

import pytest

from tasks.errors import NightlyError
from tasks.records import Candidate, Estimate, Proposal
from tasks.search.idea_queue import IdeaQueue, Ideas
from tests.trials import make_proposal

BASE = Candidate.parse("DEPTH = 3\n")
STRANGE = "NAME = '\udcff\u2028'\r\n"  # no valid Unicode, other line ends


def idea(source: str) -> Proposal:
    return make_proposal(source, source.strip(), "llm", estimate=Estimate(0.01, 0.02), notes="n")


def filled(queue: IdeaQueue) -> IdeaQueue:
    queue.add(7, BASE, [idea("DEPTH = 4\n"), idea(STRANGE)])
    queue.drop({"7.1": "conflicts"})
    queue.add(7, BASE, [idea("DEPTH = 5\n")])
    queue.add(9, Candidate.parse("DEPTH = 4\n"), [idea("DEPTH = 6\n")])
    return queue


def test_what_was_added_is_read_as_it_was(tmp_path):
    ideas = filled(IdeaQueue.of(tmp_path)).read()
    assert [(one.id, one.trial, one.base, one.source) for one in ideas.every] == [
        ("7.1", 7, BASE.source, "DEPTH = 4\n"),
        ("7.2", 7, BASE.source, STRANGE),
        ("7.3", 7, BASE.source, "DEPTH = 5\n"),
        ("9.1", 9, "DEPTH = 4\n", "DEPTH = 6\n"),
    ]
    assert ideas.dropped == {"7.1": "conflicts"}
    assert (ideas.every[1].said.estimate, ideas.every[1].said.notes) == (Estimate(0.01, 0.02), "n")


def test_a_night_without_a_file_has_no_ideas_and_none_is_made_for_nothing(tmp_path):
    queue = IdeaQueue.of(tmp_path)
    queue.drop({})
    assert queue.read() == Ideas()
    assert not queue.path.exists()


def test_a_kill_in_a_write_leaves_whole_lines_and_the_next_writer_goes_on(tmp_path):
    queue = filled(IdeaQueue.of(tmp_path))
    whole = queue.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    before = len(b"".join(lines[:-1]))
    for cut in (before + 1, len(whole) - 1):
        queue.path.write_bytes(whole[:cut])
        assert [one.id for one in queue.read().every] == ["7.1", "7.2", "7.3"]
        queue.add(9, BASE, [idea("DEPTH = 8\n")])
        assert [(one.id, one.source) for one in queue.read().every][3:] == [("9.1", "DEPTH = 8\n")]


def test_a_kill_in_a_write_keeps_all_ideas_of_a_call_or_none(tmp_path):
    queue = IdeaQueue.of(tmp_path)
    made = [idea("DEPTH = 4\n"), idea("DEPTH = 5\n"), idea("DEPTH = 6\n")]
    queue.add(7, BASE, made)
    whole = queue.path.read_bytes()
    found = set()
    for cut in range(len(whole)):
        queue.path.write_bytes(whole[:cut])
        found.add(len(queue.read().every))
    assert found == {0}
    queue.add(7, BASE, made)
    assert [one.id for one in queue.read().every] == ["7.1", "7.2", "7.3"]


def test_a_damaged_line_is_named_with_what_to_do(tmp_path):
    queue = filled(IdeaQueue.of(tmp_path))
    lines = queue.path.read_bytes().splitlines(keepends=True)
    queue.path.write_bytes(b"".join([lines[0], b"{}\n", *lines[2:]]))
    with pytest.raises(NightlyError, match=r"ideas.jsonl, line 2 is damaged.*backup, or remove it"):
        queue.read()


def test_a_disk_that_does_not_take_it_is_an_error_that_says_how_to_go_on(tmp_path):
    (tmp_path / "ideas.jsonl").mkdir()
    with pytest.raises(NightlyError, match=r"ideas could not be .*resume"):
        IdeaQueue.of(tmp_path).drop({"7.1": "conflicts"})
