import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import Rule
from tasks.noise import Noise
from tasks.records import Trial
from tasks.trial import certification, verdict
from tasks.trial.certification import Evidence, Searched
from tests.trials import make_trial

KNOWN = Noise(0.01, 10**6)  # an sd that no longer changes: z is t
WHOLE = (1.6, 1.6, 1.6)
MOST_RUNS = Rule().certification_runs


def without_at(z: float, runs: int, whole: tuple[float, ...] = WHOLE) -> tuple[float, ...]:
    """Scores of runs without a change whose z is `z`, where the noise is KNOWN."""
    return (sum(whole) / len(whole) + z * KNOWN.sd * math.sqrt(1 / len(whole) + 1 / runs),) * runs


def evidence_at(*zs: float, runs: int = 2) -> Evidence:
    return Evidence(WHOLE, {(k,): without_at(z, runs) for k, z in enumerate(zs, 1)})


def certificates(evidence: Evidence, nulls: float = 1.0) -> list[str]:
    return [claim.certificate for claim in certification.claims(evidence, KNOWN, nulls)]


def test_what_is_much_worse_without_it_is_certified():
    (claim,) = certification.claims(evidence_at(3.0), KNOWN, 1.0)
    assert claim.trials == (1,)
    assert claim.certificate == "certified"
    assert claim.z == pytest.approx(3.0, abs=1e-3)
    assert claim.gain == pytest.approx(3 * 0.01 * math.sqrt(1 / 3 + 1 / 2))
    assert claim.runs == 2
    assert claim.reason == (
        "without it the champion is worse by 0.0274 bits per byte, 3.0 standard errors, over 2 "
        "runs without it and 3 with"
    )


def test_what_may_be_luck_is_open_until_it_has_had_its_runs():
    assert certificates(evidence_at(1.0, runs=MOST_RUNS - 1)) == ["open"]
    (claim,) = certification.claims(evidence_at(1.0, runs=MOST_RUNS), KNOWN, 1.0)
    assert claim.certificate == "not_shown"


def test_what_is_better_without_it_is_not_shown_to_help():
    (claim,) = certification.claims(Evidence(WHOLE, {(2, 5): (1.59,)}), KNOWN, 1.0)
    assert claim.certificate == "not_shown"
    assert claim.reason == (
        "without them the champion is better by 0.0100 bits per byte, 0.9 standard errors, over 1 "
        "run without them and 3 with"
    )


def test_a_change_without_runs_is_open_and_has_no_figures():
    (claim,) = certification.claims(Evidence((), {(4,): ()}), KNOWN, 1.0)
    assert (claim.certificate, claim.gain, claim.z, claim.runs) == ("open", None, None, 0)
    assert claim.reason == "no fresh run of the champion without it yet"
    (claim,) = certification.claims(Evidence((), {(4,): (1.6,)}), KNOWN, 1.0)
    assert claim.reason == "no fresh run of the whole champion yet"


def test_more_likely_luck_asks_for_more_evidence():
    evidence = evidence_at(2.1, 0.5, 0.5, 0.5)
    assert certificates(evidence, 1.0)[0] == "certified"
    assert certificates(evidence, 4.0)[0] == "open"


def test_several_strong_changes_carry_a_weaker_one():
    assert certificates(evidence_at(2.1)) == ["certified"]
    assert certificates(evidence_at(1.2)) == ["open"]
    assert certificates(evidence_at(3.0, 3.0, 1.2)) == ["certified"] * 3
    assert certificates(evidence_at(3.0, 3.0, 1.0))[-1] == "open"
    assert certificates(evidence_at(3.0, 3.0, 0.4), nulls=0.1)[-1] == "open"


def test_the_profile_says_how_much_luck_is_allowed_and_how_many_runs():
    evidence = evidence_at(2.1)

    def certificate(**settings) -> str:
        (claim,) = certification.claims(evidence, KNOWN, 1.0, Rule(**settings))
        return claim.certificate

    assert certificate() == "certified"
    assert certificate(false_discovery_rate=0.01) == "open"
    assert certificate(false_discovery_rate=0.01, certification_runs=2) == "not_shown"
    assert certification.next_run(evidence, KNOWN, 1.0) is not None
    assert certification.next_run(evidence, KNOWN, 1.0, Rule(certification_runs=2)) is None


def test_without_changes_there_is_nothing_to_do():
    assert certification.next_run(Evidence((1.6,), {}), KNOWN) is None
    assert certification.claims(Evidence((1.6,), {}), KNOWN, 1.0) == ()


def test_runs_are_interleaved_and_end():
    """Two changes that help, one as much as the other: the order of runs until nothing is open."""
    whole: tuple[float, ...] = ()
    without: dict[tuple[int, ...], tuple[float, ...]] = {(1,): (), (2, 3): ()}
    order = []
    while (group := certification.next_run(Evidence(whole, without), KNOWN)) is not None:
        order.append(group)
        if group:
            without[group] += (1.61,)
        else:
            whole += (1.6,)
    assert order[:8] == [(), (1,), (), (2, 3), (1,), (), (2, 3), (1,)]
    assert {group: order.count(group) for group in ((), (1,), (2, 3))} == {
        (): int(1.5 * MOST_RUNS),
        (1,): MOST_RUNS,
        (2, 3): MOST_RUNS,
    }


def test_what_is_decided_gets_no_more_runs():
    evidence = Evidence(WHOLE, {(1,): without_at(3.6, 1), (2,): without_at(0.5, 1), (3,): (1.5,)})
    assert certification.next_run(evidence, KNOWN) == (2,)


def test_the_most_promising_of_equals_comes_first():
    evidence = Evidence(WHOLE, {(1,): without_at(0.2, 1), (2,): without_at(0.7, 1)})
    assert certification.next_run(evidence, KNOWN) == (2,)


def discarded(z: float | None, runs: int = 1) -> Trial:
    return dataclasses.replace(
        make_trial(1), verdict="discard", z=z, scores=(1.6,) * runs, placebo=None
    )


def test_candidates_that_were_a_little_better_tell_how_many_keeps_are_luck():
    near = [discarded(0.5)] * 10
    others = [
        discarded(-0.1),
        discarded(0.5, runs=2),
        discarded(None, runs=0),
        dataclasses.replace(discarded(0.5), verdict="keep"),
        dataclasses.replace(discarded(0.5), placebo="discard"),
    ]
    assert certification.null_candidates(near + others) == 9.0
    assert certification.null_candidates([]) == certification.LEAST_NULLS


def searched(z: float, runs: int = 3, noise: Noise = KNOWN) -> Trial:
    """A kept trial whose candidate had so many runs and this z."""
    return dataclasses.replace(
        make_trial(1),
        verdict="keep",
        z=z,
        scores=(1.6,) * runs,
        noise_sd=noise.sd,
        noise_df=noise.degrees_of_freedom,
    )


def test_the_runs_of_the_trials_tell_a_gain_and_how_sure_it_is():
    one = Searched.by([searched(2.0, runs=3)])
    assert one is not None
    assert one.gain == pytest.approx(2 * 0.01 * math.sqrt(2 / 3), rel=1e-4)
    assert one.variance == pytest.approx(2 / 3)
    both = Searched.by([searched(2.0, runs=3), searched(1.0, runs=1)])
    assert both is not None
    assert both.gain == pytest.approx(one.gain + 0.01 * math.sqrt(4 / 3), rel=1e-4)
    assert both.variance == pytest.approx(2 / 3 + 4 / 3)
    older = dataclasses.replace(searched(2.0), noise_sd=None, noise_df=None)
    assert Searched.by([searched(2.0), older]) is None


def test_a_gain_that_few_degrees_of_freedom_made_doubtful_is_taken_as_it_was():
    champion, scores, noise = [1.6] * 3, [1.57, 1.58], Noise(0.01, 2)
    z = verdict.z_score(champion, scores, noise)
    found = Searched.by([dataclasses.replace(searched(z, noise=noise), scores=tuple(scores))])
    assert found is not None
    assert found.gain == pytest.approx(1.6 - 1.575)


def test_all_runs_count_but_only_fresh_ones_can_show_that_a_change_helps():
    found = Searched.by([searched(2.5)])
    assert found is not None
    search: dict[tuple[int, ...], Searched] = {(1,): found}

    def evidence(z: float) -> Evidence:
        return dataclasses.replace(evidence_at(z), searched=search)

    assert certificates(evidence_at(1.0), nulls=4.0) == ["open"]
    assert certificates(evidence(1.0), nulls=4.0) == ["certified"]
    assert certificates(evidence(0.4), nulls=0.1) == ["open"]
    assert certificates(evidence(-0.1), nulls=0.1) == ["not_shown"]
    # 2.5 with 3 runs of each, 1.0 with 2 and 3: each weighs as much as it is sure.
    both = (2.5 * math.sqrt(1.5) + 1.0 * math.sqrt(1.2)) / math.sqrt(1.5 + 1.2)
    assert evidence(1.0).z_of_all((1,), KNOWN) == pytest.approx(both, abs=1e-3)
    (claim,) = certification.claims(evidence(1.0), KNOWN, 4.0)
    assert claim.z == pytest.approx(1.0, abs=1e-3)
    assert claim.reason.endswith("and 3 with; 2.5 with the search's runs too")


SCORE = st.floats(1.5, 1.7)
RUNS = st.lists(SCORE, max_size=MOST_RUNS).map(tuple)
NOISES = st.builds(Noise, st.floats(5e-4, 0.05), st.integers(0, 40))
NULLS = st.floats(0.1, 20)
GROUPS = st.integers(0, 5).flatmap(
    lambda count: st.tuples(*[RUNS] * count).map(lambda runs: {(k,): r for k, r in enumerate(runs)})
)
SEARCHED = st.builds(Searched, st.floats(-0.05, 0.1), st.floats(0.2, 4))
SEARCH = st.dictionaries(st.integers(0, 4).map(lambda k: (k,)), SEARCHED)
ORDER = {"not_shown": 0, "open": 1, "certified": 2}


@given(RUNS, GROUPS, SEARCH, NOISES, NULLS)
def test_there_is_a_next_run_exactly_while_something_may_change(
    whole, without, search, noise, nulls
):
    evidence = Evidence(whole, without, search)
    following = certification.next_run(evidence, noise, nulls)
    claims = certification.claims(evidence, noise, nulls)
    assert [claim.trials for claim in claims] == sorted(without)
    assert following is None or following == () or following in without
    if any(claim.certificate == "open" for claim in claims):
        assert following is not None


@given(RUNS, GROUPS, SEARCH, NOISES, NULLS, st.data())
def test_a_worse_score_without_a_change_never_speaks_against_any(
    whole, without, search, noise, nulls, data
):
    run = {group: runs for group, runs in without.items() if runs}
    if not run:
        return
    changed = data.draw(st.sampled_from(sorted(run)))
    worse = tuple(score + data.draw(st.floats(0, 0.1)) for score in run[changed])
    before, after = (
        certification.claims(Evidence(whole, {**without, changed: runs}, search), noise, nulls)
        for runs in (run[changed], worse)
    )
    for old, new in zip(before, after, strict=True):
        assert ORDER[new.certificate] >= ORDER[old.certificate]


@given(RUNS, GROUPS, SEARCH, NOISES, NULLS, NULLS)
def test_more_likely_luck_never_certifies_more(whole, without, search, noise, nulls, more):
    few, many = (
        {
            claim.trials
            for claim in certification.claims(Evidence(whole, without, search), noise, count)
            if claim.certificate == "certified"
        }
        for count in (nulls, nulls + more)
    )
    assert many <= few
