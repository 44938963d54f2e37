from tasks.proposers.tpe import TpeProposer
from tasks.search.constants import Constants
from tests.small_night import BASE, after, changed, start, taken

KEPT = changed(
    BASE, ("return x * DECAY", "return x * DECAY + BONUS"), ("LR = 0.1", "LR = 0.1\nBONUS = 0.4")
)


def test_what_came_in_with_a_kept_patch_is_turned_first(tmp_path):
    strategy = Constants(TpeProposer(new_first=True))
    night = after(start(tmp_path), KEPT, 4.0, keep=True)
    values = []
    for _ in range(2):
        proposed = strategy.propose(night)
        assert proposed is not None
        assert (proposed.idea.search, proposed.idea.proposer) == ("constants", "tpe")
        values.append(proposed.candidate.knobs["BONUS"])
        night = taken(night, proposed, -1.0)
    assert values == [0.8, 0.2]
    proposed = strategy.propose(night)  # then what the search space lists
    assert proposed is not None
    assert proposed.idea.summary == "DEPTH 3 -> 2"


def test_nothing_is_proposed_if_no_knob_can_be_turned(tmp_path):
    fixed = changed(BASE, ("DEPTH = 3\nLR = 0.1\nDECAY = 0.2\n", "a = 1\n"))
    night = start(tmp_path, fixed.replace("LR", "a").replace("DECAY", "a").replace("DEPTH", "a"))
    assert Constants(TpeProposer(new_first=True)).propose(night) is None
