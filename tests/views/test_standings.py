"""What the report says of a tournament."""

import pytest

from tasks.records import Certification, Claim, Contender, NightState, Program
from tasks.statuses import Certificate
from tasks.usage import Usage
from tasks.views import report, standings
from tasks.views.standings import Standings
from tests.links import links
from tests.trials import keep, make_state, make_trial

A, B = "a.md", "b|[x](https://evil.example).md"
CONTENDERS = tuple(
    Contender(name, "llm", file=f"/programs/{name}", program=Program(name, digest * 32, ""))
    for name, digest in ((A, "a1"), (B, "b2"))
)
HEADER: dict[str, object] = {
    "proposer": "tournament",
    "contenders": CONTENDERS,
    "settings": {"llm": {"model": "m1"}},
}
HOUR = {"wall_seconds": 3600.0, "proposer": "llm", "usage": Usage(1, 100, 10, 0.25)}
TRIALS = (
    keep(1, 1.61, z=4.0, contender=A, **HOUR),
    make_trial(2, contender=B, **HOUR),
    keep(3, 1.60, z=2.0, contender=B, **HOUR),
    make_trial(4, contender=A, **HOUR),
    make_trial(5, contender=A, **HOUR | {"proposer": "tpe"}, stands_in="the model is down"),
    make_trial(6, placebo="discard"),
)


def certified(*claims: tuple[int, Certificate, float | None]) -> Certification:
    made = tuple(Claim((number,), word, gain, 1.0, 2, "") for number, word, gain in claims)
    return Certification("c", made, 3, None)


def standing(state: NightState) -> Standings:
    found = standings.of_night(state)
    assert found is not None
    return found


@pytest.fixture
def state():
    return make_state(*TRIALS, header=HEADER)


def test_each_trial_counts_for_its_contender_but_not_those_of_a_stand_in(state):
    first, second = standing(state).contenders
    assert (first.name, first.trials, first.stood_in, first.kept, first.runs) == (A, 3, 1, 1, 2)
    assert (second.name, second.trials, second.stood_in, second.kept) == (B, 2, 0, 1)
    assert (first.hours, first.dollars) == (2.0, 0.5)
    assert first.gain == pytest.approx(0.04)
    assert first.counted_gain == pytest.approx(0.04 * (1 - 1 / 16))
    assert first.gain_per_hour == pytest.approx(first.counted_gain / 2)
    assert (first.model, first.program, first.certified_gain) == ("m1", A, None)
    assert first.chance + second.chance == pytest.approx(1.0)


def test_what_fresh_runs_say_counts_in_place_of_the_search():
    claims = certified((1, "not_shown", 0.03), (3, "certified", 0.008))
    state = make_state(*TRIALS, header=HEADER, certification=claims)
    first, second = standing(state).contenders
    assert (first.counted_gain, first.certified_gain) == (0.0, 0.0)
    assert (second.counted_gain, second.certified_gain) == (0.008, 0.008)
    assert second.chance > first.chance
    undecided = make_state(
        *TRIALS, header=HEADER, certification=certified((1, "open", 0.03), (3, "open", None))
    )
    first, _ = standing(undecided).contenders
    assert first.counted_gain == pytest.approx(0.0375)
    assert first.certified_gain == 0.0


def test_the_verdict_says_how_sure_it_is_and_what_would_decide(state):
    found = standing(state)
    assert not found.decided
    assert found.verdict.startswith(f"{A} is better than ")
    assert f"with probability {found.chance:.2f}: not decided." in found.verdict
    gains = (1.65 - 0.001 * k for k in range(1, 200))
    many = [
        keep(k, next(gains), contender=A, **HOUR) if k % 2 else make_trial(k, contender=B, **HOUR)
        for k in range(1, 101)
    ]
    decided = standing(make_state(*many, header=HEADER))
    assert decided.decided
    assert decided.verdict.endswith(": decided.")
    losing = (make_trial(1, contender=A, **HOUR), make_trial(2, contender=B, **HOUR))
    nothing = standing(make_state(*losing, header=HEADER))
    assert nothing.verdict == "Undecided: no contender has a gain that counts."


def test_a_contender_whose_model_was_down_all_night_is_not_the_best():
    stood_in = HOUR | {"proposer": "tpe", "stands_in": "the model is down"}
    trials = [make_trial(k, contender=A, **(HOUR if k % 2 else stood_in)) for k in range(1, 9)]
    trials += [make_trial(k, contender=B, **stood_in) for k in range(9, 13)]
    found = standing(make_state(*trials, header=HEADER))
    assert found.contenders[1].chance > 0.5  # nothing is known of it, and the other kept nothing
    assert (found.best, found.decided) == (A, False)
    assert found.verdict == f"Undecided: without a trial of its own: {B}."
    none = standing(make_state(header=HEADER))
    assert none.verdict == "Undecided: no contender has a gain that counts."


def test_the_report_has_the_table_and_no_name_makes_a_link(state):
    text = report.markdown(state)
    assert "## Which contender is better" in text
    assert f"| {A} | 3 (1 by a stand-in) | 2 | 1 | 0.040000 | - |" in text
    assert links(text) == []
    assert "program of contender 2" in text
    assert "tpe stood in" in text


def test_other_nights_have_no_standings():
    state = make_state(keep(1))
    assert standings.of_night(state) is None
    assert "contender" not in report.markdown(state)
