import pytest

from tasks.search import archive
from tasks.search.archive import MOST_BUILT, Archive
from tests.small_night import BASE, after, changed, resumed, start

SHALLOW = changed(BASE, ("DEPTH = 3", "DEPTH = 2"))
OTHER = changed(BASE, ("return x * DECAY", "return abs(x) * DECAY"))


@pytest.mark.parametrize(
    ("size", "chosen"), [(0, ()), (1, (1,)), (2, (1, 3)), (3, (1, 3, 4)), (9, (1, 3, 4))]
)
def test_good_designs_that_are_unlike_each_other_are_chosen(size, chosen):
    scores = {1: 0.9, 2: 0.85, 3: 0.5, 4: 0.6}
    designs = {
        1: frozenset({"attend"}),
        2: frozenset({"attend"}),  # the same as 1, and worse
        3: frozenset({"loss"}),
        4: frozenset({"loss", "attend"}),  # better than 3, but half of it is chosen already
    }
    assert archive.diverse(scores, designs, size) == chosen


def test_only_near_files_of_another_design_wait(tmp_path):
    night = after(start(tmp_path), SHALLOW, -2.0)
    night = after(night, changed(BASE, ("LR = 0.1", "LR = 0.3")), 0.5)  # a rate
    night = after(night, changed(BASE, ("return q * DEPTH", "return q + DEPTH")), -9.0)  # far off
    night = after(night, OTHER, -1.0)
    night = after(night, changed(BASE, ("return LR", "return -LR")), None)  # no score
    assert Archive(3).members(night) == (4, 1)
    stacked = after(night, OTHER, 2.0, keep=True, search="stack", built_on=(4,))
    assert 4 not in Archive(3).members(stacked)


def test_parents_take_turns_until_they_have_led_to_nothing(tmp_path):
    night = after(after(start(tmp_path), SHALLOW, -2.0), OTHER, -1.0)
    given = []
    while parent := Archive(2).parent(night):
        assert parent == Archive(2).parent(resumed(night))
        assert parent.candidate.source == {1: SHALLOW, 2: OTHER}[parent.trial]
        assert parent.val_bpb == night.trials[parent.trial - 1].val_bpb
        given.append(parent.trial)
        worse = changed(BASE, ("DECAY = 0.2", f"DECAY = {len(given)}.0"))
        night = after(night, worse, -9.0, search="archive", built_on=(parent.trial,))
    assert given == [2, 1] * MOST_BUILT
