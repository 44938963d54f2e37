"""What the report says of certification and fresh runs, and what it tells its reader to merge."""

import dataclasses

import pytest

from tasks.records import Quarantined
from tasks.views import report
from tests.certified_night import END, FOUND, certified_night, fresh
from tests.trials import make_fresh_run, make_state, make_trial

NOT_CERTIFIED = {"certification": None, "fresh_runs": ()}


def told(**changes) -> str:
    return report.markdown(certified_night(**changes))


def test_a_certified_night_says_what_holds_up_and_what_to_merge():
    text = told()
    assert (
        "Certified: 2 of 3 kept changes, 0.035000 (0.012330 to 0.057670) bits per byte better"
        in text
    )
    assert (
        "| 1 | BIGRAM_TABLE 0 -> 16 | 0.021000 | 4.20 | 4 | certified | z 4.20 is above 2 |" in text
    )
    assert r"| 4 | DEPTH 3 -> 2 \| 1 | 0.012400 |" in text
    assert "| 0.20 | 6 | not shown to help | z 0.20 after 6 runs |" in text
    assert "| search champion c6 | 1.600000 | 1.610000 (1.585159 to 1.634841) | 3 |" in text
    assert "Optimism of the search champion: 0.010000" in text
    assert "`git merge autoresearch/nov21-certified`" in text
    assert "keeping them is your choice" in text
    assert "./run certify" not in text


def test_a_night_that_is_certified_whole_offers_one_branch():
    claims = tuple(dataclasses.replace(claim, certificate="certified") for claim in FOUND.claims)
    text = told(certification=dataclasses.replace(FOUND, claims=claims))
    assert "autoresearch/nov21-certified" in text
    assert "your choice" not in text


def test_where_nothing_is_certified_nothing_is_to_be_merged():
    claims = tuple(dataclasses.replace(claim, certificate="open") for claim in FOUND.claims)
    text = told(certification=dataclasses.replace(FOUND, claims=claims, tip=None))
    assert "Merge nothing yet: no change is certified." in text
    assert "Certified: 0 of 3 kept changes." in text
    assert "nov21-certified" not in text
    assert "| open |" in text


@pytest.mark.parametrize("finished", ["all trials are done", None])
def test_a_night_that_is_not_certified_says_so_and_how_it_can_be(finished):
    text = told(**NOT_CERTIFIED, finished=finished)
    assert "**Not certified.** The search's own scores are the only evidence for the 3" in text
    who = "`./run certify nov21`" if finished else "At its end the night"
    assert f"{who} takes each out alone" in text
    left = "3 changes were kept and none is certified: `./run certify nov21` takes about"
    assert (left in text) == bool(finished)
    assert "Certify what was kept before you merge it: `./run certify nov21`" in text


def test_the_certification_of_an_earlier_champion_says_what_it_lacks():
    earlier = dataclasses.replace(FOUND, champion="c4", claims=FOUND.claims[:2])
    text = told(certification=earlier)
    assert (
        "of an earlier champion, c4. 1 change was kept since the last certification: `./run "
        in text
    )


def test_a_night_that_kept_nothing_has_no_such_part():
    measured = (make_fresh_run(purpose="remeasurement"),)
    for runs in ((), measured):
        state = make_state(make_trial(1), fresh_runs=runs)
        assert "What is certified" not in report.markdown(state)


def test_what_a_fresh_run_lacks_is_said_with_its_reason():
    stopped = fresh((), None, 41, status="train_timeout", reason="it took <b>too</b> long")
    reason = "trained and scored, but not on the holdout: eval_timeout: too slow"
    text = told(fresh_runs=(*END, stopped, fresh((), 1.61, 42, holdout_bpb=None, reason=reason)))
    assert r"seed 41 has no score: it took \<b>too\</b> long." in text
    assert f"seed 42 has no holdout score: {reason}." in text


def test_a_fresh_run_on_an_unusual_machine_says_why_it_was_made_again():
    aside = Quarantined("champion", 41, "the hypervisor took 30% of the CPU time", "ok", 1.7)
    late = "a run counts although the hypervisor took 20% of the CPU time"
    text = told(fresh_runs=(*END, fresh((), 1.61, 41, quarantined=(aside,), unusual=late)))
    assert f"The run with seed 41 was set aside once and made again: {aside.disturbance}." in text
    assert f"The run with seed 41: {late}." in text


def test_a_profile_without_a_holdout_says_so():
    runs = tuple(dataclasses.replace(run, holdout_bpb=None) for run in END)
    header = {"settings": {"data": {"holdout": None}}}
    text = told(fresh_runs=runs, header=header)
    assert "Holdout: none, as the profile names no `[data] holdout`." in text
    assert "no holdout score" not in text
