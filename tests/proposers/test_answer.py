import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.proposers import answer as answers
from tasks.proposers.answer import (
    MOST_BLOCKS,
    MOST_BYTES,
    MOST_ERROR,
    Answer,
    Block,
    EditError,
    Problem,
)
from tasks.proposers.thinking import without_thinking
from tasks.usage import KINDS

BLOCK = "<<<<<<< SEARCH\nA = 1\n=======\nA = 2\n>>>>>>> REPLACE\n"
HEADERS = (
    "SUMMARY: Deeper\nKIND: architecture\nHYPOTHESIS: More depth,\nmore sense.\n"
    "EXPECTED: lower val_bpb, slower\n"
)
PARSED = Answer(
    "More depth, more sense.",
    "architecture",
    "lower val_bpb, slower",
    "Deeper",
    (Block("A = 1\n", "A = 2\n"),),
    None,
)
FILE = "import torch\n\n\ndef load_model(path, device):\n    ...\n\n\ndef main():\n    ...\n"
FENCED = f"```python\n{FILE}```\n"


def parse(text: str) -> Answer:
    """The answer in a text as a model writes it."""
    return answers.parse(without_thinking(text))


def refused(text: str) -> EditError:
    with pytest.raises(EditError) as error:
        parse(text)
    return error.value


@pytest.mark.parametrize(
    "text",
    [
        HEADERS + BLOCK,
        (HEADERS + BLOCK).replace("\n", "\r\n"),
        f"Here is my change.\n\n{HEADERS}\n{BLOCK}\nI hope that it helps.",
        f"```\n{HEADERS}{BLOCK}```",
        f"{HEADERS}```python\n{BLOCK}```\n",
        f"````\n{HEADERS}\n```python\n{BLOCK}```\n````\n",
        HEADERS.replace("SUMMARY", "summary").replace("KIND", "Kind") + BLOCK,
        HEADERS.replace("SUMMARY:", "**Summary:**")
        .replace("KIND:", "- **KIND**:")
        .replace("EXPECTED:", "### Expected :")
        + BLOCK,
        "**SUMMARY: Deeper**\n1. KIND: `architecture`\n> HYPOTHESIS: More depth,\n more sense.\n\n"
        f"EXPECTED\nlower val_bpb, slower\n\nNow the block:\n{BLOCK}",
        HEADERS
        + BLOCK.replace("SEARCH\n", "SEARCH  \n")
        .replace("=\n", "= \t\n")
        .replace("REPLACE\n", "replace \n"),
        HEADERS
        + BLOCK.replace("<<<<<<<", "<<<<<")
        .replace("=======", "=========")
        .replace(">>>>>>>", ">>>>>>>>"),
        HEADERS + BLOCK.replace("<< S", "<<S").rstrip("\n"),
        f"<think>\nKIND: systems\n{BLOCK}</think>\n\n{HEADERS}{BLOCK}",
        f"Perhaps so:\nKIND: systems\n{BLOCK}</think>\n\n{HEADERS}{BLOCK}",
        f"<think>first</think>{HEADERS}<thinking>\n{BLOCK}\n</thinking>\n{BLOCK}",
        f"<think>\nSUMMARY: no, rather this\n{BLOCK}So, finally:\n{HEADERS}{BLOCK}",
    ],
)
def test_an_answer_is_read_however_it_is_decorated(text):
    assert parse(text) == PARSED


def test_headers_that_are_not_there_are_not_made_up():
    assert parse(BLOCK) == Answer("", None, None, "a change without a summary", PARSED.blocks, None)


@pytest.mark.parametrize(
    "text", ["HYPOTHESIS: It helps.\nA lot.\n", "SUMMARY:\nHYPOTHESIS:\nIt helps.\nA lot.\n"]
)
def test_the_hypothesis_stands_in_for_a_missing_summary(text):
    assert parse(text + BLOCK).summary == "It helps."


def test_the_first_of_several_headers_counts_and_none_inside_a_block():
    answer = parse("SUMMARY: one\n" + BLOCK.replace("A = 2", "KIND: systems") + "SUMMARY: two\n")
    assert (answer.summary, answer.kind) == ("one", None)
    assert answer.blocks[0].replace == "KIND: systems\n"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_known(kind):
    assert parse(f"KIND: {kind}\n{BLOCK}").kind == kind


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Architecture.", "architecture"),
        ("data-order", "data order"),
        ("DATA_ORDER", "data order"),
        ("**optimizer**", "optimizer"),
        ("optimiser (rates)", "optimizer"),
        ("system", "systems"),
        ("schedule, with a longer warm-down", "schedule"),
        ("magic", None),
        ("", None),
        (" | ".join(KINDS), None),
        ("x" * 100_000, None),
    ],
)
def test_obvious_variants_of_a_kind_are_known_and_nothing_else(said, kind):
    assert parse(f"KIND: {said}\n{BLOCK}").kind == kind


def test_long_or_hostile_headers_become_one_short_line():
    answer = parse(
        f"SUMMARY: {'word ' * 50}\nHYPOTHESIS: \x1b[31mred\u202e\ud800\n{'y' * 5000}\n"
        f"EXPECTED: {'z' * 5000}\n{BLOCK}"
    )
    assert len(answer.summary) <= 72
    assert answer.summary.startswith("word word")
    assert answer.hypothesis.startswith("[31mred y")
    assert len(answer.hypothesis) == len(answer.expected or "") == 1000


@pytest.mark.parametrize(
    "replace",
    [
        "",
        "\n",
        "B = 1 \n\n  # \N{SNOWMAN} \x0c\x85\u2028\x1c\ud800\n",
        "    =======\n",
        "<<<<<<<\n",
        "<< SEARCH\n",
    ],
)
def test_the_lines_of_a_block_are_taken_as_they_are(replace):
    assert parse(BLOCK.replace("A = 2\n", replace)).blocks == (Block("A = 1\n", replace),)


@pytest.mark.parametrize(
    "code",
    [
        'TAGS = ["<think>", "</think>"]  # <think>\n',
        "# A model's words end with </think>, then comes the answer.\n",
        "<think>\nA = 2\n</think>\n",
    ],
)
@pytest.mark.parametrize("before", ["", "<think>\nhm\n</think>\n", f"hm\n{BLOCK}</think>\n"])
@pytest.mark.parametrize("line", ["A = 1\n", "A = 2\n"])
def test_tags_inside_the_code_are_code(code, before, line):
    (block,) = parse(before + HEADERS + BLOCK.replace(line, code)).blocks
    assert code in (block.search, block.replace)


def test_an_unfinished_block_in_thinking_hides_no_tag():
    draft = BLOCK.replace(">>>>>>> REPLACE\n", "")
    assert parse(f"<think>\n{draft}</think>\n{HEADERS}{BLOCK}") == PARSED
    assert parse(f"{draft}hm\n</think>\n{HEADERS}{FENCED}").whole_file == FILE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "I would rather not.",
        HEADERS,
        "=======\n",
        "```\nA = 2\n```",
        FILE,
        f"<think>{BLOCK}</think>",
    ],
)
def test_an_answer_without_an_edit_gets_the_form_explained(text):
    error = refused(text)
    assert error.outcome == "no_edit"
    assert '"<<<<<<< SEARCH"' in str(error)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            BLOCK.replace(">>>>>>> REPLACE\n", ""),
            'Block 1 has no end: there is no ">>>>>>> REPLACE"',
        ),
        (BLOCK.replace(">>>>>>> REPLACE\n", "") + BLOCK, "Block 1 has no end: there is no"),
        (
            BLOCK + BLOCK.replace("=======\n", ""),
            'Block 2 has no "=======" between SEARCH and REPLACE',
        ),
        (BLOCK.replace("A = 1\n", "Title\n=======\n"), 'Block 1 has 2 lines like "======="'),
        (
            BLOCK.replace("A = 1\n", ""),
            "Block 1 has an empty SEARCH: to insert lines, repeat a neighbouring line",
        ),
        (BLOCK.replace("A = 1\n", " \n\n"), "Block 1 has an empty SEARCH"),
        (BLOCK + ">>>>>>> REPLACE\n", 'A ">>>>>>> REPLACE" after block 1 ends no block'),
        (BLOCK + FENCED, "Two answers in one"),
        (FENCED + FENCED, "Two answers in one"),
        (FENCED.removesuffix("```\n"), "The fence around the whole file has no end"),
        (
            FENCED.removesuffix("```\n") + "```python\nA = 1\n```\n",
            "The fence around the whole file has no end",
        ),
        (
            BLOCK * (MOST_BLOCKS + 1),
            f"The answer has {MOST_BLOCKS + 1} blocks, the limit is {MOST_BLOCKS}",
        ),
        ("\N{SNOWMAN}" * (MOST_BYTES // 3 + 1), f"the limit is {MOST_BYTES}"),
    ],
)
def test_an_answer_with_two_readings_is_refused(text, told):
    error = refused(text)
    assert error.outcome == "malformed"
    assert told in str(error)


def test_all_problems_of_form_are_reported_at_once():
    told = str(
        refused(BLOCK.replace("A = 1\n", "") + BLOCK + BLOCK.replace("=======\n", "") + FENCED)
    ).splitlines()
    assert [line[:12] for line in told] == ["Block 1 has ", "Block 3 has ", "Two answers "]


@pytest.mark.parametrize(
    "text",
    [
        HEADERS + FENCED,
        f"{HEADERS}\nThe file:\n\n{FENCED}\nDone.\n",
        f"```\n{HEADERS}{FENCED}```\n",
        f"{HEADERS}For example\n```\nA = 1\n```\n~~~~\n{FILE}~~~~~\n",
        (HEADERS + FENCED).replace("\n", "\r\n"),
    ],
)
def test_a_fenced_whole_file_is_taken_when_there_is_no_block(text):
    answer = parse(text)
    assert (answer.whole_file, answer.blocks, answer.summary) == (FILE, (), "Deeper")


def test_headers_of_a_whole_file_are_not_in_its_code():
    code = f"{FILE}'''\nKIND: systems\n'''\n"
    assert parse(f"SUMMARY: It\n```py\n{code}```") == Answer("", None, None, "It", (), code)


def test_the_worst_problem_comes_first_and_details_are_dropped_before_problems():
    details = (
        Problem("ambiguous", "Many.", "x" * 1000),
        Problem("not_found", "None.", "y" * 1000),
        Problem("ambiguous", "Last."),
    )
    error = EditError(*details)
    assert error.outcome == "not_found"
    assert str(error) == f"None.\n{'y' * 1000}\nMany.\nLast."


def test_a_list_of_problems_that_is_too_long_ends_with_the_number_left_out():
    told = str(
        EditError(*[Problem("ambiguous", f"{number:03} {'x' * 95}") for number in range(100)])
    )
    assert len(told) <= MOST_ERROR
    assert told.splitlines()[-2:] == [f"018 {'x' * 95}", "and 81 more problems"]


@pytest.mark.parametrize(
    ("piece", "outcome"),
    [
        ("<", "no_edit"),
        ("*", "no_edit"),
        (" ", "no_edit"),
        ("`", "no_edit"),
        ("```\n", "no_edit"),
        ("\n", "no_edit"),
        ("<think>", "no_edit"),
        ("<think>\n", "no_edit"),
        ("</think>\n", "no_edit"),
        ("</think>  ", "no_edit"),
        ("SUMMARY:\n", "no_edit"),
        ("SUMMARY: * ", "no_edit"),
        ("<think>\nSUMMARY:\n", "no_edit"),
        ("<thinkthink", "no_edit"),
        ("<|x|></x><y>\n", "no_edit"),
        ("xSUMMARY:", "no_edit"),
        (f"</x>\n{BLOCK}", "malformed"),
        ("\ud800", "no_edit"),
        (">>>>>>> REPLACE\n", "malformed"),
        ("<<<<<<< SEARCH\n", "malformed"),
        ("<<<<<<< SEARCH\n=======\n", "malformed"),
        ("```python\ndef main()\ndef load_model()\n", "malformed"),
        (BLOCK, "malformed"),
    ],
)
def test_an_answer_of_the_greatest_size_is_read_in_linear_time(piece, outcome):
    error = refused(piece * (MOST_BYTES // len(piece.encode("utf-8", "surrogatepass"))))
    assert error.outcome == outcome
    assert len(str(error)) <= MOST_ERROR


PIECES = [
    *BLOCK.splitlines(),
    *HEADERS.splitlines(),
    "```python",
    "```",
    "<think>",
    "</think>",
    "def main():",
    "def load_model():",
    "",
]


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    st.lists(st.sampled_from(PIECES) | st.text(max_size=20)).map("\n".join)
    | st.text(st.characters())
)
def test_any_text_is_an_answer_or_an_edit_error(text):
    problem = None
    try:
        answer = parse(text)
    except EditError as error:
        problem = error
    if problem:
        assert problem.outcome in ("malformed", "no_edit")
        assert 0 < len(str(problem)) <= MOST_ERROR
        return
    assert bool(answer.blocks) != (answer.whole_file is not None)
    assert all(
        block.search.strip() and (block.search + block.replace).endswith("\n")
        for block in answer.blocks
    )
    assert 0 < len(answer.summary) <= 72
    assert "\n" not in answer.summary + answer.hypothesis + (answer.expected or "")
