"""What a prompt leaves out of train.py where no GPU is: nothing that runs."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.proposers import answer, edit_blocks
from tasks.proposers.folding import FOLD, folded, unfolded
from tasks.records import Candidate
from tasks.usage import estimate_tokens
from tests.synthetic_night import TRAIN

TESTS = [
    'device == "cuda"',
    'device != "cuda"',
    'not "cuda" == device',
    'flag and device == "cuda"',
    'flag or device == "cuda"',
    "compiled",
    "not compiled",
    "flag",
    "flag or not compiled",
    "other",
]


def hidden(source: str, device: str = "cpu") -> set[int]:
    """The numbers of the lines that are not shown."""
    found = (FOLD.fullmatch(line) for line in folded(source, device).split("\n"))
    spans = (map(int, span.groups()) for span in found if span)
    return {line for first, last in spans for line in range(first, last + 1)}


def test_train_py_loses_what_only_a_gpu_runs():
    shown = folded(TRAIN, "cpu")
    saved = estimate_tokens(len(TRAIN)) - estimate_tokens(len(shown))
    assert saved > 1000
    for name in ("flash_attention_3", "flex_attention", "smoke_test"):
        assert f"def {name}(" not in shown
    for name in ("local_attention", "choose_attention", "cross_entropy", "load_model", "main"):
        assert f"def {name}(" in shown
    assert unfolded(shown, TRAIN) == TRAIN
    assert folded(TRAIN, "cuda") == TRAIN
    assert hidden(TRAIN, "mps") == hidden(TRAIN)


@st.composite
def programs(draw):
    """Functions that call later ones, with tests of the device all over."""
    lines = []

    def block(indent, depth, later):
        for _ in range(draw(st.integers(1, 3))):
            kind = draw(st.sampled_from(["call", "line", "if", "if", "return"]))
            if kind == "call" and later:
                lines.append(f"{indent}{draw(st.sampled_from(later))}(device, flag, other)")
            elif kind == "if" and depth < 3:
                lines.append(f"{indent}if {draw(st.sampled_from(TESTS))}:")
                block(f"{indent}    ", depth + 1, later)
                if draw(st.booleans()):
                    lines.append(f"{indent}else:")
                    block(f"{indent}    ", depth + 1, later)
            elif kind == "return":
                lines.append(f"{indent}return")
            else:
                lines.extend([f"{indent}x = [", f"{indent}    1,", f"{indent}]"])

    names = [f"f{i}" for i in range(4)]
    for place, name in enumerate(names):
        lines.append(f"def {name}(device, flag, other):")
        lines.append('    compiled = device == "cuda"')
        if draw(st.booleans()):
            lines.append(f"    {draw(st.sampled_from(['compiled', 'other']))} = other")
        block("    ", 0, names[place + 1 :])
        lines.append("")
    return "\n".join(lines)


@given(programs())
@settings(max_examples=150, deadline=None)
def test_no_line_that_runs_is_hidden(source):
    ran = set()

    def trace(frame, event, arg):
        if frame.f_code.co_filename == "candidate":
            ran.add(frame.f_lineno)
            return trace
        return None

    space: dict = {}
    exec(compile(source, "candidate", "exec"), space)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for flag, other in ((True, False), (False, True), (True, True), (False, False)):
            space["f0"]("cpu", flag, other)
    finally:
        sys.settrace(before)
    assert not ran & hidden(source)


DEAD = 'def main(device):\n    if device == "cuda":\n        a()\n        b()\n        c()\n'


@pytest.mark.parametrize(
    "more",
    [
        'device = "cuda"\n',
        'WHERE = {"cuda": 1}\n',
        "class T:\n    is_cuda = True\n",
        "import mine as is_cuda\n",
        "x.is_cuda = True\n",
    ],
)
def test_where_the_device_might_be_another_nothing_is_hidden(more):
    assert hidden(DEAD) == {3, 4, 5}
    assert hidden(DEAD + more) == set()


@pytest.mark.parametrize(
    ("use", "is_hidden"),
    [
        ("", True),
        ("x = helper\n", False),
        ("x.helper()\n", False),
        ('x = globals()["helper"]\n', False),
        ('def g():\n    """Like helper."""\n', True),
    ],
)
def test_a_function_is_hidden_if_dead_lines_alone_name_it(use, is_hidden):
    helper = "def helper():\n    a()\n    b()\n\n\n"
    source = helper + DEAD.replace("a()", "helper()") + use
    assert (2 in hidden(source)) is is_hidden
    assert 2 not in hidden(f"@registered\n{source}")


def test_a_search_that_holds_a_fold_is_told_so():
    shown = folded(TRAIN, "cpu").split("\n")
    place = next(place for place, line in enumerate(shown) if FOLD.fullmatch(line))
    block = "\n".join(shown[place - 3 : place + 2])
    text = f"SUMMARY: x\n<<<<<<< SEARCH\n{block}\n=======\npass\n>>>>>>> REPLACE\n"
    with pytest.raises(answer.EditError, match="lines that you are not shown") as failed:
        edit_blocks.apply(answer.parse(text), Candidate.parse(TRAIN))
    assert failed.value.outcome == "not_found"


def test_a_whole_file_gets_back_what_was_hidden():
    whole = folded(TRAIN, "cpu").replace("DEPTH = 3 ", "DEPTH = 4 ")
    found = edit_blocks.apply(
        answer.parse(f"SUMMARY: x\n```python\n{whole}```\n"), Candidate.parse(TRAIN)
    )
    assert found.source == TRAIN.replace("DEPTH = 3 ", "DEPTH = 4 ")
