"""Which runs of a trial are audited: all that could enter a keep."""

from flows.night.run_trial import _may_be_kept

CHAMPION, SD = (1.7, 1.71, 1.72), 0.005


def test_a_score_that_would_be_discarded_needs_no_audit():
    assert not _may_be_kept(CHAMPION, (), SD, 0, 1.72)
    assert not _may_be_kept(CHAMPION, (1.709,), SD, 0, 1.712)


def test_a_score_that_would_be_kept_or_confirmed_does():
    assert _may_be_kept(CHAMPION, (), SD, 0, 1.60)
    assert _may_be_kept(CHAMPION, (), SD, 0, 1.705)
    assert _may_be_kept(CHAMPION, (1.705,), SD, 0, 1.704)


def test_so_does_a_tie_with_fewer_lines():
    assert not _may_be_kept(CHAMPION, (), SD, 0, 1.71)
    assert _may_be_kept(CHAMPION, (), SD, -3, 1.71)
