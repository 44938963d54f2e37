import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import Rule
from tasks.noise import Noise
from tasks.records import Verdict
from tasks.trial import verdict

SCORES = st.floats(0.5, 5.0)
LINES = st.integers(-200, 200)
ORDER = {"discard": 0, "confirm": 1, "keep": 2}
KNOWN = Noise(0.01, 10**6)  # an sd that no longer changes: z is t


def candidate_at(z: float, runs: int, champion: tuple[float, ...] = (1.6, 1.6, 1.6)) -> list[float]:
    """Scores whose z against `champion` is `z`, where the noise is KNOWN."""
    error = KNOWN.sd * math.sqrt(1 / len(champion) + 1 / runs)
    return [statistics.fmean(champion) - z * error] * runs


@pytest.mark.parametrize(
    ("z", "runs", "lines", "decision"),
    [
        (3.01, 1, 0, "keep"),
        (3.01, 1, 1000, "keep"),
        (2.99, 1, 0, "confirm"),
        (0.91, 1, 0, "confirm"),
        (0.89, 1, 0, "discard"),
        (0.91, 1, 5, "discard"),
        (1.01, 1, 5, "confirm"),
        (2.99, 1, 1000, "discard"),
        (0.89, 1, -1, "confirm"),
        (-0.29, 1, -1, "confirm"),
        (-0.31, 1, -9, "discard"),
        (2.31, 2, 0, "keep"),
        (2.29, 2, 0, "confirm"),
        (1.06, 2, 0, "confirm"),
        (1.04, 2, 0, "discard"),
        (2.31, 2, 25, "confirm"),
        (2.81, 2, 25, "keep"),
        (2.11, 3, 0, "keep"),
        (1.11, 3, 0, "confirm"),
        (1.09, 3, 0, "discard"),
        (-0.29, 3, -1, "confirm"),
        (1.61, 4, 0, "keep"),
        (1.21, 4, 0, "confirm"),
        (1.19, 4, 0, "discard"),
        (1.36, 5, 0, "keep"),
        (1.34, 5, 0, "discard"),
        (1.34, 5, -1, "keep"),
        (-0.29, 5, -1, "keep"),
        (-0.31, 5, -1, "discard"),
        (1.54, 5, 10, "discard"),
        (1.56, 5, 10, "keep"),
    ],
)
def test_the_rule(z, runs, lines, decision):
    decided = verdict.decide([1.6, 1.6, 1.6], candidate_at(z, runs), KNOWN, lines)
    assert decided.decision == decision
    assert decided.z == pytest.approx(z, abs=1e-3)


@pytest.mark.parametrize(
    ("z", "runs", "lines", "reason"),
    [
        (5.8, 1, 0, "better by 0.0670 bits per byte, 5.8 standard errors: kept at once"),
        (
            1.5,
            1,
            0,
            "better by 0.0173 bits per byte, 1.5 standard errors: may be luck, "
            "another seed decides",
        ),
        (
            0.5,
            1,
            0,
            "better by 0.0058 bits per byte, 0.5 standard errors: too little to be worth "
            "another run",
        ),
        (-4.0, 1, 0, "worse by 0.0462 bits per byte, 4.0 standard errors: no gain"),
        (0.0, 1, 0, "the same score: a tie"),
        (0.0, 1, -3, "the same score: a tie with 3 fewer statements, another seed decides"),
        (0.0, 5, -3, "the same score over 5 runs: a tie with 3 fewer statements, kept as simpler"),
        (
            1.0,
            5,
            -3,
            "better by 0.0073 bits per byte, 1.0 standard errors over 5 runs: a small "
            "gain with 3 fewer statements, kept as simpler",
        ),
        (1.7, 4, 0, "better by 0.0130 bits per byte, 1.7 standard errors over 4 runs: kept"),
        (
            1.0,
            2,
            0,
            "better by 0.0091 bits per byte, 1.0 standard errors over 2 runs: not confirmed",
        ),
        (
            2.0,
            5,
            50,
            "better by 0.0146 bits per byte, 2.0 standard errors over 5 runs: too little "
            "for 50 more statements, which must gain 2.4",
        ),
    ],
)
def test_the_reason_is_one_plain_line_with_figures(z, runs, lines, reason):
    assert verdict.decide([1.6, 1.6, 1.6], candidate_at(z, runs), KNOWN, lines).reason == reason


def test_z_is_in_standard_errors_of_the_difference():
    z = verdict.z_score([1.0, 1.1, 1.2], [1.0], Noise(0.05, 0))
    assert z == pytest.approx(0.1 / (0.05 * math.sqrt(1 / 3 + 1)))


STUDENT = {  # quantiles of t by degrees of freedom, as tabulated
    2: (1.886, 2.920, 4.303, 6.965, 9.925),
    5: (1.476, 2.015, 2.571, 3.365, 4.032),
    8: (1.397, 1.860, 2.306, 2.896, 3.355),
    20: (1.325, 1.725, 2.086, 2.528, 2.845),
}


@pytest.mark.parametrize("df", STUDENT)
def test_z_is_as_unlikely_as_students_t(df):
    noise = Noise(math.sqrt(0.5), df)
    for quantile, t in zip((0.9, 0.95, 0.975, 0.99, 0.995), STUDENT[df], strict=True):
        z = verdict.z_score([t], [0.0], noise)
        assert z == pytest.approx(statistics.NormalDist().inv_cdf(quantile), rel=0.03)
        assert verdict.as_students_t(z, df) == pytest.approx(t)
        assert verdict.z_score([0.0], [t], noise) == -z


@pytest.mark.parametrize(
    ("champion", "candidate", "sd"), [([], [1.0], 0.1), ([1.0], [], 0.1), ([1.0], [1.0], 0.0)]
)
def test_z_of_nothing_is_an_error(champion, candidate, sd):
    with pytest.raises(ValueError, match="must be positive"):
        verdict.z_score(champion, candidate, Noise(sd, 5))


def test_no_verdict_needs_more_than_five_runs():
    with pytest.raises(ValueError, match="6 runs of a candidate: 5 decide"):
        verdict.decide([1.6], [1.6] * 6, KNOWN, 0)


def test_a_candidate_without_a_score_is_discarded_with_its_reason():
    assert verdict.failed("rejected_patch", "does not parse") == Verdict(
        "discard", "not run: does not parse"
    )
    assert verdict.failed("train_crashed", "OOM").reason == "stopped: OOM"


def test_the_champion_is_one_run_ahead_of_its_challenger_up_to_five():
    due = {
        runs: [n for n in range(1, 8) if verdict.champion_is_due(n, runs)] for runs in (1, 2, 3, 4)
    }
    assert due == {1: [1], 2: [1, 2], 3: [1, 2, 3], 4: [1, 2, 3, 4]}


CHAMPIONS = st.lists(SCORES, min_size=1, max_size=5)
NOISES = st.builds(Noise, st.floats(5e-4, 0.05), st.integers(0, 40))


@st.composite
def rules(draw) -> Rule:
    """Any thresholds that a profile may have."""
    limits = sorted(draw(st.lists(st.floats(0, 5), min_size=1, max_size=9)))
    # The last is where both end: thresholds to discard rise to it, those to keep fall to it.
    end = limits[len(limits) // 2]
    drop, keep = limits[: len(limits) // 2], limits[len(limits) // 2 + 1 :][::-1]
    runs = min(len(drop), len(keep))
    return Rule(keep=(*keep[:runs], end), drop=(*drop[:runs], end))


RULES = st.one_of(st.just(Rule()), rules())


@given(CHAMPIONS, RULES, st.data(), NOISES, LINES)
def test_it_ends_and_only_a_near_tie_that_shrinks_is_kept_without_gain(
    champion, rule, data, noise, lines
):
    most = len(rule.keep)
    candidate = data.draw(st.lists(SCORES, min_size=1, max_size=most))
    decided = verdict.decide(champion, candidate, noise, lines, rule)
    assert decided.z is not None
    assert decided.decision != "confirm" or len(candidate) < most
    if decided.decision == "keep" and decided.z <= rule.keep[-1]:
        assert decided.z > -verdict.TIE
        assert lines < 0
    if decided.z < -verdict.TIE:
        assert decided.decision == "discard"
    assert "\n" not in decided.reason


@given(CHAMPIONS, RULES, st.data(), st.floats(0.5, 5), st.floats(0, 2), NOISES, LINES)
def test_a_lower_score_never_gets_a_worse_verdict(champion, rule, data, score, gain, noise, lines):
    runs = data.draw(st.integers(1, len(rule.keep)))
    worse, better = (
        verdict.decide(champion, [s] * runs, noise, lines, rule) for s in (score, score - gain)
    )
    assert ORDER[better.decision] >= ORDER[worse.decision]


@given(CHAMPIONS, RULES, st.data(), SCORES, NOISES, LINES)
def test_more_lines_never_help(champion, rule, data, score, noise, lines):
    runs = data.draw(st.integers(1, len(rule.keep)))
    shorter, longer = (
        verdict.decide(champion, [score] * runs, noise, n, rule).decision
        for n in (lines, lines + 10)
    )
    assert ORDER[shorter] >= ORDER[longer]
