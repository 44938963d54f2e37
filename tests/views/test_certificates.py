"""What `./run certify` prints of a certification."""

import json
import re

from tasks.records import Certification, Claim
from tasks.views import certificates
from tests.trials import keep, make_state, make_trial

CHAMPION = "abcdef" * 7
KEEPS = (
    keep(1, summary="UNEMBEDDING_LR 0.004 -> 0.002"),
    make_trial(2),
    keep(3, summary="a gate\nof its own, and far too many words for one line of a table"),
    keep(4, summary="DEPTH 3 -> 4"),
)
CUT = "a gate of its own, and far...; DEPTH 3 -> 4"
CLAIMS = (
    Claim((1,), "certified", 0.0123456, 4.056, 2, "better"),
    Claim((3, 4), "not_shown", -0.001, -0.31, 6, "worse"),
)


def certified(*claims, tip="c" * 40, champion=CHAMPION, **changes):
    found = Certification(champion, claims, 5, tip)
    return make_state(*KEEPS, certification=found, champion=CHAMPION, **changes)


def test_the_table_has_each_change_and_what_to_merge():
    text = certificates.text(certified(*CLAIMS))
    head, _, *table = text.splitlines()[:5]
    assert head == "night nov21. Certified: 1 of 3 kept changes."
    assert [re.split(r" {2,}", row.strip()) for row in table] == [
        ["trial", "change", "gain", "z", "runs without it", "result"],
        ["1", "UNEMBEDDING_LR 0.004 -> 0.002", "0.012346", "4.06", "2", "certified"],
        ["3, 4", CUT, "-0.001000", "-0.31", "6", "not shown to help"],
    ]
    assert table[1].index("0.012346") == table[2].index("-0.001000") + 1
    assert "mean of 5 fresh runs" in text
    assert "`git merge autoresearch/nov21-certified`" in text


def test_more_runs_are_offered_while_something_is_open():
    state = certified(Claim((1, 3, 4), "open", None, None, 0, "no run"), tip=None)
    text = certificates.text(state)
    assert text.splitlines()[3].split()[-4:] == ["-", "-", "0", "open"]
    assert "Merge nothing yet: no change is certified." in text
    assert "`./run certify nov21` adds to these" in text


def test_a_certification_of_an_earlier_champion_is_not_the_present_ones():
    state = certified(CLAIMS[0], champion="d" * 40)
    assert "2 changes were kept since the last certification" in certificates.text(state)
    assert certificates.as_json(state)["claims"] == []


def test_a_night_that_kept_nothing_says_so():
    nothing = make_state(make_trial(1))
    assert certificates.text(nothing) == (
        "night nov21 has kept no change: there is nothing to certify"
    )


def test_json_has_the_same_and_the_branch():
    found = json.loads(json.dumps(certificates.as_json(certified(*CLAIMS))))
    assert found["claims"][0]["trials"] == [1]
    assert (found["branch"], found["commit"]) == ("autoresearch/nov21-certified", "c" * 40)
    assert (found["kept"], found["whole_runs"]) == (3, 5)
