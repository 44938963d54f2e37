import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.records import Verdict
from tasks.trial import verdict

SCORES = st.floats(0.5, 5.0)
SDS = st.floats(5e-4, 0.05)
LINES = st.integers(-200, 200)


def candidate_at(
    z: float, runs: int, sd: float = 0.01, champion: tuple[float, ...] = (1.6, 1.6, 1.6)
) -> list[float]:
    """Scores whose z against `champion` is `z`."""
    return [statistics.fmean(champion) - z * sd * math.sqrt(1 / len(champion) + 1 / runs)] * runs


@pytest.mark.parametrize(
    ("z", "runs", "lines", "decision"),
    [
        (2.01, 1, 0, "keep"),
        (2.01, 1, 150, "keep"),
        (1.99, 1, 0, "confirm"),
        (0.31, 1, 0, "confirm"),
        (0.31, 1, -9, "confirm"),
        (0.29, 1, 0, "discard"),
        (0.29, 1, -1, "confirm"),
        (-0.29, 1, -1, "confirm"),
        (-0.29, 1, 1, "discard"),
        (-0.31, 1, -9, "discard"),
        (-5.0, 1, -9, "discard"),
        (0.51, 2, 0, "keep"),
        (0.51, 2, -9, "keep"),
        (0.49, 2, 0, "discard"),
        (0.29, 2, -1, "keep"),
        (0.31, 2, -1, "keep"),
        (0.4, 2, -50, "keep"),
        (0.49, 2, -1, "keep"),
        (-0.29, 2, -1, "keep"),
        (-0.31, 2, -1, "discard"),
        (0.29, 2, 0, "discard"),
        (0.51, 2, 5, "discard"),
        (0.61, 2, 5, "keep"),
        (1.49, 2, 50, "discard"),
        (1.51, 2, 50, "keep"),
        (1.99, 2, 1000, "discard"),
        (2.01, 2, 1000, "keep"),
    ],
)
def test_the_rule(z, runs, lines, decision):
    decided = verdict.decide([1.6, 1.6, 1.6], candidate_at(z, runs), 0.01, lines)
    assert decided.decision == decision
    assert decided.z == pytest.approx(z, abs=1e-6)


@pytest.mark.parametrize(
    ("z", "runs", "lines", "reason"),
    [
        (5.8, 1, 0, "better by 0.0670 bits per byte, 5.8 standard errors: kept at once"),
        (
            1.0,
            1,
            0,
            "better by 0.0115 bits per byte, 1.0 standard errors: "
            "may be luck, a second seed decides",
        ),
        (-4.0, 1, 0, "worse by 0.0462 bits per byte, 4.0 standard errors: no gain"),
        (0.0, 1, 0, "the same score: a tie"),
        (0.0, 1, -3, "the same score: a tie with 3 fewer statements, a second seed decides"),
        (0.0, 2, -3, "the same score over 2 runs: a tie with 3 fewer statements, kept as simpler"),
        (1.0, 2, 0, "better by 0.0091 bits per byte, 1.0 standard errors over 2 runs: kept"),
        (
            0.4,
            2,
            0,
            "better by 0.0037 bits per byte, 0.4 standard errors over 2 runs: not confirmed",
        ),
        (
            1.0,
            2,
            50,
            "better by 0.0091 bits per byte, 1.0 standard errors over 2 runs: "
            "too little for 50 more statements, which must gain 1.5",
        ),
    ],
)
def test_the_reason_is_one_plain_line_with_figures(z, runs, lines, reason):
    assert verdict.decide([1.6, 1.6, 1.6], candidate_at(z, runs), 0.01, lines).reason == reason


def test_sd_is_pooled_over_groups_of_repeats():
    assert verdict.pooled_sd([[1.0, 1.2], [3.0, 3.0, 3.3]]) == pytest.approx(
        math.sqrt((0.02 + 0.06) / 3)
    )


def test_groups_of_one_run_say_nothing_about_noise():
    assert verdict.pooled_sd([[1.0, 1.2], [9.0], []]) == verdict.pooled_sd([[1.0, 1.2]])


@pytest.mark.parametrize("groups", [[], [[1.6]], [[1.6, 1.6, 1.6]]])
def test_sd_has_a_floor(groups):
    assert verdict.pooled_sd(groups) == 5e-4
    assert verdict.pooled_sd(groups, floor=0.1) == 0.1


def test_z_is_in_standard_errors_of_the_difference():
    z = verdict.z_score([1.0, 1.1, 1.2], [1.0], sd=0.05)
    assert z == pytest.approx(0.1 / (0.05 * math.sqrt(1 / 3 + 1)))


@pytest.mark.parametrize(
    ("champion", "candidate", "sd"), [([], [1.0], 0.1), ([1.0], [], 0.1), ([1.0], [1.0], 0.0)]
)
def test_z_of_nothing_is_an_error(champion, candidate, sd):
    with pytest.raises(ValueError, match="must be positive"):
        verdict.z_score(champion, candidate, sd)


def test_a_candidate_without_a_score_is_discarded_with_its_reason():
    assert verdict.failed("rejected_patch", "does not parse") == Verdict(
        "discard", "not run: does not parse"
    )
    assert verdict.failed("train_crashed", "OOM").reason == "stopped: OOM"


@given(
    st.lists(SCORES, min_size=1, max_size=5), st.lists(SCORES, min_size=1, max_size=3), SDS, LINES
)
def test_only_one_run_is_ever_confirmed_and_only_a_near_tie_that_shrinks_is_kept_without_gain(
    champion, candidate, sd, lines
):
    decided = verdict.decide(champion, candidate, sd, lines)
    assert decided.z is not None
    assert decided.decision != "confirm" or len(candidate) == 1
    if decided.decision == "keep" and decided.z <= verdict.CONFIRMED:
        assert decided.z > -verdict.TIE
        assert lines < 0
    if decided.z < -verdict.TIE:
        assert decided.decision == "discard"
    assert "\n" not in decided.reason


@given(
    st.lists(SCORES, min_size=1, max_size=3),
    st.floats(0.5, 5),
    st.floats(0, 2),
    SDS,
    LINES,
)
def test_a_lower_score_never_gets_a_worse_verdict(champion, score, gain, sd, lines):
    order = {"discard": 0, "confirm": 1, "keep": 2}
    for runs in (1, 2):
        worse, better = (
            verdict.decide(champion, [s] * runs, sd, lines) for s in (score, score - gain)
        )
        assert order[better.decision] >= order[worse.decision]


@given(
    st.lists(SCORES, min_size=1, max_size=3), st.lists(SCORES, min_size=2, max_size=2), SDS, LINES
)
def test_more_lines_never_help(champion, candidate, sd, lines):
    shorter, longer = (
        verdict.decide(champion, candidate, sd, n).decision for n in (lines, lines + 10)
    )
    assert shorter == "keep" or longer == "discard"


def play(rng: random.Random, trials: int, gain: float = 0.0, lines: int = 0) -> int:
    """Keeps in a night of candidates that all score `gain` sd better than the first champion, with
    the sd estimated."""
    champion = [rng.gauss(0, 0.0026) for _ in range(3)]
    groups, keeps = [champion], 0
    for _ in range(trials):
        scores = [rng.gauss(-gain * 0.0026, 0.0026)]
        decided = verdict.decide(champion, scores, verdict.pooled_sd(groups), lines)
        if decided.decision == "confirm":
            scores.append(rng.gauss(-gain * 0.0026, 0.0026))
            decided = verdict.decide(champion, scores, verdict.pooled_sd(groups), lines)
            groups.append(scores)
        if decided.decision == "keep":
            champion, keeps = scores, keeps + 1
    return keeps


def test_placebos_are_kept_far_less_often_than_the_best_score_so_far_would_be():
    rng, nights, trials = random.Random(0), 400, 20
    placebos = sum(play(rng, trials) for _ in range(nights)) / (nights * trials)
    greedy = 0
    for _ in range(nights):
        best = statistics.fmean(rng.gauss(0, 1) for _ in range(3))
        for score in (rng.gauss(0, 1) for _ in range(trials)):
            greedy, best = greedy + (score < best), min(best, score)
    assert placebos < 0.5 * greedy / (nights * trials)
    assert placebos < 0.08


def test_a_clear_gain_is_nearly_always_kept_and_a_clear_loss_nearly_never():
    rng = random.Random(0)
    assert sum(play(rng, 1, gain=4) for _ in range(1000)) > 970
    assert sum(play(rng, 1, gain=-2) for _ in range(1000)) < 20
