"""Where thinking ends, whatever marks it: a draft that the model rejected is never the answer."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.proposers import answer as answers
from tasks.proposers import edit_blocks
from tasks.proposers.answer import EditError
from tasks.proposers.thinking import at_the_end, without_thinking
from tasks.records import Candidate

SOURCE = "A = 1\nB = 1\n\n\ndef load_model():\n    pass\n\n\ndef main():\n    pass\n"
BLOCK = "<<<<<<< SEARCH\n{} = 1\n=======\n{} = {}\n>>>>>>> REPLACE\n"
DRAFT = BLOCK.format("A", "A", "'draft'")
FINAL = BLOCK.format("B", "B", "'final'")
HEADERS = "SUMMARY: the final one\nKIND: systems\nHYPOTHESIS: It helps.\nEXPECTED: lower\n"
NO = "no, that diverges; the other one instead.\n"
FILE = SOURCE.replace("B = 1", "B = 'final'")
WHOLE = f"```python\n{FILE}```\n"
WRONG = WHOLE.replace("B = 'final'", "A = 'draft'")
UNENDED = DRAFT.removesuffix(">>>>>>> REPLACE\n")
# Published models' marks of thinking, its beginning and its end.
DIALECTS = {
    "think": ("<think>", "</think>"),
    "thinking": ("<thinking>", "</thinking>"),
    "with a blank": ("<think >", "</think >"),
    "with an attribute": ('<think effort="high">', "</think>"),
    "Mistral": ("[THINK]", "[/THINK]"),
    "harmony": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "harmony without its tokens": ("analysis", "assistantfinal"),
    "thought": ("<thought>", "</thought>"),
    "reasoning": ("<reasoning>", "</reasoning>"),
    "Seed": ("<seed:think>", "</seed:think>"),
    "MiniMax": ("<mm:think>", "</mm:think>"),
    "Gemma": ("<|channel>thought\n", "<channel|>"),
    "Kimi": ("◁think▷", "◁/think▷"),
    "Bespoke": ("<|begin_of_thought|>", "<|end_of_thought|>"),
    "unheard of": ("⟦musing⟧", "⟦/musing⟧"),
}
SHAPES = (
    ("<{}>", "</{}>"),
    ("< {} >", "</ {} >"),
    ("[{}]", "[/{}]"),
    ("[[{}]]", "[[/{}]]"),
    ("{{{}}}", "{{/{}}}"),
    ("«{}»", "«/{}»"),
    ("【{}】", "【/{}】"),
    ("◁{}▷", "◁/{}▷"),
    ("<|{}|>", "<|/{}|>"),
    ("<|{}_start|>", "<|{}_end|>"),
    ("<|channel>{}\n", "<channel|>"),
    ("<|im|>{}<|say|>", "<|im|>answer<|say|>"),
)
DRAFTS = (
    f"SUMMARY: a draft\nMaybe\n{DRAFT}{NO}",
    f"Maybe\n{DRAFT}{NO}",
    f"{HEADERS}{DRAFT}{NO}",
    f"SUMMARY: one\n{DRAFT}{NO}SUMMARY: another\n{DRAFT}{NO}",
    f"SUMMARY: half\n{UNENDED}{NO}",
    f"SUMMARY: the file\n{WRONG}{NO}",
    f"SUMMARY: a draft\n{DRAFT[:-1]}",
)
FINALS = (
    HEADERS + FINAL,
    HEADERS + WHOLE,
    f"{HEADERS}{FINAL}I hope that it helps.\n",
    f"Here it is.\n\n{HEADERS}{FINAL}",
    f"```\n{HEADERS}{FINAL}```\n",
)
OTHERS = (
    FINAL,
    f"Here it is.\n{FINAL}",
    WHOLE,
    HEADERS.partition("\n")[2] + FINAL,
    HEADERS + FINAL.removesuffix(">>>>>>> REPLACE\n"),
    "I would rather change nothing.\n",
)


def applied(text: str) -> str:
    """train.py with the answer in a text, as a model writes it; what is wrong with it otherwise."""
    try:
        read = answers.parse(without_thinking(text).strip())
        return edit_blocks.apply(read, Candidate.parse(SOURCE)).source
    except EditError as error:
        return f"{error.outcome}: {error}"


each_dialect = pytest.mark.parametrize(("opened", "closed"), DIALECTS.values(), ids=DIALECTS)


@each_dialect
def test_of_a_draft_and_an_answer_the_answer_is_applied(opened, closed):
    for draft, between in itertools.product(DRAFTS, ("\n", "")):
        source = applied(f"{opened}\n{draft}{closed}{between}{HEADERS}{FINAL}")
        assert "draft" not in source
        assert "B = 'final'" in source


@each_dialect
def test_a_draft_is_never_applied_beside_an_answer_out_of_form(opened, closed):
    for draft, final in itertools.product(DRAFTS, OTHERS):
        assert "draft" not in applied(f"{opened}\n{draft}{closed}\n{final}")


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    name=st.from_regex(r"[A-Za-z][a-z_]{1,11}", fullmatch=True),
    shape=st.sampled_from(SHAPES),
    draft=st.sampled_from(DRAFTS),
    final=st.sampled_from(FINALS + OTHERS),
    is_opened=st.booleans(),
    between=st.sampled_from(("\n", "\n\n", "")),
)
def test_a_dialect_that_nobody_has_heard_of(name, shape, draft, final, is_opened, between):
    opened, closed = (mark.format(name) for mark in shape)
    source = applied(f"{opened if is_opened else ''}\n{draft}{closed}{between}{final}")
    assert "draft" not in source
    if final in FINALS and (between or final.startswith("SUMMARY")):
        assert "B = 'final'" in source


WORDS = (
    "The logits have shape [B, T, V].",
    "Attention over x[i] < x[j], and y > 1.",
    "A `</think>` in the corpus, and '<think>' too.",
    "This is <b>bold</b> (and so on).",
    "Now the second part:",
    "- [x] done",
    "[1] Kaplan et al.",
    "(continued)",
    "<bos> begins each row.",
    "It costs and/or saves time; see /tmp/x.",
    "**Note** the [reasoning](https://example.org) behind it.",
    "Thinking of the schedule, the thought is: later.",
    "| a | b |",
    "---",
    "and",
    "",
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(*[st.lists(st.sampled_from(WORDS), max_size=3) for _ in range(3)], st.booleans())
@example([], ["<b>", "Then</b>"], [], False)
def test_a_plain_answer_is_never_lost(before, between, after, is_first):
    first = BLOCK.format("A", "A", "2  # </think>")
    parts = [*before, HEADERS if is_first else HEADERS.split("\n", 1)[1] + HEADERS.split("\n")[0]]
    text = "\n".join([*parts, first, *between, FINAL, *after])
    source = applied(text)
    assert "A = 2" in source, source
    assert "B = 'final'" in source, source


@pytest.mark.parametrize(
    "code", ["# up to </think>", "END = '</think>'", "# Summary:", "    SUMMARY: str", "[/THINK]"]
)
def test_what_is_in_a_whole_file_is_code(code):
    text = WHOLE.replace("pass\n```", f"pass\n{code}\n```")
    assert text != WHOLE
    assert code in (answers.parse(without_thinking(f"{HEADERS}{text}")).whole_file or "")


@pytest.mark.parametrize(
    "wrapped",
    [
        "<answer>\n{}</answer>",
        "<|im_start|>assistant\n{}<|im_end|>",
        "<patch>{}</patch>\n```",
        "<details>\n<summary>It</summary>\n\n{}\n</details>\n",
    ],
)
def test_an_answer_in_tags_is_an_answer(wrapped):
    assert "B = 'final'" in applied(wrapped.format(HEADERS + FINAL))
    assert "B = 'final'" in applied(f"[THINK]\n{DRAFT}[/THINK]{wrapped.format(HEADERS + FINAL)}")


def test_edits_that_each_stand_in_a_tag_of_one_name_are_one_answer():
    edits = (BLOCK.format("A", "A", 2), FINAL)
    assert "A = 2\nB = 'final'" in applied(
        HEADERS + "".join(f"<e>\n{edit}</e>\n" for edit in edits)
    )


@pytest.mark.parametrize("tag", ["<think>", "[THINK]", "<|begin_of_thought|>"])
def test_thinking_without_an_end_counts_only_if_nothing_follows_its_answer(tag):
    assert "B = 'final'" in applied(f"{tag}\nhm\n{HEADERS}{FINAL}")
    assert "B = 'final'" in applied(f"{tag}\nSUMMARY: a\n{DRAFT}{NO}{HEADERS}{FINAL}```")
    for draft in DRAFTS[:-1]:
        said = applied(f"{tag}\n{draft}")
        assert said.startswith("malformed: ")
        assert tag in said or "has no end" in said
    assert applied(f"{tag}\nhm").startswith("no_edit: ")


def test_a_doubt_tells_the_model_what_is_unclear():
    told = applied(f"<muse>\n{DRAFT}</muse>\n{FINAL}")
    assert told.startswith("malformed: It is unclear which edits are the answer")
    assert "the tag 'muse' is around some of them" in told


def test_the_answer_at_the_end_of_thinking():
    assert at_the_end(f"hm\n{DRAFT}{NO}{HEADERS}{FINAL}\n") == f"{HEADERS}{FINAL}\n"
    assert at_the_end(f"hm\n{HEADERS}{FINAL}{NO}") is None
    assert at_the_end(f"hm\n{FINAL}") is None
    assert at_the_end(HEADERS) is None
