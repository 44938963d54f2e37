"""Champions without some of their changes, by the real git: what can be taken out, what is tied."""

import pytest

from tasks.proposers import ablation, three_way_merge
from tasks.proposers.ablation import Changes, Conflict

# Long enough that changes at its two ends do not meet.
BODY = "".join(f"    step_{n} = {n}\n" for n in range(8))
BASE = (
    f"LR = 0.1\nDECAY = 0.2\n\ndef load_model(path, device):\n{BODY}\n"
    f"def main():\n{BODY}    print(LR, DECAY)\n"
)


def changed(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


def keeps(*pairs: tuple[str, str]) -> Changes:
    """Each keep replaces one piece of text in the one before it."""
    files, last = {}, BASE
    for number, pair in enumerate(pairs, 1):
        last = files[number] = changed(last, pair)
    return Changes(BASE, files)


KNOBS = keeps(("LR = 0.1", "LR = 0.3"), ("DECAY = 0.2", "DECAY = 0.0"))
BUILT_ON = keeps(
    ("    print(LR, DECAY)\n", "    a = LR\n    print(a, DECAY)\n"),
    ("DECAY = 0.2", "DECAY = 0.1"),
    ("    a = LR\n", "    a = 2 * LR\n"),
)


def test_a_file_without_a_change_is_merged_once(monkeypatch):
    ablation.groups(BUILT_ON)
    monkeypatch.setattr(three_way_merge, "three_way", None)
    assert ablation.groups(BUILT_ON) == ((1, 3), (2,))
    assert BUILT_ON.without((2,)).knobs["DECAY"] == 0.2


def test_changes_of_neighbouring_knobs_can_be_taken_out_alone():
    assert ablation.groups(KNOBS) == ((1,), (2,))
    assert KNOBS.without((1,)).source == changed(BASE, ("DECAY = 0.2", "DECAY = 0.0"))
    assert KNOBS.without((2,)).source == changed(BASE, ("LR = 0.1", "LR = 0.3"))


def test_without_nothing_it_is_the_champion_and_without_all_the_baseline():
    assert KNOBS.without(()).source == KNOBS.keeps[2]
    assert KNOBS.without((1, 2)).source == BASE


def test_a_change_built_on_another_is_tied_to_it_whichever_is_taken_out():
    with pytest.raises(Conflict):
        BUILT_ON.without((1,))
    # Without the later one alone, the earlier one is as it was.
    assert ablation.removable(BUILT_ON, [3]) == (3,)
    assert ablation.groups(BUILT_ON) == ((1, 3), (2,))


def test_a_knob_that_was_changed_twice_ties_the_two():
    twice = keeps(
        ("LR = 0.1", "LR = 0.3"), ("LR = 0.3", "LR = 0.5"), ("DECAY = 0.2", "DECAY = 0.0")
    )
    assert ablation.groups(twice) == ((1, 2), (3,))


def test_what_cannot_be_run_without_a_change_is_tied_to_the_next_one():
    two_mains = keeps(
        ("    print(LR, DECAY)\n", "    print(LR, DECAY)\n\ndef main():\n    print(LR, DECAY)\n"),
        ("\ndef main():\n    step_0", "\ndef before():\n    step_0"),
        ("LR = 0.1", "LR = 0.3"),
    )
    assert two_mains.without((1,)).source.count("def main") == 0
    assert ablation.groups(two_mains) == ((1, 2), (3,))


def test_what_crashed_is_tied_to_the_next_change_and_in_the_end_the_baseline_is_left():
    three = keeps(
        ("LR = 0.1", "LR = 0.3"), ("DECAY = 0.2", "DECAY = 0.0"), ("step_0 = 0", "step_0 = 9")
    )
    assert ablation.groups(three) == ((1,), (2,), (3,))
    assert ablation.groups(three, {(1,)}) == ((1, 2), (3,))
    assert ablation.groups(three, {(1,), (1, 2)}) == ((1, 2, 3),)
    assert ablation.groups(three, {(3,)}) == ((1,), (2, 3))
    assert ablation.groups(three, {(1,), (1, 2), (1, 2, 3)}) == ((1, 2, 3),)
