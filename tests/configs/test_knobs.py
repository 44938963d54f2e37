import ast
import gc
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import knobs
from tasks.records import Candidate

TRAIN = (Path(__file__).parents[2] / "trainer" / "train.py").read_text(encoding="utf-8")
SMALL = '''"""A file."""
DEPTH = 3  # layers
TOTAL   = 2**19   # tokens
RATE: float = 0.04
BETAS = (0.8,
         0.95)
NAME = "L"; FAST = True
TABLE = ((1, 2), (3, 4))
HALF = DEPTH / 2
IDLE = 1
lower = 5


def f():
    DEPTH = 7
    return DEPTH, TOTAL, RATE, BETAS, NAME, FAST
'''


def test_reads_literals_and_constant_arithmetic_and_leaves_the_rest_out():
    expected = {
        "DEPTH": 3,
        "TOTAL": 524288,
        "RATE": 0.04,
        "BETAS": (0.8, 0.95),
        "NAME": "L",
        "FAST": True,
        "IDLE": 1,
    }
    assert knobs.read(SMALL) == expected


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("-2 ** 3 + 1", -7),
        ("1 / 4", 0.25),
        ("7 // 2 * 2", 6),
        ("+1", 1),
        ("7 % 4", 3),
        ("(1, -2.5)", (1, -2.5)),
    ],
)
def test_reads_arithmetic_as_python_does(line, value):
    assert knobs.read(f"A = {line}") == {"A": value}


@pytest.mark.parametrize(
    "line",
    [
        "9**9**9**9",
        "'a' * 10**9",
        "1 / 0",
        "(-1) ** 0.5",
        "1e999",
        "[1]",
        "None",
        "f()",
        "True + 1",
        "9" * 5000,
    ],
)
def test_only_a_plain_constant_is_a_knob(line):
    assert knobs.read(f"A = {line}") == {}


@pytest.fixture
def usual_stack():
    """Python's own limit: a library may have raised it."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("usual_stack")
def test_a_sum_that_is_too_long_is_not_a_knob_and_does_not_affect_the_others():
    source = f"A = 1\nB = {'+'.join('1' * 1200)}\nprint(A, B)\n"
    assert knobs.read(source) == {"A": 1}
    assert knobs.write(source, {"A": 2}) == source.replace("A = 1", "A = 2")


@pytest.mark.parametrize("source", ["A = 1\nA = 2", "A = 1\nif x:\n    pass\nA = 1 + 1"])
def test_reads_the_last_of_several_assignments(source):
    assert knobs.read(source) == {"A": 2}


@pytest.mark.parametrize(
    "later", ["A += 1", "A = f()", "del A", "if x:\n    A = 2", "A, b = 1, 2", "for A in x: pass"]
)
def test_a_constant_that_is_bound_again_is_not_a_knob(later):
    assert knobs.read(f"A = 1\n{later}") == {}


@pytest.mark.parametrize(
    "source",
    ["A = (", "\0", "\ud800", "(" * 50_000, "-" * 60_000 + "1", "A=" + "+".join("1" * 30_000)],
)
def test_source_that_does_not_parse_has_no_knobs_and_no_hash(source):
    assert knobs.read(source) == {}
    assert Candidate.parse(source).digest is None


def test_source_is_parsed_though_collected_garbage_parses_too():
    """A collection of garbage may run other code, or let another thread run, in mid-tree."""

    def collected(phase, info, depth=30):
        if depth:
            collected(phase, info, depth - 1)
        else:
            ast.parse("f(x)")

    threshold = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(50)
    try:
        assert knobs.parse(TRAIN).body
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(collected)
    assert gc.isenabled()


def test_write_changes_the_value_and_nothing_else():
    written = knobs.write(SMALL, {"DEPTH": 12, "RATE": 0.1, "NAME": "SL"})
    expected = (
        SMALL.replace("DEPTH = 3  #", "DEPTH = 12  #").replace("0.04", "0.1").replace('"L"', "'SL'")
    )
    assert written == expected


def test_write_leaves_an_equal_value_as_it_is_spelled():
    assert knobs.write(SMALL, {"TOTAL": 524288, "BETAS": [0.8, 0.95]}) == SMALL


def test_write_keeps_line_ends():
    source = "A = 1\r\nprint(A)\r\n"
    assert knobs.write(source, {"A": 2}) == "A = 2\r\nprint(A)\r\n"


def test_a_list_becomes_a_tuple_and_an_int_a_float_where_the_knob_is_one():
    written = knobs.read(knobs.write(SMALL, {"BETAS": [0, 1], "RATE": 1}))
    assert repr(written["BETAS"]) == "(0.0, 1.0)"
    assert repr(written["RATE"]) == "1.0"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"DEPHT": 1}, "unknown knob DEPHT: did you mean DEPTH?"),
        ({"depth": 1}, "did you mean DEPTH?"),
        ({"XYZ": 1}, "train.py has DEPTH, TOTAL, RATE"),
        ({"TABLE": 1}, "unknown knob TABLE"),
        ({"HALF": 1}, "unknown knob HALF"),
        ({"DEPTH": "3"}, "DEPTH = '3' does not fit: it takes an int, such as 3"),
        ({"DEPTH": 3.0}, "DEPTH = 3.0 does not fit"),
        ({"DEPTH": True}, "DEPTH = True does not fit"),
        ({"RATE": float("nan")}, "RATE = nan does not fit: it takes a float"),
        ({"RATE": "fast"}, "RATE = 'fast' does not fit"),
        ({"RATE": 10**400}, "does not fit: it takes a float"),
        ({"DEPTH": 2**70}, "does not fit: it takes an int"),
        ({"FAST": 1}, "FAST = 1 does not fit: it takes a bool"),
        ({"NAME": 1}, "NAME = 1 does not fit: it takes a string"),
        ({"BETAS": [0.8]}, r"BETAS = \[0.8\] does not fit: it takes 2 numbers"),
        ({"BETAS": 0.8}, "BETAS = 0.8 does not fit"),
        ({"IDLE": 2}, "knob IDLE is unused"),
    ],
)
def test_write_refuses_a_value_that_does_not_fit_and_names_the_knob(values, text):
    with pytest.raises(knobs.KnobError, match=text):
        knobs.write(SMALL, values)


@pytest.mark.parametrize("second", ["A = 2", "if x:\n    A = 2", "A += 1"])
def test_write_refuses_a_duplicate_assignment_and_names_its_lines(second):
    with pytest.raises(knobs.KnobError, match=r"A is assigned more than once \(lines 1, 3\)"):
        knobs.write(f"A = 1\nprint(A)\n{second}\n", {"A": 3})


def test_write_refuses_a_file_that_does_not_parse():
    with pytest.raises(knobs.KnobError, match="does not parse"):
        knobs.write("A = (", {"A": 1})


def test_a_knob_that_only_a_comment_or_itself_names_is_unused():
    assert knobs.unused("A = 1  # A\nB = 1\nprint(B)\n") == {"A"}


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63))
def test_every_number_reads_back_as_it_was_written(rate, depth):
    written = knobs.read(knobs.write(SMALL, {"RATE": rate, "DEPTH": depth}))
    assert (written["RATE"], written["DEPTH"]) == (rate, depth)


# Ways to write a value of each type, what may stand around it, and what a file has besides.
SPELLED = {
    int: ["3", "0x1F", "1_000", "-4", "2**19", "(2)**3 // 5"],
    float: ["0.50", "1e-3", ".5", "-2.", "1 / 4"],
    bool: ["True", "False"],
    str: ["'L'", '"S"', r"r'\d'", '"""a\n\tb"""', "'a' 'b'", "''", "'\N{SNOWMAN}'"],
}
AROUND = [("", ""), ("(", ")"), ("( (", "))"), ("(  # what it is\n  ", "  # \N{SNOWMAN}\n)")]
TUPLES = [("(", ",", ")"), ("( # one\n", " , # \N{SNOWMAN}\n", ",\n )"), ("", ", ", "")]
FILLERS = [
    "",
    "   ",
    "# \N{SNOWMAN} \x85 \u2028 A = 1",
    "\x0c",
    "def f():\n\tA = 7  # its own\n\treturn A",
    "if x :\n  pass\n # odd\nelse : pass",
    "x = '''\nA = 1\n'''",
    "x = '\N{SNOWMAN}' ;y=2",
    "\\\nx = 1",
]
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INTS = st.integers(-(2**63), 2**63)


@st.composite
def files(draw):
    """A train.py in pieces: (text, None), or (a literal, its knob and its place in a tuple)."""
    pieces = []

    def value(kind, name, place=None):
        before, after = draw(st.sampled_from(AROUND))
        pieces.extend(
            [(before, None), (draw(st.sampled_from(SPELLED[kind])), (name, place)), (after, None)]
        )

    for name in draw(st.lists(st.sampled_from("ABCDE"), unique=True, min_size=1)):
        pieces += [
            (f"{filler}\n", None) for filler in draw(st.lists(st.sampled_from(FILLERS), max_size=2))
        ]
        pieces.append(
            (
                draw(st.sampled_from(["", "\x0c"]))
                + name
                + draw(st.sampled_from([" = ", "=", "\t =  ", ": 'why' = ", " = \\\n  "])),
                None,
            )
        )
        if (kind := draw(st.sampled_from([*SPELLED, tuple]))) is tuple:
            begin, between, end = draw(st.sampled_from(TUPLES))
            for place in range(draw(st.integers(2, 3))):
                pieces.append((between if place else begin, None))
                value(draw(st.sampled_from([int, float])), name, place)
            pieces.append((end, None))
        else:
            value(kind, name)
        pieces.append(
            (draw(st.sampled_from(["\n", "  # \N{SNOWMAN} 3\n", " ; z = 1\n", "\t\n"])), None)
        )
    pieces.append(("print(A, B, C, D, E)" + draw(st.sampled_from(["", "\n", "\n\n# end"])), None))
    line_end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    return [(text.replace("\n", line_end), slot) for text, slot in pieces]


def value_like(value):
    if isinstance(value, tuple):
        return st.tuples(*map(value_like, value))
    return {bool: st.booleans(), int: INTS, float: FLOATS, str: st.text(max_size=8)}[type(value)]


@settings(deadline=None, derandomize=True, max_examples=100)
@given(files(), st.data())
def test_writing_changes_the_literals_and_nothing_else(pieces, data):
    source = "".join(text for text, _ in pieces)
    old: dict[str, Any] = dict(knobs.read(source))
    assert set(old) == {slot[0] for _, slot in pieces if slot}
    assert knobs.write(source, old) == source
    new = {name: data.draw(value_like(value)) for name, value in old.items()}
    expected = ""
    for text, slot in pieces:
        if slot:
            name, place = slot
            before, after = (
                values[name] if place is None else values[name][place] for values in (old, new)
            )
            text = text if before == after else repr(after)
        expected += text
    written = knobs.write(source, new)
    assert written == expected
    assert knobs.read(written) == new


def test_train_py_survives_a_round_trip_through_other_values():
    there = knobs.write(TRAIN, {"DEPTH": 9, "ADAM_BETAS": (0.9, 0.99), "WINDOW_PATTERN": "SSSL"})
    assert there != TRAIN
    assert knobs.read(knobs.write(there, knobs.read(TRAIN))) == knobs.read(TRAIN)


def test_the_hash_ignores_comments_layout_and_docstrings():
    plain = "def f(a):\n    return a\n"
    dressed = '"""What it does."""\n\n\ndef f( a ):  # why\n    """Doc."""\n\n    return (a)\n'
    assert Candidate.parse(plain).digest == Candidate.parse(dressed).digest


@pytest.mark.parametrize("other", ["A = 2", "B = 1", "A = 1.0", "A = '1'", "A = 1\nA = 1"])
def test_the_hash_sees_every_change_of_code(other):
    assert Candidate.parse("A = 1").digest != Candidate.parse(other).digest


def test_a_body_that_is_only_a_docstring_can_be_hashed():
    assert (
        Candidate.parse('def f():\n    """Doc."""\n').digest
        == Candidate.parse("def f():\n    pass\n").digest
    )
