import pytest

from tasks.search.hunk_ablation import HunkAblation
from tests.small_night import BASE, after, changed, resumed, start

ADDED = ("def loss(x):\n", "def loss(x):\n    print(x)\n")
LONGER = ("def attend(q):\n", "def attend(q):\n    print(q)\n    print(q)\n")
# Hunks that need each other: a function, and where it is called.
DEFINED = ("def main():\n", "def helper():\n    pass\n\ndef main():\n")
CALLED = ("def load_model(path, device):\n", "def load_model(path, device):\n    helper()\n")
LATER = ("    return LR\n", "    return -LR\n")


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_smallest_hunks_are_taken_out_once_for_each_keep(tmp_path, is_kept):
    kept = changed(BASE, ADDED, LONGER, DEFINED, CALLED)
    night = after(start(tmp_path), kept, 4.0, keep=True)
    proposed = HunkAblation().propose(night)
    assert proposed is not None
    assert proposed == HunkAblation().propose(resumed(night))
    assert proposed.candidate.source == changed(BASE, DEFINED, CALLED)
    assert (proposed.idea.search, proposed.idea.built_on) == ("ablation", (1,))
    assert proposed.idea.summary == "trial 1 without 2 of its 4 hunks"
    done = after(
        night, proposed.candidate.source, 0.0, keep=is_kept, search="ablation", built_on=(1,)
    )
    assert HunkAblation().propose(done) is None


def test_what_was_kept_since_stays(tmp_path):
    kept = changed(BASE, ADDED, LONGER, DEFINED, CALLED)
    night = after(start(tmp_path), kept, 4.0, keep=True)
    night = after(night, changed(kept, LATER), 2.0, keep=True)
    proposed = HunkAblation().propose(night)
    assert proposed is not None
    assert proposed.candidate.source == changed(BASE, DEFINED, CALLED, LATER)


@pytest.mark.parametrize(
    "hunks",
    [
        (ADDED, LONGER),  # too few
        # All hunks need each other.
        (DEFINED, CALLED, ("def loss(x):\n", "def loss(x):\n    helper()\n")),
        # A buffer by its name, read as an attribute.
        (
            ("def loss(x):\n", 'def loss(x):\n    register("starts")\n'),
            ("def attend(q):\n", "def attend(q):\n    print(q.starts)\n"),
            ("def main():\n", "def main():\n    print(LR.starts)\n    print(LR)\n"),
        ),
        # Knobs alone: without them there are as many statements.
        tuple(
            (f"def {name}:\n    step_0 = 0\n", f"def {name}:\n    step_0 = 1\n")
            for name in ("loss(x)", "attend(q)", "main()")
        ),
    ],
)
def test_a_keep_of_which_nothing_can_be_spared_stays_whole(tmp_path, hunks):
    night = after(start(tmp_path), changed(BASE, *hunks), 4.0, keep=True)
    assert HunkAblation().propose(night) is None
