"""What a patch touches, and which of a file's lines came with which change."""

import itertools
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.proposers.touched import (
    MOST_NAMES,
    MOST_RANGES,
    Touched,
    edits,
    grouped,
    ranges_of,
    surviving,
    touched,
)
from tests.synthetic_night import PLACES, TRAIN, changed

OLD = """\
import os

DEPTH, WIDTH = 3, 4
RATE = 0.1


class Block:
    size = 1

    @property
    def half(self):
        return self.size / 2


def main():
    pass
"""


def test_names_and_lines_are_those_of_both_files():
    new = OLD.replace("import os", "import sys").replace("WIDTH = 3", "WIDTH = 5")
    new = new.replace("size / 2", "size / 3").replace("    size = 1\n", "    size = 2\n")
    new = new.replace("def main", "def other():\n    pass\n\n\ndef main").replace(
        "RATE = 0.1\n", ""
    )
    assert touched(OLD, new) == Touched(
        ("imports", "DEPTH", "WIDTH", "RATE", "Block", "Block.half", "other"),
        ((1, 1), (3, 4), (8, 8), (12, 12)),
    )


def test_a_file_without_syntax_has_lines_alone():
    assert touched("x = (\n", "x = [\n") == Touched((), ((1, 1),))


@given(st.lists(st.integers(1, 799), min_size=1, max_size=60, unique=True), st.booleans())
@settings(max_examples=30, deadline=None)
def test_every_changed_line_is_in_the_ranges_however_many_they_are(places, is_removed):
    lines = TRAIN.split("\n")
    for place in sorted(places, reverse=True):
        lines[place - 1 : place] = [] if is_removed else [f"{lines[place - 1]}  # another"]
    found = touched(TRAIN, "\n".join(lines)).lines
    told = ranges_of(found)
    spans = [tuple(map(int, part.split("-"))) for part in told.split(", ")]
    assert len(spans) <= MOST_RANGES
    covered = {line for span in spans for line in range(span[0], span[-1] + 1)}
    assert {line for first, last in found for line in range(first, last + 1)} <= covered
    if not is_removed:
        assert set(places) <= covered


@given(st.lists(st.integers(1, 200), min_size=1, max_size=12, unique=True))
@settings(max_examples=20, deadline=None)
def test_each_change_keeps_the_lines_that_are_left_of_it(numbers):
    sources, names = [TRAIN], []
    for number in numbers:
        source, name = changed(sources[-1], number)
        assert touched(sources[-1], source).names == (name,)
        sources.append(source)
        names.append(name)
    final = sources[-1].split("\n")
    for number, lines in zip(numbers, surviving(sources), strict=True):
        own = [place for place, line in enumerate(final, 1) if f"own_{number} = 0" in line]
        assert lines == ((own[0], own[0]),)
    assert surviving([*sources, TRAIN])[:-1] == ((),) * len(numbers)


def test_many_names_are_grouped_by_their_class_and_then_counted():
    methods = [f"GPT.method_{i}" for i in range(MOST_NAMES + 1)]
    assert grouped(["DEPTH", *methods]) == ["DEPTH", "GPT"]
    constants = [f"K{i}" for i in range(MOST_NAMES + 10)]
    assert grouped(constants) == [*constants[: MOST_NAMES - 1], "11 more names"]
    assert grouped(constants[:MOST_NAMES]) == constants[:MOST_NAMES]


def test_the_places_of_synthetic_changes_are_each_in_train_py_once():
    assert [len(re.findall(f"^{re.escape(place)}$", TRAIN, re.M)) for place in PLACES] == [1] * len(
        PLACES
    )
    assert all(a < b for a, b in itertools.pairwise(edits(TRAIN, changed(TRAIN, 3)[0])))
