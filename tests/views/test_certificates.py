"""What `./run certify` prints of a certification."""

import json

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
CLAIMS = (
    Claim((1,), "certified", 0.0123456, 4.056, 2, "better"),
    Claim((3, 4), "not_shown", -0.001, -0.31, 6, "worse"),
)


def certified(*claims, tip="c" * 40, champion=CHAMPION, **changes):
    found = Certification(champion, claims, 5, tip)
    return make_state(*KEEPS, certification=found, champion=CHAMPION, **changes)


def test_the_table_has_each_change_and_what_to_merge():
    text = certificates.text(certified(*CLAIMS))
    assert text.splitlines() == [
        "night nov21: 1 of 3 kept changes certified, compared with 5 fresh runs of the champion "
        "(abcdefa)",
        "",
        "change                                                  gain      z  runs  certificate",
        "1: UNEMBEDDING_LR 0.004 -> 0.002                   +0.012346   4.06     2  certified",
        "3: a gate of its own, an..., with 4: DEPTH 3 -> 4  -0.001000  -0.31     6  "
        "not shown to help",
        "",
        "To merge: autoresearch/nov21-certified, the baseline with the certified changes only.",
    ]


def test_more_runs_are_offered_while_something_is_open():
    state = certified(Claim((1, 3, 4), "open", None, None, 0, "no run"), tip=None)
    lines = certificates.text(state).splitlines()
    assert lines[3].split()[-4:] == ["-", "-", "0", "open"]
    assert lines[-2] == "Nothing is shown to help yet, so there is nothing to merge."
    assert "`./run certify nov21`" in lines[-1]


def test_a_certification_of_an_earlier_champion_is_not_the_present_ones():
    state = certified(*CLAIMS, champion="d" * 40)
    assert "3 changes were kept, none certified" in certificates.text(state)
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
