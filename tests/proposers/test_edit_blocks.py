import difflib
import random
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tasks.history import trial_folder
from tasks.proposers import replay
from tasks.proposers.answer import MOST_ERROR, Answer, Block, EditError, parse
from tasks.proposers.edit_blocks import apply
from tasks.records import Candidate

TRAIN = (Path(__file__).parents[2] / "trainer" / "train.py").read_text(encoding="utf-8")
SOURCE = (
    "import torch\n\nA = 1\nB = 2\n\n\ndef f(x):\n    y = x + A\n    return y\n\n\n"
    "def g(x):\n    y = x + B\n    return y\n"
)


def block(search: str, replace: str) -> str:
    return f"<<<<<<< SEARCH\n{search}=======\n{replace}>>>>>>> REPLACE\n"


def applied(answer: str, source: str) -> str:
    return apply(parse(answer), Candidate.parse(source)).source


def edited(source: str, *pairs: tuple[str, str]) -> str:
    return applied("".join(block(*pair) for pair in pairs), source)


def refused(source: str, *pairs: tuple[str, str]) -> EditError:
    with pytest.raises(EditError) as error:
        edited(source, *pairs)
    return error.value


@pytest.mark.parametrize(
    ("search", "replace", "changed"),
    [
        ("A = 1\n", "A = 3\n", SOURCE.replace("A = 1", "A = 3")),
        (
            "A = 1\nB = 2\n",
            "B = 2\nC = 3\nA = 1\n",
            SOURCE.replace("A = 1\nB = 2", "B = 2\nC = 3\nA = 1"),
        ),
        ("A = 1\nB = 2\n", "A = 1\n", SOURCE.replace("B = 2\n", "")),
        ("import torch\n", "", SOURCE.removeprefix("import torch\n")),
        ("import torch\n", "\n", SOURCE.replace("import torch\n", "\n")),
        (
            "    y = x + B\n    return y\n",
            "    return x\n",
            SOURCE.replace("    y = x + B\n    return y\n", "    return x\n"),
        ),
        (
            "    y = x + B  \n\treturn y\n".replace("\t", "    "),
            "    return x\n",
            SOURCE.replace("    y = x + B\n    return y\n", "    return x\n"),
        ),
    ],
)
def test_a_block_changes_its_lines_and_no_other(search, replace, changed):
    assert edited(SOURCE, (search, replace)) == changed


def test_blocks_are_found_in_the_file_as_it_was_in_any_order():
    changed = edited(
        SOURCE,
        ("    y = x + B\n", "    y = x + A\n"),
        ("B = 2\n", "C = 2\n"),
        ("A = 1\n", "B = 2\n"),
    )
    assert changed == SOURCE.replace("B = 2", "C = 2").replace("A = 1", "B = 2").replace(
        "x + B", "x + A"
    )


@pytest.mark.parametrize(
    ("source", "search"), [("A = 1  \nprint(A)\n", "A = 1\n"), ("A = 1\nprint(A)\n", "A = 1\t \n")]
)
def test_white_space_at_the_end_of_a_line_is_forgiven(source, search):
    assert edited(source, (search, "A = 2\n")) == "A = 2\nprint(A)\n"


def test_an_exact_match_is_preferred_to_one_apart_from_white_space():
    for end in ("\n", "\r\n"):
        source = f"A = 1 {end}A = 1{end}"
        assert edited(source, ("A = 1\n", "A = 2\n")) == f"A = 1 {end}A = 2{end}"


@pytest.mark.parametrize(
    "search",
    [
        "A = 1",
        "= 1\n",
        "A = \n",
        "a = 1\n",
        "A = 1\n\nB = 2\n",
        "A = 1\n...\nreturn y\n",
        "return y\n",
        "y = x\n",
    ],
)
def test_only_whole_unchanged_lines_are_found(search):
    if search == "A = 1":  # joined with the next line by the file
        assert refused("A = 11\nB = 2\n", (f"{search}\n", "")).outcome == "not_found"
    else:
        assert refused(SOURCE, (search, "")).outcome == "not_found"


@pytest.mark.parametrize(
    ("inside", "search"), [("\u00e9", "e\u0301"), ("A", "\u0410"), (" ", "\u00a0"), ("-", "\u2013")]
)
def test_characters_that_look_alike_are_different_and_shown_by_their_escapes(inside, search):
    error = refused(
        f"print(1)\nx = 'word {inside} more'\n", (f"x = 'word {search} more'\n", "x = 1\n")
    )
    assert error.outcome == "not_found"
    assert f"x = 'word {ascii(search)[1:-1]} more'" in str(error)


@pytest.mark.parametrize(
    ("source", "search", "replace", "changed"),
    [
        ("A = 1\nB = 2", "B = 2\n", "B = 3\n", "A = 1\nB = 3"),
        ("A = 1\nB = 2", "B = 2\n", "B = 2\n\n\nC = 1\n", "A = 1\nB = 2\n\n\nC = 1"),
        ("A = 1\nB = 2", "B = 2\n", "", "A = 1"),
        ("A = 1\r\nB = 2", "B = 2\n", "", "A = 1"),
        ("A = 1\r\nB = 2\r", "A = 1\n", "A = 2\n", "A = 2\r\nB = 2\r"),
        ("A = 1\nB = 2", "A = 1\nB = 2\n", "A = 3\n\n", "A = 3\n"),
        ("A = 1\nB = 2\n", "B = 2\n\n", "B = 3\n", "A = 1\nB = 3"),
        ("A = 1\n", "A = 1\n", "", ""),
        ("A = 1", "A = 1\n", "", ""),
    ],
)
def test_the_end_of_the_file_stays_as_it_was_unless_it_is_changed(source, search, replace, changed):
    assert edited(source, (search, replace)) == changed


def test_line_ends_stay_those_of_the_file():
    windows = SOURCE.replace("\n", "\r\n")
    answer = block("A = 1\n", "A = 3\nC = 4\n")
    changed = SOURCE.replace("A = 1", "A = 3\nC = 4")
    for text in (answer, answer.replace("\n", "\r\n")):
        assert applied(text, SOURCE) == changed
        assert applied(text, windows) == changed.replace("\n", "\r\n")
    mixed = SOURCE.replace("B = 2\n", "B = 2\r\n")
    assert edited(mixed, ("B = 2\n", "B = 3\n")) == SOURCE.replace("B = 2", "B = 3")
    assert edited(mixed, ("A = 1\n", "A = 3\n")) == mixed.replace("A = 1", "A = 3")


def test_a_whole_file_takes_the_place_of_the_old_one_with_its_line_ends():
    code = "def main():\n    pass\n\n\ndef load_model():\n    pass\n"
    answer = f"```python\n{code}```"
    assert applied(answer, SOURCE) == code
    assert applied(answer, SOURCE.replace("\n", "\r\n")) == code.replace("\n", "\r\n")


def test_other_separators_are_not_line_ends():
    odd = "A = '\x0b\x0c\x1c\x85\u2028\ud800'\nB = 2\n"
    assert edited(odd, ("B = 2\n", "B = '\x0c\u2029\udfff'\n")) == odd.replace(
        "2\n", "'\x0c\u2029\udfff'\n"
    )


@pytest.mark.parametrize(
    "pairs",
    [
        [("A = 1\n", "A = 1\n")],
        [("A = 1\n", "A = 1  # one\n")],
        [("A = 1\nB = 2\n", "A   =   (1)\n\n\n\nB = 2\n")],
        [("def f(x):\n", 'def f(x):\n    """The sum."""\n')],
        [("import torch\n", '"""What it is."""\n\nimport torch\n'), ("B = 2\n", "B = 0x2\n")],
    ],
)
def test_an_answer_that_leaves_the_code_as_it_is_is_not_a_change(pairs):
    assert refused(SOURCE, *pairs).outcome == "no_change"


def test_code_that_does_not_parse_is_still_a_change():
    assert edited("A = (\n", ("A = (\n", "A = [\n")) == "A = [\n"
    assert refused("A = (\n", ("A = (\n", "A = (\n")).outcome == "no_change"


@pytest.mark.parametrize(
    "other", ["A = 1\n", "B = 2\n", "\nA = 1\n", "A = 1\nB = 2\n\n\ndef f(x):\n"]
)
def test_blocks_that_share_a_line_are_refused(other):
    error = refused(SOURCE, ("A = 1\nB = 2\n", "A = 2\n"), (other, "A = 3\n"))
    assert error.outcome == "malformed"
    assert "both change line" in str(error)


def test_blocks_side_by_side_are_not_refused():
    assert edited(SOURCE, ("B = 2\n", "B = 3\n"), ("A = 1\n", "A = 2\n")) == SOURCE.replace(
        "B = 2", "B = 3"
    ).replace("A = 1", "A = 2")


SHIFTED = """class Model:
    def forward(self, x):
        y = self.up(x)  # wider
        if self.gated:
            y = y * self.gate(x)
        return self.down(y)
"""
GATED = "        if self.gated:\n            y = y * self.gate(x)\n"


def moved(text: str, columns: int) -> str:
    """The lines further to the right, or to the left."""
    lines = text.split("\n")
    return "\n".join(line and (" " * columns + line)[max(-columns, 0) :] for line in lines)


@pytest.mark.parametrize("columns", [-8, -4, -3, 2, 4])
def test_a_search_with_another_indentation_is_applied_with_that_of_the_file(columns):
    replace = GATED + "            y = y.float()\n\n        z = y\n"
    changed = edited(SHIFTED, (moved(GATED, columns), moved(replace, columns)))
    assert changed == SHIFTED.replace(GATED, replace)


def test_tabs_count_as_four_columns():
    tabs = GATED.replace("    ", "\t")
    assert edited(SHIFTED, (tabs, f"{tabs}\t\tz = y\n")) == SHIFTED.replace(
        GATED, f"{GATED}        z = y\n"
    )


def test_lines_that_are_only_repeated_keep_their_own_spacing():
    source = 'x  =  f( "a  b" )\ny = 1\n'
    changed = edited(source, ('x = f("a b")\ny = 1\n', 'x = f("a b")\ny = 2\n'))
    assert changed == source.replace("y = 1", "y = 2")


@pytest.mark.parametrize(
    ("search", "replace"),
    [
        (GATED.replace("            y", "        y"), "pass\n"),  # moved by 0 and by 4
        (moved(GATED, -4).replace("        y", "            y"), "pass\n"),  # by 4 and by 0
        (moved(GATED, 4), "z = 1\n"),  # would begin left of the margin
    ],
)
def test_lines_that_are_not_moved_alike_are_refused_with_the_nearest(search, replace):
    error = refused(SHIFTED, (search, replace))
    assert error.outcome == "not_found"
    assert "4 |         if self.gated:" in str(error)


def test_a_search_that_is_there_more_than_once_but_for_its_indentation_is_refused():
    source = "if a:\n    x = 1\nelse:\n        x = 1\n"
    assert refused(source, ("x = 1\n", "x = 2\n")).outcome == "not_found"
    exact = edited(source, ("    x = 1\n", "    x = 2\n"))  # an exact match wins
    assert exact == source.replace("    x = 1\nelse", "    x = 2\nelse")


def test_an_ambiguous_search_gets_its_places_listed():
    error = refused(SOURCE, ("    return y\n", "    return x\n"))
    assert error.outcome == "ambiguous"
    told = (
        "Block 1: its SEARCH is in train.py more than once, at lines 9, 14: "
        "add neighbouring lines to it."
    )
    assert str(error) == told
    told = str(refused("x = 1\n" * 50, ("x = 1\nx = 1\n", "x = 2\n")))
    assert "at lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...:" in told


def test_a_search_that_is_not_found_gets_the_nearest_lines_and_the_first_difference():
    search = "def g(x):\n    y = x - B\n    return y\n"
    assert str(refused(SOURCE, ("A = 1\n", "A = 2\n"), (search, ""))) == (
        "Block 2: its SEARCH is not in train.py.\n"
        "It begins\n"
        "| def g(x):\n"
        "|     y = x - B\n"
        "|     return y\n"
        "Nearest in train.py, with line numbers, is\n"
        "12 | def g(x):\n"
        "13 |     y = x + B\n"
        "14 |     return y\n"
        "15 | \n"
        "They first differ at line 2 of the SEARCH, line 13 of train.py, column 11:\n"
        "SEARCH   |     y = x - B\n"
        "train.py |     y = x + B"
    )


def test_a_search_that_leaves_a_line_out_is_shown_where():
    lines = TRAIN.split("\n")
    begin = next(number for number, line in enumerate(lines) if line.startswith("class "))
    left_out = next(number for number in range(begin + 3, begin + 20) if len(lines[number]) > 30)
    search = "\n".join([*lines[begin:left_out], *lines[left_out + 1 : begin + 30], ""])
    told = str(refused(TRAIN, (search, "")))
    of_search, of_file = left_out - begin + 1, left_out + 1
    assert f"differ at line {of_search} of the SEARCH, line {of_file} of train.py" in told
    assert f"\n{left_out + 1} | {lines[left_out][:100]}" in told


@pytest.mark.parametrize(("left_out", "differs_at"), [(8, 2), (9, 1)])
def test_a_search_that_leaves_out_up_to_8_lines_is_compared_from_its_first(left_out, differs_at):
    lines = [f"one{i} = two{i}" for i in range(30)]
    search = "\n".join([lines[5], *lines[6 + left_out : 12 + left_out], ""])
    told = str(refused("\n".join([*lines, ""]), (search, "")))
    assert f"They first differ at line {differs_at} of the SEARCH" in told


@pytest.mark.parametrize(
    ("search", "told"),
    [
        (
            "    y = x + B\n    return y\n\nmore()\n",
            "train.py ends before line 4 of the SEARCH: more()",
        ),
        ("more()\nimport torch\n", "train.py begins after line 1 of the SEARCH: more()"),
        ("zebra()\n", "Nothing in train.py is like it."),
        ("++ --\n", "Nothing in train.py is like it."),
    ],
)
def test_a_search_beyond_the_file_or_like_nothing_in_it_is_reported_as_such(search, told):
    assert str(refused(SOURCE, (search, ""))).endswith(told)


def test_a_rare_word_counts_more_than_two_common_ones():
    told = str(refused("y = x\n" * 9 + "\nrare(z)\n", ("rare(y, x)\n", "")))
    assert "They first differ at line 1 of the SEARCH, line 11 of train.py, column 6:" in told


def test_a_difference_far_to_the_right_is_shown():
    line = f"x = [{', '.join(map(str, range(200)))}]"
    told = str(refused(f"{line}\n", (f"{line[:-1]}, 200]\n", "")))
    assert ", 198, 199]" in told
    assert ", 198, 199, 200]" in told


def test_all_problems_are_reported_and_the_worst_one_is_the_outcome():
    good, gone, twice = ("A = 1\n", "A = 2\n"), ("zebra()\n", ""), ("    return y\n", "")
    error = refused(SOURCE, twice, good, gone, ("import torch\n\nA = 1\n", ""))
    assert error.outcome == "malformed"
    assert [line for line in str(error).splitlines() if line.startswith("Block")] == [
        "Blocks 4 and 2 both change line 3 of train.py: make one block of them.",
        "Block 3: its SEARCH is not in train.py.",
        "Block 1: its SEARCH is in train.py more than once, at lines 9, 14: "
        "add neighbouring lines to it.",
    ]
    assert refused(SOURCE, twice, gone).outcome == "not_found"


def test_many_problems_are_reported_within_the_limit():
    error = refused(
        SOURCE, *[(f"def g{number}(x):\n    y = x - B{'x' * 500}\n", "") for number in range(50)]
    )
    assert len(str(error)) <= MOST_ERROR
    assert str(error).startswith(
        "Block 1: its SEARCH is not in train.py.\nIt begins\n| def g0(x):\n"
    )
    assert str(error).endswith("more problems")


def test_a_quoted_search_cannot_leave_its_line():
    told = str(refused(SOURCE, ("def g(x):\x1b[2J\x85\u2028\u202e\ud800\x0c\r(y)\n", "")))
    assert all(line.isprintable() for line in told.split("\n"))
    assert told.encode()


CHANCE = random.Random(1)
HOSTILE = {
    "one line, over and over": ("a\n" * 32768, "a\n" * 32000 + "b\n"),
    "two lines at random": tuple(
        "".join(CHANCE.choice(("a\n", "b\n")) for _ in range(32768)) for _ in range(2)
    ),
    "words at random": tuple(
        "".join(f"{CHANCE.randrange(3000)}\n" for _ in range(13000)) for _ in range(2)
    ),
    "lines of words": tuple(
        "".join(f"{' '.join(str(CHANCE.randrange(600)) for _ in range(50))}\n" for _ in range(320))
        for _ in range(2)
    ),
    "a period": ("ab\n" * 21845, "ab\n" * 10000 + "a\n"),
    "a long line": ("x" * 65536, "x" * 65000 + "y\n"),
}


@pytest.mark.parametrize(("source", "search"), HOSTILE.values(), ids=HOSTILE)
def test_no_file_and_no_search_make_the_explanation_slow_or_long(source, search):
    error = refused(source, (search, ""))
    assert error.outcome == "not_found"
    assert len(str(error)) <= MOST_ERROR
    assert refused(source, *[(search[:4000] + "\nnot there\n", "")] * 50).outcome == "not_found"


LINES = st.lists(st.sampled_from(["a", "b", "", "a ", " a", "b\t"]), max_size=12)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    LINES,
    st.lists(st.sampled_from(["a", "b", "", "a ", " a"]), min_size=1, max_size=3).filter(
        lambda lines: any("".join(lines).split())
    ),
)
def test_a_search_is_applied_exactly_if_it_is_there_once(lines, search):
    def places(wanted, given):
        return [
            start
            for start in range(len(given) - len(wanted) + 1)
            if given[start : start + len(wanted)] == wanted
        ]

    source, pair = "\n".join(lines), ("".join(f"{line}\n" for line in search), "new = 1\n")
    shown = source.split("\n")
    found = places(search, shown) or places(
        [line.rstrip() for line in search], [line.rstrip() for line in shown]
    )
    alike = places([line.strip() for line in search], [line.strip() for line in shown])
    if not found and len(alike) == 1:  # it may be applied, shifted
        return
    if len(found) == 1:
        assert edited(source, pair) == "\n".join(
            [*shown[: found[0]], "new = 1", *shown[found[0] + len(search) :]]
        )
    else:
        assert refused(source, pair).outcome == ("ambiguous" if found else "not_found")


BAD = [("zebra()\n", ""), ("same()\n", "x\n"), ("x1 = 1\nx2 = 2\n", "")]


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    st.sets(st.integers(1, 9), min_size=2), st.sampled_from(BAD), st.randoms(use_true_random=False)
)
def test_one_bad_block_among_good_ones_fails_them_all(numbers, bad, chance):
    source = "".join(f"x{number} = {number}\n" for number in range(10)) + "same()\n" * 2
    good = [(f"x{number} = {number}\n", f"x{number} = 0\n") for number in {1, *numbers}]
    chance.shuffle(good)
    assert [
        line for line in edited(source, *good).split("\n") if line not in source.split("\n")
    ] == [pair[1].strip() for pair in sorted(good)]
    good.insert(chance.randrange(len(good) + 1), bad)
    assert refused(source, *good).outcome in ("not_found", "ambiguous", "malformed")


ODD = st.text(st.sampled_from("ab =()#\t\\\N{SNOWMAN}\x0b\x0c\x1c\x85\u2028\ud800\0"), max_size=4)
TEXTS = st.lists(
    st.sampled_from(["a", "b", "c", "", "  d", "e ", '"""', "====", "x = 1"]) | ODD, max_size=15
).map("\n".join)


def blocks_between(old: str, new: str) -> list[Block]:
    """Blocks that turn one text into the other, each widened until its SEARCH is unique."""
    before, after = old.split("\n"), new.split("\n")
    codes = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    hunks = [list(code[1:]) for code in codes if code[0] != "equal"]
    k = 0
    while k < len(hunks):
        start, stop, other_start, other_stop = hunks[k]
        part = before[start:stop]
        if (
            "".join(part).strip()
            and sum(before[i : i + len(part)] == part for i in range(len(before))) == 1
        ):
            k += 1
            continue
        up = start > (hunks[k - 1][1] if k else 0)
        down = stop < (hunks[k + 1][0] if k + 1 < len(hunks) else len(before))
        hunks[k] = [start - up, stop + down, other_start - up, other_stop + down]
        if not up and not down:
            if len(hunks) == 1:
                return []
            k = max(k - 1, 0)
            one, other = hunks[k : k + 2]
            hunks[k : k + 2] = [[one[0], other[1], one[2], other[3]]]
    return [
        Block(*("".join(f"{line}\n" for line in part) for part in (before[i:j], after[m:n])))
        for i, j, m, n in hunks
    ]


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    TEXTS,
    TEXTS,
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["\n", "\r\n"]),
    st.randoms(use_true_random=False),
)
def test_any_text_becomes_any_other_by_its_blocks(old, new, ends, answered, chance):
    blocks = blocks_between(old, new)
    assume(blocks)
    chance.shuffle(blocks)
    answer = parse(
        "".join(block(each.search, each.replace) for each in blocks).replace("\n", answered)
    )
    assert answer.blocks == tuple(blocks)
    ends = ends if "\n" in old else "\n"
    old, new = (text.replace("\n", ends) for text in (old, new))
    same = Candidate.parse(old).digest
    if same is not None and Candidate.parse(new).digest == same:
        with pytest.raises(EditError, match="leaves the code as it is"):
            apply(answer, Candidate.parse(old))
    else:
        assert apply(answer, Candidate.parse(old)).source == new


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=3), TEXTS)
def test_any_answer_gives_a_file_or_an_edit_error(pairs, source):
    answer = Answer(
        "",
        None,
        None,
        "",
        tuple(Block(f"{search}\n", f"{replace}\n") for search, replace in pairs),
        None,
    )
    problem = None
    try:
        assert apply(answer, Candidate.parse(source)).source != source
    except EditError as error:
        problem = error
    if problem:
        assert 0 < len(str(problem)) <= MOST_ERROR
        assert all(line.isprintable() for line in str(problem).split("\n"))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    TEXTS.filter(bool),
    TEXTS.filter(bool),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    st.booleans(),
)
def test_a_trial_s_diff_gives_its_candidate_again(old, new, ends, end):
    old, new = (
        text.replace("\n", ends).replace("\ud800", "\ue000") for text in (old, new + "\n" * end)
    )
    assume(old != new)
    assert replay.apply(trial_folder._diff(old, new), old) == new
