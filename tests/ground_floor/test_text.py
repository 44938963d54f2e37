"""Untrusted words as they reach people: they stay words, whatever shows them."""

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tasks.text import in_markdown, one_line, unlinked
from tests.links import EVIL, FINDERS, links

WORDS = (*EVIL, "a", " ", ":", "/", "//", ".", "@", "#", "www", "com", "<", ">", "(", "]", "!", "&")
LAYOUT = {"ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
any_words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map("".join)


class Shown(HTMLParser):
    """The tags of a page, and its text, a line for each element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.tags.append("comment")


def rendered(document: str) -> Shown:
    """By CommonMark's rules, with GitHub's tables and with HTML let through."""
    return Shown(MarkdownIt("commonmark", {"html": True}).enable("table").render(document))


def test_each_finder_finds_something_in_the_evil_words():
    assert [finder.pattern for finder in FINDERS if not finder.search(" ".join(EVIL))] == []


@settings(deadline=None, derandomize=True, max_examples=300)
@given(any_words)
def test_nothing_in_untrusted_words_is_a_link_or_markup(words):
    text, safe = unlinked(words), in_markdown(words)
    assert links(text) == []
    assert links(safe) == []
    item = rendered(f"- name: {safe}\n")
    assert set(item.tags) <= LAYOUT
    assert links(item.text) == []  # GitHub looks for them after Markdown
    assert " ".join(item.text.split()) == one_line(f"name: {text}")
    row = rendered(f"| a | b |\n| --- | --- |\n| {safe} | b |\n")
    assert set(row.tags) <= LAYOUT
    assert row.tags.count("td") == 2
    assert [line for line in row.text.split("\n") if line.strip()][2:] in ([text, "b"], ["b"])


@pytest.mark.parametrize(
    "words",
    [
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x64 and 128x64)",
        "ModuleNotFoundError: No module named 'torch.nn.attention'",
        "trainer/train.py:12: x // y, a//b, 12:30, 0.5, e.g. this & that <= 3 -> 2",
        "AttributeError: 'GPT' object has no attribute 'config.depth'",
    ],
)
def test_ordinary_words_stay_as_they_are(words):
    assert unlinked(words) == in_markdown(words) == words


def test_a_link_can_still_be_read():
    told = "see https://pytorch.org/docs/x.html"
    assert unlinked(told) == "see https[://]pytorch[.]org/docs/x.html"
    assert unlinked(unlinked(told)) == unlinked(told)
