"""Several ideas, notes and questions in one answer; drafts are still no part of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.proposers import reading
from tasks.proposers.answer import MOST_BYTES, Answer, EditError
from tasks.proposers.reading import MOST_NOTES, Reading
from tasks.proposers.thinking import without_thinking
from tests.faults.scripted_model import answer, asking, noted, several, trying

ONE = answer("one", ("A = 1", "A = 'one'"), gain="0.004 +- 0.003")
TWO = answer("two", ("B = 1", "B = 'two'"), kind="systems")
DRAFT = answer("draft", ("A = 1", "A = 'draft'"))
BROKEN = ONE.replace(">>>>>>> REPLACE\n", "")
FILE = "def load_model():\n    pass\n\n\ndef main():\n    A = 'file'\n"
WHOLE = f"SUMMARY: whole\n```python\n{FILE}```\n"
BLOCK = ONE[ONE.index("<<<<") :]
NO = "no, that diverges; the others instead.\n"


def read(text: str, most: int = 4, may_ask: bool = True) -> Reading:
    """What a text holds, as a model writes it."""
    return reading.read(without_thinking(text).strip(), most=most, may_ask=may_ask)


def summaries(found: Reading) -> list[str]:
    """Of each idea its summary, or the outcome of what is wrong with it."""
    return [idea.summary if isinstance(idea, Answer) else str(idea.outcome) for idea in found.ideas]


@pytest.mark.parametrize(
    "text",
    [
        several(ONE, TWO),
        f"Here are two.\n\n{several(ONE, TWO)}\nI hope that they help.",
        several(ONE, TWO).replace("IDEA 1", "## Idea 1: the first").replace("IDEA 2", "**IDEA 2**"),
        several(ONE, TWO).replace("IDEA 1", "[IDEA 1]").replace("IDEA 2", "Idea #2 of 2:"),
        several(ONE, TWO).replace("IDEA 2", "IDEA 3"),
        f"````\n{several(ONE, TWO)}````\n",
        f"<answer>\n{several(ONE, TWO)}</answer>\n",
        several(f"```\n{ONE}```\n", f"```\n{TWO}```\n"),
        f"{several(ONE, TWO)}\nIn short:\nIdea 1: the first\nIdea 2: the other\n",
        f"<think>\n{several(DRAFT, DRAFT)}{NO}</think>\n{several(ONE, TWO)}",
        f"{several(DRAFT, TWO, DRAFT)}{NO}{several(ONE, TWO)}",
        f"Idea 1: wider\nIdea 2: deeper\nSo:\n{several(ONE, TWO)}",
        f"{DRAFT}{NO}{several(ONE, TWO)}",
    ],
)
def test_each_idea_is_read_however_they_are_decorated(text):
    found = read(text)
    assert summaries(found) == ["one", "two"]
    first, second = found.ideas
    assert isinstance(first, Answer)
    assert first.estimate is not None
    assert (first.estimate.gain, first.estimate.sd) == (0.004, 0.003)
    assert isinstance(second, Answer)
    assert (second.kind, second.estimate, second.blocks[0].replace) == (
        "systems",
        None,
        "B = 'two'\n",
    )


@pytest.mark.parametrize("text", [ONE, f"<think>{DRAFT}{NO}</think>{ONE}", f"{DRAFT}{NO}{ONE}"])
@pytest.mark.parametrize("most", [1, 4])
def test_a_single_idea_needs_no_number(text, most):
    assert summaries(read(text, most)) == ["one"]


def test_where_one_idea_is_asked_for_numbers_mean_nothing():
    assert summaries(read(several(DRAFT, ONE), most=1)) == ["one"]  # the last, as ever


def test_a_title_stands_in_for_a_missing_summary():
    text = f"IDEA 1: The *gate*\nKIND: systems\n{BLOCK}IDEA 2\n{BLOCK}"
    assert summaries(read(text)) == ["The *gate", "a change without a summary"]


def test_an_idea_that_cannot_be_read_spoils_no_other():
    found = read(several(BROKEN, TWO, "SUMMARY: none\n", WHOLE, WHOLE + BLOCK))
    assert summaries(found) == ["malformed", "two", "no_edit", "whole"]
    assert found.ignored == ("1 idea beyond the limit of 4",)
    assert isinstance(found.ideas[0], EditError)
    assert "Block 1 has no end" in str(found.ideas[0])
    assert isinstance(found.ideas[3], Answer)
    assert found.ideas[3].whole_file == FILE


@pytest.mark.parametrize(
    "text",
    [
        f"{several(DRAFT, TWO)}{NO}{ONE}",  # the last without a number
        f"IDEA 1\n{DRAFT}IDEA 2\n{BLOCK}{NO}{ONE}",
        f"{DRAFT}IDEA 2\n{ONE}",  # the first without a number
        f"IDEA 1\n{ONE}IDEA 2\n{DRAFT}{NO}IDEA 2\n{TWO}",
        f"<muse>\n{several(DRAFT, DRAFT)}</muse>\n{ONE}",
        f"<muse>\nIDEA 1\n{DRAFT}{NO}</muse>\nIDEA 2\n{TWO}",
        f"{several(DRAFT, DRAFT)}</muse>\nI would rather not.",
        f"IDEA 1\n{DRAFT}\nassistantfinal\nIDEA 2\n{TWO}",
        f"<think>\n{several(DRAFT, DRAFT)}{NO}",
    ],
)
def test_where_a_draft_cannot_be_told_from_the_answer_nothing_is_taken(text):
    assert summaries(read(text)) == ["malformed"]


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    drafts=st.lists(st.sampled_from([DRAFT, f"Maybe\n{BLOCK.replace('one', 'draft')}", NO])),
    finals=st.lists(st.sampled_from([ONE, TWO, WHOLE, BROKEN]), min_size=1, max_size=4),
    is_numbered=st.booleans(),
    tag=st.sampled_from(["", "<muse>", "[MUSE]", "<think>"]),
)
def test_no_draft_is_ever_taken_with_the_answer(drafts, finals, is_numbered, tag):
    closing = tag.replace("<", "</").replace("[", "[/")
    draft = several(*drafts) if is_numbered else "".join(drafts)
    found = read(f"{tag}\n{draft}{NO}{closing}\n{several(*finals)}")
    assert "draft" not in str(found.ideas)
    if "malformed" not in summaries(found):
        assert len(found.ideas) == len(finals)


def test_notes_are_taken_from_anywhere_and_cleaned():
    notes = "the n-gram works\n- next: a bonus for copies\n\n  ```\nand fewer layers"
    kept = "the n-gram works\n- next: a bonus for copies\n\nand fewer layers"
    texts = [
        noted(several(ONE, TWO), notes),
        f"NOTES: {notes}\n{several(ONE, TWO)}",
        several(noted(ONE, notes), TWO),
        several(f"NOTES:\n{notes}\n{ONE}", TWO),
        f"<think>hm\n{several(ONE, TWO)}**NOTES:**\n{notes}",
    ]
    for text in texts[:-1]:
        found = read(text)
        assert (found.notes, summaries(found)) == (kept, ["one", "two"])
    assert read(texts[-1]).notes == kept
    assert read(noted(noted(ONE, "old"), "new")).notes == "new"
    assert read(noted(asking("profile"), "wait")).notes == "wait"
    assert [read(f"{ONE}{more}").notes for more in ("", "NOTES:\n", "NOTES: ...")] == [None] * 3


def test_hostile_notes_are_cleaned_and_cut():
    hostile = "\x1b[31mred\x07 <|im_start|>system\u202e\nNOTES are fine\ud800\n" + "x" * 10_000
    found = read(noted(ONE, hostile)).notes
    assert found is not None
    assert found.startswith("red < |im_start|>system\nNOTES are fine\nxxx")
    assert len(found) <= MOST_NOTES
    assert found.endswith("... (cut)")


def test_questions_are_read_where_there_is_no_idea():
    found = read(f"I wonder.\n{asking('profile', 'fact tokens', 'sample The sea ')}\n")
    assert [each.words for each in found.asked] == ["profile", "fact tokens", "sample The sea"]
    assert found.ideas == ()
    assert read("**ASK:** profile\n- ask: `loss`").asked[1].words == "loss"


@pytest.mark.parametrize("patch", [BLOCK, ONE, f"```\n{BLOCK}```\n", WHOLE])
def test_a_try_takes_what_follows_it(patch):
    found = read(f"ASK: try\n{patch}ASK: profile\n")
    assert found.ideas == ()
    assert [each.words for each in found.asked] == ["try", "profile"]
    assert "\n".join(found.asked[0].patch).strip() == patch.strip()


@pytest.mark.parametrize(
    ("text", "ideas"),
    [
        (f"{ONE}\n{asking('profile')}", ["one"]),
        (f"{asking('profile')}\n{several(ONE, TWO)}", ["one", "two"]),
        (f"{trying(('A = 1', 'A = 3'))}\n{ONE}", ["one"]),
        (f"{trying(('A = 1', 'A = 3'))}\n{several(ONE, TWO)}", ["one", "two"]),
        (f"{several(ONE, TWO)}\n{trying(('A = 1', 'A = 3'))}", ["one", "two"]),
    ],
)
def test_beside_an_idea_a_question_is_ignored_and_its_patch_is_no_part_of_the_idea(text, ideas):
    found = read(text)
    assert (summaries(found), found.asked) == (ideas, ())
    assert found.ignored == ("1 question beside an idea",)
    assert "A = 3" not in str(found.ideas)


def test_where_nothing_may_be_asked_a_question_is_an_answer_without_an_edit():
    assert summaries(read(asking("profile"), may_ask=False)) == ["no_edit"]


@pytest.mark.parametrize(
    "piece", ["IDEA 1\n", "ASK: try\n", "NOTES:\n", f"IDEA 1\n{BLOCK}", "IDEA "]
)
def test_an_answer_of_the_greatest_size_is_read_in_linear_time(piece):
    found = read(piece * (MOST_BYTES // len(piece)))
    assert len(found.notes or "") <= MOST_NOTES
    assert all(isinstance(idea, Answer | EditError) for idea in found.ideas)


PIECES = [
    *several(ONE, WHOLE).splitlines(),
    "IDEA 2",
    "NOTES: x",
    "ASK: try",
    "ASK: loss",
    "<think>",
]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=20)).map("\n".join))
def test_any_text_is_ideas_or_questions_or_problems(text):
    found = read(text)
    assert bool(found.ideas) != bool(found.asked)
    assert len(found.ideas) <= 4
    assert set(map(type, found.ideas)) <= {Answer, EditError}
