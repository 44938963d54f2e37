"""Nights side by side: figures computed by hand, and pairs of nights that are not comparable."""

import dataclasses
import json
import re

import pytest

from tasks.records import Program
from tasks.usage import Usage
from tasks.views import comparison
from tests.certified_night import certified_night
from tests.trials import crash, keep, make_baseline, make_state, make_trial

BUDGET = {"kind": "seconds", "amount": 300.0, "slack_seconds": 5.0}
DATASET = "d5" * 32
PROGRAM = Program("program.md", "5a" * 32, "")
HEADER = {"tag": "llm1", "proposer": "llm", "program": PROGRAM}
SETTINGS = {"budget": BUDGET, "llm": {"model": "m1"}}


def make_night(*trials, header=None, settings=None, **changes):
    spread = {**HEADER, "settings": {**SETTINGS, **(settings or {})}, **(header or {})}
    baseline = make_baseline(dataset=DATASET)
    return make_state(
        *trials, header=spread, **{"baseline": baseline, "used_seconds": 5400.0, **changes}
    )


RESEARCH = make_night(
    make_trial(1, usage=Usage(2, 1000, 100, 0.5)),
    keep(2, 1.62, proposer="llm", kind="optimizer", usage=Usage(1, 1000, 100, 0.5)),
    make_trial(3, status="rejected_patch", val_bpb=None, scores=(), usage=Usage(4, 4000, 400, 1.0)),
    crash(4),
    keep(
        5, 1.6, proposer="llm", kind="optimizer", scores=(1.59, 1.61), usage=Usage(1, 500, 100, 0.5)
    ),
    crash(6, status="train_timeout"),
)
SEARCH = make_night(
    keep(3, 1.63), header={"tag": "tpe1", "proposer": "tpe", "program": None}, finished=None
)


def table(*states):
    """The cells of each row, by its name."""
    rows = (
        comparison.text([comparison.figures(state) for state in states])
        .split("\n\n")[0]
        .splitlines()
    )
    split = [re.split(r"\s{2,}", row.strip()) for row in rows]
    return {name: cells for name, *cells in split}


def test_a_night_that_asked_no_model_has_no_dollars():
    rows = table(RESEARCH, SEARCH)
    for name in ("model calls", "tokens", "cost", "per own keep", "per 0.001 gained"):
        assert rows[name][1] == "-", name
        assert rows[name][0] != "-", name


def test_the_figures_of_a_night_are_those_of_its_ledger():
    assert dataclasses.asdict(comparison.figures(RESEARCH)) == dict(
        tag="llm1",
        profile="laptop",
        proposer="llm",
        model="m1",
        program="program.md",
        program_sha256="5a" * 32,
        finished=True,
        trials=6,
        placebos=0,
        keeps=2,
        own_keeps=2,
        stood_in=0,
        rejected=1,
        stopped=2,
        baseline=1.65,
        sd=pytest.approx(0.01),
        best=pytest.approx(1.6),
        gain=pytest.approx(0.05),
        gain_sd=pytest.approx(5.0),
        certified=None,
        fresh_gain=None,
        holdout_gain=None,
        optimism=None,
        certified_gain=None,
        confirmed=True,
        trials_to_best=5,
        hours=1.5,
        calls=8,
        tokens=7200,
        dollars=2.5,
        dollars_per_keep=1.25,
        dollars_per_gain=pytest.approx(0.05),
        keeps_by_kind={"optimizer": 2},
        dataset="d5" * 32,
        budget="300 seconds, 5 slack",
        hardware="a CPU",
    )


def test_what_fresh_runs_say_stands_below_the_searchs_gain():
    rows = table(certified_night(), SEARCH)
    assert rows["gain"] == ["0.050000", "0.020000"]
    assert rows["fresh seeds"] == ["0.040000 (0.017330 to 0.062670)", "-"]
    assert rows["holdout"] == ["0.040000 (0.017330 to 0.062670)", "-"]
    assert rows["optimism"] == ["0.010000", "-"]
    assert rows["certified"] == ["2 of 3", "no"]
    assert rows["certified gain"] == ["0.035000 (0.012330 to 0.057670)", "-"]


def test_a_best_of_one_seed_is_not_confirmed():
    assert comparison.figures(SEARCH).confirmed is False
    assert table(RESEARCH, SEARCH)["confirmed"] == ["yes", "no: one seed"]


def test_a_night_that_kept_nothing_has_no_best_trial_and_no_price_of_a_gain():
    night = comparison.figures(make_night(make_trial(1, usage=Usage(1, 10, 10, 1.0))))
    assert (night.gain, night.confirmed, night.trials_to_best) == (0.0, None, None)
    assert (night.dollars, night.dollars_per_keep, night.dollars_per_gain) == (1.0, None, None)


def test_a_keep_that_is_simpler_but_worse_has_no_price():
    night = comparison.figures(
        make_night(keep(1, 1.66, proposer="llm", usage=Usage(1, 10, 10, 1.0)))
    )
    assert night.gain == pytest.approx(-0.01)
    assert (night.dollars_per_keep, night.dollars_per_gain) == (1.0, None)


def test_an_unknown_price_is_unknown_and_not_zero():
    night = make_night(keep(1, 1.6, proposer="llm", usage=Usage(1, 10, 10, None)))
    assert (comparison.figures(night).dollars, comparison.figures(night).dollars_per_keep) == (
        None,
        None,
    )
    rows = table(night, night)
    assert rows["cost"] == rows["per own keep"] == rows["per 0.001 gained"] == ["unknown"] * 2


def test_a_stand_ins_keep_does_not_count_for_the_price_of_a_keep():
    stood_in = keep(2, 1.59, stands_in="timeout")
    paid = make_night(keep(1, 1.6, proposer="llm", usage=Usage(1, 10, 10, 1.0)), stood_in)
    night = comparison.figures(paid)
    assert (night.keeps, night.own_keeps, night.stood_in, night.dollars_per_keep) == (2, 1, 1, 1.0)
    rows = table(paid, SEARCH)
    assert (rows["stand-ins"], rows["per own keep"]) == (["1", "0"], ["$1.00", "-"])


def test_what_an_agent_used_is_unknown():
    agent = make_night(
        keep(1, 1.6, proposer="command", usage=Usage(dollars=None)), header={"proposer": "command"}
    )
    rows = table(agent, RESEARCH)
    unknown = ("model calls", "tokens", "cost", "per own keep", "per 0.001 gained")
    assert [rows[name][0] for name in unknown] == ["unknown"] * 5


def test_a_night_before_its_baseline_has_dashes():
    rows = table(
        RESEARCH, make_night(baseline=None, champion=None, champion_scores=(), finished=None)
    )
    assert [
        rows[name][1]
        for name in ("baseline", "best", "gain", "in sd", "confirmed", "trials to best")
    ] == ["-"] * 6


def test_the_table_has_a_column_for_each_night_and_a_row_for_each_kind_kept():
    rows = table(RESEARCH, SEARCH, make_night(keep(1, 1.6, kind="schedule"), header={"tag": "c"}))
    assert rows["night"] == ["llm1", "tpe1", "c"]
    assert rows["program"] == ["program.md", "-", "program.md"]
    assert rows["sha256"] == ["5a" * 6, "-", "5a" * 6]
    assert rows["finished"] == ["yes", "no", "yes"]
    assert rows["keeps: optimizer"] == ["2", "0", "0"]
    assert rows["keeps: knobs"] == ["0", "1", "0"]
    assert rows["keeps: schedule"] == ["0", "0", "1"]


def test_the_columns_are_aligned():
    text = comparison.text([comparison.figures(RESEARCH), comparison.figures(SEARCH)])
    assert len({len(line) for line in text.splitlines()}) == 1


def test_a_profile_is_shown_by_its_name_and_a_long_model_is_cut():
    header = {"profile": "/home/a/mine.toml"}
    rows = table(make_night(header=header, settings={"llm": {"model": "x" * 99}}))
    assert rows["profile"] == ["mine"]
    assert rows["model"] == ["x" * 29 + "..."]


def test_nights_with_the_same_data_budget_and_hardware_are_comparable():
    nights = [comparison.figures(RESEARCH), comparison.figures(SEARCH)]
    assert comparison.obstacles(nights) == []
    assert "comparable" not in comparison.text(nights)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"baseline": make_baseline(dataset="e6" * 32)},
            "different data or metric: llm1: d5d5d5d5d5d5; tpe1: e6e6e6e6e6e6",
        ),
        (
            {"baseline": make_baseline(dataset=DATASET, hardware="a GPU")},
            "different hardware: llm1: a CPU; tpe1: a GPU",
        ),
        (
            {"settings": {"budget": {**BUDGET, "amount": 600.0}}},
            "different budget: llm1: 300 seconds, 5 slack; tpe1: 600",
        ),
        (
            {"settings": {"budget": {**BUDGET, "slack_seconds": 9.0}}},
            "tpe1: 300 seconds, 9 slack",
        ),
    ],
)
def test_nights_that_are_not_comparable_are_shown_with_the_reason(changes, said):
    other = make_night(keep(1, 1.6), **{**changes, "header": {"tag": "tpe1"}})
    nights = [comparison.figures(RESEARCH), comparison.figures(other)]
    (line,) = comparison.obstacles(nights)
    assert line.startswith("Not comparable: ")
    assert said in line
    shown = comparison.text(nights).splitlines()
    assert shown[-1] == line
    assert shown[0].split() == ["night", "llm1", "tpe1"]


def test_a_flops_budget_has_no_slack():
    flops = {"kind": "flops", "amount": 1.2e8}
    pair = [
        make_night(settings={"budget": {**flops, "slack_seconds": slack}}) for slack in (5.0, 9.0)
    ]
    assert comparison.obstacles([comparison.figures(night) for night in pair]) == []


def test_nights_without_a_baseline_are_not_comparable():
    unknown = make_night(baseline=None)
    assert comparison.obstacles([comparison.figures(unknown)] * 2) == [
        "Not comparable: unknown data or metric: llm1, llm1: not recorded",
        "Not comparable: unknown hardware: llm1, llm1: not recorded",
    ]


def test_nights_with_the_same_value_are_grouped():
    others = [
        make_night(baseline=make_baseline(dataset=DATASET, hardware="a GPU"), header={"tag": tag})
        for tag in "ab"
    ]
    (line,) = comparison.obstacles(
        [comparison.figures(night) for night in (others[0], RESEARCH, others[1])]
    )
    assert line.endswith("hardware: a, b: a GPU; llm1: a CPU")


def test_control_characters_of_a_ledger_do_not_reach_the_terminal():
    evil = make_night(
        keep(1, 1.6, kind="\x1b[31mred\n"),
        header={"profile": "p\x1b[2J.toml"},
        baseline=make_baseline(hardware="\x1b]0;x\x07"),
    )
    text = comparison.text([comparison.figures(evil), comparison.figures(RESEARCH)])
    assert text.replace("\n", "").isprintable()


def test_the_figures_are_json():
    told = dataclasses.asdict(comparison.figures(RESEARCH))
    assert json.loads(json.dumps(told, allow_nan=False))["keeps_by_kind"] == {"optimizer": 2}


def test_placebos_are_counted_apart():
    figures = comparison.figures(
        make_night(keep(1), make_trial(2, placebo="keep"), crash(3, placebo="discard"))
    )
    assert (figures.trials, figures.keeps, figures.stopped, figures.placebos) == (1, 1, 0, 2)
    assert table(make_night(make_trial(1, placebo="keep")))["placebos"] == ["1"]
